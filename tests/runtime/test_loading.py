"""Folders that load, and one clear line for those that do not."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import pipeline

import trueport
from tests import zoo
from tests.runtime.test_generate import generate
from tests.runtime.test_large_pages import has_large_pages, large_bytes
from trueport.errors import ArtifactError, Interruption, RunError
from trueport.resident import resident
from trueport.runtime import TrueportModel, load
from trueport.runtime.text import stream

pytestmark = pytest.mark.xdist_group("runtime")


@pytest.fixture
def copied(artefact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artefact("llama"), tmp_path / "llama"))


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / "trueport.json").read_text())
    change(manifest)
    (folder / "trueport.json").write_text(json.dumps(manifest))


def test_load(pair, artefact):
    _, model = pair("t5")
    assert isinstance(model, TrueportModel) and isinstance(trueport.load(artefact("t5")), TrueportModel)
    assert set(model.sessions) == set(model.interfaces) == {"encoder", "decoder"}
    assert model.config.model_type == "t5" and model.generation_config.decoder_start_token_id == 0
    assert (model.dtype, model.device, model.can_generate()) == (torch.float32, torch.device("cpu"), True)
    assert model.to("cpu") is model.eval() is model


def test_a_copy_opens_the_folder_again(artefact):
    """For a process of its own, or for options of its own: what was changed since comes along."""
    model, ids = load(artefact("llama"), threads=1, memory="map"), torch.tensor([[5, 6, 7]])
    model.generation_config.update(max_new_tokens=4, do_sample=False, repetition_penalty=3.0)
    wanted = model.generate(ids)
    for made in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert made.main.session is not model.main.session and made.opening == model.opening
        assert type(made) is type(model)
        assert torch.equal(made.generate(ids), wanted)
        made.generation_config.max_new_tokens = 1
    assert torch.equal(model.generate(ids), wanted)


def test_pipelines_of_transformers_know_what_it_can_do(artefact, tokenizer, caplog):
    """They ask by the name of the class, and say of others that they are not supported."""
    model = load(artefact("llama"), threads=1)
    with caplog.at_level("WARNING", logger="transformers"):
        made = pipeline("text-generation", model=model, tokenizer=tokenizer)
        told = made("w5 w6", max_new_tokens=4, do_sample=False)
    assert "LlamaForCausalLM" in repr(made)
    assert len(told[0]["generated_text"].replace("w", " w").split()) == 6
    assert "not supported" not in caplog.text


@pytest.mark.parametrize("memory", ["fast", "pages", "map"])
def test_memory(pair, artefact, memory: str):
    original, _ = pair("llama")
    inputs = {"input_ids": torch.arange(5, 12)[None]}
    model = load(artefact("llama"), memory=memory, threads=1, runtime="onnx")
    assert torch.equal(generate(model, inputs, do_sample=False), generate(original, inputs, do_sample=False))


@pytest.mark.slow
# Anonymous memory apart from mapped files is told by /proc alone; elsewhere there is nothing to assert on.
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from Linux")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_mapped_weights_take_no_memory_of_their_own(tmp_path: Path, stored: torch.dtype):
    """Neither when the folder is opened nor when it has run; a half under float32 is cast anew in every run."""
    config = zoo.build("llama").config
    config.vocab_size, config.hidden_size, config.tie_word_embeddings = 120_000, 128, True
    with torch.random.fork_rng():
        type(zoo.build("llama"))(config).to(stored).save_pretrained(tmp_path / "checkpoint")
    trueport.export(tmp_path / "checkpoint", tmp_path / "out", weights="link", tokenizer=None, proof=False)
    weights, grown, answers, large = 120_000 * 128 * 4, {}, [], [large_bytes()]
    for memory in ("map", "fast", "pages"):
        before = anonymous()
        model = load(tmp_path / "out", memory=memory, threads=1)
        opened = anonymous() - before
        large.append(large_bytes())
        answers.append(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False))
        grown[memory] = opened, anonymous() - before
        del model
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    assert max(grown["map"]) < weights / 3 < weights / 2 < grown["fast"][0]
    if has_large_pages():
        assert max(large[:3]) - large[0] < weights / 3 < weights / 2 < large[3] - large[2]


def anonymous() -> int:
    """Bytes of this process in memory that are no pages of files."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(
        libc, "malloc_trim"
    ):  # as an opening in large pages does: what the allocator keeps for later is not in use
        libc.malloc_trim(ctypes.c_size_t(0))
    total, shared = resident()
    return total - shared


def test_role_from_the_components(copied):
    """Folders whose manifest names no role."""
    edit(copied, lambda manifest: manifest.pop("source"))
    (copied / "generation_config.json").unlink()
    assert load(copied).can_generate()


def test_config_of_an_unknown_kind(copied):
    """A class that only its own code knows: the graph runs all the same, and no code is run."""
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "never_heard_of", "auto_map": {"AutoConfig": "evil.Config"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "evil.py").write_text("raise SystemExit('code from the folder ran')")
    model = load(copied)
    assert model.config.vocab_size == 99
    model.generate(torch.arange(5, 12)[None], max_new_tokens=2)


def blank(path: Path) -> None:
    """Other bytes, as many."""
    path.write_bytes(b"\xff" * path.stat().st_size)


def _component(**changes):
    return lambda manifest: manifest["components"]["model"].update(changes)


def _first_input(**changes):
    return lambda manifest: manifest["components"]["model"]["inputs"][0].update(changes)


def _first_state(**changes):
    return lambda manifest: manifest["components"]["model"]["state"][0].update(changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "is not a folder"),
        (lambda f: (f / "trueport.json").unlink(), "holds no trueport.json"),
        (lambda f: (f / "trueport.json").write_text("{"), "is not a manifest"),
        (lambda f: edit(f, lambda m: m.update(schema_version=2)), "schema version 2"),
        (lambda f: edit(f, lambda m: m.update(components={})), "names no components"),
        (lambda f: edit(f, lambda m: m["components"]["model"].pop("inputs")), "describes the component model wrongly"),
        (lambda f: edit(f, _component(target="tpu")), "was exported to tpu"),
        (lambda f: edit(f, _component(file="../model.onnx")), "no place in the folder"),
        (
            lambda f: edit(f, lambda m: m["source"].update(role="seq2seq")),
            "is seq2seq, and there is no component encoder",
        ),
        (lambda f: (f / "onnx/model.onnx").unlink(), "lacks onnx/model.onnx"),
        (lambda f: (f / "onnx/model.onnx").write_bytes(b"\x08\x07torn"), "onnx/model.onnx has 6 bytes"),
        (lambda f: blank(f / "onnx/model.onnx"), "model.onnx is not an ONNX file"),
        (lambda f: (f / "config.json").write_text("["), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[" * 5000), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text('{"model_type": ["llama"]}'), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama", "dtype": "nope"}'), "config.json cannot be"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "llama", "rope_parameters": 7}'),
            "config.json cannot",
        ),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama", "hidden_size": -1}'), "config.json cannot"),
        (lambda f: (f / "generation_config.json").write_text("["), "generation_config.json cannot be read"),
        (lambda f: (f / "generation_config.json").write_text("[]"), "generation_config.json cannot be read"),
        (lambda f: (f / "generation_config.json").write_text("[" * 5000), "generation_config.json cannot be read"),
        (lambda f: edit(f, _first_input(name=None)), "describes the component model wrongly"),
        (lambda f: edit(f, _first_input(name=["x"])), "describes the component model wrongly"),
        (lambda f: edit(f, _first_input(shape=[-1, "sequence_length"])), "describes the component model wrongly"),
        (lambda f: edit(f, _first_input(shape=[10**30, "sequence_length"])), "describes the component model wrongly"),
        (lambda f: edit(f, _first_state(input=None)), "is no input and output"),
        (lambda f: edit(f, _first_state(output=["x"])), "is no input and output"),
    ],
)
def test_spoilt_folders(copied, spoil, message: str):
    spoil(copied)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(copied)
    assert "\n" not in str(caught.value)


def test_unknown_choices(artefact):
    with pytest.raises(ArtifactError, match=r"no runtime 'abacus'\. Choose from executorch, onnx"):
        load(artefact("llama"), runtime="abacus")
    with pytest.raises(ArtifactError, match=r"no memory mode 'none'\. Choose from fast, pages, map"):
        load(artefact("llama"), memory="none")


@pytest.mark.parametrize("memory", ["fast", "pages", "map"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_stream(pair, copied, tokenizer, options, memory):
    original, _ = pair("llama")
    tokenizer.save_pretrained(copied)
    out = io.StringIO()
    told = {"max_new_tokens": 6, "min_new_tokens": 6} | options
    text = stream(copied, "w5 w6 w7", told, seed=3, memory=memory, file=out)
    assert out.getvalue().strip() == text.strip()
    wanted = generate(original, {"input_ids": torch.tensor([[5, 6, 7]])}, new=6, **options)
    assert text == tokenizer.decode(wanted[0, 3:], skip_special_tokens=True)


def test_stream_of_a_folder_that_asks_for_more_than_tokens(artefact, tmp_path):
    folder = Path(shutil.copytree(artefact("llama-tales"), tmp_path / "tales"))
    plain = json.loads((folder / "generation_config.json").read_text())

    def told(config: dict[str, object], **options: int) -> str:
        (folder / "generation_config.json").write_text(json.dumps(plain | config))
        return stream(folder, "Once there was a", {"max_new_tokens": 8} | options, file=io.StringIO())

    whole, beams = told({}), told({}, num_beams=2)
    assert beams and told({"return_dict_in_generate": True, "output_scores": True}, num_beams=2) == beams
    stop = whole.strip()[:-4]
    assert stop in told({"stop_strings": [stop]}) != whole


def test_an_interrupted_stream_does_not_say_that_nothing_was_written(copied, tokenizer):
    class Pressed(io.StringIO):
        def write(self, text: str) -> int:
            if text != "\n" and self.getvalue():
                raise KeyboardInterrupt
            return super().write(text)

    tokenizer.save_pretrained(copied)
    out = Pressed()
    with pytest.raises(Interruption, match=r"^Interrupted while generating$"):
        stream(copied, "w5 w6 w7", {"max_new_tokens": 6, "min_new_tokens": 6}, file=out)
    assert out.getvalue().strip() and out.getvalue().endswith("\n")


def test_stream_refusals(copied, artefact, tokenizer):
    with pytest.raises(ArtifactError, match="holds no tokenizer"):
        stream(copied, "w5", {})
    with pytest.raises(RunError, match="holds an encoder"):
        stream(artefact("bert"), "w5", {})
    tokenizer.save_pretrained(copied)
    with pytest.raises(RunError, match="no tokens"):
        stream(copied, "", {})
    with pytest.raises(RunError, match="not UTF-8"):
        stream(copied, "w5\udcff", {})


@pytest.mark.parametrize("options", [{"eos_token_id": "x"}, {"repetition_penalty": "x"}])
def test_options_of_a_folder_that_nothing_generates_with(copied, tokenizer, options):
    tokenizer.save_pretrained(copied)
    (copied / "generation_config.json").write_text(json.dumps(options))
    with pytest.raises(RunError, match=r"cannot be generated with.*generation_config\.json"):
        stream(copied, "w5", {"max_new_tokens": 2})
