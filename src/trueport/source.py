"""What is exported: a model from the hub, a folder or memory, with its task, its name and its tokenizer."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trueport.assets import load_tokenizer, save_config, save_tokenizer
from trueport.checkpoint import AGAIN, HUB_ID, check_weights, fetch, one_line, read_config, refuse, weights_digest
from trueport.choice import architecture_of, check_code, check_inputs, choose, load_config
from trueport.collector import rare_collections
from trueport.dtypes import DTYPES, converted
from trueport.quiet import quiet
from trueport.tasks import (
    TASKS,
    is_bare_seq2seq,
    known_task,
    task_by_role,
    task_of,
)
from trueport.weights.linked import Checkpoint, load_linked, mark_origins, open_checkpoint, origin_of
from trueport.weights.mapped import Maps, attached, mapped
from trueport.weights.plain import check_plain
from trueport.words import count_words, listed

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


DIGESTED = 2**30
"""Bytes of the largest checkpoint whose tensors are hashed one by one; every file has its own hash besides."""


@dataclass(frozen=True)
class Source:
    """A model that is ready to be exported.

    Attributes:
        model: in eval mode, on the CPU, in the export's dtype; a live module is the caller's own object.
        role: ``encoder``, ``decoder`` or ``seq2seq``.
        task: what it is for, by optimum's names.
        name: the hub id, the folder's own name, or the class of a live module.
        kind: ``hub``, ``folder`` or ``module``.
        untrained: outputs that no weight of the checkpoint trained.
        tokenizer: a tokenizer or processor, or None.
        revision: the commit of a hub model.
        checkpoint: the files that hold the weights of a linked source, whose ``model`` has shapes and no values.
        reload: loads the model of a linked source with its weights.
        because: why a checkpoint's weights were loaded where linking was asked for; empty otherwise.
    """

    model: PreTrainedModel
    role: str
    task: str
    name: str
    kind: str
    untrained: tuple[str, ...] = ()
    tokenizer: Any = None
    revision: str | None = None
    checkpoint: Checkpoint | None = None
    reload: Callable[[], PreTrainedModel] | None = None
    because: str = ""

    @cached_property
    def original(self) -> PreTrainedModel:
        """The model with its weights in memory; of a linked source it is loaded on first use."""
        if self.reload is None:
            return self.model
        with quiet():
            loaded = self.reload()
        mark_origins(loaded, self.model)
        return loaded

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self.reload is None or "original" in vars(self)

    def mapped(self, maps: Maps) -> PreTrainedModel:
        """The model of a linked source with its weights where they are, mapped from their files."""
        with quiet():
            return mapped(self.model, maps)

    def attached(self, maps: Maps) -> PreTrainedModel:
        """The model with values to lower, in memory or, of a linked source, in the pages of its files."""
        if self.reload is None:
            return self.model
        with quiet():
            return attached(self.model, maps)

    @property
    def dtype(self) -> str:
        """The dtype that the model computes in."""
        from trueport.roles.component import float_dtype

        return float_dtype(self.model)

    def describe(self, *, whole: bool = False) -> dict[str, Any]:
        """For the manifest: the same on every machine and at any time; ``whole`` reads weights of any size."""
        from trueport.roles.rereads import reread_past

        facts = {
            "kind": self.kind,
            "name": self.name,
            "revision": self.revision,
            "class": type(self.model).__name__,
            "model_type": self.model.config.model_type,
            "role": self.role,
            "task": self.task,
            "dtype": self.dtype,
            "weights_sha256": self._digest(whole),
            "untrained": list(self.untrained),
            "reread_past": reread_past(self.model) if self.role == "decoder" else None,
        }
        return {key: value for key, value in facts.items() if value is not None}

    def _digest(self, whole: bool) -> str | None:
        """Of the weights; None where reading them all would take longer than an export that only points at them."""
        if self.checkpoint is None:
            return weights_digest(self.model)
        small = sum(file.size for file in self.checkpoint.files) <= DIGESTED
        return weights_digest(self.model, origin_of) if small or whole else None

    def save_assets(self, folder: Path) -> None:
        """Write config, generation config, and what the tokenizer or processor consists of, into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            save_config(self.model, self.dtype, folder)
            if self.tokenizer is not None:
                save_tokenizer(self.tokenizer, folder)


@rare_collections()
def load_source(
    model: str | Path | nn.Module,
    *,
    task: str | None = None,
    dtype: str | None = None,
    tokenizer: Any = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    link: bool = False,
) -> Source:
    """The model that a user means.

    Args:
        model: a folder that ``save_pretrained`` wrote, a hub id, or a live PreTrainedModel, which is left as it is.
        task: one of ``TASKS``; None takes what the checkpoint's class does.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None is float32, for a live module its own.
        tokenizer: ``auto`` takes the checkpoint's (a live module has none), None does without, or an object.
        trust_remote_code: run Python files that lie in the checkpoint.
        revision: branch, tag or commit of a hub id.
        link: leave the weights of a checkpoint where they are.

    Raises:
        SourceError: it cannot be had; one line says why, and what to do.
    """
    task = known_task(task)
    if dtype is not None and dtype not in DTYPES:
        refuse(f"There is no dtype {dtype} here", f"The dtypes are: {', '.join(DTYPES)}.")
    if tokenizer not in ("auto", None) and (isinstance(tokenizer, str) or not hasattr(tokenizer, "save_pretrained")):
        refuse(
            f"The tokenizer is of type {type(tokenizer).__name__}",
            "Give auto, None, or an object with save_pretrained.",
        )
    if not isinstance(model, str | os.PathLike):
        return _live(model, task, dtype, None if tokenizer == "auto" else tokenizer)
    where, kind, commit = os.fspath(model), "folder", None
    folder = Path(where)
    with quiet():
        if not os.path.isdir(where):
            _check_hub_id(where, path=not isinstance(model, str))
            folder, commit = fetch(where, revision, python=trust_remote_code)
            kind = "hub"
        elif revision is not None:
            refuse(f"{where} is a folder, which has no revisions", "Leave --revision out.")
        plan = _plan(folder, where, task, dtype or "float32", trust_remote_code)
        checkpoint, because = None, ""
        if link:
            loaded, untrained, checkpoint, because = _linked(plan)
        if checkpoint is None:
            loaded, untrained = _load(plan)
        task = plan.task
        if tokenizer == "auto":
            tokenizer = load_tokenizer(folder, loaded, where, trust_remote_code=trust_remote_code)
    name = where if kind == "hub" else os.path.basename(os.path.abspath(where)) or type(loaded).__name__
    reload = None if checkpoint is None else lambda: _load(plan)[0]
    role = _role(loaded, task)
    return Source(loaded, role, task, name, kind, untrained, tokenizer, commit, checkpoint, reload, because)


def _check_hub_id(where: str, *, path: bool) -> None:
    if os.path.isfile(where):
        graph = " `trueport audit` looks at a graph alone." if where.endswith(".onnx") else ""
        refuse(f"{where} is a file", f"Give the folder that holds it and its config.json.{graph}")
    if path or not HUB_ID.fullmatch(where) or ".." in where or "--" in where:
        refuse(f"There is no folder {where!r}", "Give a folder that save_pretrained wrote, or a hub id like org/name.")


@dataclass(frozen=True)
class _Plan:
    """What is to be loaded, found to be all there."""

    folder: Path
    where: str
    content: Mapping[str, Any]
    config: PreTrainedConfig
    kind: type[PreTrainedModel]
    task: str
    dtype: str
    files: tuple[Path, ...]


def _plan(folder: Path, where: str, task: str | None, dtype: str, trust: bool) -> _Plan:
    """The class and the files of the model in the folder, and its task."""
    content = read_config(folder)
    check_code(content, where, trust)
    config = load_config(folder, content, where, trust)
    kind, task = choose(folder, where, content, config, task, trust)
    check_inputs(kind, where)
    return _Plan(folder, where, content, config, kind, task, dtype, tuple(check_weights(folder, content)))


def _linked(plan: _Plan) -> tuple[Any, tuple[str, ...], Checkpoint | None, str]:
    """The model without its weights, its untrained outputs, and its files; or why it has to be loaded whole."""
    import torch

    if "quantization_config" in plan.content:
        return None, (), None, "it is quantised"
    try:
        checkpoint = open_checkpoint(plan.files)
        with torch.random.fork_rng(devices=[]):
            model, info = load_linked(
                plan.kind, plan.folder, checkpoint, copy.deepcopy(plan.config), getattr(torch, plan.dtype)
            )
    except Exception as error:  # the plain way follows, and tells the user what is wrong if that fails too
        return None, (), None, one_line(error)
    untrained = _judge_loaded(plan, model, info)
    return model.eval().requires_grad_(False), untrained, checkpoint, ""


def _judge_loaded(plan: _Plan, model: PreTrainedModel, info: Mapping[str, Any]) -> tuple[str, ...]:
    _check_quantized(model, plan.where)
    own = plan.kind.__name__ == architecture_of(plan.content)
    return _check_loaded(model, info, plan.where, None if own else plan.task)


def _load(plan: _Plan) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model in the folder, and its outputs that no weight trained."""
    import torch

    folder, where, content, config, kind = plan.folder, plan.where, plan.content, plan.config, plan.kind
    try:
        with torch.random.fork_rng(devices=[]):  # missing weights are drawn at random, from the caller's generator
            model, info = cast("Any", kind).from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, plan.dtype),
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are told below, with their shapes
                output_loading_info=True,
            )
    except Exception as error:
        if "quantization_config" in content:
            refuse(f"{where} is quantised: {one_line(error)}", "Give the checkpoint that it was made from.", error)
        remedy = "Correct its config.json, or download it again."
        refuse(f"{where} cannot be loaded as a {kind.__name__}: {one_line(error)}", remedy, error)
    return model.eval().requires_grad_(False), _judge_loaded(plan, model, info)


def _check_loaded(model: PreTrainedModel, info: Mapping[str, Any], where: str, task: str | None) -> tuple[str, ...]:
    """Refuse weights that do not fit or are not there; the names of the outputs that nothing trained.

    Args:
        model: what was loaded.
        info: transformers' loading info.
        where: the checkpoint, for messages.
        task: what was asked of a checkpoint of another class; None where the class is its own.
    """
    import torch

    kind = type(model).__name__
    for name, found, expected in sorted(info["mismatched_keys"]):
        remedy = "Correct config.json, or save the model again with save_pretrained."
        refuse(f"{where}: {name} has shape {list(found)}, where its config.json wants {list(expected)}", remedy)
    missing = sorted(info["missing_keys"])
    pooler = [name for name in missing if name.startswith("pooler.") and model.base_model is model]
    lacking = [name for name in missing if name not in pooler]
    if lacking:
        names = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        problem = f"{where} has no weights for {names} ({count_words(len(lacking), 'tensor')} of {kind})"
        if task is None:
            refuse(f"{problem}: it is incomplete, or its config.json is of another model", AGAIN)
        remedy = "Give --task with what it was trained for, or a checkpoint that was trained for this."
        refuse(f"{problem}: it was not trained for {task}", remedy)
    with torch.no_grad():
        for name in pooler:  # drawn at random, which no two exports would share
            model.get_parameter(name).zero_()
    return ("pooler_output",) if pooler else ()


def _check_quantized(model: PreTrainedModel, where: str) -> None:
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        refuse(f"{where} is quantised already", "Give the checkpoint that it was made from.")


def _role(model: PreTrainedModel, task: str) -> str:
    from trueport.roles import role_of

    role, kind = role_of(model), type(model).__name__
    if "decoder" in TASKS[task].roles and role != "decoder":
        refuse(
            f"A {kind} takes no cache: it keeps no state, or another one than transformers' caches",
            "Give --task feature-extraction for one pass, or export it in a module of your own (docs/custom.md).",
        )
    if role not in TASKS[task].roles:
        refuse(f"A {kind} is a {role}, which cannot do {task}", "Give another --task, such as feature-extraction.")
    return role


def _live(model: Any, task: str | None, dtype: str | None, tokenizer: Any) -> Source:
    """A module in memory: the caller's own object, or where another dtype is asked for, a converted copy."""
    from torch import nn
    from transformers import PreTrainedModel

    from trueport.roles.component import float_dtype

    kind = type(model)
    if not isinstance(model, nn.Module):
        refuse(f"The model is of type {kind.__name__}", "Give a hub id, a folder, or a transformers PreTrainedModel.")
    if not isinstance(model, PreTrainedModel):
        refuse(
            f"{kind.__name__} is not a transformers PreTrainedModel, and this version exports no other modules",
            "Put it into a PreTrainedModel with the forward of an encoder, a decoder or a seq2seq model.",
        )
    if any(module.training for module in model.modules()):
        refuse(
            f"The {kind.__name__} is in training mode, where dropout changes its outputs", "Call model.eval() first."
        )
    devices = sorted({tensor.device.type for tensor in model.parameters()} - {"cpu"})
    if devices:
        refuse(f"The {kind.__name__} has weights on {listed(devices)}", "Load it onto the CPU first.")
    check_plain(model)
    check_inputs(kind, "The model")
    _check_quantized(model, f"The {kind.__name__}")
    if is_bare_seq2seq(kind):
        refuse(f"A {kind.__name__} has no head to generate with", "Give the class with a head, or its encoder.")
    does = task_of(kind) or task_by_role(model)
    bare = model.base_model
    if (
        task not in (None, does)
        and bare is not model
        and task_of(type(bare)) == task
        and not is_bare_seq2seq(type(bare))
    ):
        return _live(bare, task, dtype, tokenizer)  # without its head, as a checkpoint of it would be loaded
    if task not in (None, does):
        refuse(f"The {kind.__name__} does {does}, not {task}", "Leave --task out, or give a model of another class.")
    role = _role(model, does)
    own = float_dtype(model)
    if dtype is None and own not in DTYPES:
        refuse(f"The {kind.__name__} computes in {own}", f"Give --dtype (dtype=) {', '.join(DTYPES)}.")
    if dtype not in (None, own):
        with quiet():
            model = converted(model, str(dtype))
    return Source(model, role, does, kind.__name__, "module", (), tokenizer)
