"""The output's class, from its names, its ranks and the task."""

from __future__ import annotations

import pytest
from transformers import modeling_outputs
from transformers.utils import ModelOutput

from trueport.runtime.outputs import output_kind


@pytest.mark.parametrize(
    ("ranks", "task", "kind"),
    [
        ({"last_hidden_state": 3}, None, modeling_outputs.BaseModelOutput),
        ({"last_hidden_state": 3, "pooler_output": 2}, None, modeling_outputs.BaseModelOutputWithPooling),
        ({"logits": 2}, None, modeling_outputs.SequenceClassifierOutput),
        ({"logits": 2}, "multiple-choice", modeling_outputs.MultipleChoiceModelOutput),
        ({"logits": 3}, "token-classification", modeling_outputs.TokenClassifierOutput),
        ({"logits": 3}, "fill-mask", modeling_outputs.MaskedLMOutput),
        ({"logits": 3}, None, ModelOutput),
        ({"start_logits": 2, "end_logits": 2}, None, modeling_outputs.QuestionAnsweringModelOutput),
        ({"start_logits": 2, "end_logits": 2}, "text-classification", ModelOutput),
        ({"image_embeds": 2}, "feature-extraction", ModelOutput),
    ],
)
def test_kind(ranks, task, kind):
    assert output_kind(frozenset(ranks), ranks, task) is kind
