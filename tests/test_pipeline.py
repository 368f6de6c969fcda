"""The main path end to end: what lies in the folder, to the letter."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from transformers import NystromformerConfig, NystromformerModel

import trueport
from tests import forked, zoo
from tests.conftest import EXAMPLES, ROOT, Exported
from trueport.artifact import MANIFEST, list_files
from trueport.errors import ArtifactError, ProofError, SourceError, TrueportError

CARDS = {"trueport.json", "proof.json", "report.html", "README.md"}
ASSETS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def shapes(values: object) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in values  # type: ignore[attr-defined]
    }


def operators(found: onnx.GraphProto) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    for node in found.node:
        counts[node.op_type] += 1
        for attribute in node.attribute:
            if attribute.HasField("g"):
                counts += operators(attribute.g)
    return counts


def test_layout_of_a_decoder(exported: Exported) -> None:
    assert files(exported("llama-tales")) - {"chat_template.jinja"} == CARDS | ASSETS | {"onnx/model.onnx"}


def test_layout_of_an_encoder(exported: Exported) -> None:
    expected = (CARDS | ASSETS | {"onnx/model.onnx"}) - {"generation_config.json"}
    assert files(exported("bert-sentiment")) == expected


def test_layout_of_a_seq2seq(exported: Exported) -> None:
    graphs = {"onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx", "onnx/decoder_model_merged.onnx_data"}
    assert files(exported("t5-dates")) == CARDS | ASSETS | graphs


def test_names_of_a_decoder(exported: Exported) -> None:
    folder = exported("llama-tales")
    config = json.loads((folder / "config.json").read_text())
    heads, layers, size = config["num_key_value_heads"], config["num_hidden_layers"], config["head_dim"]
    found = graph(folder / "onnx" / "model.onnx")
    total = "past_sequence_length + sequence_length"
    inputs = {
        "input_ids": ("batch_size", "sequence_length"),
        "attention_mask": ("batch_size", total),
        "position_ids": ("batch_size", "sequence_length"),
    }
    outputs: dict[str, tuple[int | str, ...]] = {"logits": ("batch_size", "sequence_length", config["vocab_size"])}
    for layer in range(layers):
        for part in ("key", "value"):
            inputs[f"past_key_values.{layer}.{part}"] = ("batch_size", heads, "past_sequence_length", size)
            outputs[f"present.{layer}.{part}"] = ("batch_size", heads, total, size)
    assert shapes(found.input) == inputs
    assert list(shapes(found.input)) == list(inputs)
    assert shapes(found.output) == outputs


def test_names_of_a_seq2seq(exported: Exported) -> None:
    folder = exported("t5-dates") / "onnx"
    config = json.loads((exported("t5-dates") / "config.json").read_text())
    encoder, decoder = graph(folder / "encoder_model.onnx"), graph(folder / "decoder_model_merged.onnx")
    source = ("batch_size", "encoder_sequence_length")
    assert shapes(encoder.input) == {"input_ids": source, "attention_mask": source}
    assert shapes(encoder.output) == {"last_hidden_state": (*source, config["d_model"])}
    inputs = shapes(decoder.input)
    assert inputs["encoder_attention_mask"] == source
    assert inputs["encoder_hidden_states"] == (*source, config["d_model"])
    assert inputs["input_ids"] == ("batch_size", "sequence_length")
    own = ("batch_size", config["num_heads"], "past_sequence_length", config["d_kv"])
    assert inputs["past_key_values.0.decoder.key"] == inputs["past_key_values.0.decoder.value"] == own
    assert inputs["past_key_values.1.encoder.value"][1] == config["num_heads"]
    assert shapes(decoder.output)["present.0.encoder.key"][2] == "encoder_sequence_length"


@pytest.mark.parametrize("name", ["llama-tales", "t5-dates", "bert-sentiment"])
def test_no_branches_and_one_copy_of_every_weight(exported: Exported, name: str) -> None:
    folder = exported(name) / "onnx"
    for path in folder.glob("*.onnx"):
        assert operators(graph(path))["If"] == 0
    weights = sum(array.nbytes for array in load_file(EXAMPLES / name / "model.safetensors").values())
    data = sum(path.stat().st_size for path in folder.glob("*.onnx_data"))
    inline = 0
    for path in folder.glob("*.onnx"):
        for tensor in graph(path).initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                inline += onnx.numpy_helper.to_array(tensor).nbytes
    # What is above the weights are rotary frequencies, shape constants and padding between tensors.
    assert data + inline < 1.02 * weights + 8192


def test_the_manifest_vouches_for_every_file(exported: Exported) -> None:
    folder = exported("t5-dates")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["files"] == list_files(folder)
    assert manifest["proof"]["verdict"] == "proven"
    assert set(manifest["versions"]) >= {"trueport", "torch", "transformers", "onnxruntime"}
    assert manifest["components"]["decoder"]["dimensions"]["past_encoder_sequence_length"] == [0, None]


def test_nothing_of_this_machine_is_written(exported: Exported) -> None:
    words = [str(ROOT).encode(), str(Path.home()).encode() + b"/", b"site-packages"]
    if len(socket.gethostname()) > 5:
        words.append(socket.gethostname().encode())
    for name in ("llama-tales", "t5-dates"):
        for path in exported(name).rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not [word for word in words if word in content], path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5-dates", "llama-tales"])
def test_two_exports_are_the_same_bytes(exported: Exported, tmp_path: Path, name: str) -> None:
    """In another process, from another folder."""
    code = "import sys, trueport; trueport.export(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(EXAMPLES / name), str(tmp_path / "again")], check=True)
    first, second = list_files(exported(name)), list_files(tmp_path / "again")
    assert first == second
    assert (exported(name) / MANIFEST).read_bytes() == (tmp_path / "again" / MANIFEST).read_bytes()


def test_a_numpy_user_can_run_it(exported: Exported) -> None:
    """Plain ONNX Runtime, empty cache, two steps: what any other client does."""
    import onnxruntime

    folder = exported("llama-tales")
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {
        "input_ids": np.array([[5, 6, 7]]),
        "attention_mask": np.ones((1, 3), int),
        "position_ids": np.arange(3)[None],
    }
    for value in session.get_inputs()[3:]:
        feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    feeds = {"input_ids": np.array([[8]]), "attention_mask": np.ones((1, 4), int), "position_ids": np.array([[3]])}
    feeds |= {n.replace("present", "past_key_values"): a for n, a in outputs.items() if n != "logits"}
    assert session.run(["logits"], feeds)[0].shape[:2] == (1, 1)


def test_no_proof_is_stamped(tmp_path: Path) -> None:
    artifact = trueport.export(zoo.build("distilbert"), tmp_path / "out", tokenizer=None, proof=False)
    assert artifact.verdict == "unproven" and artifact.proof is None
    assert not (tmp_path / "out" / "proof.json").exists()
    assert "nproven" in (tmp_path / "out" / "report.html").read_text()


def test_a_failed_proof_leaves_nothing_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trueport.targets.onnx import lower

    strip = lower._strip

    def spoil(model: object) -> None:
        strip(model)  # type: ignore[arg-type]
        weights = model.graph.initializers  # type: ignore[attr-defined]
        name = next(name for name in weights if name.endswith("layer_norm.weight") or name.endswith("LayerNorm.weight"))
        spoiled = weights[name].const_value.numpy() * 1.01
        weights[name].const_value = lower.ir.tensor(spoiled.astype(np.float32), name=name)

    monkeypatch.setattr(lower, "_strip", spoil)
    model = zoo.build("distilbert")
    with pytest.raises(ProofError, match=r"Not proven: .*error .* against a budget") as caught:
        trueport.export(model, tmp_path / "out", tokenizer=None)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProofError):
        trueport.export(model, tmp_path / "out", tokenizer=None, allow_unproven=True)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["proof"]["verdict"] == "failed"
    assert json.loads((tmp_path / "out" / "proof.json").read_text())["verdict"] == "failed"


@pytest.mark.slow
def test_where_a_halfs_rounding_decides_float32_is_named(tmp_path: Path) -> None:
    model = zoo.build("bert", amplify=3.0).to(torch.bfloat16)  # its amplified weights saturate what lies behind them
    with pytest.raises(ProofError, match=r"Rounding to bfloat16 alone moves .* --dtype float32 \(dtype=\) is proven"):
        trueport.export(model, tmp_path / "out", tokenizer=None)
    trueport.export(model, tmp_path / "out", tokenizer=None, dtype="float32")
    assert json.loads((tmp_path / "out" / "proof.json").read_text())["verdict"] == "proven"


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = zoo.build("distilbert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    trueport.export(model, tmp_path / "out", tokenizer=None, proof=False)
    assert model.config.to_dict() == config
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())


def test_a_decoder_that_does_not_run_itself(tmp_path: Path) -> None:
    """With this entry in its config Llama's own forward is an AttributeError."""
    model = zoo.build("llama")
    model.config.return_dict = False
    with pytest.raises(TrueportError, match=r"^LlamaForCausalLM does not run over two tokens itself: AttributeError: "):
        trueport.export(model, tmp_path / "out", tokenizer=None)


def test_an_encoder_that_does_not_run_itself(tmp_path: Path) -> None:
    """Nystromformer takes segments of one length alone where it has fewer landmarks than that."""
    config = NystromformerConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_landmarks=4,
        segment_means_seq_len=16, max_position_embeddings=64,
    )  # fmt: skip
    with pytest.raises(TrueportError, match=r"^NystromformerModel does not run over \d+ tokens itself: RuntimeError: "):
        trueport.export(NystromformerModel(config).eval(), tmp_path / "out", tokenizer=None)


def test_refusals_before_any_work(tmp_path: Path) -> None:
    model = zoo.build("distilbert")
    with pytest.raises(TrueportError, match="no target tflite"):
        trueport.export(model, tmp_path / "out", to="tflite")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(ArtifactError, match="did not write"):
        trueport.export(model, tmp_path / "full", force=True)
    with pytest.raises(SourceError):
        trueport.export(model, tmp_path / "out", task="text-generation")
    assert not (tmp_path / "out").exists()


def export_and_tell(told: Connection, checkpoint: Path, out: Path, cache: Path) -> None:
    """What is killed: an export over an earlier one."""
    torch.set_num_threads(1)
    os.environ["TRUEPORT_CACHE"] = str(cache)
    trueport.export(checkpoint, out, tokenizer=None, force=True, weights="copy", resume=True, progress=told.send)


class Killed:
    """Processes that export, and are killed."""

    def __init__(self, *places: Path) -> None:
        self.context, self.places = forked.context(), places

    def at(self, phase: str, later: float = 0) -> list[str]:
        """Kill one at a phase, or a little later; the phases that it told. One that has no such phase ends by itself."""
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=export_and_tell, args=(there, *self.places))
        process.start()
        there.close()
        seen: list[str] = []
        with contextlib.suppress(EOFError):
            while phase not in seen:
                seen.append(here.recv())
        time.sleep(later)
        if phase in seen:
            process.kill()
        process.join()
        return seen


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_the_old_export_and_what_was_finished(
    tmp_path: Path,
) -> None:
    """Exports over an earlier one, each killed in a later phase than the one before, and one that goes on to the end."""
    out, cache, checkpoint = tmp_path / "out", tmp_path / "cache", tmp_path / "checkpoint"
    zoo.build("distilbert").save_pretrained(checkpoint)
    trueport.export(checkpoint, out, tokenizer=None, weights="copy", proof=False)
    before = list_files(out)
    killed, draw, finished = Killed(checkpoint, out, cache), random.Random(0), False
    for phase in ("load", "capture model", "lower model", "weights", "assets", "prove shapes"):
        seen = killed.at(phase, draw.random() * 0.1)
        assert phase in seen
        assert ("capture model" in seen) == (phase != "load" and not finished), seen
        finished = any(cache.glob("*.component"))
        assert json.loads((out / MANIFEST).read_text())["files"] == list_files(out) == before
    assert finished
    assert "capture model: taken from the interrupted export of " in " ".join(killed.at("never"))
    assert os.listdir(cache) == []
    assert [name for name in os.listdir(tmp_path) if ".trueport-" in name] == []
    assert json.loads((out / MANIFEST).read_text())["proof"]["verdict"] == "proven"
    # What was exported from end to end, before it all, has the same graph and the same weights.
    after = list_files(out)
    assert all(after[name] == entry for name, entry in before.items() if name.startswith("onnx/"))
