"""How a module of any kind is called: which leaf of its arguments and results is which named tensor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from trueport.errors import SourceError
from trueport.interface import DTYPES

PLAIN = (bool, int, float, str)
"""What an argument may be besides a tensor and None: it becomes a constant of the export."""


@dataclass(frozen=True)
class Call:
    """One way of calling a module.

    Attributes:
        arguments: the tree of (args, kwargs), as ``treespec_dumps`` writes it.
        leaves: for each leaf of it ``{"input": name}`` or ``{"value": constant}``.
        outputs: for each leaf of the result the output's name; None for what is no tensor.
    """

    arguments: str
    leaves: tuple[Mapping[str, Any], ...]
    outputs: tuple[str | None, ...]

    def bind(self, feeds: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Tensors by name to the module's own args and kwargs."""
        values = [feeds[leaf["input"]] if "input" in leaf else leaf["value"] for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(values, pytree.treespec_loads(self.arguments))
        return tuple(args), dict(kwargs)

    def name(self, result: Any) -> dict[str, Any]:
        """The module's result to tensors by output name."""
        leaves = pytree.tree_leaves(result)
        return {name: leaf for name, leaf in zip(self.outputs, leaves, strict=True) if name is not None}

    def run(self, module: nn.Module, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs by name to outputs by name, through the module."""
        args, kwargs = self.bind(feeds)
        return self.name(module(*args, **kwargs))

    def to_json(self) -> dict[str, Any]:
        """The form that the manifest stores."""
        return {"arguments": self.arguments, "leaves": list(self.leaves), "outputs": list(self.outputs)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Call:
        """The call that ``to_json`` wrote.

        Raises:
            KeyError, TypeError, ValueError: ``data`` is not of its form.
        """
        found = Call(data["arguments"], tuple(data["leaves"]), tuple(data["outputs"]))
        try:
            spec = pytree.treespec_loads(found.arguments)
        except NotImplementedError as error:  # a tree of a form or of classes that pytree does not know
            raise ValueError("its tree is none") from error
        told = [isinstance(leaf, dict) and len({"input", "value"} & leaf.keys()) == 1 for leaf in found.leaves]
        if spec.num_leaves != len(told) or not all(told) or not all(isinstance(n, str | None) for n in found.outputs):
            raise ValueError("it has other leaves than its tree")
        return found


def _held(module: nn.Module) -> str:
    """A sentence about the transformers model that another module wraps, as ``torch.compile`` and PEFT do; or empty."""
    from transformers import PreTrainedModel

    for path, part in module.named_modules():
        if isinstance(part, PreTrainedModel):
            return f"It holds a {type(part).__name__}: export its `.{path}`. "
    return ""


def arguments_of(module: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Sample inputs as args and kwargs: whatever ``forward`` can take by name goes by name.

    Args:
        module: the module.
        inputs: one tensor, a tuple or list of them, or a dict by argument name; nested as ``forward`` takes them.

    Raises:
        SourceError: there are none, or forward does not take them.
    """
    if inputs is None:
        raise SourceError(
            f"{type(module).__name__} is not a transformers PreTrainedModel, so only sample inputs tell what it takes",
            f"{_held(module)}Give inputs=, a tuple or dict of sample tensors.",
        )
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise SourceError(
            f"{type(module).__name__}.forward does not take these inputs: {error}", "Give what forward takes."
        ) from error
    except ValueError:  # forward is C code: it keeps its order
        return args, kwargs
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        variety = bound.signature.parameters[name].kind
        if variety is inspect.Parameter.VAR_POSITIONAL or variety is inspect.Parameter.POSITIONAL_ONLY:
            return args, kwargs
        named |= value if variety is inspect.Parameter.VAR_KEYWORD else {name: value}
    return (), named


def leaves_of(tree: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Every leaf of (args, kwargs) by its name, such as ``mems.0``, and the tree itself."""
    found, spec = pytree.tree_flatten_with_path(tree)
    names = [_path_name(path[1:]) for path, _ in found]
    if "" in names or len(set(names)) < len(names):
        names = [f"input_{index}" for index in range(len(names))]
    # A name of digits alone is an argument that only its place tells.
    names = [f"input_{name}" if name[:1].isdigit() else name for name in names]
    return dict(zip(names, (leaf for _, leaf in found), strict=True)), pytree.treespec_dumps(spec)


def call_of(tree: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> tuple[Call, dict[str, torch.Tensor]]:
    """The call that was made with ``tree`` and gave ``result``, and its tensors by name.

    Raises:
        SourceError: an argument is neither tensor nor plain value, or a result has no tensor.
    """
    leaves, spec = leaves_of(tree)
    entries: list[dict[str, Any]] = []
    for name, leaf in leaves.items():
        if isinstance(leaf, torch.Tensor):
            dtype = str(leaf.dtype).removeprefix("torch.")
            if dtype not in DTYPES:
                raise SourceError(
                    f"The input {name} is {dtype}; an artefact's tensors are {', '.join(DTYPES)}",
                    "Take one of these, and convert it within forward.",
                )
            entries.append({"input": name})
        elif leaf is None or isinstance(leaf, PLAIN):
            entries.append({"value": leaf})
        else:
            raise SourceError(
                f"The input {name} is a {type(leaf).__module__}.{type(leaf).__qualname__}, which is no tensor",
                "Give tensors, in tuples, lists or dicts; put @trueport.state on a class that holds some.",
            )
    # A graph has each name once.
    names = tuple(f"output_{name}" if name in leaves else name for name in output_names(result))
    if not any(names):
        raise SourceError("The module gives out no tensor", "Return what is to be exported.")
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}
    return Call(spec, tuple(entries), names), tensors


def output_names(result: Any) -> tuple[str | None, ...]:
    """Names for the leaves of a result: its keys and attributes; ``output``, or ``output_0`` in a tuple."""
    found, _ = pytree.tree_flatten_with_path(result)
    names: list[str | None] = []
    for path, leaf in found:
        name = _path_name(path)
        if not name or name[0].isdigit():
            name = "_".join(filter(None, ["output", name.replace(".", "_")]))
        names.append(name if isinstance(leaf, torch.Tensor) else None)
    return tuple(names)


def _path_name(path: Sequence[Any]) -> str:
    parts = []
    for key in path:
        for attribute in ("key", "idx", "name"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return ".".join(parts)
