"""Clauses about the folder itself: its files, and what lies beside the graphs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from trueport.artifact import MANIFEST, changed_files
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


STEERING = ("config.json", "generation_config.json")
"""What an export may not leave out, as it may the tokenizer."""
OWN = (MANIFEST, "proof.json", "report.html", "README.md")
"""What an export writes beside its assets and the folders of its graphs."""
TEMPLATES = "additional_chat_templates"
"""A folder in which transformers looks for templates of conversations."""


def assets_clause(folder: Path, manifest: Mapping[str, Any], source: Source) -> ClauseResult:
    """Config, generation config and tokenizer are the original's, as an export writes them, and all there is."""
    with tempfile.TemporaryDirectory() as place:
        source.save_assets(Path(place))
        files = (PurePosixPath(str(entry.get("file"))) for entry in manifest["components"].values())
        graphs = {part for file in files for part in file.parts[:1]}
        wanted, there = _assets(Path(place)), _assets(folder, graphs - {TEMPLATES})
        # An export may leave the tokenizer out, but not a part of it.
        reads = any(name in there for name in wanted if name not in STEERING)
        found = []
        for name, path in sorted(wanted.items()):
            if name not in there:
                if reads or name in STEERING:
                    found.append(f"{name} is missing")
            elif _content(there[name]) != _content(path):
                found.append(f"{name} is not the original's")
        found += [f"{name} is not the original's, which has none" for name in sorted(set(there) - set(wanted)) if reads]
    cases = tuple(Case(words, 1.0, 0.0) for words in found) or (Case("config and tokenizer", 0.0, 0.0),)
    return ClauseResult("assets", FOLDER, FAIL if found else PASS, "; ".join(found), cases)


def _assets(folder: Path, graphs: Collection[str] = ()) -> dict[str, Path]:
    """By name, what lies in a folder besides graphs and what an export says of itself."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in found.items() if name not in OWN and name.split("/")[0] not in graphs}


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
