"""The verdict on every layer that a padding mask reaches: whether what it hides is hidden, and if not, why."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.graphs.audit.experiment.evaluator import Budget, Evaluator
from trueport.graphs.audit.experiment.hiding import by_other_rows, hidden_tokens, some_hide_themselves, with_some_keys
from trueport.graphs.audit.experiment.inputs import SURE, Encoding, Trial, encodings, has_flags, padding_masks, trials
from trueport.graphs.audit.experiment.known import MISFITS, UnknownError
from trueport.graphs.audit.experiment.seen import SCORES, Seen, Watcher, leaks, misplaced, multiplied, own_queries
from trueport.graphs.audit.view import ATTENTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

INVERTED, FIRST_ROW, QUERY_AXIS, MULTIPLIED, OTHER = "inverted", "first row", "query axis", "multiplied", "other"
ANY_ROW, PADDING, ITSELF = "any row", "padding", "itself"
"""Why tokens are hidden that the mask shows: for any row's padding, for some, or whatever is padding."""


@dataclass(frozen=True)
class Leak:
    """A layer that sees keys which a mask hides, or hides tokens which it shows.

    Attributes:
        site: the layer.
        mask: the mask input's name.
        kind: how the mask is misused.
        node: the node that does it, where one can be named.
        certain: whether the input can only mean what the experiment took it for.
        axis: the name of the mask's last axis.
    """

    site: Site
    mask: str
    kind: str
    node: ir.Node | None
    certain: bool
    axis: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the experiment found in a graph.

    Attributes:
        leaks: every layer and mask that shows padding.
        hiding: every layer and mask that hides tokens, and no padding is seen.
        misplaced: layers whose masks hide padding, and of other keys those that a causal mask shows.
        idle: ids of the nodes of layers in branches that are not taken while there is padding.
        spreads: layers whose masks hide padding, and of a query that sees no key, what its best and its worst one get.
        unknown: softmaxes and attention operators that a mask reaches, and of which nothing can be said.
    """

    leaks: tuple[Leak, ...]
    hiding: tuple[Leak, ...]
    misplaced: tuple[Site, ...]
    idle: frozenset[int]
    spreads: tuple[tuple[Site, float, float], ...]
    unknown: tuple[ir.Node, ...]


def judge(view: View) -> Verdict:
    """Every mask input and every layer that it reaches, one after the other."""
    leaks: list[Leak] = []
    hiding: list[Leak] = []
    turned: dict[int, Site] = {}
    spreads: list[tuple[Site, float, float]] = []
    idle: set[int] = set()
    unknown: dict[int, ir.Node] = {}
    known = {id(site.node) for site in view.sites}
    keys: dict[int, set[str]] = {}
    budget = Budget()
    for mask in padding_masks(view):
        one = _Judge(view, mask, budget)
        direct = [site for site in view.sites if one.reaches(site)]
        idle |= {id(site.node) for site in view.sites if one.rests(site)}
        for site in direct:
            wrong = one.always_leaks(site)
            leak = one.leak(site) if wrong else None
            if wrong is not None and (leak is None or leak.kind != QUERY_AXIS):
                keys.setdefault(id(site.node), set()).add(one.axis)
            if wrong is None:
                unknown[id(site.node)] = site.node
            elif leak is not None:
                leaks.append(leak)
            elif one.misplaced(site):
                turned[id(site.node)] = site
            elif (why := one.hides_tokens(site)) is None:
                unknown[id(site.node)] = site.node
            elif why:
                hiding.append(one.hidden(site, why))
            if not wrong and (spread := one.spread(site)) is not None:
                spreads.append((site, *spread))
        leaks += one.through_scores(lone=not direct)
        unknown |= {id(node): node for node in view.nodes if id(node) not in known and one.reaches_layer(node)}
    # Of a decoder that reads a source, one mask may say which queries are padding, and another which keys.
    leaks = [leak for leak in leaks if leak.kind != QUERY_AXIS or keys.get(id(leak.site.node), set()) <= {leak.axis}]
    return Verdict(
        tuple(leaks), tuple(hiding), tuple(turned.values()), frozenset(idle), tuple(spreads), tuple(unknown.values())
    )


def lengths(view: View) -> list[tuple[Evaluator, set[int]]]:
    """Walks through the graph with tokens of several lengths, and these lengths, with the past and without it."""
    found: list[tuple[Evaluator, set[int]]] = []
    for mask in padding_masks(view)[:1]:
        try:
            given = [trial for group in trials(view, mask, encodings(mask)[0]) for trial in group]
        except (UnknownError, *MISFITS):
            continue
        for trial in given:
            walk = Evaluator(view, trial.given, trial.axes, trial.shapes, SCORES[0], Budget())
            found.append((walk, {trial.mask.shape[1], trial.mask.shape[1] - trial.past}))
    return found


class _Judge:
    """One mask input."""

    def __init__(self, view: View, mask: ir.Value, budget: Budget) -> None:
        self.view = view
        self.mask = mask
        self.axis = str(mask.shape[-1]) if mask.shape else ""
        self.reached = view.masks.get(mask.name or "", set())
        products = frozenset(id(site.scores) for site in view.sites if site.scores is not None)
        self.direct = view.dependents([mask], barriers=products)
        self.budget = budget
        self.encodings = encodings(mask)
        self._watchers: dict[tuple[Encoding, bool], list[list[Watcher]]] = {}
        self._unpadded = Budget()

    def reaches(self, site: Site) -> bool:
        """Whether a layer's mask depends on this one, other than through queries and keys."""
        return any(id(value) in self.direct for value in site.mask_values())

    def rests(self, site: Site) -> bool:
        """Whether a layer lies in a branch that is never taken while this mask hides a key."""
        graph = site.node.graph
        while graph is not None and id(graph) in self.view.parents:
            parent = self.view.parents[id(graph)]
            if parent.op_type == "If" and id(parent.inputs[0]) in self.reached:
                watchers = [watcher for group in self._watched(self.encodings[0]) for watcher in group]
                with suppress(UnknownError, *MISFITS):
                    taken = [watcher.walks[0].taken_by(parent) for watcher in watchers]
                    return bool(taken) and not any(one is graph for one in taken)
            graph = parent.graph
        return False

    def reaches_layer(self, node: ir.Node) -> bool:
        """Whether a node is a softmax, or a whole attention, that reads what depends on the mask."""
        layer = node.op_type in (*ATTENTION, "Softmax", "BiasSoftmax") or id(node) in self.view.spelled
        written = self.view.spelled.get(id(node))
        values = node.inputs if written is None else [written.given, written.factor]
        return layer and any(id(value) in self.direct for value in values)

    def through_scores(self, *, lone: bool) -> list[Leak]:
        """Layers of which only queries or keys depend on the mask: multiplied by it, or moved to other positions.

        Args:
            lone: whether no layer has the mask in another way; positions alone are enough where one has.
        """
        found = []
        for site in self.view.sites:
            factors = site.node.inputs[:2] if site.scores is None else site.scores.inputs[:2]
            touched = any(id(value) in self.reached for value in factors) and not self.reaches(site)
            if touched and self.always_leaks(site):
                leak = self.leak(site)
                if leak.kind == MULTIPLIED:
                    found.append(leak)
                elif lone:
                    found.append(replace(leak, kind=OTHER, certain=False))
        return found

    def always_leaks(self, site: Site) -> bool | None:
        """Whether hidden keys are seen however the mask may be written; None where nothing tells."""
        inverted = self.encodings[-1]
        for encoding in self.encodings:
            found = self._leaks(site, encoding) if encoding.expected else True
            if found is None:
                return None
            # What hides by being other than 0 is no number to add.
            yes_and_no = encoding.added and not inverted.expected and self._leaks(site, inverted) is False
            if not found and not yes_and_no:
                return False
        return True

    def misplaced(self, site: Site) -> bool:
        """Whether a layer that hides padding hides a token from itself, or what goes before it alone, at every length."""
        groups = self._watched(next(iter(self._right(site)), self.encodings[0]))
        return any(all(self._is_misplaced(site, watcher) for watcher in group) for group in groups)

    def _right(self, site: Site) -> list[Encoding]:
        """How the mask may be written so that the layer hides all padding."""
        return [encoding for encoding in self.encodings if encoding.expected and self._leaks(site, encoding) is False]

    def spread(self, site: Site) -> tuple[float, float] | None:
        """The best and the worst score of a query that sees no key, where they differ at every length; None elsewhere."""
        for encoding in self.encodings:
            if not encoding.expected or self._leaks(site, encoding):
                continue
            for group in self._watched(encoding):
                found: dict[int, tuple[float, float] | None] = {}
                with suppress(UnknownError, *MISFITS):
                    for watcher in group:
                        for seen in watcher.readings(site):
                            found[watcher.trial.mask.shape[1]] = found.get(watcher.trial.mask.shape[1]) or seen.spread
                    if found and None not in found.values():
                        return next(iter(found.values()))
        return None

    def hides_tokens(self, site: Site) -> str | None:
        """Why a layer that hides padding hides tokens too, however the mask may be written; empty where it does not.

        None where nothing tells.
        """
        found = [self._hiding(site, encoding) for encoding in self._right(site)]
        if "" in found or not found:
            return ""
        return None if None in found else found[0]

    def _hiding(self, site: Site, encoding: Encoding) -> str | None:
        """Why tokens are hidden at every length, with a past or without one."""
        loops = self.view.repeats(site.node)
        groups = [[_kind_of_hiding(*pair, loops=loops) for pair in group] for group in self._pairs(site, encoding)]
        alike = [group[0] if len(set(group)) == 1 else PADDING for group in groups if all(group)]
        return next(iter(alike), "") if groups else None

    def _pairs(self, site: Site, encoding: Encoding) -> list[list[tuple[Seen, Seen, Trial]]]:
        """What is seen with padding and without it, a list for each length of the past; of what nothing tells, none."""
        groups = []
        for padded, whole in zip(self._watched(encoding), self._watched(encoding, padded=False), strict=False):
            try:
                groups.append(
                    [
                        (seen, plain, watcher.trial)
                        for watcher, other in zip(padded, whole, strict=True)
                        for seen, plain in zip(watcher.readings(site), other.readings(site), strict=True)
                    ]
                )
            except (UnknownError, *MISFITS):
                continue
        return groups

    def _blinded(self, site: Site, encoding: Encoding) -> bool:
        """Whether only tokens see padding that have no key left, as tokens are hidden too."""
        return any(all(_blinded(*pair) for pair in group) for group in self._pairs(site, encoding))

    def hidden(self, site: Site, kind: str) -> Leak:
        """A layer that hides tokens."""
        certain = self._sure() and kind != ITSELF
        return Leak(site, self.mask.name or "", kind, None, certain, self.axis)

    def _sure(self) -> bool:
        """Whether an input says what is padding, and nothing else."""
        return bool(SURE.search(self.mask.name or "")) and len(self.mask.shape or ()) == 2

    def _is_misplaced(self, site: Site, watcher: Watcher) -> bool:
        trial = watcher.trial
        try:
            return all(misplaced(seen, trial.mask, trial.past) for seen in watcher.readings(site))
        except (UnknownError, *MISFITS):
            return False

    def leak(self, site: Site) -> Leak:
        """Why a layer sees hidden keys."""
        kind, node = self._kind(site)
        certain = self._sure()
        if kind == INVERTED:
            certain &= self.mask.dtype in (ir.DataType.INT64, ir.DataType.INT32)
        return Leak(site, self.mask.name or "", kind, node, certain, self.axis)

    def _watched(self, encoding: Encoding, *, padded: bool = True) -> list[list[Watcher]]:
        key = (encoding, padded)
        if key not in self._watchers:
            budget = self.budget if padded else self._unpadded
            try:
                self._watchers[key] = [
                    [Watcher(self.view, trial, budget) for trial in group]
                    for group in trials(self.view, self.mask, encoding, padded=padded)
                ]
            except (UnknownError, *MISFITS):
                self._watchers[key] = []
        return self._watchers[key]

    def _leaks(self, site: Site, encoding: Encoding) -> bool | None:
        """Whether hidden keys are seen at every length, with a past or without one; None where nothing tells."""
        groups = [self._all_leak(site, group) for group in self._watched(encoding)]
        known = [group for group in groups if group is not None]
        return any(known) if known else None

    def _all_leak(self, site: Site, watchers: Sequence[Watcher]) -> bool | None:
        """Whether hidden keys are seen under every trial; None where nothing tells, or a flag decides about it."""
        found: dict[int, set[bool]] = {}
        try:
            for watcher in watchers:
                seen = all(self._sees_hidden(site, seen, watcher.trial) for seen in watcher.readings(site))
                found.setdefault(watcher.trial.mask.shape[1], set()).add(seen)
        except (UnknownError, *MISFITS):
            return None
        if has_flags(self.view) and any(len(answers) > 1 for answers in found.values()):
            return None
        return all(answers == {True} for answers in found.values())

    def _sees_hidden(self, site: Site, seen: Seen, trial: Trial) -> bool:
        """Whether a reading is wrong; of a loop's body, which may go row by row, the first turn has the first row."""
        by_rows = self.view.repeats(site.node) and _as_first_row(seen, trial)
        return leaks(seen, trial.mask, trial.past) and not by_rows

    def _kind(self, site: Site) -> tuple[str, ir.Node | None]:
        if self._leaks(site, self.encodings[-1]) is False:
            return INVERTED, None
        watcher = next(w for group in self._watched(self.encodings[0]) for w in group if self._all_leak(site, [w]))
        trial = watcher.trial
        if all(_as_first_row(seen, trial) for seen in watcher.readings(site)):
            return FIRST_ROW, None
        if all(_on_queries(seen, trial) for seen in watcher.readings(site)):
            return QUERY_AXIS, None
        if self._blinded(site, self.encodings[0]):
            return self._hiding(site, self.encodings[0]) or PADDING, None
        by = multiplied(watcher, site, self.reached)
        if by is not None:
            return MULTIPLIED, by
        values = [value for value in site.mask_values() if id(value) in self.reached]
        return OTHER, next((node for node in self.view.backwards(values) if self._either(node)), None)

    def _either(self, node: ir.Node) -> bool:
        return node.op_type == "Or" and any(id(value) in self.reached for value in node.inputs)


def _kind_of_hiding(seen: Seen, whole: Seen, trial: Trial, *, loops: bool) -> str:
    """Why tokens are hidden in a reading; empty where none are. A loop's first turn may have the first row alone."""
    hidden = hidden_tokens(seen, whole, trial.mask, trial.past)
    if loops and _as_first_row(seen, trial):
        hidden = hidden[:1]
    if hidden.any():
        return ANY_ROW if by_other_rows(seen, trial.mask, trial.past) else PADDING
    return ITSELF if some_hide_themselves(seen, trial.mask, trial.past) else ""


def _blinded(seen: Seen, whole: Seen, trial: Trial) -> bool:
    """Whether padding is seen by those alone that see every key alike, and tokens are hidden from others."""
    hidden = hidden_tokens(seen, whole, trial.mask, trial.past)
    return bool(hidden.any()) and not leaks(with_some_keys(seen), trial.mask, trial.past)


def _as_first_row(seen: Seen, trial: Trial) -> bool:
    """Whether every row hides what the first row's mask hides."""
    rows = trial.mask.shape[0]
    hidden = (~trial.mask[:1]).repeat(rows, axis=0)
    return rows > 1 and not leaks(seen, trial.mask, trial.past, hidden)


def _on_queries(seen: Seen, trial: Trial) -> bool:
    """Whether the mask hides everything from padding's own queries, and padding from nobody."""
    own = own_queries(seen, trial.mask, trial.past)
    return own is not None and bool((~own).any() and (seen.blind | own[:, None]).all())
