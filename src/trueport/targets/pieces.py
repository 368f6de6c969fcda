"""A captured program in a target's operators: those that have to be broken up are traced, the others stay as they are.

ExecuTorch and torch.onnx call ``program.run_decompositions(table)`` for this, which runs the whole program twice under
fake tensors, once to look for writes and once to trace. A program without writes needs no look, and an operator that
stays has its result's shape and strides in its node already.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _detect_fake_mode_from_gm
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export import exported_program as exporting
from torch.export.graph_signature import ExportGraphSignature, OutputSpec
from torch.fx import traceback
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.runtime_assert import insert_deferred_runtime_asserts
from torch.utils import _pytree as pytree

Leaf = Callable[[torch._ops.OpOverload], bool]
Apart = Callable[[torch.fx.GraphModule], torch.fx.GraphModule]
CONTROL = {torch.ops.higher_order.cond, torch.ops.higher_order.scan}
"""Operators whose graphs may be broken up one by one, as they say what comes out."""
UNTOLD = {torch.ops.aten.native_batch_norm.default}
"""Operators that may write to what they are given, which their schemas do not say: the pieces of an instance norm. Torch
puts others in their place, for which ExecuTorch has kernels."""


def decomposed(
    program: ExportedProgram, table: Mapping[Any, Callable[..., Any]], *, within: bool = False
) -> ExportedProgram | None:
    """The program with each operator of the table, and each composite that it leaves out, in simpler ones.

    Args:
        program: without writes in place.
        table: what computes an operator from simpler ones, as ``run_decompositions`` takes it.
        within: whether branches and the bodies of loops are broken up like the rest.

    Returns:
        None where torch has to trace the whole program: it branches and ``within`` is false, it or an operator's pieces
        write in place, or values decide on shapes.
    """
    inner = list(bodies(program.graph_module))
    if (inner and not within) or not all(map(_is_plain, (program.graph_module, *inner))):
        return None
    given = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    fake = _detect_fake_mode_from_gm(program.graph_module)
    if fake is None or fake.shape_env is None or len({id(value) for value in given}) < len(given):
        return None
    try:
        traced = _traced(program.graph_module, table, given, fake)
    except Exception:  # torch's own way may take it, or says in its own words why not
        return None
    # Pieces may write to what they made themselves, as those of cosine_similarity do.
    if len(traced.graph.find_nodes(op="placeholder")) != len(given):
        return None
    if not all(_is_whole(each) for each in (traced, *bodies(traced))):
        return None
    insert_deferred_runtime_asserts(traced, fake.shape_env, "", export=True)  # it merges equal sizes too
    return _as_program(program, traced)


def bodies(module: torch.fx.GraphModule) -> Iterator[torch.fx.GraphModule]:
    """The branches and the bodies of loops within a graph, those within these too."""
    return (inner for inner in module.modules() if isinstance(inner, torch.fx.GraphModule) and inner is not module)


def _is_plain(module: torch.fx.GraphModule) -> bool:
    """Whether it is a graph of operators on tensors whose sizes its inputs alone decide, without writes."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and not isinstance(getattr(module, node.target, None), torch.fx.GraphModule):
            return False
        if node.meta.get("unbacked_bindings"):
            return False
        if node.op == "placeholder" and type(node.meta.get("val")) is not FakeTensor:
            return False  # a number, or a quantised weight, which torch takes apart into its tensors
        if _writes(node) or (isinstance(node.target, torch._ops.HigherOrderOperator) and node.target not in CONTROL):
            return False
    return True


def _writes(node: torch.fx.Node) -> bool:
    written = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return written or node.target in UNTOLD


def _is_whole(module: torch.fx.GraphModule) -> bool:
    """Whether nothing came in as a constant, and nothing writes."""
    constants = (getattr(module, node.target) for node in module.graph.find_nodes(op="get_attr"))
    return all(isinstance(each, torch.fx.GraphModule) for each in constants) and not any(
        map(_writes, module.graph.nodes)
    )


def _traced(
    module: torch.fx.GraphModule, table: Mapping[Any, Callable[..., Any]], given: list[Any], fake: FakeTensorMode
) -> torch.fx.GraphModule:
    """The graph anew, as ``_decompose_exported_program`` in torch/export/exported_program.py makes it."""
    # The split takes out of what it is given.
    composites, ways = exporting._split_decomp_table_to_cia_and_python_decomp(dict(table))
    kept = {operator for operator, way in composites.items() if way is exporting._special_op_to_preserve_cia}
    run = _Pieces(module, lambda operator: _stays(operator, ways, kept), lambda body: _traced_apart(body, table, fake))
    trace = make_fx(
        lambda *values: run.run(*values, enable_io_processing=False),
        decomposition_table=cast(Any, ways),
        record_module_stack=False,
        _allow_fake_constant=True,
        _disable_torch_fn_metadata_mode=True,
    )
    held = exporting._override_composite_implicit_decomp(composites)
    with torch.no_grad(), fake, held, enable_python_dispatcher(), traceback.preserve_node_meta():
        traced = trace(*given)
    traced.graph.eliminate_dead_code()
    return traced


def _traced_apart(
    module: torch.fx.GraphModule, table: Mapping[Any, Callable[..., Any]], fake: FakeTensorMode
) -> torch.fx.GraphModule:
    """A branch or a loop's body anew, outside of the trace that it is met in."""
    given = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    with proxy_tensor.disable_proxy_modes_tracing():
        return _traced(module, table, given, fake)


def _stays(operator: torch._ops.OpOverload, table: Mapping[Any, Any], kept: set[Any]) -> bool:
    """Whether nothing breaks the operator up: no way in the table, and no composite that torch takes apart by itself."""
    return operator not in table and (operator in kept or not operator._can_decompose())


class _Pieces(torch.fx.Interpreter):
    """Runs a graph under a trace: an operator that stays is put down with the result that its node has, without running it.

    Args:
        module: the graph.
        stays: whether an operator stays.
        apart: what breaks up a branch or a loop's body.
    """

    def __init__(self, module: torch.fx.GraphModule, stays: Leaf, apart: Apart) -> None:
        super().__init__(module)
        self.apart = apart
        self.stays = functools.cache(stays)
        self.known: set[int] = set()
        """What the trace knows already: it tells values apart by their identity."""
        self.others: set[torch.fx.Node] = set()
        """Nodes whose pieces give another layout than the node has: what reads them is run."""

    def run_node(self, node: torch.fx.Node) -> Any:
        """The value of a node, under the trace."""
        value = node.meta.get("val")
        if node.target in CONTROL:
            if not self.others.isdisjoint(node.all_input_nodes):
                raise ValueError(f"{node} is given another layout than its graphs know")
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            with self._set_current_node(node):
                result = _put_down(node, tuple(map(self._broken_up, args)), kwargs)
        elif self._is_put_down(node, value):
            with self._set_current_node(node):
                result = _put_down(node, *self.fetch_args_kwargs_from_env(node))
        else:
            result = super().run_node(node)
            if isinstance(value, torch.Tensor) and _layout(result) != _layout(value):
                self.others.add(node)
        self.known |= {id(value), id(result)}
        return result

    def _broken_up(self, given: Any) -> Any:
        """A graph in pieces, known to the trace; anything else as it is."""
        if not isinstance(given, torch.fx.GraphModule):
            return given
        mode = proxy_tensor.get_proxy_mode()
        assert mode is not None
        found, root = self.apart(given), cast(Any, mode.tracer).root
        root.add_module(f"graph_{len(list(root.children()))}", found)
        return found

    def _is_put_down(self, node: torch.fx.Node, value: Any) -> bool:
        return (
            isinstance(node.target, torch._ops.OpOverload)
            and isinstance(value, torch.Tensor)
            and id(value) not in self.known
            and self.others.isdisjoint(node.all_input_nodes)
            and self.stays(node.target)
        )


def _put_down(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The node in the graph that is traced; what ``proxy_call`` in torch/fx/experimental/proxy_tensor.py does but run it."""
    mode, operator = proxy_tensor.get_proxy_mode(), node.target
    assert mode is not None and isinstance(operator, (torch._ops.OpOverload, torch._ops.HigherOrderOperator))
    tracer = mode.tracer
    values, form = pytree.tree_flatten((args, kwargs))
    _, proxies, _ = proxy_tensor._fetch_proxies_and_all_constant_flag(values, tracer)
    args, kwargs = pytree.tree_unflatten(proxies, form)
    name = tracer.graph._target_to_str(getattr(operator, "overloadpacket", operator).__name__)
    proxy = tracer.create_proxy("call_function", operator, args, kwargs, name=name)
    return proxy_tensor.track_tensor_tree(node.meta["val"], proxy, constant=None, tracer=tracer)


def _layout(value: Any) -> Any:
    """Dtype, sizes, strides and offset of a tensor, symbols as they are written: to compare them would make guards."""
    if not isinstance(value, torch.Tensor):
        return None
    numbers = (*value.shape, *value.stride(), value.storage_offset())
    return value.dtype, [number.node.expr if isinstance(number, torch.SymInt) else number for number in numbers]


def _as_program(program: ExportedProgram, traced: torch.fx.GraphModule) -> ExportedProgram:
    """The traced graph with the inputs' names, and the signature of the program with the outputs'."""
    graph = torch.fx.Graph()
    nodes: dict[torch.fx.Node, torch.fx.Node] = {}
    for place, node in zip(
        program.graph.find_nodes(op="placeholder"), traced.graph.find_nodes(op="placeholder"), strict=True
    ):
        nodes[node] = graph.node_copy(place)
        nodes[node].name = nodes[node].target = place.name
    for node in traced.graph.nodes:
        if node.op != "placeholder":
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
    module = torch.fx.GraphModule(traced, graph)
    module.meta.update(program.graph_module.meta)
    before = program.graph_signature
    given: Any = graph.output_node().args[0]
    outputs = [named(spec, out) for spec, out in zip(before.output_specs, given, strict=True)]
    return ExportedProgram(
        module,
        graph,
        ExportGraphSignature(list(before.input_specs), outputs),
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
    )


def named(spec: OutputSpec, out: Any) -> OutputSpec:
    """The output under the name of the node that gives it."""
    return replace(spec, arg=replace(spec.arg, name=out.name)) if isinstance(out, torch.fx.Node) else spec
