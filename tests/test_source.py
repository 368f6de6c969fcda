"""Every model that a user may mean: those that load, and one line for each that does not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from tests import zoo
from trueport.checkpoint import SINGLE
from trueport.errors import SourceError
from trueport.source import TASKS, Source, load_source

ASSETS = {"config.json", "tokenizer.json", "tokenizer_config.json"}


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{index}": index for index in range(4, 99)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _whisper_processor() -> Any:
    letters = {"<|endoftext|>": 0} | {letter: index + 4 for index, letter in enumerate("abcdefgh")}
    return transformers.WhisperProcessor(
        transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        transformers.WhisperTokenizer(vocab=letters, merges=[]),
    )


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Callable[..., Path]:
    """A folder as save_pretrained writes it, made once for each model."""
    root = tmp_path_factory.mktemp("originals")

    def make(name: str, head: str | None = None) -> Path:
        folder = root / f"{name}-{head}"
        if not folder.exists():
            zoo.build(name, head=head).save_pretrained(folder)
            (_whisper_processor() if name == "whisper" else _tokenizer()).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def checkpoint(originals, tmp_path) -> Callable[..., Path]:
    """A copy of such a folder, for a test to break."""

    def make(name: str, head: str | None = None) -> Path:
        return Path(shutil.copytree(originals(name, head), tmp_path / "secret-place" / f"{name}-copy"))

    return make


def _refused(model: Any, *says: str, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        load_source(model, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    for word in says:
        assert word in text
    return text


def _edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# What loads


@pytest.mark.parametrize(
    ("name", "head", "kind", "role", "task"),
    [
        ("bert", None, "BertModel", "encoder", "feature-extraction"),
        ("bert", "MaskedLM", "BertForMaskedLM", "encoder", "fill-mask"),
        ("bert", "SequenceClassification", "BertForSequenceClassification", "encoder", "text-classification"),
        ("bert", "TokenClassification", "BertForTokenClassification", "encoder", "token-classification"),
        ("bert", "QuestionAnswering", "BertForQuestionAnswering", "encoder", "question-answering"),
        ("t5_encoder", None, "T5EncoderModel", "encoder", "feature-extraction"),
        ("canine", None, "CanineModel", "encoder", "feature-extraction"),
        ("funnel", None, "FunnelModel", "encoder", "feature-extraction"),
        ("llama", None, "LlamaForCausalLM", "decoder", "text-generation"),
        ("gpt_neox", None, "GPTNeoXForCausalLM", "decoder", "text-generation"),
        ("t5", None, "T5ForConditionalGeneration", "seq2seq", "text2text-generation"),
        ("bart", None, "BartForConditionalGeneration", "seq2seq", "text2text-generation"),
        ("whisper", None, "WhisperForConditionalGeneration", "seq2seq", "automatic-speech-recognition"),
    ],
)
def test_a_folder_and_the_same_module(originals, name, head, kind, role, task):
    folder = originals(name, head)
    source = load_source(folder)
    assert (type(source.model).__name__, source.role, source.task) == (kind, role, task)
    assert (source.name, source.kind, source.untrained) == (folder.name, "folder", ())
    assert source.tokenizer is not None
    assert not any(module.training for module in source.model.modules())
    assert not any(parameter.requires_grad for parameter in source.model.parameters())
    live = load_source(zoo.build(name, head=head))
    assert (live.role, live.task, live.name, live.kind, live.tokenizer) == (role, task, kind, "module", None)
    # transformers zeroes the embedding of Funnel's padding token whenever it loads one
    assert name == "funnel" or source.describe()["weights_sha256"] == live.describe()["weights_sha256"]
    assert load_source(folder, task=source.task, tokenizer=None).describe() == source.describe()


def test_a_live_module_is_left_alone():
    model = zoo.build("bert")
    before = {name: (id(tensor), tensor.requires_grad) for name, tensor in model.named_parameters()}
    source = load_source(model, tokenizer=_tokenizer())
    assert source.model is model
    assert {name: (id(tensor), tensor.requires_grad) for name, tensor in model.named_parameters()} == before
    assert source.tokenizer is not None
    half = load_source(model, dtype="bfloat16")
    assert half.model is not model
    assert half.dtype == "bfloat16"
    assert model.dtype == torch.float32
    assert load_source(half.model).model is half.model
    assert load_source(half.model, dtype="float32").dtype == "float32"


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "t5", "m2m_100"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_converted_module_has_the_dtypes_of_a_loaded_one(originals, name, dtype):
    live, loaded = load_source(zoo.build(name), dtype=dtype), load_source(originals(name), dtype=dtype)
    for kind in ("named_parameters", "named_buffers"):
        dtypes = [{name: t.dtype for name, t in getattr(source.model, kind)()} for source in (live, loaded)]
        assert dtypes[0] == dtypes[1]
    assert live.describe()["weights_sha256"] == loaded.describe()["weights_sha256"]


def test_a_checkpoint_in_bfloat16_becomes_float32(tmp_path):
    zoo.build("llama").bfloat16().save_pretrained(tmp_path)
    assert load_source(tmp_path, tokenizer=None).dtype == "float32"
    assert load_source(tmp_path, tokenizer=None, dtype="bfloat16").dtype == "bfloat16"


def test_shards_are_one_model(originals, tmp_path):
    zoo.build("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    whole = load_source(originals("llama"), tokenizer=None).describe()
    assert load_source(tmp_path, tokenizer=None).describe() == whole | {"name": tmp_path.name}


def test_an_untrained_pooler_is_named_and_the_same_every_time(originals):
    source = load_source(originals("bert", "MaskedLM"), task="feature-extraction")
    assert source.untrained == ("pooler_output",)
    again = load_source(originals("bert", "MaskedLM"), task="feature-extraction")
    assert again.describe() == source.describe()


def test_the_encoder_of_a_seq2seq_model(originals):
    source = load_source(originals("t5"), task="feature-extraction")
    assert (type(source.model).__name__, source.untrained) == ("T5EncoderModel", ())


@pytest.mark.parametrize(("name", "head"), [("llama", None), ("bert", "SequenceClassification")])
def test_features_of_a_model_in_memory_are_those_below_its_head(name, head):
    model = zoo.build(name, head=head)
    source = load_source(model, task="feature-extraction")
    assert (source.model, source.role) == (model.base_model, "encoder")


def test_the_encoder_of_a_seq2seq_model_in_memory_has_to_be_given_itself():
    assert "T5ForConditionalGeneration does" in _refused(zoo.build("t5"), task="feature-extraction")


@pytest.mark.parametrize(("name", "task"), [("t5", "text2text-generation"), ("llama", "text-generation")])
def test_optimums_names_with_past(originals, name, task):
    assert load_source(originals(name), task=f"{task}-with-past").task == task


def test_a_bare_seq2seq_model_generates_where_its_head_is_tied(tmp_path):
    transformers.BartModel(zoo.build("bart").config).save_pretrained(tmp_path)
    assert load_source(tmp_path, tokenizer=None).task == "text2text-generation"


@pytest.mark.parametrize("architectures", [None, [], ["LLaMAForCausalLM"], ["Trainer"], ["pipeline"], "x", [3]])
def test_a_config_that_names_no_known_class(checkpoint, architectures):
    folder = checkpoint("llama")
    _edit(folder / "config.json", architectures=architectures)
    assert load_source(folder).task == "text-generation"


def test_the_callers_random_state_stays(originals):
    state = torch.get_rng_state()
    load_source(originals("bert", "MaskedLM"), task="feature-extraction")
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_said_and_the_loggers_are_as_before(originals, capfd):
    masked, plain = originals("bert", "MaskedLM"), originals("bert")
    capfd.readouterr()  # what transformers said while these were saved
    log = transformers.utils.logging
    before = (log.get_verbosity(), log.is_progress_bar_enabled(), logging.getLogger("huggingface_hub").level)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_source(masked, task="feature-extraction")
        _refused(plain, task="text-classification")
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert before == (log.get_verbosity(), log.is_progress_bar_enabled(), logging.getLogger("huggingface_hub").level)


# What is written


def _saved(source: Source, folder: Path) -> dict[str, bytes]:
    source.save_assets(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("bert", set()),
        ("llama", {"generation_config.json"}),
        ("t5", {"generation_config.json"}),
        ("whisper", {"generation_config.json", "processor_config.json", "preprocessor_config.json"}),
    ],
)
def test_assets_are_the_same_bytes_and_hold_no_path(checkpoint, tmp_path, name, more):
    folder = checkpoint(name)
    _edit(folder / "config.json", _name_or_path=str(folder), _commit_hash="0123")
    first = _saved(load_source(folder), tmp_path / "one")
    assert set(first) == ASSETS | more
    moved = Path(shutil.move(folder, tmp_path / f"{name}-copy"))
    assert _saved(load_source(moved), tmp_path / "two") == first
    for content in first.values():
        for path in (str(tmp_path), "secret-place", "pytest-of", "local_files_only", "_commit_hash"):
            assert path.encode() not in content
    assert json.loads(first["config.json"])["dtype"] == "float32"
    assert load_source(moved).describe() == load_source(moved).describe()
    assert str(tmp_path) not in json.dumps(load_source(moved).describe())


def test_assets_load_again(originals, tmp_path):
    source = load_source(originals("llama"), dtype="bfloat16")
    source.save_assets(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.dtype, config.architectures) == (torch.bfloat16, ["LlamaForCausalLM"])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("w5 w6").input_ids == [5, 6]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.slow
def test_assets_do_not_depend_on_the_process(originals, tmp_path):
    """Sets and hashes order themselves anew in every process."""
    script = (
        "import sys, json; from trueport.source import load_source\n"
        "source = load_source(sys.argv[1]); source.save_assets(__import__('pathlib').Path(sys.argv[2]))\n"
        "print(json.dumps(source.describe()))"
    )
    folder, here = originals("t5"), tmp_path / "here"
    source = load_source(folder)
    expected = _saved(source, here)
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "there")],
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == expected
    assert json.loads(result.stdout) == source.describe()
    assert result.stderr == ""


def test_assets_of_a_live_module(tmp_path):
    model = zoo.build("llama")
    model.config.name_or_path = str(tmp_path)
    assert set(_saved(load_source(model), tmp_path / "bare")) == {"config.json", "generation_config.json"}
    written = _saved(load_source(model, tokenizer=_tokenizer(), dtype="float16"), tmp_path / "full")
    assert set(written) == ASSETS | {"generation_config.json"}
    assert json.loads(written["config.json"])["dtype"] == "float16"
    assert json.loads(written["config.json"])["architectures"] == ["LlamaForCausalLM"]
    assert str(tmp_path).encode() not in b"".join(written.values())


def test_a_generation_config_that_transformers_would_not_save(checkpoint, tmp_path):
    folder = checkpoint("llama")
    _edit(folder / "generation_config.json", temperature=0.7, do_sample=False)
    written = _saved(load_source(folder), tmp_path / "out")
    assert json.loads(written["generation_config.json"])["temperature"] == 0.7


@pytest.mark.parametrize("link", [False, True])
def test_a_config_of_a_time_before_generation_configs(checkpoint, tmp_path, link):
    """Older checkpoints say in config.json how to generate, and transformers goes by it."""
    folder = checkpoint("t5")
    (folder / "generation_config.json").unlink()
    told = {"num_beams": 3, "max_length": 9, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    _edit(folder / "config.json", **told)
    written = json.loads(_saved(load_source(folder, link=link), tmp_path / "out")["generation_config.json"])
    wanted = transformers.T5ForConditionalGeneration.from_pretrained(folder).generation_config.to_diff_dict()
    assert written == wanted and written.items() >= told.items()


# What does not load


@pytest.mark.parametrize(
    "model", ["", "no/such/folder", "./bert", "/bert", "../bert", "~bert", "a b", "bert\n", "a\0b", "a" * 5000]
)
def test_no_folder_and_no_hub_id(model):
    _refused(model, "There is no folder")


def test_a_path_is_never_a_hub_id(tmp_path):
    _refused(Path("org/name"), "There is no folder")
    (tmp_path / "file.safetensors").write_bytes(b"")
    _refused(str(tmp_path / "file.safetensors"), "is a file")


@pytest.mark.parametrize("model", ["bert-base-no-such", "no-such-org/no-such-model"])
def test_a_hub_that_does_not_answer(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _offline)
    start = time.monotonic()
    _refused(model, "neither a folder here nor reachable on the hub")
    assert time.monotonic() - start < 5


def _offline(*args: Any, **options: Any) -> Any:
    raise ConnectionError("Name or service not known\nand more")


@pytest.fixture
def hub(monkeypatch, tmp_path, originals) -> str:
    """The cache of a hub model, and no network."""
    commit = "0123456789012345678901234567890123456789"
    place = tmp_path / "cache" / "models--org--name"
    shutil.copytree(originals("llama"), place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return commit


def test_a_hub_model_from_the_cache(hub, tmp_path):
    source = load_source("org/name")
    assert (source.name, source.kind, source.revision, source.task) == ("org/name", "hub", hub, "text-generation")
    assert source.describe()["revision"] == hub
    assert all(str(tmp_path).encode() not in content for content in _saved(source, tmp_path / "out").values())
    _refused("org/name", "neither a folder", revision="other")


def test_a_hub_model_of_pickles_is_refused_before_anything_is_fetched(monkeypatch):
    files = [type("File", (), {"rfilename": name}) for name in ("config.json", "pytorch_model.bin")]
    info = type("Info", (), {"siblings": files, "sha": "0"})
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **options: info)
    _refused("org/name", "pytorch_model.bin", "safetensors")


def test_a_folder_has_no_revision(originals):
    _refused(originals("bert"), "no revisions", revision="main")


@pytest.mark.parametrize("model", [3, None, {"a": 1}, b"x"])
def test_what_is_no_model(model):
    _refused(model, "Give a hub id, a folder")


def test_modules_that_cannot_be_exported():
    _refused(nn.Linear(2, 2), "Linear is not a transformers PreTrainedModel", "Put it into")
    _refused(zoo.build("bert").train(), "training mode", "model.eval()")
    model = zoo.build("bert")
    model.encoder.train()
    _refused(model, "training mode")
    _refused(zoo.build("bert").double(), "float64", "--dtype")
    assert load_source(zoo.build("bert").double(), dtype="float32").dtype == "float32"
    _refused(zoo.build("bert"), "does feature-extraction, not text-generation", task="text-generation")
    _refused(zoo.build("bert", head="MultipleChoice"), "three dimensions")
    _refused(transformers.T5Model(zoo.build("t5").config).eval(), "no head")
    _refused(zoo.build("bert").to("meta"), "meta")


def test_options_that_there_are_not(originals):
    text = _refused(originals("bert"), "There is no task translate", task="translate")
    assert all(task in text for task in TASKS)
    _refused(originals("bert"), "There is no dtype int8", "float16", dtype="int8")
    _refused(originals("bert"), "The tokenizer is of type str", tokenizer="mine")
    _refused(zoo.build("bert"), "The tokenizer is of type int", tokenizer=3)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "text-generation"),
        ("bert", "text2text-generation"),
        ("roberta", "text-generation"),
        ("llama", "fill-mask"),
        ("llama", "automatic-speech-recognition"),
        ("t5", "fill-mask"),
        ("bart", "text-generation"),
        ("bart", "feature-extraction"),
        ("whisper", "text2text-generation"),
    ],
)
def test_a_task_that_the_model_cannot_do(originals, name, task):
    text = _refused(originals(name), f"cannot do {task}", "It can do: ", task=task)
    assert type(zoo.build(name).config).__name__ in text


def test_a_head_that_nothing_trained(originals):
    says = ("no weights for classifier.bias, classifier.weight", "not trained for text-classification", "--task")
    _refused(originals("bert"), *says, task="text-classification")
    _refused(originals("bert", "MaskedLM"), "pooler.dense.bias", task="text-classification")


@pytest.mark.parametrize("head", ["MultipleChoice", "NextSentencePrediction", "PreTraining"])
def test_a_class_without_a_task_here(originals, head):
    _refused(originals("bert", head), f"BertFor{head}", "It can do: ", "fill-mask")


@pytest.mark.parametrize("kind", ["SiglipTextModel", "CLIPTextModelWithProjection", "DPRContextEncoder"])
@pytest.mark.parametrize("task", [None, "feature-extraction"])
def test_an_encoder_that_transformers_lists_for_no_task_gives_features(tmp_path, kind, task):
    """The folder was refused, where the same module in memory was exported."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    found = getattr(transformers, kind)
    model = found(found.config_class(vocab_size=20, pad_token_id=1, bos_token_id=0, eos_token_id=2, **sizes)).eval()
    model.save_pretrained(tmp_path)
    source = load_source(tmp_path, tokenizer=None, task=task)
    assert (type(source.model), source.role, source.task) == (found, "encoder", "feature-extraction")
    assert load_source(model).task == "feature-extraction"


def test_a_causal_class_that_sees_the_future(checkpoint):
    folder = checkpoint("bert", "MaskedLM")
    _edit(folder / "config.json", architectures=["BertLMHeadModel"])
    _refused(folder, "BertConfig model cannot do text-generation")


def test_models_of_other_inputs(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    speech = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = transformers.SpeechT5Config(hidden_size=16, encoder_ffn_dim=8, decoder_ffn_dim=8, vocab_size=9, **speech)
    transformers.SpeechT5ForSpeechToText(config).eval().save_pretrained(tmp_path)
    _refused(tmp_path, "SpeechT5ForSpeechToText reads input_values", "exports models of text")
    _refused(transformers.SpeechT5ForSpeechToText(config).eval(), "input_values")
    both = transformers.CLIPConfig(text_config=sizes, vision_config=sizes)
    _refused(transformers.CLIPModel(both).eval(), "pixel_values")


def test_sound_is_written_down_by_ctc(tmp_path):
    """The task has two ways; a tokenizer comes within a processor, and without one the feature extractor alone."""
    model = zoo.build("wav2vec2")
    model.save_pretrained(tmp_path)
    _refused(tmp_path, "There is no feature extractor", "--no-tokenizer")
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    extractor.save_pretrained(tmp_path)
    source = load_source(tmp_path)
    assert (source.role, source.task) == ("encoder", "automatic-speech-recognition")
    assert type(source.tokenizer) is type(extractor)
    assert load_source(tmp_path, task="feature-extraction").kind == "folder"
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(tmp_path)
    assert load_source(tmp_path).tokenizer.feature_extractor.return_attention_mask


def test_a_head_for_pretraining_on_sound_is_told_what_else_there_is(tmp_path):
    entry = next(entry for entry in zoo.ENTRIES if entry.name == "wavlm")
    quantiser = {"num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8}
    config = transformers.Wav2Vec2Config(**entry.config, **quantiser)
    transformers.Wav2Vec2ForPreTraining(config).eval().save_pretrained(tmp_path)
    _refused(tmp_path, "Wav2Vec2ForPreTraining, which does none of Trueport's tasks", "feature-extraction")
    assert type(load_source(tmp_path, task="feature-extraction", tokenizer=None).model) is transformers.Wav2Vec2Model


def test_a_state_that_is_no_cache(tmp_path):
    config = transformers.RwkvConfig(vocab_size=9, hidden_size=8, attention_hidden_size=8, num_hidden_layers=2)
    transformers.RwkvForCausalLM(config).save_pretrained(tmp_path)
    _refused(tmp_path, "A RwkvForCausalLM takes no cache", tokenizer=None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "nosuch"}, ("of type nosuch, which transformers", "--trust-remote-code")),
        ({"model_type": "a\n\x1b[2Jb"}, ("does not know",)),
        ({"hidden_size": "many"}, ("config.json", "hidden_size", "many")),
        ({"hidden_size": 64}, ("has shape", "config.json wants")),
        ({"num_hidden_layers": 3}, ("no weights for encoder.layer.2", "incomplete")),
        ({"num_attention_heads": 5}, ("cannot be loaded as a BertModel", "attention heads")),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ("is quantised",)),
    ],
)
def test_configs_that_do_not_fit(checkpoint, fields, says):
    folder = checkpoint("bert")
    _edit(folder / "config.json", **fields)
    _refused(folder, *says)


CODE = """
from transformers import BertConfig, BertForSequenceClassification
open({mark!r}, "w").close()
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_code_runs_only_when_it_is_trusted(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder, mark = checkpoint("bert", "SequenceClassification"), tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    _edit(folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=own)
    _refused(folder, "own Python code", "own.py", "--trust-remote-code")
    _edit(folder / "config.json", model_type="bert")  # a known type does not make an unknown class known
    _refused(folder, "own Python code")
    assert not mark.exists()
    _edit(folder / "config.json", model_type="own")
    source = load_source(folder, trust_remote_code=True)
    assert (type(source.model).__name__, source.task, source.role) == ("OwnModel", "text-classification", "encoder")
    assert mark.exists()
    assert set(_saved(source, tmp_path / "out")) == ASSETS
    _refused(folder, "cannot do fill-mask", "text-classification", trust_remote_code=True, task="fill-mask")
    (folder / "own.py").write_text("import nosuchpackage_")
    _refused(folder, "config.json", trust_remote_code=True)


def test_a_folder_of_pickles(checkpoint):
    folder = checkpoint("bert")
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    _refused(folder, "pytorch_model.bin", "pickle", "safetensors", "save_pretrained")


def test_a_truncated_file(checkpoint):
    path = checkpoint("bert") / SINGLE
    path.write_bytes(path.read_bytes()[:-100])
    _refused(path.parent, "model.safetensors is truncated", "Download it again")


def test_a_weight_that_is_missing(checkpoint):
    path = checkpoint("llama") / SINGLE
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    _refused(path.parent, "no weights for model.layers.1.mlp.up_proj.weight (1 tensor of LlamaForCausalLM)")


def test_weights_that_no_one_asked_for_are_left(checkpoint):
    path = checkpoint("llama") / SINGLE
    save_file(load_file(path) | {"extra": torch.ones(1)}, path, metadata={"format": "pt"})
    assert load_source(path.parent).task == "text-generation"


@pytest.mark.parametrize(
    ("name", "remove", "says"),
    [
        ("bert", ["tokenizer.json", "tokenizer_config.json"], "no tokenizer in"),
        ("bert", ["tokenizer.json"], "tokenizer in"),
        ("whisper", ["processor_config.json"], "no feature extractor in"),
        ("whisper", ["tokenizer.json", "tokenizer_config.json"], "no tokenizer in"),
        ("whisper", ["tokenizer.json"], "tokenizer in"),
    ],
)
def test_a_missing_tokenizer(checkpoint, name, remove, says):
    folder = checkpoint(name)
    for file in remove:
        (folder / file).unlink()
    _refused(folder, says, str(folder), "--no-tokenizer")
    assert load_source(folder, tokenizer=None).tokenizer is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\x00" * 9])
def test_a_corrupt_tokenizer(checkpoint, content):
    folder = checkpoint("llama")
    (folder / "tokenizer.json").write_text(content)
    _refused(folder, "tokenizer in", "--no-tokenizer")


def test_a_corrupt_tokenizer_config(checkpoint):
    folder = checkpoint("llama")
    (folder / "tokenizer_config.json").write_text("{")
    _refused(folder, "tokenizer in", "--no-tokenizer")
