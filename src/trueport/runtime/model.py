"""A model that an artefact's sessions make."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig, PreTrainedConfig

from trueport.errors import RunError
from trueport.interface import CAPACITY, PAST, PAST_SOURCE, SOURCE, Interface, terms
from trueport.runtime.feeds import Feeder
from trueport.runtime.outputs import make_output, output_kind
from trueport.runtime.protocol import Session, State
from trueport.tasks import class_named

NOT_GIVEN_OUT = ("output_attentions", "output_hidden_states", "output_router_logits")
"""What transformers' models give out on request and a graph does not."""

HANDED_ON = ("tokenizer", "assistant_tokenizer")
"""What transformers' ``generate`` needs itself, and gives to the model all the same."""


class Component:
    """A session with what it takes to feed it.

    Args:
        session: an open one.
        vocabulary: tokens that the model knows, where its config tells; for messages.
    """

    def __init__(self, session: Session, vocabulary: int | None = None) -> None:
        self.session = session
        self.vocabulary = vocabulary
        self.feeder = Feeder(session.path.name, session.interface)
        interface = session.interface
        begun = [pair for pair in interface.state if pair.initial == "empty"]
        fed = {axis for tensor in interface.plain_inputs for axis in tensor.shape}
        axes = [axis for pair in begun for axis in interface.input(pair.input).shape[1:] if len(terms(axis)) == 1]
        axes = [axis for axis in axes if axis not in fed]
        told = [PAST if axis == CAPACITY else str(axis) for axis in axes] + ([PAST] if interface.counts_past else [])
        self._empty = dict.fromkeys(told, 0)
        self.stateful = bool(interface.state or interface.kept)
        shapes = [interface.input(pair.input).shape for pair in interface.state]
        places = [(p.input, axis) for p in interface.state for axis in enumerate(interface.input(p.input).shape)]
        self._source = next(((name, index) for name, (index, axis) in places if axis == PAST_SOURCE), None)
        self.named = any(shape[:1] != ("batch_size",) or fed & set(shape[1:]) for shape in shapes)

    def run(
        self, given: Mapping[str, Any], state: State | None = None, encoded: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, torch.Tensor], State]:
        """Inputs by name and a state to outputs by name and the next state.

        Args:
            given: plain inputs by name.
            state: None is the state before the first step.
            encoded: the encoder's outputs, with which a first state may begin.
        """
        feeds = self.feeder(given, self._past(state))
        if state is None and self.stateful:
            rows = self._sizes(feeds) if self.named else len(next(iter(feeds.values())))
            state = self.session.empty_state(rows, encoded)
        elif state is not None and self._source is not None:
            self._check_source(feeds, int(state.length(*self._source)))  # type: ignore[attr-defined]
        try:
            return self.session.advance(feeds, state)
        except RunError as error:
            raise self._in_words(feeds, error) from error

    def _check_source(self, feeds: Mapping[str, torch.Tensor], held: int) -> None:
        """Refuse another source than the cache's: of a longer one, the graph would append what lies behind its end."""
        given = self._sizes(feeds).get(SOURCE, held)
        if given != held > 0:
            raise RunError(
                f"The cache was begun with a source of {held} tokens, and this one has {given}",
                "Give the source that it was begun with, or begin anew.",
            )

    def _in_words(self, feeds: Mapping[str, torch.Tensor], error: RunError) -> RunError:
        """What a runtime refused, in better words where its own do not tell the cause."""
        ids = feeds.get("input_ids")
        if self.vocabulary is None or ids is None or not ids.numel() or int(ids.max()) < self.vocabulary:
            return error
        return RunError(
            f"{self.feeder.name} got the token {int(ids.max())} in input_ids; the model knows {self.vocabulary} tokens",
            "Use the tokenizer of this model.",
        )

    def _sizes(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Sizes of the dimensions that the inputs decide."""
        shapes = [(t.shape, feeds[t.name].shape) for t in self.session.interface.plain_inputs]
        axes = [pair for names, sizes in shapes for pair in zip(names, sizes, strict=True)]
        return {name: size for name, size in axes if isinstance(name, str)}

    def _past(self, state: State | None) -> dict[str, int]:
        """Sizes of the state's dimensions."""
        return dict(self._empty) if state is None else self.session.sizes(state)


class TrueportModel:
    """An artefact that runs: an encoder, or any module with or without a state.

    Attributes:
        config: transformers' configuration of the original.
        generation_config: its generation defaults.
        sessions: the open sessions by component name.
        task: what the artefact was exported for; None where the manifest does not say.
        opening: the options of the ``load`` that made it.
    """

    opening: Mapping[str, Any] = {}

    def __init__(
        self,
        folder: Path,
        config: PreTrainedConfig,
        generation_config: GenerationConfig,
        sessions: Mapping[str, Session],
        task: str | None = None,
    ) -> None:
        self.folder = folder
        self.name_or_path = str(folder)
        self.config = config
        self.generation_config = generation_config
        self.sessions = dict(sessions)
        self.task = task
        self.device = torch.device("cpu")
        vocabulary = getattr(config.get_text_config(), "vocab_size", None)
        self.components = {name: Component(session, vocabulary) for name, session in self.sessions.items()}
        self.main = self.components[next((n for n in ("model", "decoder") if n in sessions), next(iter(sessions)))]
        outputs = self.main.session.interface.plain_outputs
        self.dtype: torch.dtype = getattr(torch, outputs[0].dtype) if outputs else torch.float32
        ranks = {tensor.name: len(tensor.shape) for tensor in outputs}
        self.output_kind = output_kind(frozenset(ranks), ranks, task)
        first = self.components.get("encoder", self.main).session.interface.plain_inputs
        self.main_input_name = main_of([tensor.name for tensor in first])
        self.forward = with_signature(self._forward, self._signature())

    @property
    def interfaces(self) -> dict[str, Interface]:
        """Inputs, outputs and state by component name."""
        return {name: session.interface for name, session in self.sessions.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, components={list(self.sessions)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle or a copy opens the folder anew, where it is used: a runtime's session cannot leave its process."""
        kept = {"config": self.config, "generation_config": self.generation_config}  # they may have been changed since
        return _opened, (self.folder.absolute(), self.opening), kept

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors by name, or in the order of the interface, to transformers' output of the model's kind.

        A missing ``attention_mask`` is all ones, also where ``input_ids`` hold padding; missing ``token_type_ids`` are
        zeros; missing ``position_ids`` of a decoder count the mask's ones from 0.
        """
        return self.forward(*args, **kwargs)

    def step(
        self, feeds: Mapping[str, Any], state: State | None = None, *, component: str | None = None
    ) -> tuple[dict[str, torch.Tensor], State]:
        """One run of one component.

        Args:
            feeds: plain inputs by name; what ``__call__`` completes is completed.
            state: from the step before; None before the first.
            component: its name; the model or the decoder where not given.

        Returns:
            The plain outputs by name and the next state, which stays in the runtime's buffers.
        """
        if component is not None and component not in self.components:
            raise RunError(f"{self.folder.name} has no component {component}; it has {', '.join(self.components)}")
        return (self.main if component is None else self.components[component]).run(feeds, state)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Only decoders and encoder-decoders generate."""
        raise RunError(f"{self.folder.name} has no decoder to generate with", "Call the model itself.")

    def can_generate(self) -> bool:
        """Whether ``generate`` works."""
        return False

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """What the original reads, which transformers' pipelines tell of a model."""
        found = getattr(class_named(type(self).__name__), "input_modalities", "text")
        return (found,) if isinstance(found, str) else tuple(found)

    def to(self, *args: Any, **kwargs: Any) -> TrueportModel:
        """The same model: the runtime decides where it runs and on which dtype."""
        return self

    def eval(self) -> TrueportModel:
        """The same model: there is no other mode."""
        return self

    def _signature(self) -> list[str]:
        """Names that ``forward`` takes, in order."""
        return [tensor.name for tensor in self.main.session.interface.plain_inputs]

    def _forward(self, inputs: dict[str, Any], return_dict: bool) -> Any:
        outputs, _ = self.main.run(inputs)
        result = make_output(self.output_kind, outputs)
        return result if return_dict else result.to_tuple()


def _opened(folder: Path, options: Mapping[str, Any]) -> TrueportModel:
    from trueport.runtime import load

    return load(folder, **options)


def main_of(names: Sequence[str]) -> str:
    """Of the inputs, in any order, the one that the others go with."""
    return next((name for name in names if not name.endswith("mask")), names[0] if names else "input_ids")


def with_signature(call: Callable[[dict[str, Any], bool], Any], names: list[str]) -> Callable[..., Any]:
    """A function that takes tensors by these names or in this order, and transformers' flags besides.

    transformers reads a model's signature to know what to prepare for it and to refuse a mistyped argument.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names):
            raise RunError(f"At most {len(names)} inputs can be given by place: {', '.join(names)}")
        inputs = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in inputs:
                raise RunError(f"{name} is given twice")
            if value is not None:
                inputs[name] = value
        for name in HANDED_ON:
            if name not in names:
                inputs.pop(name, None)
        return_dict = inputs.pop("return_dict", True)
        for name in NOT_GIVEN_OUT:
            if inputs.pop(name, False):
                refuse_output(name)
        return call(inputs, return_dict)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    # A tensor within a list is called mems.0, which only ** can give.
    plain = [name for name in names if name.isidentifier() and not keyword.iskeyword(name)]
    parameters = [inspect.Parameter(name, kind, default=None) for name in plain]
    if len(plain) < len(names):
        parameters.append(inspect.Parameter("inputs", inspect.Parameter.VAR_KEYWORD))
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def refuse_output(name: str) -> NoReturn:
    """Say that a graph gives out only what it was exported with."""
    raise RunError(f"{name} asks for values that the artefact's graph does not give out", f"Leave {name} out.")
