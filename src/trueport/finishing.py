"""The last step of whatever writes a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trueport.artifact import MANIFEST, file_entry, list_files, manifest_digest, write_json
from trueport.progress import Meter


def finish(
    staging: Path, manifest: dict[str, Any], proof: dict[str, Any] | None, largest: int | None, meter: Meter
) -> None:
    """Write the proof, the report, the card, and last the manifest that vouches for all of them."""
    from trueport.card import card
    from trueport.proof.report import html

    if proof is not None:
        manifest["proof"] = {"verdict": proof["verdict"], "file": "proof.json"}
        proof["manifest_sha256"] = manifest_digest(manifest)
        write_json(staging / "proof.json", proof)
    manifest["files"] = list_files(staging, largest=largest, meter=meter)
    (staging / "report.html").write_text(
        html(proof if proof is not None else {"verdict": "unproven", "clauses": []}, manifest), encoding="utf-8"
    )
    (staging / "README.md").write_text(card(manifest, proof), encoding="utf-8")
    # Only these two are new: the weights are not read a second time.
    for name in ("report.html", "README.md"):
        manifest["files"][name] = file_entry(staging / name)
    write_json(staging / MANIFEST, manifest)
