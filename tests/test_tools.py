"""The coverage table and the benchmarks' tables, from made-up results: no timing decides here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import bound, large, measure, plot, tables, watched, worker
from tests import zoo

ROOT = Path(__file__).resolve().parent.parent


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    return _tool("coverage")


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    return _tool("mutants")


def _case(error: float | None, budget: float) -> dict[str, object]:
    return {"case": f"{error} of {budget}", "error": error, "budget": budget}


def test_summary_names_the_case_that_comes_closest(coverage: ModuleType) -> None:
    proof = {
        "verdict": "proven",
        "clauses": [
            {"clause": "shapes", "status": "pass", "reason": "", "cases": [_case(1.0, 4.0), _case(0.0, 0.0)]},
            {"clause": "padding", "status": "pass", "reason": "the original reads pads", "cases": [_case(3.0, 4.0)]},
            {"clause": "cache", "status": "not applicable", "reason": "no state", "cases": []},
        ],
    }
    row = coverage.summary(proof)
    assert (row["verdict"], row["ratio"], row["clause"]) == ("proven", 0.75, "padding: 3.0 of 4.0")
    assert row["notes"] == "padding: the original reads pads; cache not applicable: no state"


@pytest.mark.parametrize(
    ("error", "budget", "ratio"),
    [(None, 1.0, float("inf")), (1.0, 0.0, float("inf")), (0.0, 0.0, 0.0), (1.0, 2.0, 0.5)],
)
def test_ratio(coverage: ModuleType, error: float | None, budget: float, ratio: float) -> None:
    assert coverage._ratio(_case(error, budget)) == ratio


def test_check_tells_verdicts_that_changed(coverage: ModuleType) -> None:
    known = {"class": "Model", "role": "encoder"}
    good = known | {"name": "bert", "verdict": "proven", "ratio": 0.5, "clause": "shapes: x", "notes": "a \\| b"}
    bad = known | {"name": "odd"} | coverage._failed("crashed", f"in {ROOT}/x | y\nz")
    committed = coverage.document([good, bad])
    assert "1 of 2 proven" in committed and str(ROOT) not in committed
    assert coverage.read(committed) == [good, bad]
    assert coverage.compare([good, bad], committed) == []
    assert coverage.compare([good, bad | {"verdict": "proven"}], committed) == ["odd: proven, committed as crashed"]
    assert coverage.compare([good | {"name": "new"}], committed) == ["new: proven, committed as absent"]


def _run(seconds: float, **more: object) -> measure.Run:
    names = ("cpu_seconds", "extra_mib", "peak_mib", "bytes", "weights")
    return dict.fromkeys(names, seconds) | {"seconds": seconds, "phases": {}} | more


def test_export_table_shows_ratios_first_and_failures() -> None:
    proven = _run(6.0, phases={"load": 3.0, "assets": 1.0, "prove shapes": 2.0})
    runs = {tables.OURS: [_run(2.0), _run(3.0), _run(9.0)], tables.PROVEN: [proven], tables.PEER: [_run(6.0)]}
    table = tables.export_table("Export", runs)
    assert table.rows[0][:2] == (tables.OURS, "0.50") and "3.0 (2.0 – 9.0)" in table.rows[0]
    assert "reached with 0.50" in table.remark and "The proof takes 3.0 s, 1.00 of the export" in table.remark
    table = tables.export_table("Export", runs | {tables.PEER: [{"error": "boom"}]})
    assert table.rows[0][1] == "–" and "boom" in table.remark and "| failed |" in table.markdown()


def test_decode_table_compares_tokens() -> None:
    def run(speed: float, tokens: list[int]) -> measure.Run:
        names = ("tokens_per_second", "later_tokens_per_second", "first_token_seconds", "load_seconds", "peak_mib")
        return dict.fromkeys(names, speed) | {"tokens": tokens}

    runs = {tables.OURS: [run(4.0, [1, 2])], tables.PEER: [run(2.0, [1, 3])], tables.EAGER: [run(1.0, [1, 2])]}
    rows = tables.decode_table("Decode", runs).rows
    assert [row[1:3] for row in rows] == [("4.00", "2.00"), ("2.00", "1.00"), ("1.00", "0.50")]
    assert [row[-1] for row in rows] == ["all", "1 of 2", "all"]


@pytest.mark.slow
def test_a_worker_that_dies_is_a_result() -> None:
    assert "KeyError" in measure.measure({"task": "nothing"})["error"]


def test_phases() -> None:
    assert worker._durations([("load", 1.0), ("write", 3.0)], 7.0) == {"load": 2.0, "write": 4.0}
    assert worker._durations([], 7.0) == {}
    assert json.dumps(measure.machine())


def test_exportability_counts_each_way_and_weighs_the_context() -> None:
    spec = importlib.util.spec_from_file_location("exportability_tool", ROOT / "tools" / "exportability.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    done = {"verdict": "yes", "why": "", "seconds": 2.2, "context": 0.2}
    rows = [{"name": "bert", "way": way} | done for way in ("exporters", "exportable")]
    rows.append({"name": "bert", "way": "plain", "verdict": "no", "why": tool._first_line(ValueError(f"{ROOT}/a | b"))})
    page = tool.document(rows)
    assert "| torch.export.export | 0 | 0 | 0 | 1 |" in page and "**10.0 %**" in page
    assert "| bert | **no**: ValueError: ./a \\| b | yes | yes | 2.0 | 0.20 |" in page and str(ROOT) not in page


def test_ticks_are_round_and_hold_every_value() -> None:
    assert plot.ticks_of([12, 96], log=False) == [0, 20, 40, 60, 80, 100]
    assert plot.ticks_of([0.134, 69], log=True) == [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    for values in ([3.0], [0.7, 8.0], [1.0, 1000.0], [5.0, 5.0]):
        for log in (True, False):
            ticks = plot.ticks_of(values, log=log)
            assert len(ticks) > 1 and ticks[-1] >= max(values) and ticks[0] <= min(values) and ticks == sorted(ticks)


def test_a_chart_places_points_and_names_its_lines() -> None:
    lines = {"a & b": plot.Line([(1, 10), (100, 1000)]), "c": plot.Line([(10, 100)], stopped=[100])}
    picture = ElementTree.fromstring(plot.chart("T <1>", ("x", "y, s"), lines, log=(True, True), note="× stopped"))
    words = ["".join(element.itertext()) for element in picture.findall(".//{*}text")]
    assert {"T <1>", "x", "y, s", "a & b", "c", "× stopped"} <= set(words)
    first, second = [element.attrib["points"].split() for element in picture.findall(".//{*}polyline")]
    bottom, right = plot.HEIGHT - plot.BOTTOM, plot.WIDTH - plot.RIGHT
    assert first == [f"{plot.LEFT:.1f},{bottom:.1f}", f"{right:.1f},{plot.TOP:.1f}"]
    assert second == [f"{(plot.LEFT + right) / 2:.1f},{(plot.TOP + bottom) / 2:.1f}"]


def test_the_share_of_the_bound() -> None:
    """What reads 484 bytes of weights and 129 places of 4 bytes, at 1000 bytes a second, cannot take less than a second."""
    steps = {"float": {128: 2.0, 4096: 20.0}, "int8": {128: 5.0, 4096: 50.0}, "int8, fused": {128: 1.25, 4096: 40.0},
             "int4": {128: 1.0, 4096: 17.0}, "float, fused": {128: 2.5, 4096: 20.0}, "int4, fused": {128: 1.0, 4096: 20.0},
             **{bound.ALONE[kind]: {128: step, 4096: step} for kind, step in zip(bound.KINDS, (2.4, 0.8, 0.6), strict=True)},
            }  # fmt: skip
    steps |= {f"{name}, blocks of 128": {128: 0.4, 4096: 4.0} for name in (bound.ALONE["int8"], bound.ALONE["int4"])}
    steps |= {f"{kind}, blocks of 128, fused": {128: 1.25, 4096: 40.0} for kind in ("int8", "int4")}
    weights = {name: 484 if "float" in name else 184 if "int8" in name else 84 for name in steps}
    turns = {
        name: {length: [(step, 1000.0, 2000.0)] for length, step in lengths.items()} for name, lengths in steps.items()
    }
    turns["float"][128] += [(4.0, 500.0, 1000.0), (1.6, 2000.0, 4000.0)]  # a slow moment of the machine, and a fast one
    caches = {name: 0 if "alone" in name else 4 for name in steps}
    found = bound.Found(turns, weights, caches)
    assert found.share("float", 128) == pytest.approx(0.5)
    assert found.own("float", 128) == pytest.approx(0.25)
    assert found.worst("float", 128) == pytest.approx(1000 / 2000 / 1.6)
    assert found.share("float", 4096) == pytest.approx((484 + 4097 * 4) / 1000 / 20)
    assert found.share(bound.ALONE["int4"], 4096) == pytest.approx(84 / 1000 / 0.6)
    text = bound.table("0.1B", found)
    assert "| float | 0 | 0.6 | 0.50 |" in text and "int8 0.56 and 0.41 (aim: 0.7)" in text
    assert "int8 is 2.0 (its products alone 3.0) and 2.0, blocks of 128 (its products alone 6.0) times as fast" in text


def test_a_process_is_stopped_at_its_limit_and_one_that_fails_says_why(tmp_path: Path) -> None:
    def run(code: str, limits: watched.Limits) -> dict[str, object]:
        return watched.watched([sys.executable, "-c", code], tmp_path, limits, environment=os.environ, folder=tmp_path)

    limits = watched.Limits(memory=0.2, seconds=60, disk=1)
    assert run("b = b'x' * 10**9; input()", limits)["stopped"] == "0.2 GB"
    assert run("import time; time.sleep(60)", watched.Limits(1, 0.1, 1))["stopped"] == "0.1 s"
    assert run("raise SystemExit('no room')", limits)["error"] == "no room"
    assert run("print('{}')", limits)["printed"] == "{}"


def test_what_is_too_large_is_in_the_table_in_words() -> None:
    runs = {
        "12": {"seconds": 2.0, "all_seconds": 4.0, "peak_gb": 0.5}, "24": {"stopped": "10 GB", "peak_gb": 10.0},
        "48": {"untried": "24"}, "80": {"error": "boom"}, "96": {"seconds": 3.0, "all_seconds": 5.0, "peak_gb": 0.5},
    }  # fmt: skip
    text = large._section("layers", {large.OURS: runs})
    for row in ("| 12 | 2.0 s, 0.50 GB |", "| 24 | stopped at 10 GB |", "| 48 | – |", "| 80 | failed: boom |"):
        assert row in text
    ours = {large.OURS: {"12": runs["12"], "80": runs["96"]}}
    assert "80 layers to 12 1.50, with the imports 1.25 (aim: 1.3)" in "".join(large._verdicts("layers", ours))


def test_a_fault_changes_one_node(mutants: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    text = """<ir_version: 10, opset_import: ["" : 18]> g (float[n] x) => (float[n] z) <float two = {2.0}>
    { y = Mul (x, two) z = Sub (y, x) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    found = list(mutants.faults(path))
    assert [(fault.index, fault.kind) for fault in found] == [
        (0, "bypass"), (0, "operator"), (0, "constant 1"), (1, "bypass"), (1, "operator"), (1, "inputs"),
    ]  # fmt: skip
    results = {}
    for fault in found:
        onnx.save(onnx.parser.parse_model(text), path)
        if mutants.plant(path, fault):
            session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
            results[fault.index, fault.kind] = session.run(None, {"x": np.array([3.0], np.float32)})[0].item()
    assert results == {
        (0, "bypass"): 0.0, (0, "operator"): -1.5, (0, "constant 1"): pytest.approx(3.3), (1, "operator"): 9.0,
        (1, "inputs"): -3.0,
    }  # fmt: skip


@pytest.mark.slow
def test_the_benchmark_of_a_proof_in_little_memory_runs(tmp_path: Path) -> None:
    model = zoo.build("llama")
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "benchmarks.proven", "--memory", "1GB", "--worker"]
    command += [str(tmp_path / "model"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["verdict"] == "proven"
    assert all(len(entry) == 3 for entry in found["phases"].values()) and "prove shapes" in found["phases"]
