"""The report's forms, the command, and where a finding is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from tests.graphs.audit.test_rules import VARIANTS, audited, blocks
from trueport.cli import main
from trueport.graphs.audit import audit
from trueport.graphs.audit.rules import RULES


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line; the exit code."""
    monkeypatch.setattr(sys, "argv", ["trueport", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@pytest.fixture
def summed(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    onnx.save(onnx.parser.parse_model(blocks("summed-masks")[0]), path)
    return path


def test_json_and_exit_code(
    summed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(monkeypatch, "audit", summed, "--json", tmp_path / "report.json") == 1
    out = capsys.readouterr().out
    assert out.startswith("error summed-masks at at_fault: ") and out.endswith("1 error in 1 attention layer.\n")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["schema_version"] == 1 and content["attentions"] == 1
    (finding,) = content["findings"]
    assert (finding["rule"], finding["severity"], finding["node"]) == ("summed-masks", "error", "at_fault")
    assert "-20,000" in finding["message"] and finding["mend"] and finding["repairable"]


def test_a_right_graph_exits_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(onnx.parser.parse_model(blocks("summed-masks")[1]), path)
    assert command(monkeypatch, "audit", path) == 0
    assert command(monkeypatch, "audit", tmp_path) == 0  # a folder with one graph


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "graph.onnx", "--json", "graph.onnx"),
        ("audit", "graph.onnx", "--sarif", "link.json"),
        ("repair", "graph.onnx", "-o", "fixed.onnx", "--json", "graph.onnx"),
        ("repair", "graph.onnx", "-o", "fixed.onnx", "--json", "fixed.onnx"),
    ],
)
def test_no_report_is_written_over_a_graph(
    arguments: tuple[str, ...], summed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(summed.parent)
    before = summed.read_bytes()
    Path("link.json").symlink_to("graph.onnx")
    assert command(monkeypatch, *arguments) == 2
    assert "would be written over" in capsys.readouterr().err
    assert summed.read_bytes() == before and not Path("fixed.onnx").exists()


@pytest.mark.parametrize("places", [("r.json", "./r.json"), ("-", "-")])
def test_two_reports_need_two_places(
    places: tuple[str, str], summed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One was lost, or both lay behind each other and were no JSON."""
    monkeypatch.chdir(summed.parent)
    assert command(monkeypatch, "audit", summed, "--json", places[0], "--sarif", places[1]) == 2
    assert "Give two places" in capsys.readouterr().err and not Path("r.json").exists()


def test_sarif(summed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "audit", summed, "--sarif", "-") == 1
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    (run,) = content["runs"]
    assert content["version"] == "2.1.0"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.id for rule in RULES]
    (result,) = run["results"]
    assert result["ruleId"] == "summed-masks" and result["level"] == "error"
    assert result["locations"][0]["logicalLocations"][0]["name"] == "at_fault"


@pytest.mark.parametrize("words", ["no such file", "cannot be written"])
def test_what_cannot_be_done_is_one_line(
    words: str, summed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"no such file": ["absent.onnx"], "cannot be written": [summed, "--json", "/absent/report.json"]}[words]
    assert command(monkeypatch, "audit", *wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_module_paths(tmp_path: Path) -> None:
    """By Trueport's metadata, by PyTorch's, by the names of the TorchScript exporter."""
    model = onnx.parser.parse_model(blocks("summed-masks")[0])
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    scopes = "['', 'encoder', 'encoder.layer.3.attention', 'softmax']"
    for key, value, name in (
        ("trueport.module", "encoder.layer.3.attention", "n"),
        ("pkg.torch.onnx.name_scopes", scopes, "n"),
        ("other", "", "/encoder/layer.3/attention/Softmax"),
    ):
        del softmax.metadata_props[:]
        softmax.metadata_props.add(key=key, value=value)
        softmax.name = name
        onnx.save(model, tmp_path / "graph.onnx")
        (finding,) = audit(tmp_path / "graph.onnx").findings
        assert finding.module == "encoder.layer.3.attention" and finding.node == name


def test_terminal_escapes_are_not_printed(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(blocks("summed-masks")[0])
    for node in model.graph.node:
        node.name = "\x1b[2J\u202eevil"
    onnx.save(model, tmp_path / "graph.onnx")
    report = audit(tmp_path / "graph.onnx")
    assert "\x1b" not in report.text() and "\x1b" not in json.dumps(report.to_sarif(RULES), ensure_ascii=False)


def test_lowest_fills_that_are_summed_are_a_note(tmp_path: Path) -> None:
    _, text = VARIANTS["added to each other"]
    report = audited(text.replace("-10000.0", "-3.4028235e38"), tmp_path)
    assert [finding.severity for finding in report.findings] == ["note"] and report.clean and not report.errors


def test_fills_are_judged_by_the_weights(tmp_path: Path) -> None:
    """The same fill behind smaller weights, and behind ones that need alignment to reach it."""
    page = blocks("reachable-fill")[0]
    (finding,) = audited(page, tmp_path).findings
    assert finding.severity == "error" and "spread by" in finding.message
    small = page
    for large in ("90.0", "-80.0", "110.0", "70.0", "100.0", "120.0"):
        small = small.replace(large, str(float(large) / 50))
    assert audited(small, tmp_path).findings == ()
    middle = page
    for large in ("90.0", "-80.0", "110.0", "70.0", "100.0", "120.0"):
        middle = middle.replace(large, str(float(large) / 4.5))
    assert [finding.severity for finding in audited(middle, tmp_path).findings] == ["warning"]


def test_a_plain_graph_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(onnx.parser.parse_model(blocks("hidden-tokens")[0]), path)
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(['torch', 'transformers', 'onnxruntime', 'onnxscript']))\n"
        "from trueport.graphs.audit import audit\nprint(audit(sys.argv[1]).text())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "1 error in 1 attention layer" in done.stdout, done.stderr
