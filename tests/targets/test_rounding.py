"""Four bits chosen on the activations that a layer meets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueport.targets.onnx.blocks import in_blocks, restored
from trueport.targets.onnx.rounded import in_blocks_on


def weights_and_activations(seed: int, outputs: int, width: int, mixed: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix, and activations (tokens, width) of which the last are made of ``mixed`` others."""
    rng = np.random.default_rng(seed)
    sources = rng.normal(size=(400, mixed))
    activations = sources @ rng.normal(size=(mixed, width)) + 0.05 * rng.normal(size=(400, width))
    return rng.normal(size=(outputs, width)).astype(np.float32), activations.astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([16, 32, 64, 128]), st.integers(1, 300), st.integers(1, 9))
def test_on_activations_that_have_nothing_to_do_with_each_other_it_rounds_to_the_nearest(
    seed: int, size: int, width: int, outputs: int
):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(outputs, width)).astype(np.float32)
    scales = rng.choice([0.0, 1e-3, 1.0, 50.0], width)  # those that are always zero among them
    found, nearest = in_blocks_on(matrix, np.diag(scales), size), in_blocks(matrix, 4, size)
    for name in ("packed", "scales", "zeros"):
        assert np.array_equal(getattr(found, name), getattr(nearest, name)), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([16, 32, 128]), st.sampled_from([48, 128, 200]))
def test_what_the_layer_makes_of_its_activations_stays_nearer(seed: int, size: int, width: int):
    matrix, activations = weights_and_activations(seed, 24, width, width // 8)
    moments = activations.T @ activations
    errors = [
        np.linalg.norm(activations @ (restored(blocks) - matrix).T)
        for blocks in (in_blocks_on(matrix, moments, size), in_blocks(matrix, 4, size))
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_activations_that_say_nothing_are_no_reason_to_fail(value: float):
    matrix = np.ones((3, 40), np.float32) * np.arange(40)
    found = restored(in_blocks_on(matrix, np.full((40, 40), value), 32))
    assert np.isfinite(found).all() and np.abs(found - matrix).max() < 3
