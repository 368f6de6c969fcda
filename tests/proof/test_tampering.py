"""Folders that were changed, their manifest made to fit: the original tells."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import trueport
from tests.conftest import EXAMPLES, Exported, Once
from tests.custom.test_export import build
from trueport.artifact import MANIFEST, list_files, write_json
from trueport.errors import TrueportError
from trueport.proof.result import Proof


def rehashed(folder: Path) -> Path:
    """The manifest vouches for the files as they are now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = list_files(folder)
    write_json(folder / MANIFEST, manifest)
    return folder


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def failed(proof: Proof) -> set[str]:
    return {clause.clause for clause in proof.clauses if clause.status == "fail"}


def clamp_positions(path: Path, largest: int) -> None:
    """Every position past ``largest`` becomes ``largest``."""
    model = onnx.load(path)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "position_ids":
                node.input[index] = "clamped"
    model.graph.initializer.append(numpy_helper.from_array(np.array(largest), "largest"))
    model.graph.node.insert(0, helper.make_node("Min", ["position_ids", "largest"], ["clamped"]))
    onnx.save(model, path)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [33, 64, 120])
def test_positions_that_end_early(copied: Exported, largest: int) -> None:
    folder = copied("llama-tales")
    clamp_positions(folder / "onnx" / "model.onnx", largest)
    proof = trueport.verify(rehashed(folder), against=EXAMPLES / "llama-tales", clauses=["shapes"])
    assert failed(proof) == {"shapes"}


@pytest.mark.slow
@pytest.mark.parametrize("row", [34, 50])
def test_a_spoilt_row_of_a_position_table(copied: Exported, row: int) -> None:
    folder = copied("bert-sentiment")
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    table = next(t for t in model.graph.initializer if t.name.endswith("position_embeddings.weight"))
    array = numpy_helper.to_array(table).copy()
    array[row] = 0
    table.CopyFrom(numpy_helper.from_array(array, table.name))
    onnx.save(model, path)
    proof = trueport.verify(rehashed(folder), against=EXAMPLES / "bert-sentiment", clauses=["shapes"])
    assert failed(proof) == {"shapes"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("generation_config.json", lambda content: content.update(max_new_tokens=3)),
        ("generation_config.json", lambda content: content.update(num_beams=3)),
        ("config.json", lambda content: content.update(rms_norm_eps=1e-2)),
        ("tokenizer.json", lambda content: content["model"]["vocab"].update(x=1)),
    ],
)
def test_assets_that_are_not_the_originals(copied: Exported, file: str, change: Callable[[dict], None]) -> None:
    folder = copied("llama-tales")
    edit_json(folder / file, change)
    proof = trueport.verify(rehashed(folder), against=EXAMPLES / "llama-tales", clauses=["causal"])
    assert failed(proof) == {"assets"}
    assert file in next(clause.reason for clause in proof.clauses if clause.clause == "assets")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool.jinja", "added_tokens.json"])
def test_assets_that_the_original_does_not_have(copied: Exported, name: str) -> None:
    """A template that came by itself would put words into every conversation."""
    folder = copied("llama-tales")
    before = trueport.verify(folder, against=EXAMPLES / "llama-tales", clauses=["causal"])
    assert not failed(before)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    proof = trueport.verify(rehashed(folder), against=EXAMPLES / "llama-tales", clauses=["causal"])
    assert failed(proof) == {"assets"}
    assert f"{name} is not the original's" in next(c.reason for c in proof.clauses if c.clause == "assets")


def test_a_tokenizer_that_lacks_a_part(copied: Exported) -> None:
    folder = copied("llama-tales")
    (folder / "tokenizer_config.json").unlink()
    proof = trueport.verify(rehashed(folder), against=EXAMPLES / "llama-tales", clauses=["causal"])
    assert failed(proof) == {"assets"}


@pytest.mark.slow
def test_a_manifest_that_lies_about_the_dtype(copied: Exported) -> None:
    folder = copied("llama-tales")
    edit_json(folder / MANIFEST, lambda content: content["components"]["model"]["outputs"][0].update(dtype="bfloat16"))
    with pytest.raises(TrueportError, match="not what the manifest says"):
        trueport.verify(folder)


@pytest.mark.slow
def test_a_manifest_that_says_the_original_is_coarser_than_the_graph(copied: Exported) -> None:
    """The original would be run in that dtype, and its rounding be the tolerance for weights that are all off."""
    folder = copied("llama-tales")
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    for table in (t for t in model.graph.initializer if len(t.dims) == 2 and t.data_type == onnx.TensorProto.FLOAT):
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) * np.float32(1.001), table.name))
    onnx.save(model, path)
    edit_json(folder / "config.json", lambda content: content.update(dtype="bfloat16"))
    edit_json(folder / MANIFEST, lambda content: content["source"].update(dtype="bfloat16"))
    with pytest.raises(TrueportError, match="bfloat16, and its graphs have nothing in it"):
        trueport.verify(rehashed(folder), against=EXAMPLES / "llama-tales", clauses=["shapes"])


@pytest.mark.slow
def test_a_manifest_that_says_of_float_weights_that_they_are_quantised(copied: Exported) -> None:
    """It would be held to a gate, which one weight of a norm that is a tenth too large keeps."""
    folder = copied("llama-tales")
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    norm = next(t for t in model.graph.initializer if t.name == "model.norm.weight")
    array = numpy_helper.to_array(norm).copy()
    array[0] *= 1.1
    norm.CopyFrom(numpy_helper.from_array(array, norm.name))
    onnx.save(model, path)
    edit_json(folder / MANIFEST, lambda content: content.update(quantize={"kind": "int4", "layers": ["lm_head"]}))
    proof = trueport.verify(rehashed(folder), against=EXAMPLES / "llama-tales", clauses=["shapes", "quality"])
    assert failed(proof) == {"files", "shapes"}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["source"].update(reread_past=2),
        lambda content: content["source"].update(task="fill-mask"),
        lambda content: content.update(optimized={}),
        lambda content: content["proof"].update(verdict="failed"),
    ],
)
def test_a_manifest_that_says_other_things_than_the_proven_one(
    copied: Exported, change: Callable[[dict], None]
) -> None:
    """With ``reread_past`` a model forgot its prompt after two tokens, and passed."""
    folder = copied("llama-tales")
    edit_json(folder / MANIFEST, change)
    assert failed(trueport.verify(folder, clauses=["causal"])) == {"files"}


def test_a_manifest_whose_interface_is_not_the_proven_one(copied: Exported) -> None:
    """Inputs that change places are fed into each other: a program takes them by place."""
    folder = copied("llama-tales")
    edit_json(folder / MANIFEST, lambda content: content["components"]["model"]["inputs"].reverse())
    proof = trueport.verify(folder, clauses=["causal"])
    assert failed(proof) == {"files"}
    assert "proof.json was made for" in next(clause.reason for clause in proof.clauses if clause.clause == "files")


@pytest.mark.parametrize("part", ["source", "components", "files"])
@pytest.mark.parametrize("value", [None, "x", [], 3])
def test_a_manifest_of_wrong_types_is_one_line(copied: Exported, part: str, value: object) -> None:
    folder = copied("llama-tales")
    edit_json(folder / MANIFEST, lambda content: content.update({part: value}))
    with pytest.raises(TrueportError) as caught:
        trueport.verify(folder, clauses=["causal"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["source"].pop("role"), "does not say what role"),
        (lambda content: content["source"].update(role="reader"), "source.role is none of encoder, decoder"),
        (lambda content: content["source"].update(role=["decoder"]), "source.role is no text"),
        (lambda content: content["files"].update({"a\0b": {"size": 1}}), "name holds a NUL"),
        (lambda content: content["source"].update(task=["x"]), "source.task is no text"),
        (lambda content: content["components"].clear(), "names no components"),
        (lambda content: content["components"]["model"].update(guards=3), "guards"),
        (lambda content: content.update(versions=None), "versions is not an object"),
    ],
)
def test_a_manifest_that_cannot_be_judged_is_one_line(
    copied: Exported, change: Callable[[dict], None], words: str
) -> None:
    folder = copied("llama-tales")
    edit_json(folder / MANIFEST, change)
    with pytest.raises(TrueportError, match=words):
        trueport.verify(folder, clauses=["causal"])


def test_a_path_is_no_original_of_a_module(copied: Exported) -> None:
    folder = copied("llama-tales")
    edit_json(folder / MANIFEST, lambda content: content["source"].update(role="custom"))
    with pytest.raises(TrueportError, match="a module that no checkpoint names"):
        trueport.verify(folder, against=EXAMPLES / "llama-tales")


@pytest.mark.parametrize("content", ["[]", "{", '{"clauses": [{"status": "pass", "cases": 3}]}', "\udcff"])
def test_a_proof_that_is_none_excuses_nothing(copied: Exported, content: str) -> None:
    folder = copied("llama-tales")
    (folder / "proof.json").write_bytes(os.fsencode(content))
    assert trueport.verify(rehashed(folder), clauses=["causal"]).proven


def test_a_vocabulary_that_no_tokenizer_has(copied: Exported) -> None:
    folder = copied("llama-tales")
    edit_json(folder / "config.json", lambda content: content.update(vocab_size=10**30))
    with pytest.raises(TrueportError, match="vocab_size"):
        trueport.verify(rehashed(folder), clauses=["causal"])


def test_a_component_outside_its_folder_is_not_written(copied: Exported, tmp_path: Path) -> None:
    """The original is given, so that nothing is opened before the graphs are fused."""
    victim = tmp_path / "victim.onnx"
    folder = copied("llama-tales")
    shutil.copy(folder / "onnx" / "model.onnx", victim)
    before = victim.stat().st_mtime_ns  # it was written, and put back where the trial came to its end
    (folder / "proof.json").unlink()
    edit_json(rehashed(folder) / MANIFEST, lambda content: content["components"]["model"].update(file="../victim.onnx"))
    with pytest.raises(TrueportError, match="no place in the folder"):
        trueport.optimize(folder, against=EXAMPLES / "llama-tales")
    assert victim.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("proof"),
        lambda content: content.update(proof=[]),
        lambda content: content.update(source={"kind": "hub", "role": "decoder"}),
        lambda content: content["components"]["model"].pop("file"),
        lambda content: content["components"]["model"].pop("state"),
    ],
)
def test_a_manifest_that_lacks_a_part_is_not_optimised(copied: Exported, change: Callable[[dict], None]) -> None:
    folder = copied("llama-tales")
    (folder / "proof.json").unlink()
    edit_json(rehashed(folder) / MANIFEST, lambda content: content.update(proof={"verdict": "unproven"}))
    edit_json(folder / MANIFEST, change)
    with pytest.raises(TrueportError) as caught:
        trueport.optimize(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda source: source["sizes"].update(batch_size="x"), "tells no sizes or no inputs of the module"),
        (lambda source: source["draws"].update(ids=3), "tells no sizes or no inputs of the module"),
        (lambda source: source["draws"]["ids"].update(low=9, high=2), "tells no sizes or no inputs of the module"),
        (lambda source: source.pop("draws"), "tells no sizes or no inputs of the module"),
        (lambda source: source.pop("call"), "does not tell how the module is called"),
        (lambda source: source["call"]["outputs"].reverse(), ""),
        (lambda source: source["call"]["outputs"].__setitem__(0, "x"), "does not tell how the module is called"),
        (lambda source: source["call"].update(arguments="[1]"), "does not tell how the module is called"),
        (lambda source: source["first_call"]["leaves"].pop(), "does not tell how the module is called"),
    ],
)
def test_a_module_that_a_manifest_describes_wrongly(
    once: Once, tmp_path: Path, change: Callable[[dict], None], words: str
) -> None:
    module, inputs, state = build("mems")
    made = once("mems-unproven", lambda out: trueport.export(module, out, inputs=inputs, state=state, proof=False))
    folder = Path(shutil.copytree(made, tmp_path / "out"))
    edit_json(folder / MANIFEST, lambda content: change(content["source"]))
    if not words:  # right in form, and found by asking
        assert failed(trueport.verify(folder, against=module, clauses=["shapes"])) == {"shapes"}
        return
    with pytest.raises(TrueportError, match=words):
        trueport.verify(folder, against=module, clauses=["shapes"])
