"""Plant random faults into right exports and count how many the proof sees; the table is in docs/proof.md.

python tools/mutants.py                       60 faults in each of the models below, and writes the table
python tools/mutants.py --only gpt2 --count 20   prints those rows and writes nothing

A fault is one change of one node: left out, another operator, inputs swapped, a number of it changed. What the proof lets
pass is then run beside the right export on batches that the proof did not ask: where nothing differs the fault is none (the
bias of keys, which a softmax does not see; a Reshape to the shape that is there), else it was missed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "proof.md"
BEGIN, END = "<!-- tools/mutants -->", "<!-- end -->"
MODELS = ("bert", "gpt2", "mistral", "gemma3_text", "mamba", "t5", "whisper")
OTHERS = {
    "Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "Min": "Max", "Max": "Min", "And": "Or", "Or": "And",
    "Greater": "GreaterOrEqual", "GreaterOrEqual": "Greater", "Less": "LessOrEqual", "LessOrEqual": "Less",
    "Sin": "Cos", "Cos": "Sin", "Sigmoid": "Tanh", "Tanh": "Sigmoid", "Relu": "Abs", "Softplus": "Relu",
    "ReduceMean": "ReduceMax", "ReduceSum": "ReduceMax", "Sqrt": "Abs", "Ceil": "Floor", "Floor": "Ceil",
}  # fmt: skip
"""Operators that are taken for each other."""
UNORDERED = {"Add", "Mul", "And", "Or", "Min", "Max", "Equal"}
BOOKKEEPING = {
    "allowzero",
    "stash_type",
    "to",
    "qk_matmul_output_mode",
    "keepdims",
    "noop_with_empty_axes",
    "num_outputs",
}
"""Attributes whose change no runtime opens, or nobody sees."""
SMALL = 64
"""Numbers of a constant that is changed; larger ones are weights, any of which the proof reads."""
NUDGE = 1.05
BATCHES = 24
NOISE = 1e-5
"""Of the largest answer: below it float32 sums in another order."""


@dataclass(frozen=True)
class Fault:
    """A change of the node ``index``: ``bypass``, ``operator``, ``inputs``, ``attribute NAME`` or ``constant PLACE``."""

    file: str
    index: int
    kind: str


def faults(path: Path) -> Iterator[Fault]:
    """Every fault that this tool knows for a graph."""
    for index, node in enumerate(ir.load(path).graph):
        kinds = ["bypass"]
        kinds += ["operator"] if node.op_type in OTHERS else []
        kinds += ["inputs"] if len(node.inputs) > 1 and node.op_type not in UNORDERED else []
        numbers = (ir.AttributeType.INT, ir.AttributeType.FLOAT)
        kinds += [
            f"attribute {a.name}" for a in node.attributes.values() if a.type in numbers and a.name not in BOOKKEEPING
        ]
        for place, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None and 0 < value.const_value.size <= SMALL:
                kinds.append(f"constant {place}")
        yield from (Fault(path.name, index, kind) for kind in kinds)


def plant(path: Path, fault: Fault) -> bool:
    """Put a fault into the graph on disk; False where there is no place for it."""
    model = ir.load(path)
    node = list(model.graph)[fault.index]
    kind, _, where = fault.kind.partition(" ")
    if kind == "bypass":
        source, target = node.inputs[0] if node.inputs else None, node.outputs[0]
        if source is None or target.is_graph_output():
            return False
        target.replace_all_uses_with(source)
    elif kind == "operator":
        node.op_type = OTHERS[node.op_type]
    elif kind == "inputs":
        first, second = node.inputs[:2]
        if first is second:
            return False
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)
    elif kind == "attribute":
        node.attributes[where] = _other_number(node.attributes[where])
    else:
        array = node.inputs[int(where)].const_value.numpy()  # type: ignore[union-attr]
        value = ir.Value(name="planted", const_value=ir.tensor(_other(array), name="planted"))
        model.graph.register_initializer(value)
        node.replace_input_with(int(where), value)
    ir.save(model, path)
    return True


def _other_number(attribute: Any) -> Any:
    if attribute.type == ir.AttributeType.FLOAT:
        return ir.AttrFloat32(attribute.name, attribute.value * NUDGE or 0.5)
    return ir.AttrInt64(attribute.name, attribute.value + (1 if attribute.value < -1 else -1))


def _other(array: np.ndarray) -> np.ndarray:
    if array.dtype == bool:
        return ~array
    if array.dtype.kind in "iu":
        return array + 1
    usual = np.isfinite(array) & (np.abs(array) < 1e30)
    return np.where(usual, array * NUDGE if array.any() else array + 0.05, 0).astype(array.dtype)


def answers(model: Any, role: str) -> Iterator[np.ndarray]:
    """What a loaded folder says to batches that no proof asks, at real positions."""
    config = model.config
    vocabulary = config.vocab_size
    if model.main_input_name == "input_values":
        yield from _heard(model)
        return
    for number in range(BATCHES):
        draw = np.random.default_rng(1000 + number)
        rows, length = int(draw.integers(1, 5)), int(draw.integers(1, 70))
        ids = torch.from_numpy(draw.integers(0, vocabulary, (rows, length)))
        padding = draw.integers(0, length, rows)
        place = np.arange(length) if role == "decoder" else np.arange(length)[::-1]
        mask = torch.from_numpy((place >= padding[:, None]).astype(np.int64))
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if role == "seq2seq":
            given["decoder_input_ids"] = ids[:, : max(length // 2, 1)]
        if getattr(config, "num_mel_bins", None):
            frames = torch.from_numpy(draw.normal(size=(rows, config.num_mel_bins, 2 * config.max_source_positions)))
            given = {"input_features": frames.float(), "decoder_input_ids": ids[:, :8]}
        result = model(**given)
        name = "last_hidden_state" if role == "encoder" else "logits"
        real = mask.bool() if role != "seq2seq" else ...
        yield result[name][real].detach().numpy()
        if role != "encoder" and number < BATCHES // 4:
            told = {key: value for key, value in given.items() if not key.startswith("decoder")}
            yield model.generate(**told, max_new_tokens=6, do_sample=False).numpy()


def _heard(model: Any) -> Iterator[np.ndarray]:
    """What a loaded folder makes of sound of any length, padded at the right, at real positions."""
    from trueport.proof.inputs import Batch
    from trueport.proof.positions import positions

    interface = model.interfaces["model"]
    fewest, output = interface.dimension("sequence_length").minimum, interface.plain_outputs[0]
    for number in range(BATCHES):
        draw = np.random.default_rng(1000 + number)
        rows, length = int(draw.integers(1, 5)), int(draw.integers(fewest, 60 * fewest))
        counts = np.append(draw.integers(fewest, length + 1, rows - 1), length)
        mask = (np.arange(length) < counts[:, None]).astype(np.int64)
        batch = Batch(draw.normal(size=(rows, length)).astype(np.float32), mask)
        result = model(input_values=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(mask))
        real = positions(output.shape, interface, batch)
        yield result[output.name].detach().numpy()[... if real is None else real]


def differs(right: list[np.ndarray], folder: Path, role: str) -> bool:
    """Whether a folder answers anything else than the right one did."""
    import trueport

    try:
        found = list(answers(trueport.load(folder), role))
    except Exception:
        return True
    pairs = zip(right, found, strict=True)
    return any(
        a.shape != b.shape or not np.abs(a - b).max(initial=0) <= NOISE * np.abs(a).max(initial=0) for a, b in pairs
    )


def judge(name: str, count: int, seed: int) -> dict[str, Any]:
    """Faults of one model by what became of them, and those that were missed."""
    import trueport
    from tests import zoo
    from trueport.errors import TrueportError

    model = zoo.build(name)
    row: dict[str, Any] = {"name": name, "caught": 0, "none": 0, "missed": []}
    with tempfile.TemporaryDirectory() as place:
        out, copy = Path(place) / "out", Path(place) / "copy"
        trueport.export(model, out, tokenizer=None)
        role = next(entry.role for entry in zoo.ENTRIES if entry.name == name)
        right = list(answers(trueport.load(out), role))
        found = [fault for path in sorted(out.glob("onnx/*.onnx")) for fault in faults(path)]
        random.Random(seed).shuffle(found)
        for fault in found:
            if row["caught"] + row["none"] + len(row["missed"]) == count:
                break
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(out, copy)
            try:
                if not plant(copy / "onnx" / fault.file, fault) or not _opens(copy):
                    continue
                proven = _is_proven(copy, model)
            except TrueportError:
                proven = False
            verdict = "caught" if not proven else ("missed" if differs(right, copy, role) else "none")
            row[verdict] += [fault] if verdict == "missed" else 1
            print(f"{name}: {fault} {verdict}", file=sys.stderr, flush=True)
    return row


def _opens(folder: Path) -> bool:
    """Whether the runtime takes the graph: a fault that it refuses needs no proof."""
    import trueport

    try:
        trueport.load(folder)
    except Exception:
        return False
    return True


def _is_proven(folder: Path, model: Any) -> bool:
    """Whether no clause fails but those about the files' hashes, which any change fails."""
    import trueport

    failures = trueport.verify(folder, against=model).failures()
    return all(clause.clause in ("files", "assets") for clause in failures)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| model | faults | caught | no fault: nothing differs | missed |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        missed = len(row["missed"])
        total = row["caught"] + row["none"] + missed
        lines.append(f"| {row['name']} | {total} | {row['caught']} | {row['none']} | {missed} |")
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 when a fault was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models of the zoo")
    parser.add_argument("--count", type=int, default=60, help="faults in each model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    rows = [judge(name, arguments.count, arguments.seed) for name in arguments.only or MODELS]
    print(table(rows))
    missed = [f"{row['name']}: {fault}" for row in rows for fault in row["missed"]]
    print("\n".join(missed))
    if not arguments.only:
        text = DOCS.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        DOCS.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
