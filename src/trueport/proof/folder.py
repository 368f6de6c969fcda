"""Clauses about the folder itself: its files, and what lies beside the graphs."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import changed_files
from trueport.proof.result import FAIL, FOLDER, NOT_APPLICABLE, PASS, Case, ClauseResult, Proof

if TYPE_CHECKING:
    from trueport.source import Source


def files_clause(folder: Path, manifest: dict[str, Any]) -> ClauseResult:
    """Every file is the one that was exported."""
    found = changed_files(folder, manifest)
    unhashed = [name for name, entry in manifest.get("files", {}).items() if "sha256" not in entry]
    asked = f"sha256 of every file but {', '.join(unhashed)} (size and time)" if unhashed else "sha256 of every file"
    cases = tuple(Case(words, 1.0, 0.0) for words in found) or (Case(asked, 0.0, 0.0),)
    return ClauseResult("files", FOLDER, FAIL if found else PASS, "; ".join(found), cases)


VERSION_KEYS = ("transformers_version",)
"""Entries of a config that name a version and not the model."""


def assets_clause(folder: Path, source: Source) -> ClauseResult:
    """Config, generation config and tokenizer are the original's, as an export writes them."""
    with tempfile.TemporaryDirectory() as place:
        source.save_assets(Path(place))
        wanted = {path.relative_to(place).as_posix(): path for path in Path(place).rglob("*") if path.is_file()}
        found = []
        for name, path in sorted(wanted.items()):
            if not (folder / name).is_file():
                # An export may leave the tokenizer out; what steers the model, it may not.
                if name in ("config.json", "generation_config.json"):
                    found.append(f"{name} is missing")
            elif _content(folder / name) != _content(path):
                found.append(f"{name} is not the original's")
    cases = tuple(Case(words, 1.0, 0.0) for words in found) or (Case("config and tokenizer", 0.0, 0.0),)
    return ClauseResult("assets", FOLDER, FAIL if found else PASS, "; ".join(found), cases)


def _content(path: Path) -> Any:
    """JSON without its versions; other files as bytes."""
    data = path.read_bytes()
    if path.suffix != ".json":
        return data
    try:
        content = json.loads(data)
    except ValueError:
        return data
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if key not in VERSION_KEYS}
    return content


def excused(proof: Proof, folder: Path) -> Proof:
    """Without the original: what the folder's own proof, of these very files, found to be the original's nature."""
    path = folder / "proof.json"
    if proof.reference is not None or not path.is_file():
        return proof
    try:
        natural = {
            (clause["clause"], case["case"])
            for clause in json.loads(path.read_text(encoding="utf-8"))["clauses"]
            if clause["status"] == PASS
            for case in clause["cases"]
            if "the original itself" in case.get("note", "")
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # no proof of ours: it excuses nothing
        return proof
    reason = "the original itself does so, says proof.json: give --against MODEL"
    clauses = tuple(
        replace(clause, status=NOT_APPLICABLE, reason=reason)
        if clause.status == FAIL and all((clause.clause, c.case) in natural for c in clause.cases if c.failed)
        else clause
        for clause in proof.clauses
    )
    return replace(proof, clauses=clauses)
