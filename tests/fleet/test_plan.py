"""The plan: what it says, and where it is wrong."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import trueport
from trueport.errors import TrueportError
from trueport.fleet import keywords, read_plan
from trueport.fleet.identity import key_of, source_of
from trueport.fleet.limits import Limits, time_words


def _plan(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_a_plan(tmp_path: Path) -> None:
    (tmp_path / "models" / "bert").mkdir(parents=True)
    plan = read_plan(
        _plan(
            tmp_path,
            """
            out = "exports"
            [defaults]
            to = "onnx"
            time = "1h30m"
            memory = "8GB"
            [[model]]
            model = "models/bert"
            [[model]]
            model = "org/llama"
            name = "llama-int8"
            quantize = "int8"
            calibration = "prompts.txt"
            tokenizer = false
            time = 90
            memory = "512MiB"
            retries = 0
            cpus = 4
            [[model]]
            model = "mine.py:build"
            [storage]
            endpoint_url = "http://localhost:9000"
            """,
        )
    )
    assert plan.out == str(tmp_path / "exports") and plan.storage == {"endpoint_url": "http://localhost:9000"}
    bert, llama, mine = plan.entries
    assert (bert.name, bert.model, bert.options) == ("bert", str(tmp_path / "models" / "bert"), {"to": "onnx"})
    assert bert.limits == Limits(seconds=5400, memory=8 * 10**9)
    assert (llama.name, llama.model) == ("llama-int8", "org/llama")
    assert llama.limits == Limits(90, 512 * 2**20, 0, 4)
    assert llama.options["calibration"] == str(tmp_path / "prompts.txt")
    assert keywords.for_export(dict(llama.options))["tokenizer"] is None
    assert (mine.name, mine.model) == ("build", f"{tmp_path / 'mine.py'}:build")


def test_every_keyword_of_export_is_known_or_told_apart() -> None:
    names = set(inspect.signature(trueport.export).parameters) - {"model", "out"}
    assert names == {*keywords.known(), *keywords.living()}
    assert keywords.known()["quantize"] == (str,) and keywords.known()["calibration"] == (str, list)
    assert keywords.known()["max_batch"] == (int,) and keywords.known()["proof"] == (bool,)
    assert set(keywords.living()) == {"inputs", "dynamic", "state", "progress", "bytes_done"}


ONE = '[[model]]\nmodel = "a/b"\n'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", None, ["no [[model]]"]),
        ("[[model]\n", None, ["not TOML", "line 1"]),
        ("x = " + "[" * 20000, None, ["not TOML", "recursion"]),
        (ONE + "seed = " + "9" * 5000, None, ["not TOML", "digits"]),
        ("outt = 'x'\n" + ONE, 1, ["'outt'", "Did you mean out?"]),
        ("defaults = 3\n" + ONE, 1, ["[defaults]"]),
        (ONE + "[[model]]\n# which?\nname = 'x'\n", 3, ["[[model]] 2 (x) names no model"]),
        ("[[model]]\nsource = 'x'\n", 1, ["names no model", "'source' may be meant"]),
        (ONE + "\nquantise = 'int8'\n", 4, ["unknown key 'quantise'", "Did you mean quantize?", "memory", "opset"]),
        (ONE + "opset = '23'\n", 3, ["opset = '23'", "a whole number"]),
        (ONE + "proof = 1\n", 3, ["proof = 1", "true or false"]),
        (ONE + "max_batch = true\n", 3, ["max_batch = True"]),
        (ONE + "calibration = [1]\n", 3, ["calibration", "a list of texts"]),
        (ONE + "inputs = [1]\n", 3, ["inputs cannot be written", "FILE.py:NAME"]),
        (ONE + "out = 'x'\n", 3, ["unknown key 'out'"]),
        (ONE + "time = 'soon'\n", 3, ["no length of time", "30m"]),
        (ONE + "time = 0\n", 3, ["no length of time"]),
        (ONE + "memory = '8 gigs'\n", 3, ["no amount of memory", "8GB"]),
        (ONE + f"memory = '{'9' * 400}GB'\n", 3, ["no amount of memory"]),
        (ONE + "memory = '0.1B'\n", 3, ["no amount of memory"]),
        (ONE + "retries = -1\n", 3, ["retries = -1"]),
        ("[defaults]\nname = 'x'\n" + ONE, 2, ["[defaults]", "unknown key 'name'"]),
        ("[defaults]\ncpus = 0\n" + ONE, 2, ["[defaults]", "cpus = 0"]),
        (ONE + "name = '../x'\n", 3, ["no name for a folder"]),
        (ONE + f"name = '{'x' * 101}'\n", 3, ["no name for a folder", "100 of them at most"]),
        ('[[model]]\nname = "x"\nmodel = "a\\u0000b"\n', 3, ["[[model]] 1 (x): model holds a NUL"]),
        (ONE + 'calibration = "a\\u0000b"\n', 3, ["[[model]] 1: calibration holds a NUL"]),
        ('out = "a\\u0000b"\n' + ONE, 1, ["out holds a NUL"]),
        (ONE + "[storage]\nexpires = 2026-01-01\n", 4, ["[storage]: expires = 2026-01-01 is of the wrong kind"]),
        (ONE + ONE, 3, ["[[model]] 1 and [[model]] 2", "b", "another name"]),
        (ONE + "name = 'x'\n" + ONE + "name = 'X'\n", 6, ["would both be written to X"]),
        ('model = [{model = "a"}, {model = "b", tpo = "c"}]', None, ["[[model]] 2", "'tpo'", "Did you mean to?"]),
    ],
)
def test_a_wrong_plan_is_one_message_with_its_place(
    tmp_path: Path, text: str, line: int | None, words: list[str]
) -> None:
    path = _plan(tmp_path, text)
    with pytest.raises(TrueportError) as error:
        read_plan(path)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}"), error.value
    for word in words:
        assert word in str(error.value)


def test_a_plan_that_begins_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ONE.encode())
    assert [entry.model for entry in read_plan(path).entries] == ["a/b"]


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match="cannot be read"):
        read_plan(tmp_path / "nothing.toml")
    (tmp_path / "fleet.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TrueportError, match="UTF-8"):
        read_plan(tmp_path / "fleet.toml")


def test_a_key_is_of_what_decides_what_is_written(tmp_path: Path) -> None:
    model = tmp_path / "bert"
    model.mkdir()
    (model / "weights").write_text("x")
    (tmp_path / "prompts.txt").write_text("one")

    def key(extra: str = "", versions: str = "1") -> str:
        entry = read_plan(_plan(tmp_path, f'[[model]]\nmodel = "bert"\ncalibration = "prompts.txt"\n{extra}')).entries[
            0
        ]
        return key_of(entry, source_of(entry.model), {"torch": versions})

    first = key()
    assert key() == key("opset = 23\nname = 'other'\nforce = true\ntime = 5\nretries = 7".replace("opset = 23\n", ""))
    assert key("opset = 22") != first and key(versions="2") != first
    (tmp_path / "prompts.txt").write_text("two")
    second = key()
    assert second != first
    (model / "weights").write_text("xy")
    assert key() != second
    (model / ".cache").mkdir()
    (model / ".cache" / "noise").write_text("")
    third = key()
    (model / ".cache" / "noise").write_text("more")
    assert key() == third


def test_a_recipe_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("a")
    first = source_of(f"{file}:build")
    file.write_text("b")
    assert source_of(f"{file}:build") != first != source_of(f"{file}:other")
    assert source_of("org/model") == {"hub": "org/model"}


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.44, "0.4 s"), (38.2, "38 s"), (302, "5 min 2 s"), (7805, "2 h 10 min")]
)
def test_time_words(seconds: float, words: str) -> None:
    assert time_words(seconds) == words


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path: Path) -> None:
    (entry,) = read_plan(_plan(tmp_path, '[[model]]\nmodel = "~nobody-of-this-name/b"\n')).entries
    assert entry.model == f"{tmp_path}/~nobody-of-this-name/b"
