"""``examples/run_pte.py``: the loop without Trueport says what transformers says, token for token."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tests.conftest import Exported
from tests.targets.executorch.conftest import BATCH, LENGTH

pytest.importorskip("executorch")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = EXAMPLES / "models"
# The scripts are run by path, so they import their neighbours by bare name.
sys.path.insert(0, str(EXAMPLES))

import dates_data  # noqa: E402
import run_pte  # noqa: E402
import tales_data  # noqa: E402

SEED = 99


def expected(name: str, texts: list[str], new_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts' ids, and what transformers makes of them in one padded batch, up to each row's end token."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    causal = name == "llama-tales"
    kind = AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(MODELS / name)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    tokens = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens)
    # Before the new tokens lie the prompt, or the decoder's start token.
    rows = tokens[:, ids.shape[1] if causal else 1 :].tolist()
    end = model.generation_config.eos_token_id
    cut = [row[: row.index(end) + 1] if end in row else row for row in rows]
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)], cut


def texts_of(name: str, count: int) -> list[str]:
    """Held-out prompts, short and long by turns so that every batch of them is ragged."""
    data = tales_data if name == "llama-tales" else dates_data
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    texts = [sample[0] for sample in islice(data.samples(SEED, held_out=True), 60)]
    texts.sort(key=lambda text: len(tokenizer(text)["input_ids"]))
    return [texts[-1 - index // 2 if index % 2 else index // 2] for index in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.xdist_group(f"pte-{n}")) for n in ("llama-tales", "t5-dates")]
)  # one worker for a program, so that none waits for its export
@pytest.mark.parametrize("chunk", [None, 3])
def test_tokens_are_those_of_transformers(name: str, chunk: int | None, program: Exported) -> None:
    folder, texts = run_pte.Folder(program(name)), texts_of(name, 11)
    # One program object for all batches: each begins anew over what the one before left in the cache.
    for rows in (texts[0:4], texts[4:7], texts[7:11], texts[:1]):
        prompts, wanted = expected(name, rows, 40)
        assert len(rows) == 1 or len({len(prompt) for prompt in prompts}) > 1
        assert run_pte.generate(folder, prompts, 40, chunk=chunk) == wanted


@pytest.mark.slow
def test_from_the_command_line(program: Exported) -> None:
    prompts, wanted = expected("t5-dates", ["the 3rd of May 1998", "29 Feb 2004"], 16)
    command = [sys.executable, str(EXAMPLES / "run_pte.py"), str(program("t5-dates"))]
    command += [" ".join(map(str, prompt)) for prompt in prompts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [[int(token) for token in line.split()] for line in done.stdout.splitlines()] == wanted


@pytest.mark.slow
def test_past_a_bound_is_one_line(program: Exported) -> None:
    folder = run_pte.Folder(program("llama-tales"))
    with pytest.raises(SystemExit, match=f"5 prompts are more than the program serves: {BATCH}"):
        run_pte.generate(folder, [[5]] * (BATCH + 1), 2)
    with pytest.raises(SystemExit, match=f"{LENGTH + 1} tokens.*more than the program serves: {LENGTH}"):
        run_pte.generate(folder, [[5]], LENGTH + 1)
    assert len(run_pte.generate(folder, [[5]], 2)[0]) <= 2
    with pytest.raises(SystemExit, match=f"{LENGTH + 1} tokens of source.*{LENGTH}"):
        run_pte.generate(run_pte.Folder(program("t5-dates")), [[5] * (LENGTH + 1)], 2)


def test_a_folder_without_a_program(tmp_path: Path) -> None:
    (tmp_path / "trueport.json").write_text(json.dumps({"components": {"model": {"target": "onnx"}}}))
    with pytest.raises(SystemExit, match="no ExecuTorch program"):
        run_pte.Folder(tmp_path)


def test_padding_sides() -> None:
    ids, mask = run_pte.padded([[7], [8, 9]], 0, left=True)
    assert ids.tolist() == [[0, 7], [8, 9]] and mask.tolist() == [[0, 1], [1, 1]]
    ids, mask = run_pte.padded([[7], [8, 9]], 0, left=False)
    assert ids.tolist() == [[7, 0], [8, 9]] and mask.tolist() == [[1, 0], [1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["1 two"], ["1", ""], ["--new-tokens", "0", "1"], ["--chunk", "-1", "1"]])
def test_what_no_prompt_is_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr(sys, "argv", ["run_pte.py", str(tmp_path), *words])
        run_pte.main()
    assert "Traceback" not in capsys.readouterr().err
