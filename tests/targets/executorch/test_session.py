"""A program's state, bounds and errors, on the trained examples."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import trueport
from tests.conftest import EXAMPLES, Exported
from tests.targets.executorch.conftest import BATCH, LENGTH
from trueport.errors import ArtifactError, RunError, TrueportError
from trueport.runtime.loading import load

pytestmark = pytest.mark.slow  # a program takes long to lower

PROMPTS = ["Once", "There was a sleepy rabbit called", "One morning the", "Ella"]


@pytest.fixture(scope="module")
def tales(program: Exported) -> trueport.runtime.TrueportModel:
    return trueport.load(program("llama-tales"))


@pytest.fixture(scope="module")
def original() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(EXAMPLES / "llama-tales").eval()


def left_padded(texts: list[str]) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(EXAMPLES / "llama-tales", padding_side="left")
    return dict(tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "top_k": 10}])
def test_left_padded_prompts_give_the_originals_tokens(tales, original, options):
    feeds = left_padded(PROMPTS[: BATCH // options.get("num_beams", 1)])
    for model in (tales, original):
        torch.manual_seed(3)
        tokens = model.generate(**feeds, max_new_tokens=12, **options)
        expected = tokens if model is tales else expected  # noqa: F821
    assert torch.equal(tokens, expected)


def test_states_fork_and_go_back(tales, original):
    """Two continuations of one state, in turn: the program's buffers hold only one of them at a time."""
    first = torch.tensor([[5, 6, 7, 8]])
    _, state = tales.step({"input_ids": first})
    ways = {token: torch.tensor([[token]]) for token in (9, 11)}
    for token in (9, 11, 9):
        logits, after = tales.step({"input_ids": ways[token]}, state)
        whole = original(torch.cat([first, ways[token]], dim=1)).logits[:, -1:]
        torch.testing.assert_close(logits["logits"], whole, atol=1e-3, rtol=1e-4)
        again, _ = tales.step({"input_ids": torch.tensor([[3]])}, after)
        whole = original(torch.cat([first, ways[token], torch.tensor([[3]])], dim=1)).logits[:, -1:]
        torch.testing.assert_close(again["logits"], whole, atol=1e-3, rtol=1e-4)


def test_one_source_after_another_needs_no_reload(tales, original):
    for seed in range(4):
        torch.manual_seed(seed)
        ids = torch.randint(3, 90, (1 + seed % 3, 5 + seed))
        torch.testing.assert_close(tales(input_ids=ids).logits, original(ids).logits, atol=1e-3, rtol=1e-4)


def test_bounds_are_errors_that_name_them(tales):
    with pytest.raises(RunError, match=f"{LENGTH}"):
        tales(input_ids=torch.ones(1, LENGTH + 1, dtype=torch.long))
    with pytest.raises(RunError, match=f"{BATCH}"):
        tales(input_ids=torch.ones(BATCH + 1, 3, dtype=torch.long))
    _, state = tales.step({"input_ids": torch.ones(1, LENGTH - 1, dtype=torch.long)})
    _, state = tales.step({"input_ids": torch.ones(1, 1, dtype=torch.long)}, state)
    with pytest.raises(RunError, match=f"{LENGTH}"):
        tales.step({"input_ids": torch.ones(1, 1, dtype=torch.long)}, state)
    with pytest.raises(RunError, match="int64"):
        tales(input_ids=torch.ones(1, 3))


def test_the_session_itself_checks_before_the_runtime_does(tales):
    session = tales.sessions["model"]
    good = {
        "input_ids": np.ones((1, 3), dtype=np.int64),
        "attention_mask": np.ones((1, 3), dtype=np.int64),
        "position_ids": np.arange(3)[None],
    }
    for name, wrong, words in (
        ("input_ids", np.ones((1, 3), dtype=np.int32), "int64"),
        ("input_ids", np.ones((1, 3, 1), dtype=np.int64), "shape"),
        ("attention_mask", np.ones((2, 3), dtype=np.int64), "batch_size"),
        ("attention_mask", np.ones((1, LENGTH + 1), dtype=np.int64), "covers 65 tokens where 3"),
        ("attention_mask", np.ones((1, 2), dtype=np.int64), "covers 2 tokens where 3"),
    ):
        with pytest.raises(RunError, match=words):
            session.step(good | {name: wrong}, session.empty_state(1))
    whole = LENGTH + 1
    long = {
        "input_ids": np.ones((1, whole)),
        "attention_mask": np.ones((1, whole)),
        "position_ids": np.ones((1, whole)),
    }
    with pytest.raises(RunError, match="--max-length"):
        session.step({name: array.astype(np.int64) for name, array in long.items()}, session.empty_state(1))
    whole = LENGTH + 1
    long = {name: np.ones((1, whole), dtype=np.int64) for name in good}
    with pytest.raises(RunError, match="--max-length"):
        session.step(long, session.empty_state(1))
    with pytest.raises(RunError, match="no input"):
        session.step(good | {"colour": good["input_ids"]}, session.empty_state(1))


def test_a_cut_or_foreign_file_is_one_line(program: Exported, tmp_path: Path):
    folder = Path(shutil.copytree(program("llama-tales"), tmp_path / "copy"))
    path = folder / "executorch" / "model.pte"
    data = path.read_bytes()
    for content, words in (
        (data[: len(data) // 2], "cut short"),
        (data[:20], "cut short|broken"),
        (b"not a program at all" * 10, "no ExecuTorch program"),
        (data[:4] + b"ET99" + data[8:], "ET99"),
    ):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=words):
            load(folder, sized=False)
        if len(content) != len(data):
            with pytest.raises(ArtifactError, match=f"model.pte has {len(content)} bytes, and trueport.json says"):
                trueport.load(folder)


def test_an_unknown_method_is_one_line(program: Exported, tmp_path: Path):
    folder = Path(shutil.copytree(program("llama-tales"), tmp_path / "copy"))
    manifest = json.loads((folder / "trueport.json").read_text())
    manifest["components"]["model"]["method"] = "backward"
    (folder / "trueport.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="no method backward; it has forward"):
        trueport.load(folder)


def test_without_executorch_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "executorch" else real(name))
    with pytest.raises(TrueportError, match=r"trueport\[executorch\]"):
        trueport.export(EXAMPLES / "llama-tales", tmp_path / "out", to="executorch")


def test_an_arena_past_its_bound_names_the_dimension(tmp_path: Path):
    with pytest.raises(TrueportError, match=r"[1-9][\d.]* MB of memory, more than 1\.0 kB.*Lower --max-"):
        trueport.export(EXAMPLES / "bert-sentiment", tmp_path / "out", to="executorch", max_arena=1000)
    assert not (tmp_path / "out").exists()


def test_threads_take_turns_on_one_model(tales, original):
    """They share the program's buffers: a call must not come between another's reading and its answer."""
    prompts = [torch.tensor([[5 + k, 6, 7 + k, 8][: 4 - k % 2]]) for k in range(4)]
    options = {"max_new_tokens": 8, "do_sample": False}
    wanted = [original.generate(ids, **options) for ids in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            got = list(pool.map(lambda ids: tales.generate(ids, **options), prompts))
            assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sequence_length": [1, 4000], "past_sequence_length": [0, 3999]}, "takes input_ids of"),
        ({"batch_size": [1, None]}, "bounds batch_size by none"),
        ({"batch_size": [1, "4"]}, "bounds that are no lengths"),
        ({"batch_size": [4, 1]}, "ends before it begins"),
        ({"batch_size": None}, "no dimension batch_size"),
    ],
)
def test_a_manifest_that_promises_more_than_the_program_is_refused(program, change, words, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(program("llama-tales"), folder)
    path = folder / "trueport.json"
    manifest = json.loads(path.read_text())
    dimensions = manifest["components"]["model"]["dimensions"] | change
    manifest["components"]["model"]["dimensions"] = {k: v for k, v in dimensions.items() if v is not None}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=words):
        trueport.load(folder)
    with pytest.raises(ArtifactError, match=words):
        trueport.verify(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: entry.pop("kept"), "reads a past, and the manifest names nothing that it keeps"),
        (lambda entry: entry["outputs"][0].update(name="x"), "names no output logits of model"),
        (lambda entry: entry["inputs"][0].update(name="x"), "names no input input_ids of model"),
    ],
)
def test_a_manifest_that_calls_a_programs_tensors_otherwise_is_refused(program, change, words, tmp_path):
    """They go by place: wrong names were a KeyError in the middle of a generation, and so was a cache unsaid."""
    folder = Path(shutil.copytree(program("llama-tales"), tmp_path / "out"))
    manifest = json.loads((folder / "trueport.json").read_text())
    change(manifest["components"]["model"])
    (folder / "trueport.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=words):
        trueport.load(folder)


def test_what_was_read_under_another_mask_of_the_source_is_read_again(program: Exported) -> None:
    """Both masks go with the same keys and values, and what the buffers hold depends on which it was."""
    model = trueport.load(program("t5-dates"))
    source = torch.tensor([[43, 40, 10, 137, 44, 81, 40, 8, 16, 16, 15, 1]])
    encoded = model.encoder(input_ids=source, attention_mask=torch.ones_like(source))
    some = torch.ones_like(source)
    some[:, 6:] = 0
    first, second = (torch.tensor([[token]]) for token in (0, 8))

    def begun(mask: torch.Tensor) -> Any:
        return model.step({"input_ids": first, "encoder_attention_mask": mask}, encoded_state(model, encoded))[1]

    def ended(mask: torch.Tensor, state: Any) -> torch.Tensor:
        return model.step({"input_ids": second, "encoder_attention_mask": mask}, state)[0]["logits"]

    whole = torch.ones_like(source)
    wanted = ended(whole, begun(whole))
    state = begun(whole)
    begun(some)
    assert torch.equal(ended(whole, state), wanted)
    # A caller who writes to the mask changes nothing of what was read.
    mask = whole.clone()
    state = begun(mask)
    mask[:, 6:] = 0
    assert torch.equal(ended(whole, state), wanted)


def encoded_state(model: Any, encoded: Any) -> Any:
    """The state of a decoder that has read nothing."""
    return model.main.session.empty_state(1, dict(encoded))


def test_the_threads_of_a_loaded_program_stay(program: Exported) -> None:
    """In a process of its own, which used to end: the pool of threads is every program's."""
    code = f"""
import torch, trueport
from trueport.errors import ArtifactError
folder = {str(program("llama-tales"))!r}
model, ids = trueport.load(folder, threads=2), torch.ones(4, 60, dtype=torch.long)
wanted = model(input_ids=ids).logits
other = trueport.load(folder, threads=2)
try:
    trueport.load(folder, threads=3)
except ArtifactError as error:
    print(error)
for each in (model, other, trueport.load(folder)):
    assert torch.allclose(each(input_ids=ids).logits, wanted, atol=1e-4)
del model, other, each
model = trueport.load(folder, threads=3)
assert torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-4)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and "loaded with 2 of them; this one asks for 3" in told.stdout, told.stderr


def test_no_threads_are_none(program: Exported) -> None:
    with pytest.raises(ArtifactError, match="No model runs on 0 threads"):
        trueport.load(program("llama-tales"), threads=0)
