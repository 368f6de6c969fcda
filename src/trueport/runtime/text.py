"""Text in, text out: what ``trueport generate`` does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from trueport.errors import ArtifactError, Interruption, RunError
from trueport.runtime import load
from trueport.words import is_unicode


def stream(
    folder: Path,
    text: str,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    memory: str = "fast",
    runtime: str | None = None,
    file: IO[str] | None = None,
) -> str:
    """Generate from ``text``, writing each piece as soon as it is certain; returns the whole.

    Args:
        folder: an artefact with a tokenizer.
        text: the prompt, or a seq2seq model's source.
        options: for ``generate``. More than one beam cannot be streamed and is written at its end.
        seed: of torch's generator.
        memory, runtime: as ``load`` takes them.
        file: where to write; stdout when None.
    """
    import torch

    out = sys.stdout if file is None else file
    if not is_unicode(text):  # bytes of a command line that are no text
        raise RunError("The text is not UTF-8", "Give it in the encoding of this terminal.")
    model = load(folder, memory=memory, runtime=runtime)
    if not model.can_generate():
        raise RunError(f"{folder} holds an encoder, which generates no text", "Call it from Python: trueport.load().")
    given = getattr(model, "main_input_name", "input_ids")
    if given != "input_ids":
        raise RunError(
            f"{folder} holds a model that reads {given}, no text",
            f"Call trueport.load(...).generate({given}=...) from Python.",
        )
    tokenizer = _tokenizer(folder)
    inputs = tokenizer(text, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    if not inputs["input_ids"].numel():
        raise RunError("The text has no tokens", "Give a prompt.")
    streamer = None
    if options.get("num_beams", 1) == 1:
        streamer = _streamer(tokenizer, out, skip_prompt=not model.config.is_encoder_decoder)
    torch.manual_seed(seed)
    try:
        # Stop strings are looked for with the tokenizer; a result of another form may be what the folder asks for.
        tokens = model.generate(
            **inputs, **options, streamer=streamer, tokenizer=tokenizer, return_dict_in_generate=False
        )[0]
    except KeyboardInterrupt as error:
        if streamer is not None:  # the line is not ended
            print(file=out, flush=True)
        raise Interruption("Interrupted while generating") from error
    except (TypeError, ValueError) as error:  # transformers looks at some of them only when it uses them
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"These options cannot be generated with: {reason}",
            f"Correct them, or {folder / 'generation_config.json'}, which gives the others.",
        ) from error
    if not model.config.is_encoder_decoder:
        tokens = tokens[inputs["input_ids"].shape[1] :]
    result = str(tokenizer.decode(tokens, skip_special_tokens=True))
    if streamer is None:
        print(result, file=out, flush=True)
    return result


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ArtifactError(f"{folder} holds no tokenizer to read text with", "Export with one.") from error


def _streamer(tokenizer: Any, out: IO[str], *, skip_prompt: bool) -> Any:
    from transformers import TextStreamer

    class Writer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(text, end="\n" if stream_end else "", file=out, flush=True)

    return Writer(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
