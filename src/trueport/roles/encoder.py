"""Encoders: one graph from a padded batch to hidden states or a head's logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trueport.cache_names import NAMES
from trueport.interface import Dimension, Interface, Tensor
from trueport.roles.component import (
    Component,
    image_input,
    position_bound,
    sample,
    signature,
    text_inputs,
    trace_sizes,
)
from trueport.roles.ending import ended
from trueport.roles.probing import FAILURES, itself

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_OUTPUTS = {"loss", *NAMES, "hidden_states", "attentions", "cross_attentions", "decoder_hidden_states"}
"""Entries of a ModelOutput that are not a result: state, or intermediate values on request."""


PROBED_LENGTHS = 17
"""A model that refuses one token is asked for every length below this."""


class EncoderModule(nn.Module):
    """The whole model's forward, keyed by the interface's names."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...], constants: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.constants = constants

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to outputs by name."""
        result = self.model(**inputs, **self.constants, return_dict=True)
        return {name: result[name] for name in self.outputs}


def components(model: PreTrainedModel, *, untrained: tuple[str, ...] = ()) -> list[Component]:
    """The one component of an encoder.

    Args:
        model: the model with its head.
        untrained: outputs that no checkpoint trained (a pooler without weights); they are left out.
    """
    constants = {"use_cache": False} if "use_cache" in signature(model) else {}
    interface = _image_interface(model) if model.main_input_name == "pixel_values" else _text_interface(model)
    names = _outputs(model, interface, constants, untrained)
    interface = interface.with_outputs(Tensor(name, "float32", ()) for name in names)
    module = EncoderModule(model, names, constants)
    sizes = trace_sizes(interface, sequence_length=_traced(model, interface))
    return [Component("model", "model", module, interface, sizes)]


def _text_interface(model: PreTrainedModel) -> Interface:
    bound, because = position_bound(model)
    inputs = tuple(text_inputs(model.config, signature(model), "sequence_length"))
    interface = ended(model, Interface(inputs, (), (Dimension("batch_size"),)), trace_length(model.config, bound))
    length = Dimension("sequence_length", shortest_length(model, interface), bound, because)
    return replace(interface, dimensions=(*interface.dimensions, length))


def _image_interface(model: PreTrainedModel) -> Interface:
    return Interface((image_input(model),), (), (Dimension("batch_size"),))


def trace_length(config: Any, bound: int | None = None) -> int:
    """A length past a local attention window, so that blocks are traced as blocks; below ``bound``, where there is one.

    A length at the bound itself is traced as if no other were asked for.
    """
    from trueport.roles.windows import windows

    length = max([7, *(2 * window + 3 for window in windows(config))])
    return length if bound is None else max(min(length, bound - 1), 1)


def _traced(model: PreTrainedModel, interface: Interface) -> int:
    """The same, of an interface whose model may end at a position; an image has no such length."""
    bounds = [d.maximum for d in interface.dimensions if d.name == "sequence_length"]
    return trace_length(model.config, *bounds)


def shortest_length(model: PreTrainedModel, interface: Interface) -> int:
    """The length from which on the original itself runs: models that pool or stride refuse shorter inputs."""

    def runs(length: int) -> bool:
        try:
            with torch.no_grad():
                model(**sample(interface, {"batch_size": 1, "sequence_length": length}))
        except FAILURES:
            return False
        return True

    if runs(1):
        return 1
    refused = [length for length in range(1, PROBED_LENGTHS) if not runs(length)]
    return refused[-1] + 1


def _outputs(
    model: PreTrainedModel, interface: Interface, constants: dict[str, Any], untrained: tuple[str, ...]
) -> tuple[str, ...]:
    feeds = sample(interface, {"batch_size": 1, "sequence_length": _traced(model, interface)})
    over = "an image" if model.main_input_name == "pixel_values" else f"{feeds['input_ids'].shape[1]} tokens"
    with itself(model, over):
        result = model(**feeds, **constants, return_dict=True)
    return tuple(
        name
        for name, value in result.items()
        if isinstance(value, torch.Tensor) and name not in NOT_OUTPUTS and name not in untrained
    )
