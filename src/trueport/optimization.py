"""A folder's graphs fused for one execution provider, as far as the folder's proof holds."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import changed_files, check_place, described, largest_hashed, read_manifest, staged
from trueport.errors import ArtifactError, ProofError, TrueportError
from trueport.finishing import finish
from trueport.graphs.fusions import FUSIONS, Fusion, Optimized, fit, fusions_for
from trueport.options import check_seed
from trueport.progress import Meter, Progress
from trueport.quiet import quiet
from trueport.recipe import opened

if TYPE_CHECKING:
    from torch import nn

    from trueport.proof.result import Proof

REWRITTEN = (".onnx", ".json", ".html", ".md")
"""Endings of the files that are written anew, or may be; all others are the same file under a second name."""


def optimize(
    folder: str | Path,
    *,
    provider: str = "cpu",
    caches: str = "copied",
    against: str | Path | nn.Module | None = None,
    trust_remote_code: bool = False,
    seed: int | None = None,
    progress: Progress | None = None,
    fusions: Sequence[Fusion] = FUSIONS,
) -> Optimized:
    """Fuse a folder's graphs into the runtime's own operators, and prove it anew; the folder is replaced whole.

    A fusion stays only where every clause of the proof still holds with it. Otherwise it is undone, and the result says
    which clause fell and on which input.

    Args:
        folder: one that ``export`` wrote, with ONNX graphs.
        provider: the execution provider to choose the fusions for: ``cpu``.
        caches: ``copied`` gives every step's caches anew, as all clients bind them; ``in-place`` writes into buffers,
            which Trueport's own runtime binds, and a client that follows docs/optimize.md.
        against: the original. None takes the one that the manifest names where it is a hub id that can be had with the
            same weights; otherwise the folder itself, as it was, stands in for it.
        trust_remote_code: run Python files that lie in the original's checkpoint.
        seed: of the proof's inputs.
        progress: told the name of each phase as it starts.
        fusions: the table to choose from.

    Raises:
        ProofError: the folder does not hold its proof even without fusions; it stays as it is.
        TrueportError: it is no folder that can be optimised.
    """
    folder = Path(folder)
    tell = progress or (lambda phase: None)
    chosen = fusions_for(provider, caches, fusions)
    check_seed(seed)
    manifest = read_manifest(folder)
    before = copy.deepcopy(manifest)
    _check(folder, manifest)
    with quiet():
        from trueport.runtime import load
        from trueport.verification import judge_own

        original = _original(folder, manifest, opened(against).model, trust_remote_code)
        plain = load(folder, runtime="onnx") if original is None else None
        try:
            with staged(folder) as staging:
                _bring(folder, manifest, staging)

                def judge() -> Proof:
                    return judge_own(
                        staging, manifest, original, clauses=None, seed=seed, plain=plain,
                        progress=lambda name: tell(f"prove {name}"),
                    )  # fmt: skip

                found = fit(staging, manifest, chosen, judge, tell, folder=folder, provider=provider)
                if read_manifest(folder) != before:
                    raise ArtifactError(f"{folder} was replaced while it was optimised", "Optimise what is there now.")
                if found.reason or not found.kept:
                    raise _LeftAsItWasError(found)
                _finish(staging, manifest, found, tell)
        except _LeftAsItWasError as left:
            found = left.found
    if found.reason:
        raise ProofError(f"{folder} does not hold its proof as it is: {found.reason}", "It was left as it was.")
    return found


class _LeftAsItWasError(Exception):
    """Leaves the staging folder without putting it in place."""

    def __init__(self, found: Optimized) -> None:
        super().__init__()
        self.found = found


def _check(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse what is not a whole export of our own."""
    check_place(folder, force=True)
    if "optimized" in manifest:
        raise ArtifactError(f"{folder} is optimised already", "Export again to choose other fusions.")
    # What a component names is written anew, so it has to lie in the folder.
    targets = {described(folder, name, entry)[0] for name, entry in manifest["components"].items()}
    if targets != {"onnx"}:
        raise ArtifactError(f"{folder} holds more than ONNX graphs, or none", "Export with --to onnx alone.")
    changed = changed_files(folder, manifest)
    if changed:
        raise ArtifactError(f"{folder} is not as it was exported: {changed[0]}", "Export again.")
    if manifest["proof"].get("verdict") == "failed":
        raise ArtifactError(f"The proof of {folder} failed", "Optimise a folder that is proven.")


def _original(folder: Path, manifest: dict[str, Any], against: Any, trust_remote_code: bool) -> Any:
    """The original that is given, or the one that the manifest names; None where the folder has to stand in for it.

    Raises:
        TrueportError: the given one cannot be had, or the folder cannot stand in for it.
    """
    from trueport.source import load_source
    from trueport.verification import original_of

    if against is not None:
        return original_of(against, manifest, trust_remote_code)
    source = manifest["source"]
    if source.get("role") == "custom":
        raise TrueportError(
            f"{folder} holds a {source.get('class')}, a module that no checkpoint names",
            "Give the module itself: trueport.optimize(folder, against=module).",
        )
    if source.get("kind") == "hub" and isinstance(source.get("name"), str):
        try:
            found = load_source(
                source["name"], task=source.get("task"), dtype=source.get("dtype"), tokenizer=None,
                revision=source.get("revision"), trust_remote_code=trust_remote_code,
            )  # fmt: skip
        except TrueportError:  # no network, or the repository is gone: the folder itself is still there
            found = None
        if found is not None and found.describe().get("weights_sha256") == source.get("weights_sha256"):
            return found.original
    if "quantize" in manifest:
        raise TrueportError(f"{folder} is quantised, and its gate needs the original", "Give --against MODEL.")
    if manifest["proof"].get("verdict") != "proven":
        raise TrueportError(f"{folder} is unproven and its original cannot be had", "Give --against MODEL.")
    return None


def _bring(folder: Path, manifest: dict[str, Any], staging: Path) -> None:
    """The folder's files in ``staging``; weights are not copied where the file system has links."""
    for name in manifest["files"]:
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix not in REWRITTEN:
            try:
                os.link(folder / name, target)
                continue
            except OSError:  # a file system without links
                pass
        shutil.copy2(folder / name, target)


def _finish(staging: Path, manifest: dict[str, Any], found: Optimized, tell: Progress) -> None:
    assert found.proof is not None
    manifest["optimized"] = found.to_json()
    paranoid = all("sha256" in entry for entry in manifest["files"].values())
    finish(staging, manifest, found.proof.to_json(), largest_hashed(staging, paranoid=paranoid), Meter(tell))
