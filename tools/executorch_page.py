"""docs/executorch.md, from the interfaces of the repository's examples: how a C++ program runs their ``.pte``.

python tools/executorch_page.py --update      writes the page
python tools/executorch_page.py --check       exit code 1 when the committed page says something else
python tools/executorch_page.py --cpp FOLDER  writes the page's three programs as llama-tales.cpp and so on
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trueport.interface import Interface, Tensor
from trueport.words import grouped, range_words

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "executorch.md"
TEMPLATES = Path(__file__).resolve().parent / "templates" / "executorch"
MODELS = {"llama-tales": "decoder.cpp", "t5-dates": "seq2seq.cpp", "bert-sentiment": "encoder.cpp"}
"""The examples, and the program that runs each."""
ASSIGNED = {
    "input_ids": "tensor(ids)",
    "attention_mask": "tensor(mask)",
    "position_ids": "tensor(positions(mask, ids[0].size()))",
    "token_type_ids": "tensor(zeros(ids))",
}
"""What the programs feed to an input."""
TOKENS = {"pad": "pad", "end": "eos", "start": "decoder_start"}
"""What the programs call the tokens of a generation config."""


def main() -> int:
    """Exit code 0 when the page is as committed, or was written."""
    arguments = _arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    views = {name: view(name) for name in MODELS}
    if arguments.cpp:
        for name, known in views.items():
            (arguments.cpp / f"{name}.cpp").write_text(f"{_common()}\n{known['program']}\n", encoding="utf-8")
        return 0
    text = page(views)
    if arguments.update:
        DOCS.write_text(text, encoding="utf-8")
        print(f"{DOCS.relative_to(ROOT)}: written")
    elif text != DOCS.read_text(encoding="utf-8"):
        print(f"{DOCS.relative_to(ROOT)} is stale: run python tools/executorch_page.py --update", file=sys.stderr)
        return 1
    else:
        print("the page is as committed")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--update", action="store_true", help="write docs/executorch.md")
    chosen.add_argument("--check", action="store_true", help="compare with the committed page, write nothing")
    chosen.add_argument("--cpp", type=Path, metavar="FOLDER", help="write the C++ programs to this folder")
    return parser.parse_args()


def interfaces(name: str, options: Mapping[str, Any] | None = None) -> tuple[dict[str, Interface], Any]:
    """The interface of each method that the ExecuTorch target makes of an example, and the example's token settings.

    ``options`` are the target's, such as ``max_batch``; none means its own defaults.
    """
    from trueport.capture import capture
    from trueport.quiet import quiet
    from trueport.source import load_source
    from trueport.targets import find_target

    with quiet():
        source = load_source(ROOT / "examples" / "models" / name, tokenizer=None)
        parts = find_target("executorch").components(source.model, untrained=source.untrained, options=options or {})
        # Only the captured program knows its outputs' shapes; it is not lowered, so this takes seconds.
        found = {part.stem: capture(part).interface for part in parts}
    return found, getattr(source.model, "generation_config", None) or source.model.config


def view(name: str) -> dict[str, Any]:
    """What the page says about one example: its methods in tables, and its program."""
    parts, settings = interfaces(name)
    return {
        "name": name,
        "methods": [_method(method, interface) for method, interface in parts.items()],
        "pairs": [(pair.output, pair.input) for interface in parts.values() for pair in interface.state],
        "program": _render(MODELS[name], **_program(name, parts, settings)).rstrip(),
    }


def page(views: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of docs/executorch.md."""
    decoder = next(view for name, view in views.items() if MODELS[name] == "decoder.cpp")
    return _render("page.md", views=views, common=_common().rstrip(), decoder=decoder["methods"][0])


def _common() -> str:
    return (TEMPLATES / "common.cpp").read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def _method(name: str, interface: Interface) -> dict[str, Any]:
    """One method's tables: inputs and outputs in order, buffers, and dimensions with what bounds them."""
    return {
        "name": name,
        "inputs": _numbered(interface.inputs),
        "outputs": _numbered(interface.outputs),
        "kept": grouped(tensor.__dict__ for tensor in interface.kept),
        "dimensions": [
            (dimension.name, range_words([dimension.minimum, dimension.maximum]), _words(dimension.because))
            for dimension in interface.dimensions
        ],
        "total": _total(interface),
    }


def _numbered(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    return [
        {"index": index, "name": tensor.name, "dtype": tensor.dtype, "shape": ", ".join(map(str, tensor.shape))}
        for index, tensor in enumerate(tensors)
    ]


def _words(because: str) -> str:
    """What bounds a dimension: a flag, or the model's own limit."""
    return f"`{because}`" if because.startswith("--") else because or "the model"


def _total(interface: Interface) -> int | None:
    """Past and new tokens together, at the most."""
    names = {dimension.name for dimension in interface.dimensions}
    return interface.largest("past_sequence_length") + 1 if "past_sequence_length" in names else None


def _program(name: str, parts: Mapping[str, Interface], settings: Any) -> dict[str, Any]:
    """The values that an example's program is made of."""
    method, last = list(parts.items())[-1]
    bounds: dict[str, Any] = {d.name: d.maximum for interface in parts.values() for d in interface.dimensions}
    bounds |= {"total": _total(last), "source": bounds.get("encoder_sequence_length")}
    tokens = {key: getattr(settings, f"{token}_token_id", None) for key, token in TOKENS.items()}
    known: dict[str, Any] = {"name": name, "method": method, "bounds": bounds, "tokens": tokens}
    outputs = _numbered(last.outputs)
    if MODELS[name] == "encoder.cpp":
        return known | {"inputs": _inputs(last, ASSIGNED), "output": outputs[0]}
    known["logits"] = next(output["index"] for output in outputs if output["name"] == "logits")
    if MODELS[name] == "decoder.cpp":
        return known | {"inputs": _inputs(last, ASSIGNED), "positions": last.has_input("position_ids")}
    encoder = parts["encoder"]
    numbers = {tensor.name: index for index, tensor in enumerate(encoder.outputs)}
    fed = {pair.input: f"cross[{numbers[pair.output]}]" for pair in last.state}
    fed |= {"input_ids": "tensor(step)", "decoder_attention_mask": "tensor(step_mask)"}
    fed["encoder_attention_mask"] = "source_mask"
    lines = [f"{fed[tensor.name]},  // {tensor.name}" for tensor in last.inputs]
    source = ASSIGNED | {"attention_mask": "source_mask"}
    return known | {"encoder_inputs": _inputs(encoder, source), "inputs": lines}


def _inputs(interface: Interface, assigned: Mapping[str, str]) -> str:
    """The inputs in order; KeyError where the programs know none of this name."""
    return ", ".join(assigned[tensor.name] for tensor in interface.inputs)


if __name__ == "__main__":
    sys.exit(main())
