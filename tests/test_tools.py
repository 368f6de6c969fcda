"""The coverage table and the benchmarks' tables, from made-up results: no timing decides here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import measure, tables, worker

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_tool", ROOT / "tools" / "coverage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
