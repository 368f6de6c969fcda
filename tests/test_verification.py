"""Folders that other tools wrote, judged: real faults are found, right ones are proven."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import trueport
from tests import zoo
from tests.conftest import Exported, Exporters
from tests.proof import foreign
from trueport.errors import ArtifactError, TrueportError
from trueport.foreign import NAMES, _renamed
from trueport.proof.folder import excused
from trueport.proof.result import Case, ClauseResult, Proof


def failed(proof: Proof) -> set[str]:
    return {clause.clause for clause in proof.failures()}


def case(proof: Proof, clause: str, start: str):
    found = next(entry for entry in proof.clauses if entry.clause == clause)
    return next(entry for entry in found.cases if entry.case.startswith(start))


# ---- mobius-onnx


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_right_folder_of_mobius_is_proven(name: str, tmp_path: Path):
    model = zoo.build(name)
    folder = foreign.mobius(model, tmp_path)
    for against in (model, tmp_path / "source", None):
        proof = trueport.verify(folder, against=against)
        assert proof.proven, [clause.reason for clause in proof.failures()]
        asked = {clause.clause for clause in proof.clauses if clause.status == "pass"}
        assert asked == {"shapes", "padding", "inert", "causal", "cache", "finite"}


def test_mobius_forgets_mistrals_window(tmp_path: Path):
    model = zoo.build("mistral")
    model.config.sliding_window = 150  # past the lengths of all other clauses, so that the right one finds it
    folder = foreign.mobius(model, tmp_path)
    proof = trueport.verify(folder, against=model)
    assert failed(proof) == {"window"}
    assert case(proof, "window", "305 tokens past 150").error > 1
    assert failed(trueport.verify(folder)) == {"window"}


def test_mobius_counts_gemma3s_window_in_real_tokens(tmp_path: Path):
    """With holes in the mask its window reaches farther; and it rounds sqrt(hidden_size) to bfloat16."""
    model = zoo.build("gemma3_text")
    folder = foreign.mobius(model, tmp_path)
    proof = trueport.verify(folder, against=model)
    assert {"padding", "shapes"} <= failed(proof)
    assert case(proof, "padding", "holes").error > 1
    assert case(proof, "padding", "left").error < 0.01
    assert case(proof, "shapes", "batch 2, length 33").error < 0.01


def test_mobius_bert_takes_one_row_only(tmp_path: Path):
    model = zoo.build("bert")
    proof = trueport.verify(foreign.mobius(model, tmp_path), against=model, clauses=["shapes"])
    assert "refuses input_ids (2, 7)" in proof.failures()[0].reason


def test_mobius_t5_has_no_mask(tmp_path: Path):
    model = zoo.build("t5")
    folder = foreign.mobius(model, tmp_path)
    for against in (model, None):
        proof = trueport.verify(folder, against=against)
        assert {"padding", "inert"} <= failed(proof)
        assert not {"shapes", "causal", "finite"} & failed(proof)


# ---- transformers.exporters


@pytest.mark.slow
def test_exporters_two_graphs_are_proven(exporters: Exporters):
    model = zoo.build("llama")
    folder = exporters("llama")
    for against in (model, None):
        proof = trueport.verify(folder, against=against)
        assert proof.proven, [clause.reason for clause in proof.failures()]
        assert next(clause for clause in proof.clauses if clause.clause == "cache").status == "pass"


@pytest.mark.slow
def test_exporters_drop_a_mask_of_ones(exporters: Exporters):
    model = zoo.build("llama")
    folder = exporters("llama", padded=False)
    for against in (model, None):
        proof = trueport.verify(folder, against=against)
        assert failed(proof) == {"padding", "inert"}
        assert case(proof, "padding", "left").error > 1


@pytest.mark.slow
def test_exporters_one_graph_without_a_cache(exporters: Exporters):
    model = zoo.build("llama")
    folder = exporters("llama", generation=False)
    for against in (model, None):
        proof = trueport.verify(folder, against=against)
        assert proof.proven, [clause.reason for clause in proof.failures()]
        cache = next(clause for clause in proof.clauses if clause.clause == "cache")
        assert (cache.status, cache.reason) == ("not applicable", "the graph takes no past")


# ---- optimum-onnx, which does not install beside this transformers: its layouts, cut from our own graphs


def without_past(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph for an empty past, as optimum's decoder_model.onnx: its past inputs become empty tensors."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    body = graph.graph
    shapes = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim] for value in body.input
    }
    pasts = [name for name in shapes if name.startswith("past_key_values.")]
    nodes = [helper.make_node("Shape", ["input_ids"], ["rows"], start=0, end=1)]
    for name in pasts:
        heads, size = shapes[name][1], shapes[name][3]
        nodes.append(helper.make_node("Constant", [], [f"{name}.rest"], value_ints=[heads, 0, size]))
        nodes.append(helper.make_node("Concat", ["rows", f"{name}.rest"], [f"{name}.shape"], axis=0))
        zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}.shape"], [name], value=zero))
    kept = [value for value in body.input if value.name not in pasts]
    nodes += list(body.node)
    for field, content in ((body.input, kept), (body.node, nodes)):
        del field[:]
        field.extend(content)
    return graph


def with_past(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph for the steps after the first, as optimum's decoder_with_past_model.onnx: no presents of the encoder."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    kept = [value for value in graph.graph.output if ".encoder." not in value.name]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    return graph


def merged(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A decoder_model_merged.onnx that wants use_cache_branch and gives an empty cross cache when it is true."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    body = graph.graph
    body.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    nodes = [
        helper.make_node("Not", ["use_cache_branch"], ["first"]),
        helper.make_node("Cast", ["first"], ["first.number"], to=TensorProto.INT64),
        helper.make_node("Constant", [], ["far"], value_ints=[1 << 40]),
        helper.make_node("Mul", ["first.number", "far"], ["end"]),
        helper.make_node("Constant", [], ["start"], value_ints=[0]),
        helper.make_node("Constant", [], ["axis"], value_ints=[2]),
    ]
    cross = [value.name for value in body.output if ".encoder." in value.name]
    for node in body.node:
        for index, name in enumerate(node.output):
            if name in cross:
                node.output[index] = f"{name}.whole"
        for index, name in enumerate(node.input):
            if name in cross:
                node.input[index] = f"{name}.whole"
    for name in cross:
        nodes.append(helper.make_node("Slice", [f"{name}.whole", "start", "end", "axis"], [name]))
    body.node.extend(nodes)
    return graph


@pytest.fixture
def t5_graphs(exported: Exported, tmp_path: Path) -> tuple[Path, onnx.ModelProto]:
    """A folder with T5's config and encoder, and its decoder with the weights inside."""
    folder = tmp_path / "optimum"
    folder.mkdir()
    own = exported("t5")
    shutil.copy(own / "config.json", folder)
    onnx.save(onnx.load(own / "onnx/encoder_model.onnx"), folder / "encoder_model.onnx")
    return folder, onnx.load(own / "onnx/decoder_model_merged.onnx")


@pytest.mark.slow
@pytest.mark.xdist_group("optimums-t5")
def test_optimums_decoders_with_and_without_past(t5_graphs: tuple[Path, onnx.ModelProto]):
    folder, decoder = t5_graphs
    onnx.save(without_past(decoder), folder / "decoder_model.onnx")
    onnx.save(with_past(decoder), folder / "decoder_with_past_model.onnx")
    for against in (zoo.build("t5"), None):
        proof = trueport.verify(folder, against=against)
        assert proof.proven, [clause.reason for clause in proof.failures()]
        assert next(clause for clause in proof.clauses if clause.clause == "cache").status == "pass"


@pytest.mark.slow
@pytest.mark.xdist_group("optimums-t5")
def test_optimums_merged_decoder(t5_graphs: tuple[Path, onnx.ModelProto]):
    folder, decoder = t5_graphs
    onnx.save(merged(decoder), folder / "decoder_model_merged.onnx")
    proof = trueport.verify(folder, against=zoo.build("t5"))
    assert proof.proven, [clause.reason for clause in proof.failures()]


# ---- our own


def test_a_changed_file_is_told(copied: Exported):
    folder = copied("bert")
    assert [clause.status for clause in trueport.verify(folder).clauses[:1]] == ["pass"]
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    proof = trueport.verify(folder)
    assert failed(proof) == {"files"} and "config.json is not the file that was exported" in proof.failures()[0].reason


def test_files_alone_prove_nothing(exported: Exported):
    proof = trueport.verify(exported("bert"), clauses=["causal"])
    assert [clause.status for clause in proof.clauses] == ["pass", "not applicable"] and not proof.proven


def test_without_the_original_its_nature_is_read_from_the_proof(copied: Exported):
    """Some models read what lies under the mask; the folder's own proof says of which cases that is true."""
    folder = copied("bert")
    stored = json.loads((folder / "proof.json").read_text())
    inert = next(clause for clause in stored["clauses"] if clause["clause"] == "inert")
    spoil = ClauseResult("inert", "model", "fail", "x", tuple(Case(c["case"], 2.0, 1.0) for c in inert["cases"]))
    proof = Proof(7, (spoil,), None, {})
    assert excused(proof, folder) == proof
    for entry in inert["cases"]:
        entry["note"] = "the original itself reads what lies under the mask; against it on the same tokens"
    (folder / "proof.json").write_text(json.dumps(stored))
    (clause,) = excused(proof, folder).clauses
    assert clause.status == "not applicable" and "--against" in clause.reason
    assert excused(replace(proof, reference={}), folder).failures(), "with the original it is the judge"


# ---- folders that cannot be judged


def graph(path: Path, inputs: list[str], output: str) -> None:
    """A graph that gives out its first input, as floats."""
    values = [ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", "s"])) for name in inputs]
    node = ir.node("Cast", [values[0]], {"to": ir.AttrInt64("to", ir.DataType.FLOAT.value)})
    node.outputs[0].name, node.outputs[0].shape = output, ir.Shape(["b", "s"])
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    body = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 21}, name="g")
    ir.save(ir.Model(body, ir_version=10), path)


def refusal(folder: Path, against=None) -> str:
    with pytest.raises(TrueportError) as caught:
        trueport.verify(folder, against=against)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def test_refusals_are_one_line_that_says_what_to_do(tmp_path: Path):
    assert "is not a folder" in refusal(tmp_path / "nothing")
    assert "--against" in refusal(tmp_path)
    model = zoo.build("llama")
    model.config.save_pretrained(tmp_path)
    assert "holds no model (model.onnx, or" in refusal(tmp_path)
    graph(tmp_path / "model.onnx", ["input_ids", "bbox"], "logits")
    assert "model.onnx takes bbox, which Trueport cannot feed" in refusal(tmp_path, model)
    graph(tmp_path / "model.onnx", ["input_ids"], "hidden")
    assert "gives out hidden, not logits" in refusal(tmp_path, model)
    assert "gives out hidden, not what a BertModel gives" in refusal(tmp_path, zoo.build("bert"))
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    assert "model.onnx is not an ONNX file" in refusal(tmp_path)


def test_exporters_leave_the_encoder_to_the_user(tmp_path: Path):
    zoo.build("t5").config.save_pretrained(tmp_path)
    for name in ("prefill.onnx", "decode.onnx"):
        graph(tmp_path / name, ["input_ids"], "logits")
    with pytest.raises(ArtifactError, match=r"holds no encoder .* model.get_encoder\(\)"):
        trueport.verify(tmp_path)


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("inputs", "input.past_key_values.layers.3.keys", "past_key_values.3.key"),
        ("inputs", "input.past_key_values.self_attention_cache.layers.0.values", "past_key_values.0.decoder.value"),
        ("inputs", "input.past_key_values.cross_attention_cache.layers.0.keys", "past_key_values.0.encoder.key"),
        ("inputs", "past_key_values.1.cross.value", "past_key_values.1.encoder.value"),
        ("inputs", "past_key_values.1.decoder.key", "past_key_values.1.decoder.key"),
        ("inputs", "past_key_0", "past_key_values.0.key"),
        ("inputs", "cache.layers.3.keys", "past_key_values.3.key"),
        ("outputs", "cache.cross_attention_cache.layers.0.keys", "present.0.encoder.key"),
        ("outputs", "past_key_values.layers.0.keys", "present.0.key"),
        ("outputs", "output.past_key_values.self_attention_cache.layers.0.keys", "present.0.decoder.key"),
        ("outputs", "present_key_values.0.encoder.key", "present.0.encoder.key"),
        ("outputs", "present.0.self.key", "present.0.decoder.key"),
        ("outputs", "logits", "logits"),
        ("decoder inputs", "encoder_outputs.last_hidden_state", "encoder_hidden_states"),
    ],
)
def test_names(kind: str, theirs: str, ours: str):
    assert _renamed(theirs, NAMES[kind]) == ours
