"""For a library's own test suite: ``assert_exportable`` fails with the lines that prevent an export."""

from __future__ import annotations

from typing import Any

from torch import nn


def assert_exportable(
    module: nn.Module, inputs: Any, *, dynamic: bool = True, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    """Assert that ``module`` exports, that no dimension becomes constant, and that the program equals the module.

    Args:
        module: in eval mode.
        inputs: sample inputs, a tuple or a dict of tensors, every size 2 or more; or a list of such, of which the first is
            traced and all are compared.
        dynamic: whether every dimension must stay dynamic of which the module takes other lengths.
        rtol: relative tolerance of the comparison.
        atol: absolute tolerance of the comparison.

    Raises:
        AssertionError: with every finding on a line of its own: file, line, problem and mend.
    """
    import torch
    from torch.utils import _pytree as pytree

    from trueport.diagnosis import examine
    from trueport.patches.caches import registered_caches
    from trueport.rewrite.watch import call_with

    samples = inputs if isinstance(inputs, list) else [inputs]
    if not samples:
        raise AssertionError("There are no sample inputs: give a tuple or a dict of tensors, or a list of such")
    examined = examine(module, samples[0])
    findings = [*examined.findings, *(examined.specialised if dynamic else ())]
    if findings or examined.program is None:
        raise AssertionError(
            "\n".join([f"{examined.name} does not export:", *(f"  {finding}" for finding in findings)])
        )
    with torch.no_grad(), registered_caches():
        program = examined.program.module()
        for number, sample in enumerate(samples):
            wanted, got = (pytree.tree_leaves(call_with(each, sample)) for each in (module, program))
            for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
                try:
                    torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True)
                except AssertionError as error:
                    raise AssertionError(f"sample {number}, output {index}: {error}") from None
