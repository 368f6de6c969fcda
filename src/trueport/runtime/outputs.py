"""Which of transformers' outputs a component's output names make."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import modeling_outputs
from transformers.utils import ModelOutput

TASKS: dict[str, type[ModelOutput]] = {
    "text-classification": modeling_outputs.SequenceClassifierOutput,
    "sequence-classification": modeling_outputs.SequenceClassifierOutput,
    "token-classification": modeling_outputs.TokenClassifierOutput,
    "fill-mask": modeling_outputs.MaskedLMOutput,
    "masked-lm": modeling_outputs.MaskedLMOutput,
    "multiple-choice": modeling_outputs.MultipleChoiceModelOutput,
    "question-answering": modeling_outputs.QuestionAnsweringModelOutput,
    "automatic-speech-recognition": modeling_outputs.CausalLMOutput,  # of CTC; a decoder's is made by its own model
    "audio-classification": modeling_outputs.SequenceClassifierOutput,
    "audio-frame-classification": modeling_outputs.TokenClassifierOutput,
    "audio-xvector": modeling_outputs.XVectorOutput,
}
"""By task, where several kinds have the same output names."""

NAMES: dict[frozenset[str], type[ModelOutput]] = {
    frozenset({"last_hidden_state"}): modeling_outputs.BaseModelOutput,
    frozenset({"last_hidden_state", "pooler_output"}): modeling_outputs.BaseModelOutputWithPooling,
    frozenset({"last_hidden_state", "extract_features"}): modeling_outputs.Wav2Vec2BaseModelOutput,
    frozenset({"start_logits", "end_logits"}): modeling_outputs.QuestionAnsweringModelOutput,
}
"""By output names, where they tell."""


def output_kind(names: frozenset[str], ranks: Mapping[str, int], task: str | None) -> type[ModelOutput]:
    """The output class that holds these names; ModelOutput itself where none does.

    Args:
        names: of the outputs.
        ranks: number of axes by output name.
        task: from the manifest, where it says.
    """
    kind = TASKS.get(task or "") or NAMES.get(names)
    if kind is None and names == {"logits"} and ranks["logits"] == 2:
        kind = modeling_outputs.SequenceClassifierOutput
    return kind if kind is not None and names <= set(kind.__annotations__) else ModelOutput


def make_output(kind: type[ModelOutput], tensors: Mapping[str, torch.Tensor]) -> ModelOutput:
    """An output of this kind."""
    return kind(**tensors)
