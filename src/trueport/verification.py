"""Judging folders: Trueport's own by their manifest, others by what their graphs say of themselves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trueport.artifact import MANIFEST, changed_files, read_manifest
from trueport.errors import ArtifactError, TrueportError
from trueport.proof.quantised import quantised_of
from trueport.proof.reference import widened
from trueport.proof.result import FAIL, FOLDER, NOT_APPLICABLE, PASS, Case, ClauseResult, Proof
from trueport.proof.run import SEED, model_class, prove
from trueport.targets import find_target

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from trueport.interface import Interface
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
) -> Proof:
    """A folder's proof, whoever wrote it; see ``pipeline.verify``."""
    from trueport.proof.clauses import check_names

    check_names(clauses)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder", "Give the folder that an export wrote.")
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        changed = _files_clause(folder, manifest)
        _check_graphs(folder, manifest)
        source = None
        original: Any = against if manifest["source"].get("role") == "custom" else None
        if original is None:
            source = _source(against, manifest["source"], trust_remote_code)
            original = None if source is None else source.model
        _check_original(original, manifest["source"])
        proof = judge_own(folder, manifest, original, clauses=clauses, seed=seed, progress=progress)
        if changed.status == PASS:
            proof = _excused(proof, folder)
        extra = [changed] if source is None else [changed, assets_clause(folder, source)]
        return replace(proof, clauses=(*extra, *proof.clauses))
    source = _source(against, {}, trust_remote_code)
    original = None if source is None else source.model
    return judge_foreign(folder, original, clauses=clauses, seed=seed, progress=progress)


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
    """Refuse hostile graphs before a runtime opens them: the manifest may vouch for anything."""
    from trueport.graphs.loading import check

    for component in manifest["components"].values():
        path = folder / str(component.get("file", ""))
        if path.suffix == ".onnx" and path.is_file():
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
) -> Proof:
    """The proof of a folder with a manifest, through the runtime that users have; ``plain`` as ``prove`` takes it."""
    targets = list(dict.fromkeys(str(entry.get("target")) for entry in manifest["components"].values()))
    with ThreadPoolExecutor(1) as pool:  # the runtime loads the artefact meanwhile
        custom = original is None or manifest["source"]["role"] == "custom"
        wide = None if custom else pool.submit(widened, cast("PreTrainedModel", original))
        proofs = [
            _judge_target(
                folder, manifest, target, original, wide, clauses=clauses, seed=seed, progress=progress, plain=plain
            )
            for target in targets
        ]
    if len(proofs) == 1:
        return proofs[0]
    named = [
        replace(clause, component=f"{target}: {clause.component}")
        for target, proof in zip(targets, proofs, strict=True)
        for clause in proof.clauses
    ]
    return replace(proofs[0], clauses=tuple(named))


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
) -> Proof:
    """The proof of what one target's runtime runs."""
    from trueport.runtime import load

    runnable = load(folder, runtime=target)
    role = manifest["source"]["role"]
    entries = [entry for entry in manifest["components"].values() if entry.get("target") == target]
    if role == "custom":
        from trueport.proof.run_module import prove_module

        return prove_module(
            runnable.main.session,
            manifest["source"],
            original=original,
            dtype=_float_dtype(runnable.sessions),
            depth=max(_depth(folder, entry) for entry in entries),
            guards=_guards(entries),
            clauses=clauses,
            seed=SEED if seed is None else seed,
            progress=progress,
        )
    return prove(
        runnable.sessions,
        role=role,
        config=runnable.config,
        original=original,
        dtype=_float_dtype(runnable.sessions),
        depth=max(_depth(folder, entry) for entry in entries),
        runnable=None if role == "encoder" else runnable,
        guards=_guards(entries),
        quantised=quantised_of(manifest, find_target(target).gates),
        clauses=clauses,
        seed=SEED if seed is None else seed,
        progress=progress,
        wide=None if wide is None else wide.result(),
        plain=plain,
    )


def _guards(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Sizes past which a capture made no promise."""
    found = {guard for component in entries for guard in component.get("guards") or ()}
    return sorted(guard for guard in found if isinstance(guard, int))


def judge_foreign(
    folder: Path,
    original: PreTrainedModel | None,
    *,
    clauses: Sequence[str] | None,
    seed: int | None,
    progress: Callable[[str], None],
) -> Proof:
    """The proof of a folder that another tool wrote.

    Raises:
        ArtifactError: its files are laid out or named as by no tool that Trueport knows.
    """
    from trueport.foreign import find_graphs, open_component

    config = _config(folder, original)
    files = find_graphs(folder, seq2seq=_is_seq2seq(folder, config, original))
    sessions = {name: open_component(paths, side=name) for name, paths in files.items()}
    role = _role(sessions, config, original)
    dtype = _float_dtype(sessions)
    if original is not None:
        original = _in_dtype(original, dtype)
    for name, session in sessions.items():
        session.interface = _bounded(_compared(session.interface, name, role, original), name, config, original)
    return prove(
        sessions,
        role=role,
        config=config,
        original=original,
        dtype=dtype,
        depth=max(_nodes(path) for paths in files.values() for path in paths),
        clauses=clauses,
        seed=SEED if seed is None else seed,
        progress=progress,
    )


def _files_clause(folder: Path, manifest: dict[str, Any]) -> ClauseResult:
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


def _excused(proof: Proof, folder: Path) -> Proof:
    """Without the original: what the folder's own proof, of these very files, found to be the original's nature."""
    path = folder / "proof.json"
    if proof.reference is not None or not path.is_file():
        return proof
    natural = {
        (clause["clause"], case["case"])
        for clause in json.loads(path.read_text(encoding="utf-8"))["clauses"]
        if clause["status"] == PASS
        for case in clause["cases"]
        if "the original itself" in case.get("note", "")
    }
    reason = "the original itself does so, says proof.json: give --against MODEL"
    clauses = tuple(
        replace(clause, status=NOT_APPLICABLE, reason=reason)
        if clause.status == FAIL and all((clause.clause, c.case) in natural for c in clause.cases if c.failed)
        else clause
        for clause in proof.clauses
    )
    return replace(proof, clauses=clauses)


def _source(
    against: str | Path | nn.Module | None, source: Mapping[str, Any], trust_remote_code: bool
) -> Source | None:
    """The original, with its tokenizer where it has one."""
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
        )

    try:
        return load("auto" if source else None)
    except TrueportError:
        return load(None)


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


def _is_seq2seq(folder: Path, config: Any, original: PreTrainedModel | None) -> bool:
    """By the original, else by the config; T5's encoder alone keeps the config of the whole."""
    from trueport.roles import role_of

    if original is not None:
        return role_of(original) == "seq2seq"
    alone = any((place / "model.onnx").is_file() for place in (folder, folder / "onnx"))
    return bool(getattr(config, "is_encoder_decoder", False)) and not alone


def _role(sessions: Mapping[str, Any], config: Any, original: PreTrainedModel | None) -> str:
    from trueport.foreign import SteppedSession
    from trueport.roles import role_of
    from trueport.tasks import TASKS, task_of

    if original is not None:
        return role_of(original)
    if "encoder" in sessions:
        return "seq2seq"
    kind = model_class(config)
    task = task_of(kind) if kind is not None else None
    generates = task is not None and TASKS[task].role == "decoder"
    return "decoder" if generates or isinstance(sessions["model"], SteppedSession) else "encoder"


def _float_dtype(sessions: Mapping[str, Any]) -> str:
    floats = [tensor.dtype for s in sessions.values() for tensor in s.interface.outputs if "float" in tensor.dtype]
    return floats[0] if floats else "float32"


def _in_dtype(original: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """The original in the dtype of the export, whose weights are rounded the same."""
    from trueport.roles.component import float_dtype
    from trueport.source import DTYPES, load_source

    if dtype == float_dtype(original) or dtype not in DTYPES:
        return original
    return load_source(original, dtype=dtype, tokenizer=None).model


def _compared(interface: Interface, name: str, role: str, original: PreTrainedModel | None) -> Interface:
    """The interface with those outputs that the original gives too.

    Raises:
        ArtifactError: there is none.
    """
    from trueport.roles import components

    wanted = {"encoder": "last_hidden_state", "decoder": "logits"}.get(name, "logits" if role == "decoder" else None)
    names = {tensor.name for tensor in interface.plain_outputs}
    known = names if wanted is None else names & {wanted}
    if wanted is None and original is not None:
        known = names & {tensor.name for tensor in components(original)[0].interface.outputs}
    if not known:
        gives = wanted or f"what a {type(original).__name__} gives"
        raise ArtifactError(
            f"The graph of the {name} gives out {', '.join(sorted(names)) or 'nothing'}, not {gives}",
            "Give --against with the class and the head that were exported.",
        )
    state = {pair.output for pair in interface.state}
    return interface.with_outputs(t for t in interface.outputs if t.name in known or t.name in state)


def _bounded(interface: Interface, name: str, config: Any, original: PreTrainedModel | None) -> Interface:
    """The interface with bounds on its lengths: the original's position table, else what the config says."""
    from trueport.interface import Dimension
    from trueport.roles.component import position_bound, position_limits

    if original is None:
        bound, because = min(position_limits(config), default=None), "the config"
    else:
        parts = {"encoder": original.get_encoder, "decoder": original.get_decoder}
        bound, because = position_bound(parts[name]() if name in parts else original)
    lengths = ("sequence_length", "encoder_sequence_length")
    return replace(interface, dimensions=tuple(Dimension(length, 1, bound, because) for length in lengths))


DEEPEST = 10_000
"""Operators that a manifest may claim where the file itself does not tell: it must not choose its own tolerance."""


def _depth(folder: Path, entry: Mapping[str, Any]) -> int:
    """Operators in a component's graph."""
    path = folder / entry["file"]
    return _nodes(path) if path.suffix == ".onnx" else min(int(entry.get("depth", 1)), DEEPEST)


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)
