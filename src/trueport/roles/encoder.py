"""Encoders: one graph from a padded batch to hidden states or a head's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trueport.cache_names import NAMES
from trueport.errors import CaptureError
from trueport.interface import Dimension, Interface, Tensor
from trueport.roles.component import (
    Component,
    features_input,
    image_input,
    position_bound,
    sample,
    signature,
    sound_inputs,
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
LONGEST_PROBED = 2**20
"""A model of sound that refuses all of those is asked for ever longer ones, up to this: a minute."""
POSITIONS = 7
"""Positions that are traced."""


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
    of_kind = {
        "pixel_values": _image_interface,
        "input_values": _sound_interface,
        "input_features": _features_interface,
    }
    interface = of_kind.get(model.main_input_name, _text_interface)(model)
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


def _sound_interface(model: PreTrainedModel) -> Interface:
    """Samples, of which convolutions make fewer positions: from the fewest on of which they make one; or a spectrogram."""
    if features_input(model) is not None:
        return _features_interface(model)
    interface = Interface(tuple(sound_inputs(model, "sequence_length")), (), (Dimension("batch_size"),))
    length = Dimension("sequence_length", shortest_length(model, interface, LONGEST_PROBED))
    return replace(interface, dimensions=(*interface.dimensions, length))


def _features_interface(model: PreTrainedModel) -> Interface:
    found = features_input(model)
    if found is None:
        raise CaptureError(
            f"A {type(model).__name__} reads features of a shape that its config does not tell, or of any length",
            "This version exports models of raw sound, and of spectrograms of one length, as AST's and Whisper's.",
        )
    return Interface((found,), (), (Dimension("batch_size"),))


def _image_interface(model: PreTrainedModel) -> Interface:
    return Interface((image_input(model),), (), (Dimension("batch_size"),))


def trace_length(config: Any, bound: int | None = None) -> int:
    """A length past a local attention window, so that blocks are traced as blocks; below ``bound``, where there is one.

    A length at the bound itself is traced as if no other were asked for.
    """
    from trueport.roles.windows import windows

    length = max([POSITIONS, *(2 * window + 3 for window in windows(config))])
    return length if bound is None else max(min(length, bound - 1), 1)


def _traced(model: PreTrainedModel, interface: Interface) -> int:
    """The same, of an interface whose model may end at a position; an image has no such length.

    What a model makes one position of is a multiple of it, and one sample more: no length at which a convolution comes out
    even.
    """
    lengths = [dimension for dimension in interface.dimensions if dimension.name == "sequence_length"]
    traced = trace_length(model.config, *(dimension.maximum for dimension in lengths))
    return max([traced, *(POSITIONS * dimension.minimum + 1 for dimension in lengths if dimension.minimum > traced)])


def shortest_length(model: PreTrainedModel, interface: Interface, longest: int = PROBED_LENGTHS) -> int:
    """The length from which on the original itself runs: models that pool or stride refuse shorter inputs.

    Raises:
        CaptureError: it runs at none up to a ``longest`` beyond ``PROBED_LENGTHS``; that one itself is not tried.
    """

    def run(length: int) -> None:
        with torch.no_grad():
            model(**sample(interface, {"batch_size": 1, "sequence_length": length}))

    def runs(length: int) -> bool:
        try:
            run(length)
        except FAILURES:
            return False
        return True

    if runs(1):
        return 1
    refused = [length for length in range(1, PROBED_LENGTHS) if not runs(length)]
    if longest == PROBED_LENGTHS or refused[-1] + 1 < PROBED_LENGTHS:
        return refused[-1] + 1
    good = PROBED_LENGTHS
    while not runs(good):
        good *= 2
        if good > longest:
            with itself(model, f"{interface.inputs[0].name} of 1 to {good // 2} numbers"):
                run(good // 2)
    return _between(runs, good // 2, good)


def _between(runs: Callable[[int], bool], bad: int, good: int) -> int:
    """The first length that runs, behind one that does not."""
    while good - bad > 1:
        middle = (good + bad) // 2
        bad, good = (bad, middle) if runs(middle) else (middle, good)
    return good


def _outputs(
    model: PreTrainedModel, interface: Interface, constants: dict[str, Any], untrained: tuple[str, ...]
) -> tuple[str, ...]:
    feeds = sample(interface, {"batch_size": 1, "sequence_length": _traced(model, interface)})
    named = {"pixel_values": "an image", "input_values": f"{_traced(model, interface)} samples"}
    over = "a spectrogram" if len(interface.inputs[0].shape) == 3 else named.get(model.main_input_name)
    with itself(model, over or f"{_traced(model, interface)} tokens"):
        result = model(**feeds, **constants, return_dict=True)
    return tuple(
        name
        for name, value in result.items()
        # A number over the whole batch, such as a perplexity, is no row's result.
        if isinstance(value, torch.Tensor) and value.ndim and name not in NOT_OUTPUTS and name not in untrained
    )
