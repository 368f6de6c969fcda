"""Judging folders: Trueport's own by their manifest, others in foreign_proof.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trueport.artifact import MANIFEST, described, read_manifest
from trueport.errors import ArtifactError, TrueportError
from trueport.foreign_proof import judge_foreign
from trueport.graphs.loading import check
from trueport.graphs.shapes import count_nodes
from trueport.interface import Interface, float_dtype_of
from trueport.proof.calibration import Prompts, judging, prompts_of
from trueport.proof.folder import assets_clause, excused, files_clause
from trueport.proof.memory import ANSWERS, Memory, plan
from trueport.proof.quantised import GATE, Quantised, quantised_of
from trueport.proof.reference import widened
from trueport.proof.result import FAIL, PASS, Proof
from trueport.proof.run import SEED, prove
from trueport.resident import mapped_as
from trueport.targets import find_target
from trueport.weights.held import hold
from trueport.weights.mapped import Maps

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from trueport.runtime.model import TrueportModel
    from trueport.source import Source


def judge(
    folder: Path,
    *,
    against: str | Path | nn.Module | None,
    clauses: Sequence[str] | None,
    trust_remote_code: bool,
    seed: int | None,
    progress: Callable[[str], None],
    proof_memory: int | str | None = None,
    calibration: str | Path | Sequence[str] | None = None,
) -> Proof:
    """A folder's proof, whoever wrote it; see ``pipeline.verify``."""
    from trueport.proof.clauses import check_names

    check_names(clauses)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder", "Give the folder that an export wrote.")
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        changed = files_clause(folder, manifest)
        _check_graphs(folder, manifest)
        source = None
        original: Any = against if manifest["source"].get("role") == "custom" else None
        if original is None:
            source = _source(against, manifest["source"], trust_remote_code, link=True)
        _check_original(original, manifest["source"])
        original, memory = original_within(proof_memory, source, original, folder)
        prompts = _prompts(folder, manifest, source, calibration)
        proof = judge_own(
            folder, manifest, original, clauses=clauses, seed=seed, progress=progress, memory=memory, prompts=prompts
        )
        proof = proof if prompts else _told_of_prompts(proof, manifest)
        if changed.status == PASS:
            proof = excused(proof, folder)
        extra = [changed] if source is None else [changed, assets_clause(folder, manifest, source)]
        return replace(proof, clauses=(*extra, *proof.clauses))
    if calibration is not None:
        raise _nothing_to_judge(folder)
    source = _source(against, {}, trust_remote_code, link=True)
    original, memory = original_within(proof_memory, source, None, folder)
    with memory.kept():
        proof = judge_foreign(folder, original, clauses=clauses, seed=seed, progress=progress, memory=memory)
    return replace(proof, notes=(*memory.words(), *proof.notes))


def _prompts(
    folder: Path, manifest: Mapping[str, Any], source: Source | None, given: str | Path | Sequence[str] | None
) -> Prompts:
    """Of the given prompts those that the gate asks."""
    if given is None:
        return ()
    if "quantize" not in manifest:
        raise _nothing_to_judge(folder)
    if source is None:
        raise TrueportError("The gate compares with the original, which is not given", "Give --against MODEL too.")
    tokenizer = None
    if getattr(source, "tokenizer", None) is None:  # a living model has none; the folder's is the one that it came with
        from trueport.assets import load_tokenizer

        tokenizer = load_tokenizer(folder, source.model, str(folder), trust_remote_code=False)
    return judging(prompts_of(given, source, tokenizer))


def _told_of_prompts(proof: Proof, manifest: Mapping[str, Any]) -> Proof:
    """The proof, where its gate drew tokens and fell, and had been held on prompts that are not given now."""
    quantize = manifest.get("quantize")
    given = quantize.get("prompts") if isinstance(quantize, Mapping) else None
    if not isinstance(given, int) or given < 2:
        return proof
    words = (
        f"That is on drawn tokens; the export's gate asked {given // 2} given prompts, and gave drawn tokens more room: "
        "to ask the same, give the same file with --calibration"
    )
    clauses = tuple(
        replace(clause, mend=words) if clause.clause == GATE and clause.status == FAIL else clause
        for clause in proof.clauses
    )
    return replace(proof, clauses=clauses)


def _nothing_to_judge(folder: Path) -> TrueportError:
    return TrueportError(f"Nothing in {folder} is quantised, so there is no gate to ask", "Leave --calibration out.")


def original_within(
    limit: int | str | None, source: Any, module: nn.Module | None, folder: Path, scratch: Path | None = None
) -> tuple[Any, Memory]:
    """The original as the memory of the proof of ``folder`` allows it, and how it keeps to that.

    Args:
        limit: as ``plan`` takes it.
        source: where the original comes from; None where it is ``module``, or there is none.
        module: a module of any kind.
        folder: the artefact.
        scratch: where weights that no file holds as they are may be written.

    Raises:
        TrueportError: the original's weights are not where they were thought to be.
    """
    if source is None:
        return module, plan(limit, module, folder)
    memory = plan(limit, source.model, folder, loaded=getattr(source, "loaded", True))
    if memory.streamed and not getattr(source, "loaded", True):
        maps = Maps(scratch, places=memory.places)
        original = source.mapped(maps)
        maps.places |= {mapped_as(file.path) for file in source.checkpoint.files}
        with maps.given_back():
            memory.unheld = hold(original, source.model, memory.limit * ANSWERS)
        return original, memory
    return source.original, memory


def original_of(against: str | Path | nn.Module, manifest: Mapping[str, Any], trust_remote_code: bool) -> Any:
    """The original of a folder with a manifest, ready to be asked.

    Raises:
        TrueportError: it is not of the kind that was exported.
    """
    original: Any = against
    if manifest["source"].get("role") != "custom":
        source = _source(against, manifest["source"], trust_remote_code)
        original = None if source is None else source.model
    _check_original(original, manifest["source"])
    return original


def _check_original(original: Any, source: Mapping[str, Any]) -> None:
    """Refuse what is not the kind of thing that was exported."""
    from torch import nn

    if source.get("role") == "custom" and original is not None and not isinstance(original, nn.Module):
        raise TrueportError(
            f"The folder holds a {source.get('class')}, a module that no checkpoint names",
            "Give the module itself: trueport.verify(folder, against=module).",
        )


def _check_graphs(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse what lies elsewhere, and hostile graphs before a runtime opens them: the manifest may vouch for anything."""
    for name, entry in manifest["components"].items():
        _, path, _ = described(folder, name, entry)
        if path.suffix == ".onnx":
            check(path)


def judge_own(
    folder: Path,
    manifest: dict[str, Any],
    original: PreTrainedModel | None,
    *,
    clauses: Sequence[str] | None,
    seed: int | None,
    progress: Callable[[str], None],
    plain: TrueportModel | None = None,
    memory: Memory | None = None,
    prompts: Prompts = (),
) -> Proof:
    """The proof of a folder with a manifest, through the runtime that users have.

    ``plain`` and ``memory`` are as ``prove`` takes them; a memory that is not given is planned here. ``prompts`` are those
    that the gate of a quantisation asks.
    """
    if "role" not in manifest["source"]:
        raise ArtifactError(f"{folder / MANIFEST} does not say what role its model has", "Export again.")
    targets = list(dict.fromkeys(str(entry.get("target")) for entry in manifest["components"].values()))
    if not targets:
        raise ArtifactError(f"{folder / MANIFEST} names no components", "Export again.")
    memory = memory or plan(None, original, folder)
    with memory.kept(), ThreadPoolExecutor(1) as pool:  # the runtime loads the artefact meanwhile
        custom = original is None or manifest["source"]["role"] == "custom"
        copied = not memory.streamed
        wide = None if custom else pool.submit(widened, cast("PreTrainedModel", original), copied=copied)

        def judged(target: str) -> Proof:
            return _judge_target(
                folder, manifest, target, original, wide, clauses=clauses, seed=seed, progress=progress, plain=plain,
                memory=memory, prompts=prompts,
            )  # fmt: skip

        proofs = [judged(target) for target in targets]
    notes = tuple(memory.words())
    proofs = [replace(proof, notes=(*notes, *proof.notes)) for proof in proofs]
    if len(proofs) == 1:
        return proofs[0]
    named = [
        replace(clause, component=f"{target}: {clause.component}")
        for target, proof in zip(targets, proofs, strict=True)
        for clause in proof.clauses
    ]
    notes = tuple(dict.fromkeys(note for proof in proofs for note in proof.notes))
    return replace(proofs[0], clauses=tuple(named), notes=notes)


def _judge_target(
    folder: Path,
    manifest: dict[str, Any],
    target: str,
    original: PreTrainedModel | None,
    wide: Future[PreTrainedModel] | None,
    *,
    clauses: Sequence[str] | None,
    seed: int | None,
    progress: Callable[[str], None],
    plain: TrueportModel | None,
    memory: Memory,
    prompts: Prompts,
) -> Proof:
    """The proof of what one target's runtime runs."""
    from trueport.runtime.loading import load

    runnable = load(folder, runtime=target, memory=memory.opened, sized=False)  # the clause ``files`` tells
    if original is not None:
        _check_dtype(folder, manifest["source"], [session.interface for session in runnable.sessions.values()])
    role = manifest["source"]["role"]
    entries = [entry for entry in manifest["components"].values() if entry.get("target") == target]
    if role == "custom":
        from trueport.proof.run_module import prove_module

        return prove_module(
            runnable.main.session,
            manifest["source"],
            original=original,
            dtype=float_dtype_of(session.interface for session in runnable.sessions.values()),
            depth=max(_depth(folder, entry) for entry in entries),
            guards=_guards(entries),
            clauses=clauses,
            seed=SEED if seed is None else seed,
            progress=progress,
            memory=memory,
        )
    return prove(
        runnable.sessions,
        role=role,
        config=runnable.config,
        original=original,
        dtype=float_dtype_of(session.interface for session in runnable.sessions.values()),
        depth=max(_depth(folder, entry) for entry in entries),
        runnable=None if role == "encoder" else runnable,
        guards=_guards(entries),
        quantised=_quantised(folder, manifest, target, entries, prompts),
        clauses=clauses,
        seed=SEED if seed is None else seed,
        progress=progress,
        wide=None if wide is None else wide.result(),
        plain=plain,
        memory=memory,
    )


def _check_dtype(folder: Path, source: Mapping[str, Any], interfaces: Sequence[Interface]) -> None:
    """Refuse a manifest that says a coarser dtype than the graphs': the original's rounding in it is the tolerance."""
    said = source.get("dtype")
    if said not in ("float16", "bfloat16") or source.get("role") == "custom":  # a module is given in its own dtype
        return
    found = {t.dtype for interface in interfaces for t in (*interface.inputs, *interface.outputs, *interface.kept)}
    if said not in found:
        raise ArtifactError(f"{folder / MANIFEST} says {said}, and its graphs have nothing in it", "Export again.")


def _quantised(
    folder: Path, manifest: Mapping[str, Any], target: str, entries: Sequence[Mapping[str, Any]], prompts: Prompts
) -> Quantised | None:
    """What the manifest says, where the files bear it out."""
    runtime = find_target(target)

    def layers() -> Counter[str]:
        files = dict.fromkeys(str(entry["file"]) for entry in entries)  # a program is that of all its methods
        return sum((runtime.quantised_layers(folder / file) for file in files), Counter[str]())

    return quantised_of(manifest, runtime.gates, layers, prompts)


def _guards(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Sizes from which on a capture made no promise."""
    found = {guard for component in entries for guard in component.get("guards") or ()}
    return sorted(guard for guard in found if isinstance(guard, int))


def _source(
    against: str | Path | nn.Module | None, source: Mapping[str, Any], trust_remote_code: bool, *, link: bool = False
) -> Source | None:
    """The original, with its tokenizer where it has one; ``link`` as ``load_source`` takes it."""
    if against is None:
        return None
    from trueport.source import load_source

    def load(tokenizer: str | None) -> Source:
        return load_source(
            against,
            task=source.get("task"),
            dtype=source.get("dtype"),
            tokenizer=tokenizer,
            trust_remote_code=trust_remote_code,
            link=link,
        )

    try:
        return load("auto" if source else None)
    except TrueportError:
        return load(None)


DEEPEST = 10_000
"""Operators that a manifest may claim where the file itself does not tell: it must not choose its own tolerance."""


def _depth(folder: Path, entry: Mapping[str, Any]) -> int:
    """Operators in a component's graph."""
    path = folder / entry["file"]
    return count_nodes(path) if path.suffix == ".onnx" else min(int(entry.get("depth", 1)), DEEPEST)
