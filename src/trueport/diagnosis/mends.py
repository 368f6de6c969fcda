"""What to write where a target lacks an operator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mend:
    """A call of an operator, and the same in operators that both targets have; the suite runs both.

    Attributes:
        operator: its name in torch's schema.
        call: Python over tensors ``x``, ``y`` and numbers ``k``, ``n``.
        write: the same value.
        note: where the two differ.
    """

    operator: str
    call: str
    write: str
    note: str = ""


TRIANGLE = "torch.where(torch.arange(n) <= torch.arange(n).unsqueeze(-1), x.unsqueeze(-2), {fill})"
"""(..., n, n): what row i may see of ``x``'s last axis, of length n: its first i + 1 entries."""
MENDS = (
    Mend("aten::_cdist_forward", "torch.cdist(x, y)", "(x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt()"),
    Mend("aten::median", "x.median(-1).values", "x.topk((n + 1) // 2, -1, largest=False).values[..., -1]"),
    Mend("aten::kthvalue", "x.kthvalue(k, -1).values", "x.topk(k, -1, largest=False).values[..., -1]"),
    Mend("aten::cummax", "x.cummax(-1).values", TRIANGLE.format(fill="-torch.inf") + ".amax(-1)"),
    Mend("aten::cummin", "x.cummin(-1).values", TRIANGLE.format(fill="torch.inf") + ".amin(-1)"),
    Mend("aten::cumprod", "x.cumprod(-1)", TRIANGLE.format(fill="1.0") + ".prod(-1)"),
    Mend("aten::hypot", "torch.hypot(x, y)", "(x.square() + y.square()).sqrt()"),
)
"""By trial: operators that ONNX's or ExecuTorch's registries lacked in torch 2.13 and executorch 1.4.1."""
OTHERWISE = "Write that line with operators that it has, or compute its value outside of the model and pass it in."


def mend_of(operator: str) -> str:
    """A sentence for an operator such as ``aten::median.dim``, ``aten.median.dim`` or ``aten::median``."""
    name = operator.replace("::", ".").split(".")
    for mend in MENDS:
        if mend.operator.split("::") == name[:2]:
            note = f" ({mend.note})" if mend.note else ""
            return f"For {mend.call} write {mend.write}{note}."
    return OTHERWISE
