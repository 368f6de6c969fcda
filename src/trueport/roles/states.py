"""Which outputs of a module are inputs of its next call: as declared, or found by calling it twice."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from trueport.calls import Call, call_of, leaves_of
from trueport.errors import SourceError
from trueport.roles.probing import FAILURES

Tree = tuple[tuple[Any, ...], dict[str, Any]]
"""(args, kwargs)."""
SPELLINGS = ("present_{}", "new_{}", "next_{}", "{}_out", "out_{}", "{}_new", "{}_next", "{}")
"""How modules call the output that is the input ``{}`` of their next call."""


@dataclass(frozen=True)
class Stateful:
    """How a module is called once it has a state, and before.

    Attributes:
        call: with every tensor, the state's included; its state outputs are called ``present_{input}``.
        first: without the state; None where the module always takes one.
        feeds: tensors by name, the state's as they came out of a first call, or as the user gave them.
        pairs: state input to state output.
    """

    call: Call
    first: Call | None
    feeds: dict[str, torch.Tensor]
    pairs: dict[str, str]


def stateful(module: nn.Module, tree: Tree, state: Mapping[Any, str] | None) -> Stateful:
    """Call the module, and once more with the state that it gave out.

    Args:
        module: in eval mode.
        tree: sample (args, kwargs), the state left out or given.
        state: output (its name, or its place in a tuple) to input; None looks for it, ``{}`` is none.

    Raises:
        SourceError: an output or an input is not there, or they do not fit.
    """
    with torch.no_grad():
        result = _called(module, tree)
    first, feeds = call_of(tree, result)
    named = _declared(result, state, tree) if state is not None else _found(module, tree, result)
    if not named:
        return Stateful(first, None, feeds, {})
    absent = {name: _part(result, key) for key, name in named.items() if not _given(tree, name)}
    later = (tree[0], tree[1] | absent)
    with torch.no_grad():
        again = _called(module, later, "with the state that it gave out")
    call, feeds = call_of(later, again)
    if len(call.outputs) != len(first.outputs):
        raise SourceError(
            f"{type(module).__name__} gives out {len(first.outputs)} values at first and {len(call.outputs)} with its state",
            "Return the same structure from every call.",
        )
    for key, name in named.items():
        _refuse_numbers(name, _part(result, key), _part(again, key))
    pairs: dict[str, str] = {}
    outputs, begun = list(call.outputs), list(first.outputs)
    for key, name in named.items():
        inputs = [leaf for leaf in feeds if leaf == name or leaf.startswith(f"{name}.")]
        places = _places(again, key)
        if len(inputs) != len(places):
            raise SourceError(
                f"The output {key} has {len(places)} tensors and the input {name} has {len(inputs)}",
                "Give the state out in the form in which it is taken.",
            )
        for place, leaf in zip(places, inputs, strict=True):
            pairs[leaf] = outputs[place] = begun[place] = f"present_{leaf}"
    call = Call(call.arguments, call.leaves, tuple(outputs))
    start = Call(first.arguments, first.leaves, tuple(begun))
    return Stateful(call, start if absent else None, feeds, pairs)


def _called(module: nn.Module, tree: Tree, how: str = "on its sample inputs") -> Any:
    from trueport.rewrite.watch import preserved

    with preserved(module):
        try:
            return module(*tree[0], **tree[1])
        except FAILURES as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise SourceError(
                f"{type(module).__name__} does not run {how}: {reason}",
                "Give inputs that fit together; where one covers the state as well, such as a mask, give the state too.",
            ) from error


def _given(tree: Tree, name: str) -> bool:
    leaves, _ = leaves_of(tree)
    return any(leaf is not None for key, leaf in leaves.items() if key == name or key.startswith(f"{name}."))


def _keys(result: Any) -> dict[str, Any]:
    """The parts of a result by key, attribute, or place."""
    if isinstance(result, Mapping):
        return {str(key): part for key, part in result.items()}
    if isinstance(result, (tuple, list)):
        parts = {str(index): part for index, part in enumerate(result)}
        return parts | {field: getattr(result, field) for field in getattr(result, "_fields", ())}
    if isinstance(result, torch.Tensor):
        return {"output": result}
    return {name: part for name, part in vars(result).items() if not name.startswith("_")}


def _part(result: Any, key: Any) -> Any:
    parts = _keys(result)
    name = str(key)
    if name not in parts and name.removeprefix("output_") in parts:
        name = name.removeprefix("output_")
    if name not in parts:
        raise SourceError(f"state= names the output {key}, which is none of {', '.join(parts)}", "Correct it.")
    return parts[name]


def _places(result: Any, key: Any) -> list[int]:
    """Where the tensors of a part stand among the leaves of the whole; the last of those that stand there twice."""
    places = {id(leaf): index for index, leaf in enumerate(pytree.tree_leaves(result))}
    return [places[id(leaf)] for leaf in pytree.tree_leaves(_part(result, key)) if isinstance(leaf, torch.Tensor)]


def _refuse_numbers(name: str, one: Any, other: Any) -> None:
    """A number in a state that changes from call to call would be a constant of the graph."""
    leaves = [pytree.tree_leaves(part) for part in (one, other)]
    plain = [[leaf for leaf in part if not isinstance(leaf, torch.Tensor)] for part in leaves]
    if pytree.tree_structure(one) != pytree.tree_structure(other) or plain[0] != plain[1]:
        raise SourceError(
            f"The state {name} holds something else than tensors that changes from call to call",
            "Keep it as a tensor: torch.tensor(0), and count + x.shape[1].",
        )


def _declared(result: Any, state: Mapping[Any, str], tree: Tree) -> dict[Any, str]:
    if not isinstance(state, Mapping):
        raise SourceError(f"state= is a {type(state).__name__}", 'Give a dict such as {"mems_out": "mems"}.')
    for key in state:
        _part(result, key)
    return dict(state)


def _found(module: nn.Module, tree: Tree, result: Any) -> dict[Any, str]:
    """Outputs that the module takes as an input: by their names, or because it takes them where it was given none."""
    parts = _keys(result)
    named: dict[Any, str] = {}
    leaves, _ = leaves_of(tree)
    for name in dict.fromkeys(leaf.partition(".")[0] for leaf, value in leaves.items() if value is not None):
        for spelling in SPELLINGS:
            key = spelling.format(name)
            if key in parts and key not in named and _alike(parts[key], _argument(tree, name)):
                named[key] = name
                break
    if set(named) == set(parts):  # a module that gives x for x, a denoiser say, is to give it to somebody
        named = {}
    absent = [name for name in _absent(module, tree) if name not in named.values()]
    named |= _spelled(module, tree, result, {key: name for name in absent for key in _named_as(name, parts, named)})
    # What was found so far goes along: a state may count only beside another.
    given = (tree[0], tree[1] | {name: parts[key] for key, name in named.items() if name in absent})
    for name in absent:
        for key in sorted(parts, key=lambda part: not _within(name, part)):
            if name in named.values():
                break
            # A class with @trueport.state is a node to pytree as a list is.
            nested = not pytree.tree_structure(parts[key]).is_leaf() and bool(pytree.tree_leaves(parts[key]))
            if key not in named and (_within(name, key) or nested) and _takes(module, given, name, parts[key]):
                named[key] = name
    return named


def _named_as(name: str, parts: Mapping[str, Any], taken: Mapping[str, str]) -> list[str]:
    """The output that is called as the input ``name`` is at the next call; none or one."""
    spelled = [key for spelling in SPELLINGS if (key := spelling.format(name)) in parts and key not in taken]
    return spelled[:1]


def _within(name: str, key: str) -> bool:
    """Whether ``key`` has the words of ``name`` in it: ``last_hx`` has ``hx``, and ``hidden`` has no ``h``."""
    return f"_{name}_" in f"_{key}_"


def _spelled(module: nn.Module, tree: Tree, result: Any, named: dict[str, str]) -> dict[str, str]:
    """Those outputs of ``named``, each called as an input, that the module takes and heeds, alone or beside the others.

    A ring of tokens and the count of them are a state together, where either of them alone changes nothing.
    """
    parts = {name: _part(result, key) for key, name in named.items()}

    def heeded(name: str) -> bool:
        others = {other: part for other, part in parts.items() if other != name}
        beside = (tree[0], tree[1] | others)
        return _takes(module, tree, name, parts[name]) or _takes(module, beside, name, parts[name])

    return {key: name for key, name in named.items() if heeded(name)}


def _argument(tree: Tree, name: str) -> Any:
    return tree[1].get(name)


def _alike(one: Any, other: Any) -> bool:
    left, right = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(left) == len(right) and all(
        isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and (a.ndim, a.dtype) == (b.ndim, b.dtype)
        for a, b in zip(left, right, strict=True)
    )


def _absent(module: nn.Module, tree: Tree) -> Iterator[str]:
    """Arguments that default to None and were given none."""
    if tree[0]:
        return
    try:
        parameters = inspect.signature(module.forward).parameters
    except ValueError:
        return
    for name, parameter in parameters.items():
        if parameter.default is None and tree[1].get(name) is None:
            yield name


def _takes(module: nn.Module, tree: Tree, name: str, part: Any) -> bool:
    """Whether the module takes this output as that input, and answers otherwise then."""
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(part)):
        return False
    before, after = _answer(module, tree), _answer(module, (tree[0], tree[1] | {name: part}))
    if before is None or after is None:  # of several states it may take all or none
        return after is not None
    return len(before) == len(after) and any(
        isinstance(a, torch.Tensor) and (a.shape != b.shape or not torch.equal(a, b))
        for a, b in zip(before, after, strict=True)
    )


def _answer(module: nn.Module, tree: Tree) -> list[Any] | None:
    """The leaves of the module's result; None where it refuses its inputs."""
    from trueport.rewrite.watch import preserved

    try:
        with torch.no_grad(), preserved(module):
            return pytree.tree_leaves(module(*tree[0], **tree[1]))
    except FAILURES:
        return None
