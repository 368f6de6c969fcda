"""Every fusion that Trueport knows, and why it is worth its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxscript.rewriter import pattern

from trueport.errors import TrueportError
from trueport.graphs.fusions.attention import GroupedHeads, PastInside
from trueport.graphs.fusions.heads import cut_by_heads
from trueport.graphs.fusions.in_place import write_in_place
from trueport.graphs.fusions.mask import read_masks_whole
from trueport.graphs.fusions.norms import RMSNorm
from trueport.graphs.fusions.reshape import drop_reshapes
from trueport.graphs.fusions.rotary import Rotary
from trueport.graphs.fusions.scale import scale_queries
from trueport.interface import PAST, Interface

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Applied:
    """What a fusion did to a graph.

    Attributes:
        count: how often it matched.
        interface: of the graph as it is now.
        reason: why it did not match, where there is more to say than that nothing was there.
    """

    count: int
    interface: Interface
    reason: str = ""


@dataclass(frozen=True)
class Fusion:
    """One rewriting of a graph, tried as a whole and undone as a whole.

    Attributes:
        name: in the manifest and the report.
        matches: what it looks for, in words.
        operator: what it puts there.
        providers: execution providers on which it was measured to be faster.
        reason: why it is worth its place; ``python -m benchmarks.fusions`` measures how much.
        apply: rewrites a graph in place; shapes and types are inferred before.
        caches: ``in-place`` for one that changes how the caches are bound, and so who can run the folder.
    """

    name: str
    matches: str
    operator: str
    providers: tuple[str, ...]
    reason: str
    apply: Callable[[ir.Model, Interface], Applied]
    caches: str = "copied"


def _rule(kind: Any, *given: Any, commute: bool = False) -> Callable[[ir.Model, Interface], Applied]:
    """A class of onnxscript's rules, and what it is made with; ``commute`` tries both orders of sums and products."""

    def apply(model: ir.Model, interface: Interface) -> Applied:
        rules = pattern.RewriteRuleSet([kind.rule(*given)], commute=commute)
        return Applied(int(rules.apply_to_model(model)), interface)

    return apply


def _past_inside(model: ir.Model, interface: Interface) -> Applied:
    grown = [pair.input for pair in interface.state if interface.input(pair.input).shape[pair.axis] == PAST]
    return _rule(PastInside, grown)(model, interface)


def _scaled_queries(model: ir.Model, interface: Interface) -> Applied:
    """Only where steps are taken: products of many rows are the same either way."""
    return Applied(scale_queries(model) if interface.state else 0, interface)


def _heads_at_once(model: ir.Model, interface: Interface) -> Applied:
    """Only where steps are taken: the same bytes are moved either way."""
    return Applied(cut_by_heads(model) if interface.state else 0, interface)


def _idle_reshapes(model: ir.Model, interface: Interface) -> Applied:
    """Only where steps are taken: beside products of many rows a Reshape is nothing."""
    return Applied(drop_reshapes(model) if interface.state else 0, interface)


def _whole_masks(model: ir.Model, interface: Interface) -> Applied:
    """Only where steps are taken: once in a graph, it is nothing beside an encoder."""
    return Applied(read_masks_whole(model) if interface.state else 0, interface)


def _in_place(model: ir.Model, interface: Interface) -> Applied:
    if not interface.state:
        return Applied(0, interface)
    changed, reason = write_in_place(model, interface)
    return Applied(0 if reason else sum(pair.in_place for pair in changed.state), changed, reason)


FUSIONS = (
    Fusion(
        "rms-norm", "x / sqrt(mean(x^2) + eps), times a weight: six operators", "RMSNormalization", ("cpu",),
        "the runtime does not find this spelling by itself",
        _rule(RMSNorm, commute=True),
    ),
    Fusion(
        "heads-at-once", "a product that is cut into queries, keys and values before each is given its heads",
        "Reshape, Transpose, Split", ("cpu",),
        "four operators less in each layer",
        _heads_at_once,
    ),
    Fusion(
        "rotary", "x cos + rotate_half(x) sin, angles from each row's own positions", "RotaryEmbedding", ("cpu",),
        "eight operators in one; apart from the attention, whose own rotary takes one position for the whole batch",
        _rule(Rotary, commute=True),
    ),
    Fusion(
        "grouped-heads", "keys and values that are repeated for every query head", "Attention", ("cpu",),
        "keys and values are read for the heads that the cache has, and not copied",
        _rule(GroupedHeads),
    ),
    Fusion(
        "scaled-queries", "an attention that scales its scores", "Mul of the queries, Attention with scale 1", ("cpu",),
        "one row's scores without a packed copy of all keys",
        _scaled_queries,
    ),
    Fusion(
        "idle-reshapes", "a Reshape to the shape that is there, as behind each attention", "nothing", ("cpu",),
        "an operator less behind each attention",
        _idle_reshapes,
    ),
    Fusion(
        "whole-mask", "a padding mask that is looked up at every row and key", "Unsqueeze", ("cpu",),
        "fourteen operators less in a step, and no table of indices as long as the context",
        _whole_masks,
    ),
    Fusion(
        "past-inside", "a cache concatenated with new keys and values before the attention", "Attention", ("cpu",),
        "one copy of the cache in place of two",
        _past_inside,
    ),
    Fusion(
        "in-place", "a cache that an attention gives anew, longer by the new tokens", "TensorScatter, Attention", ("cpu",),
        "no copy of the cache",
        _in_place, caches="in-place",
    ),
)  # fmt: skip
"""In the order in which they are applied: each reads what those before it left."""


CACHES = ("copied", "in-place")
"""Whether a step gives caches anew, which any client can bind, or writes into them."""


def fusions_for(provider: str, caches: str = "copied", among: Sequence[Fusion] = FUSIONS) -> list[Fusion]:
    """The fusions that an execution provider gains from.

    Raises:
        TrueportError: none is known for it, or there are no such caches.
    """
    if caches not in CACHES:
        raise TrueportError(f"There are no {caches!r} caches", f"Give one of {', '.join(CACHES)}.")
    found = [fusion for fusion in among if provider in fusion.providers]
    if not found:
        known = sorted({name for fusion in among for name in fusion.providers})
        raise TrueportError(f"There are no fusions for {provider!r}", f"Give one of {', '.join(known)}.")
    return [fusion for fusion in found if fusion.caches in ("copied", caches)]
