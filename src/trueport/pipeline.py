"""source -> interface -> capture -> target -> artifact -> proof."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import (
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    check_place,
    file_entry,
    list_files,
    staged,
    write_json,
)
from trueport.errors import ProofError, TrueportError
from trueport.targets import find_target

if TYPE_CHECKING:
    from torch import nn

    from trueport.proof.result import Proof
    from trueport.source import Source
    from trueport.targets import Target

VERSIONED = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "safetensors")
"""Packages whose versions the manifest names."""
OLDEST_OPSET = 17
"""The first with LayerNormalization, which every graph here uses."""
Progress = Callable[[str], None]
"""Called with the name of each phase as it starts."""


def export(
    model: str | Path | nn.Module,
    out: str | Path,
    *,
    to: str = "onnx",
    task: str | None = None,
    dtype: str | None = None,
    opset: int | None = None,
    tokenizer: Any = "auto",
    proof: bool = True,
    allow_unproven: bool = False,
    force: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Export a model to a folder, and prove it.

    Args:
        model: a hub id, a folder, or a live PreTrainedModel.
        out: the folder to write.
        to: the target, ``onnx``.
        task: what the model is for, such as ``text-generation``; found from the checkpoint when None.
        dtype: ``float32`` (default), ``float16`` or ``bfloat16``.
        opset: ONNX opset; 23 when None.
        tokenizer: ``auto`` takes the checkpoint's, None exports without one, or an object with ``save_pretrained``.
        proof: whether to prove the artefact; without, it is stamped ``unproven``.
        allow_unproven: keep a folder whose proof failed, stamped ``failed``.
        force: replace an earlier export in ``out``.
        trust_remote_code: run Python files that lie in the checkpoint.
        revision: of a hub id.
        seed: of the proof's inputs.
        progress: told the name of each phase as it starts.

    Raises:
        ProofError: a clause failed; ``proof`` on the exception holds the whole of it. Nothing is written unless
            ``allow_unproven``.
        TrueportError: it cannot be done; nothing is written.
    """
    from trueport.source import load_source

    tell = progress or (lambda phase: None)
    target = find_target(to)
    _check_opset(opset)
    place = Path(out)
    check_place(place, force=force)
    tell("load")
    source = load_source(
        model, task=task, dtype=dtype, tokenizer=tokenizer, trust_remote_code=trust_remote_code, revision=revision
    )
    with staged(place, replace=force) as staging:
        manifest = _write_graphs(source, staging, target, {"opset": opset}, tell)
        tell("assets")
        source.save_assets(staging)
        write_json(staging / MANIFEST, manifest)
        found = _prove(source, staging, manifest, seed, tell) if proof else None
        if found is not None and not found.proven and not allow_unproven:
            raise _failed(found)
        content = found.to_json() if found is not None else None
        _finish(staging, manifest, content)
    artifact = Artifact(place, manifest, content)
    if found is not None and not found.proven:
        raise _failed(found, artifact)
    return artifact


def _check_opset(opset: int | None) -> None:
    if opset is None:
        return
    from onnx.defs import onnx_opset_version

    if not OLDEST_OPSET <= opset <= onnx_opset_version():
        raise TrueportError(
            f"There is no opset {opset} to export to", f"Give {OLDEST_OPSET} to {onnx_opset_version()}."
        )


def verify(
    folder: str | Path,
    *,
    against: str | Path | nn.Module | None = None,
    clauses: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Judge a folder, whoever wrote it.

    Args:
        folder: Trueport's own, or one with ``model.onnx`` or ``encoder_model.onnx`` and a decoder beside a config.json.
        against: the original; without it only the clauses that need none are asked.
        clauses: names of those to ask; None asks all.
        trust_remote_code: run Python files that lie in the original's checkpoint.
        seed: of the inputs.
        progress: told each clause's name as it starts.
    """
    from trueport.verification import judge

    return judge(
        Path(folder),
        against=against,
        clauses=clauses,
        trust_remote_code=trust_remote_code,
        seed=seed,
        progress=progress or (lambda phase: None),
    )


def _write_graphs(
    source: Source, staging: Path, target: Target, options: dict[str, Any], tell: Progress
) -> dict[str, Any]:
    """Capture and lower every component into ``staging``; the manifest so far."""
    from trueport.capture import Captured, capture
    from trueport.roles import components

    patches: list[str] = []

    def captured() -> Iterator[Captured]:
        for component in components(source.model, untrained=source.untrained):
            tell(f"capture {component.name}")
            program = capture(component)
            patches.extend(program.patches)
            tell(f"lower {component.name}")
            yield program

    with _quiet():
        lowered = target.lower(captured(), staging, options)
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source.describe(),
        "versions": _versions(),
        "components": {
            name: {"target": target.name, "file": part.file, "depth": part.depth, "guards": list(part.guards)}
            | part.interface.to_json()
            for name, part in lowered.items()
        },
        "patches": list(dict.fromkeys(patches)),
        "files": {},
        "proof": {"verdict": "unproven"},
    }


def _versions() -> dict[str, str]:
    from trueport import __version__

    return {"trueport": __version__} | {name: importlib.metadata.version(name) for name in VERSIONED}


def _prove(source: Source, staging: Path, manifest: dict[str, Any], seed: int | None, tell: Progress) -> Proof:
    from trueport.verification import judge_own

    with _quiet():
        return judge_own(
            staging, manifest, source.model, clauses=None, seed=seed, progress=lambda name: tell(f"prove {name}")
        )


def _finish(staging: Path, manifest: dict[str, Any], proof: dict[str, Any] | None) -> None:
    """Write the proof, the report, the card, and last the manifest that vouches for all of them."""
    from trueport.card import card
    from trueport.proof.report import html

    if proof is not None:
        manifest["proof"] = {"verdict": proof["verdict"], "file": "proof.json"}
        write_json(staging / "proof.json", proof)
    manifest["files"] = list_files(staging)
    (staging / "report.html").write_text(
        html(proof if proof is not None else {"verdict": "unproven", "clauses": []}, manifest), encoding="utf-8"
    )
    (staging / "README.md").write_text(card(manifest, proof), encoding="utf-8")
    # Only these two are new: the weights are not read a second time.
    for name in ("report.html", "README.md"):
        manifest["files"][name] = file_entry(staging / name)
    write_json(staging / MANIFEST, manifest)


def _failed(proof: Proof, artifact: Artifact | None = None) -> ProofError:
    from trueport.proof.report import headline

    kept = "It was written all the same, stamped failed." if artifact else "Nothing was written; see the table above."
    error = ProofError(headline(proof.to_json()).rstrip("."), kept)
    error.proof = proof  # type: ignore[attr-defined]
    error.artifact = artifact  # type: ignore[attr-defined]
    return error


def _quiet() -> AbstractContextManager[Any]:
    """No warnings or log lines of torch and transformers while they work: what matters, Trueport says."""
    import logging
    import warnings
    from contextlib import ExitStack

    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for name in ("torch", "transformers", "onnxscript", "torch.onnx"):
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
    return stack
