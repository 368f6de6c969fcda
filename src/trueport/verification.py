"""Judging folders: Trueport's own by their manifest, others by what their graphs say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import MANIFEST, changed_files, read_manifest
from trueport.errors import ArtifactError, TrueportError
from trueport.proof.result import FAIL, PASS, Case, ClauseResult, Proof
from trueport.proof.run import SEED, prove

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from trueport.interface import Interface

GRAPHS = {
    "seq2seq": {
        "encoder": ("encoder_model.onnx",),
        "decoder": ("decoder_model_merged.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"),
    },
    "single": {"model": ("model.onnx", "decoder_model_merged.onnx", "decoder_model.onnx")},
}
"""File names in use for each component, the best first."""


def judge(
    folder: Path,
    *,
    against: str | Path | nn.Module | None,
    clauses: Sequence[str] | None,
    trust_remote_code: bool,
    seed: int | None,
    progress: Callable[[str], None],
) -> Proof:
    """A folder's proof, whoever wrote it; see ``pipeline.verify``."""
    from trueport.proof.clauses import check_names

    check_names(clauses)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder", "Give the folder that an export wrote.")
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        changed = _files_clause(folder, manifest)
        original = _original(against, manifest["source"], trust_remote_code)
        proof = judge_own(folder, manifest, original, clauses=clauses, seed=seed, progress=progress)
        return replace(proof, clauses=(changed, *proof.clauses))
    original = _original(against, {}, trust_remote_code)
    return judge_foreign(folder, original, clauses=clauses, seed=seed, progress=progress)


def judge_own(
    folder: Path,
    manifest: dict[str, Any],
    original: PreTrainedModel | None,
    *,
    clauses: Sequence[str] | None,
    seed: int | None,
    progress: Callable[[str], None],
) -> Proof:
    """The proof of a folder with a manifest, through the runtime that users have."""
    from trueport.runtime import load

    runnable = load(folder)
    role = manifest["source"]["role"]
    return prove(
        runnable.sessions,
        role=role,
        config=runnable.config,
        original=original,
        dtype=manifest["source"]["dtype"],
        depth=max(component.get("depth", 100) for component in manifest["components"].values()),
        runnable=None if role == "encoder" else runnable,
        clauses=clauses,
        seed=SEED if seed is None else seed,
        progress=progress,
    )


def judge_foreign(
    folder: Path,
    original: PreTrainedModel | None,
    *,
    clauses: Sequence[str] | None,
    seed: int | None,
    progress: Callable[[str], None],
) -> Proof:
    """The proof of a folder that another tool wrote."""
    from trueport.roles import role_of

    config = _config(folder, original)
    files = find_graphs(folder, seq2seq=bool(getattr(config, "is_encoder_decoder", False)))
    sessions = {name: _open(path, original) for name, path in files.items()}
    if "encoder" in sessions:
        role = "seq2seq"
    else:
        role = "decoder" if sessions["model"].interface.state or _generates(original, role_of) else "encoder"
    floats = [tensor.dtype for s in sessions.values() for tensor in s.interface.outputs if "float" in tensor.dtype]
    return prove(
        sessions,
        role=role,
        config=config,
        original=original,
        dtype=floats[0] if floats else "float32",
        depth=max(_nodes(path) for path in files.values()),
        clauses=clauses,
        seed=SEED if seed is None else seed,
        progress=progress,
    )


def find_graphs(folder: Path, *, seq2seq: bool) -> dict[str, Path]:
    """The component files of a folder, at its root or under ``onnx/``.

    Raises:
        ArtifactError: one is missing.
    """
    found = {}
    for name, candidates in GRAPHS["seq2seq" if seq2seq else "single"].items():
        paths = [place / file for file in candidates for place in (folder, folder / "onnx")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ArtifactError(
                f"{folder} holds no {' or '.join(candidates)}", "Give the folder that an export to ONNX wrote."
            )
        found[name] = path
    return found


def _files_clause(folder: Path, manifest: dict[str, Any]) -> ClauseResult:
    """Every file is the one that was exported."""
    found = changed_files(folder, manifest)
    cases = (Case("sha256 of every file", float(len(found)), 0.0, None, "; ".join(found)),)
    return ClauseResult("files", "folder", FAIL if found else PASS, "; ".join(found), cases)


def _original(
    against: str | Path | nn.Module | None, source: Mapping[str, Any], trust_remote_code: bool
) -> PreTrainedModel | None:
    if against is None:
        return None
    from trueport.source import load_source

    return load_source(
        against,
        task=source.get("task"),
        dtype=source.get("dtype"),
        tokenizer=None,
        trust_remote_code=trust_remote_code,
    ).model


def _config(folder: Path, original: PreTrainedModel | None) -> Any:
    if original is not None:
        return original.config
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise TrueportError(
            f"{folder} holds no config.json that transformers reads", "Give the original with --against."
        ) from error


def _open(path: Path, original: PreTrainedModel | None) -> Any:
    """A session whose dimensions carry the original's bounds."""
    from trueport.roles.component import position_bound
    from trueport.targets.onnx.session import OnnxSession

    session = OnnxSession(path)
    if original is not None:
        bound, because = position_bound(original)
        session.interface = _bounded(session.interface, bound, because)
    return session


def _bounded(interface: Interface, bound: int | None, because: str) -> Interface:
    from trueport.interface import Dimension

    length = interface.inputs[0].shape[-1] if interface.inputs else None
    names = {dimension.name for dimension in interface.dimensions} | {"sequence_length", "encoder_sequence_length"}
    kept = tuple(
        Dimension(name, 0, bound if name in (length, "sequence_length", "encoder_sequence_length") else None, because)
        for name in sorted(names)
    )
    return replace(interface, dimensions=kept)


def _generates(original: PreTrainedModel | None, role_of: Callable[[Any], str]) -> bool:
    return original is not None and role_of(original) == "decoder"


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)
