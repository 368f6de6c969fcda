"""Greedy generation from a Trueport folder with nothing but executorch.runtime and NumPy.

python examples/run_pte.py FOLDER "1 57 12" "1 9"      token ids in, new token ids out, one line for each prompt

This is the loop of docs/executorch.md in Python: it knows no model, and reads every name, order and bound from
trueport.json. A causal model continues each prompt; an encoder-decoder translates it. torch appears in one line alone:
executorch.runtime takes torch tensors and refuses NumPy's arrays. Tokens come from any tokenizer, for example
``tokenizers.Tokenizer.from_file("FOLDER/tokenizer.json")``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings.portable_lib import _load_for_executorch
from executorch.runtime import Runtime

Arrays = dict[str, np.ndarray]


class Method:
    """One method of a program, its inputs and outputs by name.

    Args:
        run: its inputs to its outputs, in the program's order.
        entry: its component in the manifest.
    """

    def __init__(self, run: Callable[[list[torch.Tensor]], Sequence[torch.Tensor]], entry: Mapping[str, Any]) -> None:
        self.run = run
        self.inputs = [tensor["name"] for tensor in entry["inputs"]]
        self.outputs = [tensor["name"] for tensor in entry["outputs"]]
        self.cross = {pair["input"]: pair["output"] for pair in entry["state"]}
        bounds = {name: largest for name, (_, largest) in entry["dimensions"].items()}
        self.rows, self.read = bounds["batch_size"], bounds.get("sequence_length")
        # The cache holds the longest past and the token that follows it.
        self.length = bounds["past_sequence_length"] + 1 if "past_sequence_length" in bounds else None
        self.source = bounds.get("encoder_sequence_length")

    def __call__(self, feeds: Arrays) -> Arrays:
        """Arrays by name to arrays by name; inputs that the method does not take are left out."""
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise SystemExit(f"The program takes {', '.join(missing)}, which this script cannot make of tokens")
        ordered = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.inputs]
        results = self.run(ordered)
        return {name: result.numpy() for name, result in zip(self.outputs, results, strict=True)}


class Folder:
    """What lies in an artefact: its methods by component, and the tokens that generation needs."""

    def __init__(self, folder: Path) -> None:
        components = json.loads((folder / "trueport.json").read_text(encoding="utf-8"))["components"]
        entries = {
            name.rpartition("/")[2]: entry for name, entry in components.items() if entry["target"] == "executorch"
        }
        if not entries:
            raise SystemExit(f"{folder} holds no ExecuTorch program; export with --to executorch")
        first = next(iter(entries.values()))
        if "data" in first:  # the weights lie in a file of their own
            module = _load_for_executorch(str(folder / first["file"]), str(folder / first["data"]))
            runs = {name: partial(module.run_method, entry["method"]) for name, entry in entries.items()}
        else:
            self.program = Runtime.get().load_program(folder / first["file"])
            runs = {name: self.program.load_method(entry["method"]).execute for name, entry in entries.items()}
        self.methods = {name: Method(runs[name], entry) for name, entry in entries.items()}
        settings: dict[str, Any] = {}
        for name in ("config.json", "generation_config.json"):
            if (folder / name).is_file():
                found = json.loads((folder / name).read_text(encoding="utf-8"))
                settings |= {key: value for key, value in found.items() if value is not None}
        ends = settings.get("eos_token_id", [])
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.pad = int(settings.get("pad_token_id", min(self.ends, default=0)))
        self.start = int(settings.get("decoder_start_token_id", settings.get("bos_token_id", 0)))


def generate(
    folder: Folder, prompts: Sequence[Sequence[int]], new_tokens: int, *, chunk: int | None = None
) -> list[list[int]]:
    """The likeliest continuation of each prompt, up to and including its end token.

    Args:
        folder: what to run.
        prompts: token ids, of any lengths; an encoder-decoder's sources.
        new_tokens: at most so many for each prompt.
        chunk: tokens of a causal prompt to read in one call; None reads as many as the program takes.
    """
    if "decoder" not in folder.methods:
        (method,) = folder.methods.values()
        if method.length is None:
            raise SystemExit("This program generates nothing: call Method with its inputs instead")
        ids, mask = padded(prompts, folder.pad, left=True)
        return _decode(folder, method, "attention_mask", ids, mask, {}, new_tokens, chunk)
    encoder, method = folder.methods["encoder"], folder.methods["decoder"]
    ids, mask = padded(prompts, folder.pad, left=False)
    _check(encoder, len(ids), source=ids.shape[1])
    states = encoder({"input_ids": ids, "attention_mask": mask})
    # The cross keys and values go from the encoder's outputs to the decoder's inputs, at every step the same.
    given = {name: states[output] for name, output in method.cross.items()} | {"encoder_attention_mask": mask}
    first = np.full((len(ids), 1), folder.start, dtype=np.int64)
    return _decode(folder, method, "decoder_attention_mask", first, np.ones_like(first), given, new_tokens, chunk)


def _decode(
    folder: Folder,
    method: Method,
    mask_name: str,
    ids: np.ndarray,
    mask: np.ndarray,
    given: Arrays,
    new_tokens: int,
    chunk: int | None,
) -> list[list[int]]:
    """Read ``ids`` under ``mask``, both (batch, length) int64, then one token at a time."""
    _check(method, len(ids), total=ids.shape[1] + new_tokens - 1)
    said: list[list[int]] = [[] for _ in ids]
    done = np.zeros(len(ids), dtype=bool)
    step, past = ids, 0
    while True:
        size = min(step.shape[1], chunk or method.read or step.shape[1])
        for begin in range(0, step.shape[1], size):
            tokens = step[:, begin : begin + size]
            seen = mask[:, : past + tokens.shape[1]]
            # The mask's length tells the program where in its cache the tokens go. As long as the tokens: a new start.
            positions = np.maximum(seen.cumsum(-1) - 1, 0)[:, -tokens.shape[1] :]
            feeds = {"input_ids": tokens, mask_name: seen, "position_ids": positions}
            logits = method(feeds | given)["logits"]
            past += tokens.shape[1]
        best = logits[:, -1].argmax(-1)
        for row, token in enumerate(best.tolist()):
            if not done[row]:
                said[row].append(token)
        done |= np.isin(best, list(folder.ends))
        if done.all() or len(max(said, key=len)) >= new_tokens:
            return said
        step = np.where(done, folder.pad, best)[:, None].astype(np.int64)
        mask = np.concatenate([mask, np.ones_like(step)], axis=1)


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one length and the mask over them, both (batch, length) int64.

    A causal model needs its padding on the left, where the last position is each row's own; an encoder takes it on
    the right, where it moves no position.
    """
    ids = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(ids.shape[1] - len(row), None) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


def _check(method: Method, rows: int, *, total: int | None = None, source: int | None = None) -> None:
    """The program's memory was planned for these bounds: past them there is nothing to write to."""
    for what, asked, largest in (
        ("prompts", rows, method.rows),
        ("tokens, prompt and new ones together,", total, method.length),
        ("tokens of source", source, method.source),
    ):
        if asked is not None and largest is not None and asked > largest:
            raise SystemExit(f"{asked} {what} are more than the program serves: {largest}")


def main() -> None:
    """Print the new token ids of each prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `trueport export --to executorch` wrote")
    parser.add_argument("prompts", nargs="+", help="token ids with spaces between them")
    parser.add_argument("--new-tokens", type=int, default=20, help="at most so many (default 20)")
    parser.add_argument("--chunk", type=int, help="tokens of a prompt to read in one call")
    arguments = parser.parse_args()
    try:
        prompts = [[int(token) for token in prompt.split()] for prompt in arguments.prompts]
    except ValueError as error:
        parser.error(f"a prompt is token ids, whole numbers: {error}")
    if not all(prompts) or arguments.new_tokens < 1 or (arguments.chunk or 1) < 1:
        parser.error("each prompt has one token at least, and --new-tokens and --chunk are 1 or more")
    for row in generate(Folder(arguments.folder), prompts, arguments.new_tokens, chunk=arguments.chunk):
        print(*row)


if __name__ == "__main__":
    sys.exit(main())
