"""Manifests and proofs as an export writes them, for the tests of what shows them."""

from __future__ import annotations

from typing import Any

CORE = ("shapes", "padding", "inert", "causal", "cache", "window", "generate", "finite")
HOSTILE = '<script>alert("1")</script>\x1b[31m\u202e|`[x](https://evil.example)'


def tensor(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    """A tensor of an interface."""
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def _state(kind: str, past: str, total: str, layers: int) -> tuple[list[Any], list[Any], list[Any]]:
    inputs, outputs, pairs = [], [], []
    for layer in range(layers):
        for part in ("key", "value"):
            name = f"{layer}.{kind}{part}"
            inputs.append(tensor(f"past_key_values.{name}", "float32", "batch_size", 2, past, 4))
            outputs.append(tensor(f"present.{name}", "float32", "batch_size", 2, total, 4))
            pairs.append({"input": inputs[-1]["name"], "output": outputs[-1]["name"], "axis": 2, "initial": "empty"})
    return inputs, outputs, pairs


def _manifest(source: dict[str, Any], components: dict[str, Any], verdict: str) -> dict[str, Any]:
    names = [entry["file"] for entry in components.values()]
    names += [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "onnx/model.onnx_data",
    ]
    return {
        "schema_version": 1,
        "source": source,
        "versions": {"trueport": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "onnxruntime": "1.31.1"},
        "components": components,
        "patches": ["transformers.masking_utils.sdpa_mask", "torch.Tensor.view"],
        "files": {name: {"sha256": f"{index:02x}" * 32, "size": 37**index} for index, name in enumerate(sorted(names))},
        "proof": {"verdict": verdict},
    }


def decoder(*, layers: int = 3, verdict: str = "proven", **source: Any) -> dict[str, Any]:
    """A causal language model's manifest."""
    past, total = "past_sequence_length", "past_sequence_length + sequence_length"
    inputs, outputs, pairs = _state("", past, total, layers)
    component = {
        "target": "onnx",
        "file": "onnx/model.onnx",
        "inputs": [
            tensor("input_ids", "int64", "batch_size", "sequence_length"),
            tensor("attention_mask", "int64", "batch_size", total),
            tensor("position_ids", "int64", "batch_size", "sequence_length"),
            *inputs,
        ],
        "outputs": [tensor("logits", "float32", "batch_size", "sequence_length", 32), *outputs],
        "state": pairs,
        "dimensions": {"batch_size": [1, None], "sequence_length": [1, 1024], "past_sequence_length": [0, 1023]},
    }
    default = {"kind": "folder", "name": "llama-tales", "class": "LlamaForCausalLM", "task": "text-generation"}
    return _manifest(default | {"role": "decoder", "dtype": "float32"} | source, {"model": component}, verdict)


def seq2seq(*, layers: int = 2, verdict: str = "proven", **source: Any) -> dict[str, Any]:
    """An encoder-decoder's manifest."""
    length = "encoder_sequence_length"
    own = _state("decoder.", "past_sequence_length", "past_sequence_length + sequence_length", layers)
    cross = _state("encoder.", "past_encoder_sequence_length", length, layers)
    inputs, outputs, pairs = (a + b for a, b in zip(own, cross, strict=True))
    components = {
        "encoder": {
            "target": "onnx",
            "file": "onnx/encoder_model.onnx",
            "inputs": [
                tensor("input_ids", "int64", "batch_size", length),
                tensor("attention_mask", "int64", "batch_size", length),
            ],
            "outputs": [tensor("last_hidden_state", "float32", "batch_size", length, 8)],
            "state": [],
            "dimensions": {"batch_size": [1, None], length: [1, None]},
        },
        "decoder": {
            "target": "onnx",
            "file": "onnx/decoder_model_merged.onnx",
            "inputs": [
                tensor("encoder_attention_mask", "int64", "batch_size", length),
                tensor("input_ids", "int64", "batch_size", "sequence_length"),
                tensor("encoder_hidden_states", "float32", "batch_size", length, 8),
                *inputs,
            ],
            "outputs": [tensor("logits", "float32", "batch_size", "sequence_length", 32), *outputs],
            "state": pairs,
            "dimensions": {
                "batch_size": [1, None],
                "sequence_length": [1, None],
                "past_sequence_length": [0, None],
                length: [1, None],
                "past_encoder_sequence_length": [0, None],
            },
        },
    }
    default = {"kind": "folder", "name": "t5-dates", "class": "T5ForConditionalGeneration"}
    default |= {"task": "text2text-generation", "role": "seq2seq", "dtype": "float32"}
    return _manifest(default | source, components, verdict)


def encoder(*, verdict: str = "proven", **source: Any) -> dict[str, Any]:
    """A classifier's manifest."""
    shape = ("batch_size", "sequence_length")
    component = {
        "target": "onnx",
        "file": "onnx/model.onnx",
        "inputs": [tensor(name, "int64", *shape) for name in ("input_ids", "attention_mask", "token_type_ids")],
        "outputs": [tensor("logits", "float32", "batch_size", 2)],
        "state": [],
        "dimensions": {"batch_size": [1, None], "sequence_length": [1, 512]},
    }
    default = {"kind": "hub", "name": "acme/bert-sentiment", "class": "BertForSequenceClassification"}
    default |= {"task": "text-classification", "role": "encoder", "dtype": "float32"}
    return _manifest(default | source, {"model": component}, verdict)


def program(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same model's manifest for ExecuTorch: bounded, planned, its own cache kept inside."""
    entries = {name: _method(name, entry) for name, entry in manifest["components"].items()}
    if "encoder" in entries:
        entries["encoder"]["outputs"] += [
            tensor(pair["output"], "float32", "batch_size", 2, "encoder_sequence_length", 4)
            for pair in entries["decoder"]["state"]
        ]
    versions = manifest["versions"] | {"executorch": "1.4.1"}
    files = {name: entry for name, entry in manifest["files"].items() if not name.startswith("onnx/")}
    files |= {"executorch/model.pte": {"sha256": "ab" * 32, "size": 894208}}
    return manifest | {"components": entries, "versions": versions, "files": files}


def _method(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """One component of an ONNX manifest as a method; only a cache over encoder states goes in and out."""
    state = [pair for pair in entry["state"] if ".encoder." in pair["input"]]
    hidden = {pair[side] for pair in entry["state"] if pair not in state for side in ("input", "output")}
    outer = {pair["output"] for pair in state}
    kept = [
        found | {"shape": [4, *found["shape"][1:2], 64, *found["shape"][3:]]}
        for found in entry["inputs"]
        if found["name"] in hidden
    ]
    saved = {axis: 1000 * (index + 1) for index, axis in enumerate(entry["dimensions"])}
    return {
        "target": "executorch",
        "file": "executorch/model.pte",
        "method": "forward" if name == "model" else name,
        "backend": "xnnpack",
        "memory": {"arena": 1540160, "kept": 196608 if kept else 0, "saved_by_half": saved},
        "inputs": [found for found in entry["inputs"] if found["name"] not in hidden],
        "outputs": [found for found in entry["outputs"] if found["name"] not in hidden | outer],
        "state": [pair | {"initial": "encoder"} for pair in state],
        "dimensions": {
            axis: [low, 4 if axis == "batch_size" else 64] for axis, (low, _) in entry["dimensions"].items()
        },
    } | ({"kept": kept} if kept else {})


def both(manifest: dict[str, Any], *, first: str = "onnx") -> dict[str, Any]:
    """A folder with both targets: the second one's components carry its name."""
    parts = {"onnx": manifest, "executorch": program(manifest)}
    second = next(name for name in parts if name != first)
    named = {f"{second}/{name}": entry for name, entry in parts[second]["components"].items()}
    files = parts["onnx"]["files"] | parts["executorch"]["files"]
    return parts["executorch"] | {"components": parts[first]["components"] | named, "files": files}


def batch(rows: int, length: int, pads: int) -> dict[str, Any]:
    """A worst input, padded on the left."""
    ids = [[0] * pads + [7 + (13 * row + 5 * i) % 140 for i in range(length - pads)] for row in range(rows)]
    return {"input_ids": ids, "attention_mask": [[0] * pads + [1] * (length - pads) for _ in range(rows)]}


def case(name: str, error: float | None, budget: float, worst: Any = None, note: str = "") -> dict[str, Any]:
    """One comparison."""
    return {"case": name, "error": error, "budget": budget, "worst_input": worst, "note": note}


def clause(
    name: str, cases: list[Any], status: str = "pass", reason: str = "", component: str = "model"
) -> dict[str, Any]:
    """One clause's result."""
    return {"clause": name, "component": component, "status": status, "reason": reason, "cases": cases, "seconds": 0.41}


def proof(*, verdict: str = "proven", reference: bool = True, clauses: list[Any] | None = None) -> dict[str, Any]:
    """A proof; by default of everything but a window, with padding as the worst."""
    given = {"class": "T5ForConditionalGeneration", "name": "t5-dates", "dtype": "float32", "attention": "sdpa"}
    return {
        "schema_version": 1,
        "verdict": verdict,
        "seed": 7,
        "reference": given if reference else None,
        "tolerance": {
            "multiple": 16,
            "noise_floor": 1.1e-7,
            "words": "the original in float32 against itself in float64, on the proof's own inputs",
        },
        "clauses": passing() if clauses is None else clauses,
    }


def passing() -> list[dict[str, Any]]:
    """All clauses, none failing."""
    results = []
    for name in CORE:
        if name == "window":
            results.append(clause(name, [], "not applicable", "the model has no sliding window"))
        elif name == "generate":
            results.append(
                clause(name, [case("greedy, 3 ragged prompts", 0, 0.0), case("beam 3", 0, 0.0, note="1 tie")])
            )
        elif name == "padding":
            cases = [
                case("left 3 of 12", 7.1e-6, 3.4e-5, batch(3, 12, 3)),
                case("right 5 of 12", 1.2e-6, 3.4e-5, batch(2, 12, 0)),
                case("holes", 4.4e-7, 3.4e-5, batch(12, 60, 9), "one row fully masked"),
            ]
            results.append(clause(name, cases))
        else:
            results.append(
                clause(name, [case(f"{name} {i}", 10.0 ** -(7 + i), 3.4e-5, batch(2, 6, 1)) for i in range(3)])
            )
    return results


def failing() -> list[dict[str, Any]]:
    """As ``passing``, but padding fails badly."""
    results = passing()
    results[1] = clause(
        "padding",
        [
            case("left 3 of 12, batch 3", 3.7, 2.1e-5, batch(3, 12, 3), "row 1, position 4 of logits"),
            case("right 5 of 12, batch 3", 1.2e-6, 2.1e-5, batch(3, 12, 0)),
        ],
        "fail",
        "padding changes what real positions see",
    )
    return results
