"""Products with experts, each row's matrix chosen by its expert, as one loop over blocks of rows.

ExecuTorch 1.4.1 has no kernel for a grouped product, and its sizes cannot depend on values, as how many rows an expert has
does. So the rows of each expert are cut into blocks of one size, which the number of rows tells, and the loop's body reads
one expert's matrix for one block. A block that no expert needs is jumped over: one token costs what its own experts do.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx

from trueport.targets.executorch.formulas import Call, replace

aten = torch.ops.aten
FINER = 2
"""Blocks are this much shorter than an expert's mean number of rows: more copies of matrices, less padding and memory.

They have two rows at least: where the trace has one, torch takes that for all sizes.
"""


@dataclass(frozen=True)
class Blocks:
    """Where the rows of each expert lie among blocks of one size; nodes, all of int64 but for ``used``.

    There are (1 + FINER) blocks for each expert, more than can be needed: every expert's last block may be cut short.

    Attributes:
        rows: the row at each place, (blocks, size); some row where there is none.
        experts: by block, (blocks).
        used: whether a block holds a row, (blocks) bool.
        places: where each row lies among all blocks' places, (rows).
    """

    rows: torch.fx.Node
    experts: torch.fx.Node
    used: torch.fx.Node
    places: torch.fx.Node


def write_experts(module: torch.fx.GraphModule) -> None:
    """Put a loop in the place of each grouped product, in place."""
    graph, cut = module.graph, dict[torch.fx.Node, Blocks]()
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_grouped(node):
            replace(graph, node, lambda call, *given: _grouped(module, call, cut, *given[:3]))


def _is_grouped(node: torch.fx.Node) -> bool:
    """transformers' own operator or torch's, of rows (rows, in), matrices (experts, in, out) and the experts' last rows."""
    target: Any = node.target
    if getattr(target, "name", lambda: "")() == "transformers::grouped_mm_fallback":
        return True
    if target is not aten._grouped_mm.default:
        return False
    ends, *rest = [*node.args[2:], *node.kwargs.values()]
    ranks = [given.meta["val"].dim() for given in node.args[:2]]  # type: ignore[union-attr]
    return isinstance(ends, torch.fx.Node) and not any(rest) and ranks == [2, 3]


def _grouped(module: torch.fx.GraphModule, call: Call, cut: dict[torch.fx.Node, Blocks], *given: Any) -> Any:
    """(rows, out), of rows (rows, in), matrices (experts, in, out) and where each expert's rows end (experts)."""
    rows, matrices, ends = given
    if ends not in cut:
        cut[ends] = _blocks(call, rows, ends)
    blocks = cut[ends]
    product: Callable[..., torch.Tensor] = _product
    if matrices.target is aten.transpose.int and set(matrices.args[1:]) in ({-2, -1}, {1, 2}):
        # Read as it lies: the kernel for a transposed view would copy all experts at every step.
        matrices, product = matrices.args[0], _product_transposed
    results = _loop(module, call, product, blocks, rows, matrices)
    return call(aten.index_select.default, call(aten.flatten.using_ints, results, 0, 1), 0, blocks.places)


def _product(rows: torch.Tensor, matrices: torch.Tensor, chosen: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    matrix = torch.index_select(matrices, 0, expert.reshape(1))
    return torch.bmm(torch.index_select(rows, 0, chosen).unsqueeze(0), matrix).squeeze(0)


def _product_transposed(
    rows: torch.Tensor, matrices: torch.Tensor, chosen: torch.Tensor, expert: torch.Tensor
) -> torch.Tensor:
    matrix = torch.index_select(matrices, 0, expert.reshape(1))
    columns = torch.index_select(rows, 0, chosen).t().unsqueeze(0)
    # A plain `contiguous` would be left out where the trace has one row.
    return torch.bmm(matrix, columns).squeeze(0).t().clone(memory_format=torch.contiguous_format)


def _blocks(call: Call, rows: Any, ends: Any) -> Blocks:
    """A place p of expert e holds row p - shift[e]: each expert's rows lie together, each begins at a block of its own."""
    experts = ends.meta["val"].shape[0]
    count = call(aten.sym_size.int, rows, 0)
    size = call(operator.add, call(operator.floordiv, count, FINER * experts), 2)
    number = call(aten.arange.default, (1 + FINER) * experts, dtype=torch.int64)
    lane, row = (call(aten.arange.default, length, dtype=torch.int64) for length in (size, count))
    wide = call(aten.add.Scalar, call(aten.slice.Tensor, lane, 0, -1), 1)  # the size as a tensor, (1)
    ends = call(aten._to_copy.default, ends, dtype=torch.int64)
    begins = call(aten.constant_pad_nd.default, call(aten.slice.Tensor, ends, 0, 0, -1), [1, 0], 0)
    own = call(aten.sub.Tensor, ends, begins)
    own = call(aten.floor_divide.default, call(aten.sub.Tensor, call(aten.add.Tensor, own, wide), 1), wide)
    after = call(aten.cumsum.default, own, 0)  # the blocks of each expert and those before it
    shift = call(aten.sub.Tensor, call(aten.mul.Tensor, call(aten.sub.Tensor, after, own), wide), begins)
    expert = _passed(call, number, after)
    used = call(aten.lt.Scalar, expert, experts)
    expert = call(aten.minimum.default, expert, call(aten.full_like.default, expert, experts - 1))
    places = call(aten.add.Tensor, row, call(aten.index_select.default, shift, 0, _passed(call, row, ends)))
    first = call(
        aten.sub.Tensor, call(aten.mul.Tensor, number, wide), call(aten.index_select.default, shift, 0, expert)
    )
    held = call(aten.add.Tensor, call(aten.unsqueeze.default, first, 1), call(aten.unsqueeze.default, lane, 0))
    last = call(aten.slice.Tensor, row, 0, -1)
    held = call(aten.minimum.default, held, last)
    held = call(aten.maximum.default, held, call(aten.zeros_like.default, last))
    return Blocks(held, expert, used, places)


def _passed(call: Call, numbers: Any, ends: Any) -> Any:
    """How many of the ends (ends) each number (numbers) has reached."""
    reached = call(aten.le.Tensor, call(aten.unsqueeze.default, ends, 0), call(aten.unsqueeze.default, numbers, 1))
    return call(aten.sum.dim_IntList, reached, [1])


def _loop(
    module: torch.fx.GraphModule,
    call: Call,
    product: Callable[..., torch.Tensor],
    blocks: Blocks,
    rows: Any,
    matrices: Any,
) -> Any:
    """The product of each block, (blocks, size, out)."""
    none = call(aten.full.default, [], 0.0, dtype=torch.float32)  # a scan carries something
    inputs = [blocks.rows, blocks.experts, blocks.used]
    first, *values = [node.meta["val"] for node in (none, *inputs, rows, matrices)]
    chosen, expert, used = (value[0] for value in values[:3])
    mode: Any = first.fake_mode
    with torch.no_grad(), mode, enable_python_dispatcher():
        body, result = _body(product, first, chosen, expert, used, *values[3:])
        outcome = [first.clone(), result.new_empty(values[0].shape[0], *result.shape)]
    place = f"experts_{sum(1 for _ in module.children())}"
    module.add_submodule(place, body)
    scan = rows.graph.call_function(
        torch.ops.higher_order.scan, (rows.graph.get_attr(place), [none], inputs, [rows, matrices])
    )
    scan.meta.update({**rows.meta, "val": outcome})
    return call(operator.getitem, scan, 1)


def _body(product: Callable[..., torch.Tensor], none: Any, *token: Any) -> tuple[torch.fx.GraphModule, torch.Tensor]:
    """One block: its product, or zeros where no expert needs it; and what comes out, (size, out)."""
    chosen, expert, _, rows, matrices = token
    operands = (rows, matrices, chosen, expert)
    made = make_fx(product)(*operands)
    result: torch.Tensor = made.graph.output_node().args[0].meta["val"]  # type: ignore[union-attr]
    width, dtype = result.shape[1], result.dtype
    skipped = make_fx(lambda *given: torch.zeros(given[2].shape[0], width, dtype=dtype))(*operands)
    body = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    for name, branch in (("made", made), ("skipped", skipped)):
        branch.graph.output_node().args = ((branch.graph.output_node().args[0],),)
        branch.recompile()
        body.add_submodule(name, branch)
    names = ("none", "chosen", "expert", "used", "rows", "matrices")
    given = {name: body.graph.placeholder(name) for name in names}
    for name, value in zip(names, (none, *token), strict=True):
        given[name].meta["val"] = value
    branches = [body.graph.get_attr(name) for name in ("made", "skipped")]
    either = body.graph.call_function(
        torch.ops.higher_order.cond,
        (given["used"], *branches, tuple(given[name] for name in ("rows", "matrices", "chosen", "expert"))),
    )
    either.meta["val"] = (result,)
    found = body.graph.call_function(operator.getitem, (either, 0))
    kept = body.graph.call_function(aten.clone.default, (given["none"],))
    found.meta["val"], kept.meta["val"] = result, none
    body.graph.output([kept, found])
    body.recompile()
    return body, result
