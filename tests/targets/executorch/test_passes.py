"""XNNPACK's passes left out: the program is the same without them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("executorch")


class Mixed(nn.Module):
    """Operators that the passes act on, each beside some that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv1d(3, 8, 2, stride=2)
        self.picture = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.PReLU())
        self.inner = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        x = self.picture(x.unsqueeze(2)).squeeze(2).transpose(1, 2)
        x = torch.relu(self.inner(self.norm(x)))
        pieces = torch.cat([x, x * 2, -x, x + 1, x * 3, x * 4], dim=1)
        heads = pieces.unflatten(2, (2, 4)).transpose(1, 2)
        seen = torch.ones(heads.shape[2], heads.shape[2], dtype=torch.bool).tril()
        return nn.functional.scaled_dot_product_attention(heads, heads, heads, seen)


@pytest.mark.slow
def test_the_program_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from trueport.targets.executorch import passes
    from trueport.targets.executorch.lower import partitioner_of, to_program

    torch.manual_seed(0)
    model = Mixed().eval()

    def program() -> bytes:
        exported = torch.export.export(model, (torch.randn(2, 3, 16),), strict=False)
        return bytes(to_program({"forward": exported}, partitioner_of("xnnpack")).buffer)

    short = program()
    ran: list[str] = []
    monkeypatch.setattr(passes, "ACTS_ON", {})
    original = passes.NeededPasses.transform

    def counted(self: passes.NeededPasses) -> torch.export.ExportedProgram:
        ran.extend(kind.__name__ for kind in self.passes)
        return original(self)

    monkeypatch.setattr(passes.NeededPasses, "transform", counted)
    assert program() == short
    assert {"ConvertToSDPAPass", "Conv1dUnsqueezePass", "DecomposeBatchNorm"} <= set(ran), "nothing was compared"


def test_every_named_pass_exists() -> None:
    from executorch.backends.xnnpack import _passes

    from trueport.targets.executorch.passes import ACTS_ON

    known = {kind.__name__ for kind in _passes.XNNPACKPassManager(None).passes}
    assert set(ACTS_ON) <= known
