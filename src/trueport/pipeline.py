"""source -> interface -> capture -> target -> artifact -> proof."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import (
    MANIFEST,
    Artifact,
    check_place,
    largest_hashed,
    staged,
    write_json,
)
from trueport.errors import ProofError, TrueportError
from trueport.finishing import finish
from trueport.lowering import write_graphs
from trueport.options import check_options, check_seed, chosen_fusions, unread
from trueport.progress import BytesDone, Meter, Progress
from trueport.quiet import quiet
from trueport.recipe import Recipe, opened
from trueport.resume.shelf import Shelf, left_for_another_time, place_of
from trueport.targets import find_targets

if TYPE_CHECKING:
    from torch import nn

    from trueport.proof.result import Proof
    from trueport.source import Source
    from trueport.targets import Target

COARSE = 0.01
"""Share of the answers that a half's rounding moves, from which on float32 is worth a word."""


def export(
    model: str | Path | nn.Module,
    out: str | Path,
    *,
    to: str = "onnx",
    inputs: Any = None,
    dynamic: Mapping[str, Any] | None = None,
    state: Mapping[Any, str] | None = None,
    task: str | None = None,
    dtype: str | None = None,
    opset: int | None = None,
    weights: str = "auto",
    backend: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    max_arena: int | None = None,
    max_pte: int | None = None,
    quantize: str | None = None,
    calibration: str | Path | Sequence[str] | None = None,
    block_size: int | None = None,
    optimize: str | None = None,
    caches: str = "copied",
    tokenizer: Any = "auto",
    proof: bool = True,
    allow_unproven: bool = False,
    force: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    seed: int | None = None,
    proof_memory: int | str | None = None,
    paranoid: bool = False,
    stamp: bool = True,
    resume: bool = False,
    progress: Progress | None = None,
    bytes_done: BytesDone | None = None,
) -> Artifact:
    """Export a model to a folder, and prove it.

    Args:
        model: a hub id, a folder, a live module, or ``FILE.py:NAME`` (recipe.py).
        out: the folder to write.
        to: the target, ``onnx`` or ``executorch``, or both with a comma between them.
        inputs: sample inputs, a tuple or dict of tensors, of a module that is no PreTrainedModel.
        dynamic: its dynamic axes by input, such as ``{"x": {0: "batch_size"}}``; all that can be when None.
        state: which of its outputs is which input of the next call, such as ``{"mems_out": "mems"}`` or ``{1: "hx"}``;
            looked for when None.
        task: what the model is for, such as ``text-generation``; found from the checkpoint when None.
        dtype: ``float32`` (default), ``float16`` or ``bfloat16``.
        opset: ONNX opset; 23 when None.
        weights: how a checkpoint's files come along: ``auto`` clones them where the file system can and copies them
            else, ``link`` makes hard links, ``copy`` copies. What cannot be used as it is, is written.
        backend: ExecuTorch's kernels, ``xnnpack`` (default) or ``portable``.
        max_batch: rows that an ExecuTorch program serves at most; 8 when None.
        max_length: tokens that it serves at most, past and new together; 512 when None.
        max_arena: bytes of memory that it may plan; 2 GiB when None.
        max_pte: bytes of weights past which they lie in a ``.ptd`` beside the program; 2 GB when None.
        quantize: ``int8``, ``int8-static``, ``int4`` or ``auto`` for graphs, ``8da8w``, ``8da4w`` or ``int8`` for an
            ExecuTorch program (docs/quantisation.md); None for none.
        calibration: prompts, every other one of which the gate asks; on the rest scales are found: texts, or a file with one
            in each line; drawn at random when None.
        block_size: the most weights that share a scale in a graph's ``int8``, ``int4`` or ``auto``: 16, 32, 64 or 128; where
            None, 64 in 8 bits and 32 in 4. More are faster, fewer are nearer to the original (docs/quantisation.md).
        optimize: fuse the graphs for an execution provider, ``cpu``, as far as the proof holds (docs/optimize.md).
        caches: with ``optimize``, ``copied`` or ``in-place``.
        tokenizer: ``auto`` takes the checkpoint's, None exports without one, or an object with ``save_pretrained``.
        proof: whether to prove the artefact; without, it is stamped ``unproven``.
        allow_unproven: keep a folder whose proof failed, stamped ``failed``.
        force: replace an earlier export in ``out``.
        trust_remote_code: run Python files that lie in the checkpoint.
        revision: of a hub id.
        seed: of the proof's inputs.
        proof_memory: what the process may take while it proves, bytes or words such as ``4GB``; 80 % of what is
            available when None. Where copies of the weights do not fit, the proof streams them (docs/proof.md).
        paranoid: hash every file, also of a folder past 16 GiB, and a checkpoint's files before and after.
        stamp: trace equal layers once and stamp the others into an ONNX graph, where that is the shorter way; the files
            are the same (docs/artifact.md).
        resume: keep finished components until the export ends well, and take those of one that was interrupted; the files
            are the same (docs/artifact.md). What was changed in this process after its import is not seen: the command
            resumes unless told otherwise, Python only when told to.
        progress: told the name of each phase as it starts.
        bytes_done: told the bytes that are done in a phase that moves some, and all that it will move.

    Raises:
        ProofError: a clause failed; ``proof`` on the exception holds the whole of it. Nothing is written unless
            ``allow_unproven``.
        TrueportError: it cannot be done; nothing is written.
    """
    from trueport.proof.memory import memory_bytes
    from trueport.source import load_source

    tell = progress or (lambda phase: None)
    targets = find_targets(to)
    meter, notes = Meter(tell, bytes_done), list[str]()
    options: dict[str, Any] = {
        "opset": opset,
        "weights": weights,
        "meter": meter,
        "backend": backend,
        "max_batch": max_batch,
        "max_length": max_length,
        "max_arena": max_arena,
        "max_pte": max_pte,
        "quantize": quantize,
        "calibration": calibration,
        "block_size": block_size,
        "proof_memory": memory_bytes(proof_memory),
        "stamp": stamp,
        "notes": notes,
    }
    check_options(options, targets)
    notes += unread(options, targets)
    check_seed(seed)
    fusions = chosen_fusions(optimize, caches, targets, proof)
    place = Path(out)
    check_place(place, force=force)
    tell("load")
    given = opened(model, inputs, dynamic, state)
    source: Any
    if _is_custom(given):
        from trueport.modules import module_source

        source = module_source(given.model, inputs=given.inputs, dynamic=given.dynamic, state=given.state, dtype=dtype)
    else:
        source = load_source(
            given.model, task=task, dtype=dtype, tokenizer=tokenizer, trust_remote_code=trust_remote_code, revision=revision,
            link=True,
        )  # fmt: skip
    if calibration is not None:
        from trueport.proof.calibration import prompts_of

        options["prompts"] = prompts_of(calibration, source)
    checkpoint = getattr(source, "checkpoint", None)
    hashes = checkpoint.hashes(meter) if paranoid and checkpoint is not None else None
    shelf = _shelf(source, options, hashes) if resume else None
    options["shelf"] = shelf
    unchanged = nullcontext() if checkpoint is None else checkpoint.unchanged(hashes, meter)
    with left_for_another_time(shelf), staged(place, replace=force) as staging, unchanged:
        manifest = write_graphs(source, staging, targets, options, tell)
        if "prompts" in options:
            manifest["quantize"]["prompts"] = len(options["prompts"])
        tell("assets")
        source.save_assets(staging)
        write_json(staging / MANIFEST, manifest)
        found = None
        if fusions:
            from trueport.graphs.fusions import fit

            fused = fit(
                staging, manifest, fusions, lambda: _prove(source, staging, manifest, options, seed, tell), tell,
                folder=place, provider=str(optimize),
            )  # fmt: skip
            manifest["optimized"], found = fused.to_json(), fused.proof
        if proof and found is None:
            found = _prove(source, staging, manifest, options, seed, tell)
        if found is not None and not found.proven:
            found = _explained(found, source, targets, options, seed, tell)
        if found is not None and not found.proven and not allow_unproven:
            raise _failed(found)
        content = found.to_json() if found is not None else None
        finish(staging, manifest, content, largest_hashed(staging, paranoid=paranoid), meter)
    artifact = Artifact(place, manifest, content, tuple(dict.fromkeys(notes)))
    if found is not None and not found.proven:
        raise _failed(found, artifact)
    return artifact


def _shelf(source: Any, options: Mapping[str, Any], hashes: Mapping[Path, str] | None) -> Shelf | None:
    """Where finished components are kept; None for a model of which nothing may be, or a user without a home."""
    from trueport.resume.keys import key_of

    key, folder = key_of(source, options, hashes), place_of()
    return None if key is None or folder is None else Shelf(key, folder)


def _is_custom(given: Recipe) -> bool:
    """Whether the model is a module that only its sample inputs describe."""
    model = given.model
    if isinstance(model, str | Path):
        custom = False
    else:
        from torch import nn
        from transformers import PreTrainedModel

        custom = isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel)
    if not custom and any(entry is not None for entry in (given.inputs, given.dynamic, given.state)):
        raise TrueportError(
            "inputs, dynamic and state are for modules that are no PreTrainedModel", "Leave them out for this one."
        )
    return custom


def verify(
    folder: str | Path,
    *,
    against: str | Path | nn.Module | None = None,
    clauses: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    seed: int | None = None,
    proof_memory: int | str | None = None,
    calibration: str | Path | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Judge a folder, whoever wrote it.

    Args:
        folder: Trueport's own, or one with ``model.onnx`` or ``encoder_model.onnx`` and a decoder beside a config.json.
        against: the original; without it only the clauses that need none are asked.
        clauses: names of those to ask; None asks all.
        trust_remote_code: run Python files that lie in the original's checkpoint.
        seed: of the inputs.
        proof_memory: as ``export`` takes it.
        calibration: prompts that the gate of a quantised folder asks, as ``export`` takes them: the same half.
        progress: told each clause's name as it starts.
    """
    from trueport.verification import judge

    check_seed(seed)
    with quiet():
        return judge(
            Path(folder),
            against=opened(against).model,
            clauses=clauses,
            trust_remote_code=trust_remote_code,
            seed=seed,
            proof_memory=proof_memory,
            calibration=calibration,
            progress=progress or (lambda phase: None),
        )


def _prove(
    source: Source,
    staging: Path,
    manifest: dict[str, Any],
    options: Mapping[str, Any],
    seed: int | None,
    tell: Progress,
    clauses: Sequence[str] | None = None,
) -> Proof:
    from trueport.proof.calibration import judging
    from trueport.verification import judge_own, original_within

    with quiet():
        # Not in the staging folder, whose files are the artefact's.
        original, memory = original_within(options["proof_memory"], source, None, staging, staging.parent)
        return judge_own(
            staging, manifest, original, clauses=clauses, seed=seed, progress=lambda name: tell(f"prove {name}"),
            memory=memory, prompts=judging(options.get("prompts") or ()),
        )  # fmt: skip


def _explained(
    proof: Proof, source: Source, targets: Sequence[Target], options: dict[str, Any], seed: int | None, tell: Progress
) -> Proof:
    """The proof with what each target finds out about its failed clauses by exporting again in other ways."""
    clauses = list(proof.clauses)
    for target in targets:
        mine = [c for c in proof.failures() if len(targets) == 1 or c.component.startswith(f"{target.name}: ")]
        failed = [clause.clause for clause in mine]

        def again(changed: Mapping[str, Any], target: Target = target, failed: list[str] = failed) -> set[str]:
            return _failing(source, target, options | dict(changed) | {"shelf": None}, failed, seed, tell)

        try:
            words = target.explain(failed, again, options) if failed else {}
        except TrueportError:  # another way does not export at all: the failed clauses stand as they are
            words = {}
        for clause in mine:
            if clause.clause in words:
                place = clauses.index(clause)
                clauses[place] = replace(clause, mend=words[clause.clause])
    return replace(proof, clauses=tuple(clauses))


def _failing(
    source: Source, target: Target, options: dict[str, Any], clauses: list[str], seed: int | None, tell: Progress
) -> set[str]:
    """Which of the clauses fail for an export with these options, made beside everything and thrown away."""
    with tempfile.TemporaryDirectory() as place:
        manifest = write_graphs(source, Path(place), [target], options, tell)
        source.save_assets(Path(place))
        write_json(Path(place) / MANIFEST, manifest)
        found = _prove(source, Path(place), manifest, options, seed, tell, clauses)
    return {clause.clause for clause in found.failures()}


def _rounded(proof: Proof) -> str:
    """What to do where a half's rounding decides much: near ties, of experts for one, then go either way."""
    dtype, floor = str((proof.reference or {}).get("dtype")), float(proof.tolerance.get("noise_floor", 0.0))
    if dtype not in ("float16", "bfloat16") or floor < COARSE:
        return ""
    return (
        f"Rounding to {dtype} alone moves the original's answers by {100 * floor:.2g} % of the largest: "
        "--dtype float32 (dtype=) is proven more closely."
    )


def _failed(proof: Proof, artifact: Artifact | None = None) -> ProofError:
    from trueport.proof.report import headline

    kept = "It was written all the same, stamped failed." if artifact else "Nothing was written; see the table above."
    error = ProofError(headline(proof.to_json()).rstrip("."), " ".join(filter(None, [_rounded(proof), kept])))
    error.proof = proof  # type: ignore[attr-defined]
    error.artifact = artifact  # type: ignore[attr-defined]
    return error
