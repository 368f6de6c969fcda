"""The model card: what it says, and that its code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import samples
from trueport.card import card, code_span, plain, role, snippet

MANIFESTS = {"decoder": samples.decoder(), "seq2seq": samples.seq2seq(), "encoder": samples.encoder()}
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}


def without_tokenizer(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same manifest of a folder that holds no tokenizer."""
    return manifest | {"files": {name: entry for name, entry in manifest["files"].items() if "tokenizer" not in name}}


def fenced(text: str, language: str) -> list[str]:
    """The code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


def write_graph(entry: dict[str, Any], folder: Path) -> None:
    """An ONNX file with the component's interface: logits from a table, a cache that grows by what came in."""
    hidden = next((t["shape"][-1] for t in entry["outputs"] if t["name"] in ("logits", "last_hidden_state")), 2)
    table = numpy_helper.from_array(np.eye(256, hidden, dtype=np.float32), "table")
    nodes, outputs = [], {tensor["name"]: tensor for tensor in entry["outputs"]}
    pairs = {pair["output"]: pair["input"] for pair in entry["state"]}
    for name, tensor in outputs.items():
        if name not in pairs:
            if len(tensor["shape"]) == 3:
                nodes.append(helper.make_node("Gather", ["table", "input_ids"], [name]))
            else:
                nodes.append(helper.make_node("Gather", ["table", "input_ids"], ["all"]))
                nodes.append(helper.make_node("ReduceMax", ["all", "axis"], [name], keepdims=0))
    grown = "encoder_hidden_states" if ".encoder." in "".join(pairs) else "input_ids"
    sources = {"past_sequence_length": "input_ids", "past_encoder_sequence_length": grown}
    inputs = {tensor["name"]: tensor for tensor in entry["inputs"]}
    for output, fed in pairs.items():
        past = inputs[fed]["shape"][2]
        total = outputs[output]["shape"][2]
        if total == "encoder_sequence_length":  # what is missing of the whole
            nodes += [
                helper.make_node("Shape", [sources[past]], [f"{output}.n"], start=1, end=2),
                helper.make_node("Shape", [fed], [f"{output}.old"], start=2, end=3),
                helper.make_node("Sub", [f"{output}.n", f"{output}.old"], [f"{output}.new"]),
            ]
        else:
            nodes.append(helper.make_node("Shape", [sources[past]], [f"{output}.new"], start=1, end=2))
        nodes += [
            helper.make_node("Shape", [fed], [f"{output}.head"], start=0, end=2),
            helper.make_node("Shape", [fed], [f"{output}.tail"], start=3, end=4),
            helper.make_node("Concat", [f"{output}.head", f"{output}.new", f"{output}.tail"], [f"{output}.s"], axis=0),
            helper.make_node("ConstantOfShape", [f"{output}.s"], [f"{output}.zeros"]),
            helper.make_node("Concat", [fed, f"{output}.zeros"], [output], axis=2),
        ]
    values = [
        [helper.make_tensor_value_info(t["name"], TYPES[t["dtype"]], t["shape"]) for t in tensors]
        for tensors in (entry["inputs"], entry["outputs"])
    ]
    axis = numpy_helper.from_array(np.array([1]), "axis")
    graph = helper.make_graph(nodes, "g", *values, initializer=[table, axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path = folder / entry["file"]
    path.parent.mkdir(exist_ok=True)
    onnx.save(model, path)


def run(code: str, folder: Path) -> str:
    """What a program prints, started in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("tokenizer", [True, False])
def test_python_compiles_and_fences_close(name: str, tokenizer: bool) -> None:
    manifest = MANIFESTS[name] if tokenizer else without_tokenizer(MANIFESTS[name])
    text = card(manifest, samples.proof())
    blocks = fenced(text, "python")
    assert len(blocks) == 3
    for block in blocks:
        compile(block, "README.md", "exec")
    assert text.count("```") % 2 == 0
    assert ("AutoTokenizer" in text) == tokenizer
    assert not re.search(r"\n{3,}", text) and text.endswith("\n")


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_plain_onnxruntime_program_runs(name: str, tmp_path: Path) -> None:
    manifest = without_tokenizer(MANIFESTS[name])
    for entry in manifest["components"].values():
        write_graph(entry, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": 3, "eos_token_id": 255}')
    code = snippet(manifest)
    assert code is not None
    printed = run(code, tmp_path)
    if name == "encoder":
        assert printed == "logits (1, 2)\n"
    elif name == "decoder":
        assert printed.split() == ["[[5", "6", "7", *["8"] * 20, "8]]"]  # the table's greedy choice is the token itself
    else:
        assert printed.split() == ["[[3", *["3"] * 19, "3]]"]


def test_irregular_state_names_are_listed_pair_by_pair() -> None:
    manifest = samples.decoder(layers=1)
    entry = manifest["components"]["model"]
    entry["inputs"][-1]["name"] = entry["state"][-1]["input"] = "memory"
    entry["outputs"][-1]["name"] = entry["state"][-1]["output"] = "memory_next"
    code = snippet(manifest)
    assert code is not None and '"memory": "memory_next",' in code
    compile(code, "snippet", "exec")


def test_unknown_inputs_get_zeros_of_their_shape() -> None:
    manifest = samples.seq2seq()
    manifest["components"]["encoder"]["inputs"] = [samples.tensor("input_features", "float32", "batch_size", 80, 3000)]
    code = snippet(manifest)
    assert code is not None and '"input_features": np.zeros([1, 80, 3000], np.float32),' in code
    compile(code, "snippet", "exec")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (
            ("input_features", "float32", "batch_size", 80, 3000),
            "# Silence below: your own features come from transformers' Auto",
        ),
        (("pixel_values", "float32", "batch_size", 3, 8, 8), "# A black image below: your own pixels come from"),
    ],
    ids=["speech", "image"],
)
def test_who_gives_speech_or_an_image_gives_no_text(tensor: tuple[Any, ...], words: str) -> None:
    manifest = samples.seq2seq()
    manifest["components"]["encoder"]["inputs"] = [samples.tensor(*tensor)]
    text = card(manifest, None)
    assert words in text and "tokenizer.decode(target[0]" in text
    assert "A text of your own" not in text and "takes what the original's takes" in text


def test_sound_is_a_second_of_silence_that_is_all_real() -> None:
    """optimum's class gives such a graph no mask, and the tokenizer beside it writes letters, and reads no text."""
    manifest = samples.encoder()
    (entry,) = manifest["components"].values()
    entry["inputs"] = [samples.tensor(name, dtype, "batch_size", "sequence_length")
                       for name, dtype in (("input_values", "float32"), ("attention_mask", "int64"))]  # fmt: skip
    manifest["source"]["task"] = "automatic-speech-recognition"
    code = snippet(manifest)
    assert code is not None and "samples = np.zeros([1, 16000], np.float32)" in code and "AutoTokenizer" not in code
    assert '"input_values": samples,' in code and '"attention_mask": np.ones(samples.shape, np.int64),' in code
    text = card(manifest, None)
    assert "ORTModel" not in text and "AutoTokenizer" not in text


def test_no_program_where_numpy_or_onnxruntime_cannot() -> None:
    manifest = samples.decoder()
    for tensor in manifest["components"]["model"]["inputs"]:
        tensor["dtype"] = "bfloat16" if tensor["dtype"] == "float32" else tensor["dtype"]
    text = card(manifest, None)
    assert "ONNX Runtime alone" not in text and "transformers.js" not in text and "trueport.load" in text
    text = card(samples.program(samples.decoder()), None)
    assert "to ExecuTorch" in text and "optimum" not in text and "transformers.js" not in text


PROGRAMS = {name: samples.program(manifest) for name, manifest in MANIFESTS.items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_described_with_its_memory(name: str) -> None:
    text = card(PROGRAMS[name], samples.proof())
    assert role(PROGRAMS[name]["components"]) == name
    assert "executorch/model.pte: 894.2 kB, xnnpack. Memory planned: " in text
    assert (
        "| Dimension | Range | Half of its bound saves |\n|---|---|---:|\n| `batch_size` | 1 to 4 | 1.0 kB |\n" in text
    )
    assert ("196.6 kB of it for caches" in text) == ("| Kept inside | Type | Shape |" in text) == (name != "encoder")
    assert ("trueport generate ." in text) == (name != "encoder") and "--runtime" not in text
    assert ("on the left" in text) == (name == "decoder")
    assert ("methods `encoder` and `decoder`" in text) == (name == "seq2seq")
    assert ("what the encoder's outputs gave" in text) == (name == "seq2seq")
    for block in fenced(text, "python"):
        compile(block, "README.md", "exec")
    assert not re.search(r"\n{3,}", text) and text.count("```") % 2 == 0


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("first", ["onnx", "executorch"])
def test_both_targets_in_one_folder(name: str, first: str) -> None:
    manifest = samples.both(MANIFESTS[name], first=first)
    text, alone = card(manifest, samples.proof()), card(MANIFESTS[name], samples.proof())
    assert "exported to ExecuTorch and ONNX Runtime" in text
    assert 'trueport.load(".", runtime="executorch")' in text
    assert ('"A text of your own." --runtime executorch' in text) == (name != "encoder")
    # What runs the ONNX graphs is as in a folder of their own.
    assert snippet(manifest) == snippet(MANIFESTS[name]) is not None
    assert fenced(text, "js") == fenced(alone, "js") and fenced(text, "js")
    assert fenced(text, "python")[-1] == fenced(alone, "python")[-1] and "ORTModelFor" in text
    second = "executorch" if first == "onnx" else "onnx"
    for component in MANIFESTS[name]["components"]:
        assert f"### {component}\n" in text and f"### {second}/{component}\n" in text
    assert not re.search(r"\n{3,}", text)


def test_front_matter() -> None:
    text = card(samples.encoder(), samples.proof())
    assert text.startswith(
        "---\nlibrary_name: trueport\npipeline_tag: text-classification\n"
        'base_model: "acme/bert-sentiment"\ntags:\n- trueport\n- onnx\n---\n'
    )
    assert "base_model" not in card(samples.decoder(), None)


def test_verdicts() -> None:
    assert "**Proven: 7 clauses, 20 cases, worst error 0.21 of its budget" in card(samples.encoder(), samples.proof())
    failed = samples.proof(verdict="failed", clauses=samples.failing())
    assert "**Not proven: padding fails: left 3 of 12" in card(samples.encoder(verdict="failed"), failed)
    text = card(samples.encoder(verdict="unproven"), None)
    assert "**Unproven: exported without a proof.**" in text and "proof.json" not in text


def test_says_the_interface_and_the_files() -> None:
    manifest = samples.seq2seq()
    text = card(manifest, samples.proof())
    assert "| `past_key_values.{0–1}.encoder.key` | `float32` |" in text
    assert "| `past_sequence_length` | 0 and up |" in text
    for path, entry in manifest["files"].items():
        assert f"| `{path}` |" in text and entry["sha256"] in text
    assert "ORTModelForSeq2SeqLM" in text and 'pipeline("text2text-generation", "this-folder"' in text
    assert "use_external_data_format" not in text  # no graph here has a weights file of its own name
    assert 'use_external_data_format: {"model.onnx": true}' in card(samples.decoder(), None)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    manifest = samples.decoder(name=samples.HOSTILE, task=samples.HOSTILE)
    entry = manifest["components"]["model"]
    for tensor in (entry["inputs"][1], entry["outputs"][-1]):
        tensor["name"] = samples.HOSTILE + '"\n```\n# not a heading'
    entry["state"][-1]["output"] = entry["outputs"][-1]["name"]
    manifest["files"][samples.HOSTILE] = {"sha256": "0", "size": 1}
    text = card(manifest, None)
    assert "pipeline_tag" not in text and "\x1b" not in text and "\u202e" not in text
    assert "\n# not a heading" not in text
    prose = re.sub(r"^```.*?^```$|(`+) .*? \1|`[^`\n]*`", "", text, flags=re.S | re.M)
    assert "<script" not in prose
    for block in fenced(text, "python"):
        compile(block, "README.md", "exec")


def test_the_same_every_time_and_no_machine_paths() -> None:
    manifest = samples.seq2seq(name="/home/someone/models/t5-dates")
    assert card(manifest, samples.proof()) == card(manifest, samples.proof())
    assert "/home/someone" not in card(manifest, samples.proof())


def test_small_words() -> None:
    assert [role(MANIFESTS[name]["components"]) for name in MANIFESTS] == list(MANIFESTS)
    assert code_span("a|b") == "`a\\|b`" and code_span("a``b") == "``` a``b ```"
    assert plain("<a> *b* [c](d)") == "&lt;a&gt; \\*b\\* \\[c\\](d)"
