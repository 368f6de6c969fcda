"""The proof of a folder that another tool wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trueport.errors import ArtifactError, TrueportError
from trueport.graphs.shapes import count_nodes
from trueport.interface import float_dtype_of
from trueport.proof.result import Proof
from trueport.proof.run import SEED, model_class, prove
from trueport.weights.streamed import streamed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trueport.interface import Interface
    from trueport.proof.memory import Memory


def judge_foreign(
    folder: Path,
    original: PreTrainedModel | None,
    *,
    clauses: Sequence[str] | None,
    seed: int | None,
    progress: Callable[[str], None],
    memory: Memory,
) -> Proof:
    """The proof of a folder that another tool wrote; ``memory`` as ``prove`` takes it.

    Raises:
        ArtifactError: its files are laid out or named as by no tool that Trueport knows.
    """
    from trueport.foreign import find_graphs, open_component

    config = _config(folder, original)
    files = find_graphs(folder, seq2seq=_is_seq2seq(folder, config, original))
    sessions = {name: open_component(paths, side=name, memory=memory.opened) for name, paths in files.items()}
    role = _role(sessions, config, original)
    dtype = float_dtype_of(session.interface for session in sessions.values())
    if original is not None:
        original = _in_dtype(original, dtype, memory)
    for name, session in sessions.items():
        session.interface = _bounded(_compared(session.interface, name, role, original), name, config, original)
    return prove(
        sessions,
        role=role,
        config=config,
        original=original,
        dtype=dtype,
        depth=max(count_nodes(path) for paths in files.values() for path in paths),
        clauses=clauses,
        seed=SEED if seed is None else seed,
        progress=progress,
        memory=memory,
    )


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
    generates = task is not None and "decoder" in TASKS[task].roles
    return "decoder" if generates or isinstance(sessions["model"], SteppedSession) else "encoder"


def _in_dtype(original: PreTrainedModel, dtype: str, memory: Memory) -> PreTrainedModel:
    """The original in the dtype of the export, whose weights are rounded the same."""
    import torch

    from trueport.roles.component import float_dtype
    from trueport.source import DTYPES, load_source

    if dtype == float_dtype(original) or dtype not in DTYPES:
        return original
    if memory.streamed:
        return cast("PreTrainedModel", streamed(original, getattr(torch, dtype)))
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
