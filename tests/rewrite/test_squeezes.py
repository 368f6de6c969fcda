"""A squeeze keeps the axes whose length stays open, also where a caller's length is 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import trueport
from tests import zoo
from trueport.rewrite.squeezes import keep_open_axes


class Squeezes(nn.Module):
    """What ``way`` makes of the last token of each row, (batch, 1, 4)."""

    def __init__(self, way: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.way = way

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.way(self.table(ids)[:, -1:])


@pytest.mark.parametrize(
    "way",
    [lambda x: x.squeeze(), lambda x: x.squeeze((0, 1)), lambda x: x.squeeze(0), lambda x: x.squeeze(1)],
    ids=["all", "both", "batch", "token"],
)
def test_a_squeeze_of_an_open_axis(way: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """torch itself drops a batch of 1; what is traced has one rank at every size."""
    module = Squeezes(way).eval()
    ids = torch.arange(6).reshape(2, 3)
    with trueport.exportable(module, inputs=(ids,)):
        program = torch.export.export(module, (ids,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    keep_open_axes(program)
    graph, rank = program.module(check_guards=False), module(ids).ndim
    for batch in (1, 2, 5):
        wanted = module(torch.arange(3 * batch).reshape(batch, 3) % 11)
        got = graph(torch.arange(3 * batch).reshape(batch, 3) % 11)
        assert (got.ndim, got.shape[0]) == (rank, batch)
        torch.testing.assert_close(got.reshape(wanted.shape), wanted)


@pytest.mark.slow
def test_a_classifier_that_squeezes_its_batch_is_proven(tmp_path: Path) -> None:
    """MBart's start tokens: the graph failed at a batch of 1."""
    model = zoo.build("mbart", head="SequenceClassification")
    assert trueport.export(model, tmp_path / "out", tokenizer=None).verdict == "proven"
