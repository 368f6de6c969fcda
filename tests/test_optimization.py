"""``trueport optimize``: folders fused, proven anew and replaced whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trueport
from tests import zoo
from tests.conftest import Exported, Once
from tests.test_cli import run
from trueport.artifact import read_manifest, sha256
from trueport.card import snippet
from trueport.errors import ArtifactError, ProofError, TrueportError
from trueport.graphs.audit import audit
from trueport.graphs.fusions import Fusion, Optimized
from trueport.optimization import optimize

HEADS, PAST, NORM, ROTARY, SCALE = "grouped-heads", "past-inside", "rms-norm", "rotary", "scaled-queries"
CUT, SHAPES, MASK = "heads-at-once", "idle-reshapes", "whole-mask"
IN_PLACE = {NORM: 5, ROTARY: 4, HEADS: 2, SCALE: 2, SHAPES: 2, MASK: 1, PAST: 2, "in-place": 4}
"""What a Llama of two layers keeps."""
BROKEN = Fusion("broken", "", "", ("cpu",), "", lambda model, interface: 1 / 0)  # type: ignore[arg-type,return-value]


@pytest.fixture
def fused_llama(once: Once, exported: Exported) -> Path:
    """The zoo's Llama, its caches written in place, proven against the original."""

    def write(out: Path) -> None:
        shutil.copytree(exported("llama"), out)
        optimize(out, caches="in-place", against=zoo.build("llama"))

    return once("llama-in-place", write)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("mistral", {NORM: 5, ROTARY: 4, HEADS: 2, SCALE: 2, SHAPES: 2, MASK: 1, PAST: 2}),
        ("gpt2", {CUT: 2, SCALE: 2, SHAPES: 5, MASK: 1, PAST: 2}),
        ("bart", {SCALE: 4, SHAPES: 4, MASK: 1, PAST: 2}),
        ("mixtral", {NORM: 5, ROTARY: 4, HEADS: 2, SCALE: 2, SHAPES: 6, MASK: 1, PAST: 2}),
        ("modernbert", {ROTARY: 4}),
    ],
)
def test_what_is_fused_is_proven(name: str, kept: dict[str, int], copied: Exported) -> None:
    """A window, positions of a table, encoders with decoders, loops over sequences, positions that no input gives."""
    folder = copied(name)
    done = trueport.optimize(folder, against=zoo.build(name))
    assert (done.kept, done.undone) == (kept, {})
    manifest = read_manifest(folder)
    assert manifest["optimized"] == done.to_json() and manifest["proof"]["verdict"] == "proven"
    assert json.loads((folder / "proof.json").read_text())["verdict"] == "proven"
    assert trueport.verify(folder, clauses=["shapes", "cache"]).proven
    assert all(audit(graph).clean for graph in (folder / "onnx").glob("*.onnx"))
    with pytest.raises(ArtifactError, match="is optimised already"):
        optimize(folder)


@pytest.mark.slow
def test_caches_in_place_are_proven(fused_llama: Path) -> None:
    manifest = read_manifest(fused_llama)
    entry = manifest["components"]["model"]
    assert manifest["optimized"]["fusions"] == IN_PLACE
    assert all(pair["in_place"] for pair in entry["state"]) and entry["dimensions"]["cache_capacity"] == [0, None]
    proof = json.loads((fused_llama / "proof.json").read_text())
    passed = {clause["clause"] for clause in proof["clauses"] if clause["status"] == "pass"}
    assert passed >= {"shapes", "padding", "inert", "causal", "cache", "generate", "finite"}
    assert audit(fused_llama / entry["file"]).clean
    assert trueport.verify(fused_llama, clauses=["cache", "generate"], against=zoo.build("llama")).proven


@pytest.mark.slow
def test_the_card_runs_buffers(fused_llama: Path, exported: Exported) -> None:
    """Its program gives the tokens of the folder without fusions, and it names no client that knows no buffers."""
    told = [
        subprocess.run(
            [sys.executable, "-c", snippet(read_manifest(folder))],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for folder in (exported("llama"), fused_llama)
    ]
    assert told[0] == told[1] and len(told[0].split()) > 20
    text = (fused_llama / "README.md").read_text()
    assert "is written in place" in text and "optimum" not in text and "transformers.js" not in text


@pytest.mark.slow
def test_a_decoder_without_a_mask_keeps_its_caches(copied: Exported) -> None:
    done = optimize(copied("t5"), caches="in-place", against=zoo.build("t5"))
    assert done.kept == {NORM: 12, MASK: 1}
    assert done.absent["in-place"] == "no attention_mask beside input_ids tells where the past ends"


@pytest.mark.slow
def test_without_the_original_the_folder_stands_in(copied: Exported) -> None:
    done = optimize(copied("llama"))
    assert list(done.kept) == [NORM, ROTARY, HEADS, SCALE, SHAPES, MASK, PAST]
    assert done.proof is not None and done.proof.reference == {
        "class": "the folder before its optimisation",
        "dtype": "float32",
    }
    assert {clause.clause for clause in done.proof.clauses if clause.status == "pass"} >= {
        "padding",
        "cache",
        "generate",
    }


@pytest.mark.slow
def test_export_fuses_before_it_proves(tmp_path: Path) -> None:
    artifact = trueport.export(zoo.build("llama"), tmp_path / "out", tokenizer=None, optimize="cpu", caches="in-place")
    assert list(artifact.manifest["optimized"]["fusions"]) == [
        NORM,
        ROTARY,
        HEADS,
        SCALE,
        SHAPES,
        MASK,
        PAST,
        "in-place",
    ]
    assert artifact.verdict == "proven"


@pytest.mark.slow
def test_weights_are_not_copied(copied: Exported) -> None:
    """The data file beside the graphs is the same file under a second name, until the old folder goes."""
    folder = copied("t5")
    (data,) = (folder / "onnx").glob("*_data")
    inode = os.stat(data).st_ino
    optimize(folder)
    assert os.stat(data).st_ino == inode and os.stat(data).st_nlink == 1


def test_a_folder_that_cannot_be_optimised_is_left_alone(copied: Exported, tmp_path: Path) -> None:
    folder = copied("bert")
    before = {path: sha256(path) for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ZeroDivisionError):
        optimize(folder, fusions=(BROKEN,))
    with pytest.raises(TrueportError, match="no fusions for 'cuda'"):
        optimize(folder, provider="cuda")
    assert before == {path: sha256(path) for path in folder.rglob("*") if path.is_file()}
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}.")]
    (folder / "onnx/model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"not as it was exported: onnx/model.onnx"):
        optimize(folder)
    with pytest.raises(ArtifactError, match="is not a folder"):
        optimize(tmp_path / "nothing")


@pytest.mark.slow
def test_a_folder_that_is_not_the_originals_is_told(copied: Exported) -> None:
    """Its proof falls without any fusion: that is no fusion's fault."""
    folder = copied("llama")
    other = zoo.build("llama")
    other.lm_head.weight.data *= 1.5
    with pytest.raises(ProofError, match=r"does not hold its proof as it is: shapes, .* It was left as it was"):
        optimize(folder, against=other)
    assert "optimized" not in read_manifest(folder)


@pytest.mark.slow
def test_the_command(copied: Exported) -> None:
    done = run("optimize", copied("bert"))
    assert done.returncode == 0 and "left as it was (0 fusions for cpu, 0 undone)" in done.stdout
    assert "not there rms-norm: nothing matches" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"caches": "in-place"}, "Give --optimize cpu too"),
        ({"optimize": "cpu", "proof": False}, "Leave --no-proof or --optimize out"),
        ({"optimize": "cpu", "to": "executorch"}, "Give --to onnx alone"),
        ({"optimize": "cpu", "caches": "moved"}, "Give one of copied, in-place"),
        ({"optimize": "tpu"}, "Give one of cpu"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match=words):
        trueport.export("nowhere", tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_quantised_folders_are_optimised_under_their_gate(tmp_path: Path) -> None:
    """Against a local folder: shapes, caches and left padding exactly, and the gate that the kind has."""
    source = tmp_path / "source"
    zoo.build("llama").save_pretrained(source)
    trueport.export(str(source), tmp_path / "out", tokenizer=None, quantize="int8", proof=False)
    with pytest.raises(TrueportError, match=r"is quantised, and its gate needs the original. Give --against MODEL"):
        optimize(tmp_path / "out")
    optimize(tmp_path / "out", caches="in-place", against=str(source))
    manifest = read_manifest(tmp_path / "out")
    assert manifest["optimized"]["fusions"] == IN_PLACE | {CUT: 2} and manifest["quantize"]["kind"] == "int8"
    assert manifest["proof"]["verdict"] == "proven"
    proof = json.loads((tmp_path / "out/proof.json").read_text())
    passed = {clause["clause"] for clause in proof["clauses"] if clause["status"] == "pass"}
    assert passed >= {"quality", "padding", "inert", "causal", "cache"}
    assert proof["reference"]["class"] == "LlamaForCausalLM"


@pytest.mark.parametrize("kept", [{"norm": 1}, {}])
def test_an_export_that_came_meanwhile_is_kept(
    copied: Exported, monkeypatch: pytest.MonkeyPatch, kept: dict[str, int]
) -> None:
    """What was made of the folder that lay there before would have replaced it; nor was what is there now left as it was."""
    folder = copied("bert")

    def fit(*args: object, **options: object) -> Optimized:
        manifest = json.loads((folder / "trueport.json").read_text())
        (folder / "trueport.json").write_text(json.dumps(manifest | {"versions": {"torch": "newer"}}))
        return Optimized(folder, "cpu", kept=kept)

    monkeypatch.setattr("trueport.optimization.fit", fit)
    with pytest.raises(ArtifactError, match="was replaced while it was optimised"):
        optimize(folder, against=zoo.build("bert"))
    assert read_manifest(folder)["versions"] == {"torch": "newer"}
