"""Static int8 through PT2E: scales found by running the captured programs over the proof's kind of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trueport.capture import Captured, capture
from trueport.interface import Interface
from trueport.proof.calibration import Original, answered, batches
from trueport.roles.component import Component
from trueport.targets.executorch.rewrites import drop_assertions

if TYPE_CHECKING:
    from trueport.proof.inputs import Batch


class _Program(nn.Module):
    """A converted graph under the component's names."""

    def __init__(self, graph: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.graph, self.interface = graph, interface

    def train(self, mode: bool = True) -> _Program:
        """The same graph: it was exported in eval mode, and torchao's graphs refuse to be asked."""
        return self

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to outputs by name."""
        results = self.graph(*(inputs[tensor.name] for tensor in self.interface.inputs))
        return {tensor.name: value for tensor, value in zip(self.interface.outputs, results, strict=True)}


def calibrated(captured: Sequence[Captured], components: Mapping[str, Component], original: Original) -> list[Captured]:
    """The same programs with quantised linear layers.

    Args:
        captured: float programs.
        components: what they were captured from, by name.
        original: for the inputs to draw.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = {p.name: prepare_pt2e(_unguarded(p.program), _quantizer()) for p in captured}
    interfaces = {part.name: part.interface for part in captured}
    # A program's caches are its buffers: what calibration leaves in them must not be exported.
    before = [(buffer, buffer.clone()) for part in captured for buffer in _kept(prepared[part.name], part.interface)]
    with torch.no_grad():
        for batch in answered(batches(interfaces, original), original, lambda batch: _run(prepared, interfaces, batch)):
            _run(prepared, interfaces, batch)
        for buffer, value in before:
            buffer.copy_(value)
    results = []
    for part in captured:
        module = _Program(_without_unread(convert_pt2e(prepared[part.name])), part.interface)
        again = capture(replace(components[part.name], module=module, interface=part.interface))
        results.append(replace(again, patches=part.patches, guards=part.guards))
    return results


def _unguarded(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The program's graph, which runs at every size that it is right at: torch asserts things of strides, too."""
    module: Any = program.module(check_guards=False)
    drop_assertions(module.graph)
    module.recompile()
    return module  # type: ignore[no-any-return]


def _quantizer() -> Any:
    """XNNPACK's, for linear layers alone: additions of masks and products of scores stay in float."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    class LinearQuantizer(XNNPACKQuantizer):
        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            """The graph as it is: XNNPACK's own step makes every scalar a float tensor, of which indices are made."""
            return model

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    return LinearQuantizer().set_operator_type(torch.ops.aten.linear.default, config)


def _without_unread(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph without what no output needs, and without the weights of that.

    An encoder's program that makes the decoder's cross keys holds the whole decoder: assertions on dtypes keep it alive, and
    dropouts, which torch takes for random; and PT2E makes constants of its weights, which would be written a second time.
    """
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code(lambda node: node.is_impure() and node.target is not torch.ops.aten.dropout.default)
    graph.recompile()
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*graph.named_parameters(), *graph.named_buffers()) if name not in read]:
        place, _, leaf = name.rpartition(".")
        delattr(graph.get_submodule(place), leaf)
    return graph


def _kept(module: nn.Module, interface: Interface) -> list[torch.Tensor]:
    """The buffers that hold a program's caches."""
    names = {tensor.name.replace(".", "_") for tensor in interface.kept}
    return [buffer for name, buffer in module.named_buffers() if name.rpartition(".")[2] in names]


def _run(programs: Mapping[str, Any], interfaces: Mapping[str, Interface], batch: Batch) -> dict[str, np.ndarray]:
    """One batch through every program, the encoder's answer into the decoder; what they give out, by name."""
    feeds = {
        "input_ids": batch.ids,
        "attention_mask": batch.mask,
        "position_ids": batch.positions,
        "token_type_ids": np.zeros_like(batch.mask) if batch.types is None else batch.types,
    }
    answers: dict[str, torch.Tensor] = {}
    for name, interface in interfaces.items():
        if name == "decoder":
            feeds = {
                "input_ids": batch.decoded,
                "decoder_attention_mask": np.ones_like(batch.decoded),
                "encoder_attention_mask": batch.mask,
            }
        elif batch.ids.ndim > 2:
            feeds = {interface.inputs[0].name: batch.ids}
        given = {pair.input: answers[pair.output] for pair in interface.state}
        args = [given[t.name] if t.name in given else torch.from_numpy(feeds[t.name]) for t in interface.inputs]
        results = programs[name](*args)
        answers |= {tensor.name: value for tensor, value in zip(interface.outputs, results, strict=True)}
    return {name: value.numpy() for name, value in answers.items()}
