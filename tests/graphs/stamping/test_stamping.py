"""A stamped graph is the plain one, and what cannot be stamped is traced, with the reason told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trueport
from tests import zoo
from trueport.artifact import list_files
from trueport.graphs.stamping import stacks
from trueport.graphs.stamping.shorten import captured
from trueport.interface import Dimension, Interface, StatePair, Tensor
from trueport.quiet import quiet
from trueport.roles import components
from trueport.roles.component import Component
from trueport.targets.onnx import lower as lowering
from trueport.targets.onnx.lower import Graph, lower

S, F = "sliding_attention", "full_attention"
DEEP: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 6},
    "gpt2": {"n_layer": 4},
    "bert": {"num_hidden_layers": 5},
    "qwen3": {"num_hidden_layers": 4},
    "mistral": {"num_hidden_layers": 4},
    "qwen3_moe": {"num_hidden_layers": 5, "mlp_only_layers": [0]},  # a dense first layer
    "gemma3_text": {"num_hidden_layers": 9, "layer_types": [S, F] * 4 + [S]},  # does not end with a period
    "gpt_oss": {"num_hidden_layers": 8, "layer_types": [S, F] * 4},
    "qwen3_next": {"num_hidden_layers": 16},  # three with a recurrent state to one with attention
    "mamba": {"num_hidden_layers": 4},
    "t5": {"num_layers": 5},  # the first layer holds the position bias
    "bart": {"encoder_layers": 4, "decoder_layers": 4},
    "whisper": {"encoder_layers": 4, "decoder_layers": 4},
    "vit": {"num_hidden_layers": 4},
}
"""Enough layers for a stamped repetition, by the zoo's names."""


def lowered(parts: list[Component], config: Any, *, stamp: bool) -> tuple[list[Graph], list[str]]:
    """Every component's graph, and what was told."""
    told: list[str] = []
    with quiet():
        return [lower(captured(part, config, told.append, stamp=stamp)) for part in parts], told


def written(graph: Graph) -> bytes:
    """The file that the graph is."""
    import onnx_ir as ir

    return bytes(ir.to_proto(graph.model).SerializeToString(deterministic=True))


@pytest.fixture
def eager_to_stamp(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stamping pays from one layer on; the list has an entry for every graph that was stamped."""
    from trueport.graphs.stamping import stamp as module

    done: list[int] = []
    original = module.stamp

    def counting(*args: Any) -> Any:
        result = original(*args)
        done.append(len(result))
        return result

    monkeypatch.setattr(stacks, "WORTH", 1)
    monkeypatch.setattr(module, "stamp", counting)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DEEP))
def test_a_stamped_graph_is_the_plain_one(name: str, eager_to_stamp: list[int]) -> None:
    model = zoo.build(name, amplify=None, **DEEP[name])
    with quiet():
        parts = components(model)
    plain, _ = lowered(parts, model.config, stamp=False)
    assert not eager_to_stamp
    stamped, told = lowered(parts, model.config, stamp=True)
    assert not told and len(eager_to_stamp) == len(parts)
    for one, other in zip(plain, stamped, strict=True):
        assert one.interface == other.interface and one.weights == other.weights and one.guards == other.guards
        assert written(one) == written(other)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "out"), [("bfloat16", None), ("float32", "float16")])
def test_the_folder_is_the_same_whichever_way(
    tmp_path: Path, eager_to_stamp: list[int], dtype: str, out: str | None
) -> None:
    """From a checkpoint: weights linked, widened by a cast in the graph, fused, or written anew; here with a proof."""
    model = zoo.build("mixtral", amplify=None, num_hidden_layers=5).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    for stamp in (True, False):
        trueport.export(
            tmp_path / "model", tmp_path / str(stamp), tokenizer=None, weights="copy", dtype=out, stamp=stamp,
            proof=stamp and out is None, progress=lambda phase: pytest.fail(phase) if "because" in phase else None,
        )  # fmt: skip
    assert len(eager_to_stamp) == 1
    one, other = (list_files(tmp_path / str(stamp) / "onnx") for stamp in (True, False))
    assert one == other


def test_few_layers_are_traced(tmp_path: Path) -> None:
    """Below the threshold nothing is spared, and nothing is told."""
    model = zoo.build("llama")
    assert stacks.stacks_of(model, model.config) == []


@pytest.mark.parametrize(
    ("name", "first", "period", "repeats"),
    [
        ("gemma3_text", 0, 2, 4),
        ("gpt_oss", 0, 2, 4),
        ("qwen3_moe", 1, 1, 4),
        ("t5", 1, 1, 4),
        ("bert", 0, 1, 5),
        ("qwen3_next", 0, 4, 4),
    ],
)
def test_periods_are_found(monkeypatch: pytest.MonkeyPatch, name: str, first: int, period: int, repeats: int) -> None:
    monkeypatch.setattr(stacks, "WORTH", 1)
    model = zoo.build(name, amplify=None, **DEEP[name])
    for stack in stacks.stacks_of(model, model.config):
        assert (stack.first, stack.period, stack.repeats) == (first, period, repeats)


class Layer(nn.Module):
    """A layer with a state of its own, that counts."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, mem: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new = torch.cat([mem, x], dim=1)
        return x + self.linear(x * factor), new


class Tower(nn.Module):
    """Nine layers; ``how`` says what is unlike the others in the middle, where a shortened model does not see it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.layers = nn.ModuleList(Layer(index) for index in range(9))
        if how == "tied":
            self.layers[5].linear.weight = self.layers[2].linear.weight
        if how == "hooked":
            self.layers[4].register_forward_pre_hook(lambda _, x: (x[0] * 2, *x[1:]) if x[0].shape[0] > 50 else x)
        if how == "zeros":  # where the shortened model sees them, and nowhere else
            for index in (0, 1, 8):
                self.layers[index].linear.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor, **mems: torch.Tensor) -> dict[str, torch.Tensor]:
        one, two = x.mean(-1, keepdim=True), x.amax(-1, keepdim=True)
        results, states = {}, []
        for index, layer in enumerate(self.layers):
            factor = two if self.how == "every fourth" and index % 4 == 3 else one
            if self.how == "in the middle" and layer.index == 4:
                x = x * 2
            if self.how == "looks back" and index > 2:
                x = x + states[-2]
            if self.how == "first again" and index > 0:
                x = x + states[0]
            scale = 1.0 / (layer.index + 1) if self.how == "scaled" else 1.0
            x, results[f"present_mems.{layer.index}"] = layer(x * scale, mems[f"mems.{layer.index}"], factor)
            states.append(x)
        if self.how == "sums up":
            x = torch.stack(states).sum(0)
        if self.how == "by depth":
            x = x / len(self.layers)
        if self.how == "by number":
            x = self.layers[8].linear(x) + self.layers[4].linear(x)
        return {"y": x} | results


def tower(how: str) -> Component:
    torch.manual_seed(0)
    shape = ("batch_size", "past_sequence_length", 4)
    pairs = [StatePair(f"mems.{i}", f"present_mems.{i}", axis=1) for i in range(9)]
    interface = Interface(
        (
            Tensor("x", "float32", ("batch_size", "sequence_length", 4)),
            *(Tensor(p.input, "float32", shape) for p in pairs),
        ),
        (Tensor("y", "float32", ()), *(Tensor(pair.output, "float32", ()) for pair in pairs)),
        (Dimension("batch_size"), Dimension("sequence_length"), Dimension("past_sequence_length", 0)),
        tuple(pairs),
    )
    sizes = {"batch_size": 2, "sequence_length": 3, "past_sequence_length": 5}
    return Component("model", "model", Tower(how).eval(), interface, sizes)


def outputs(graph: Graph, place: Path, batch: int, length: int, past: int) -> list[Any]:
    import numpy as np
    import onnxruntime

    place.write_bytes(written(graph))
    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    sizes = {"x": length}
    feeds = {
        value.name: generator.normal(size=(batch, sizes.get(value.name, past), 4)).astype(np.float32)
        for value in session.get_inputs()
    }
    names = [value.name for value in session.get_outputs()]
    return [feeds, dict(zip(names, session.run(None, feeds), strict=True))]


UNLIKE = (
    "every fourth", "in the middle", "looks back", "first again", "scaled", "sums up", "tied", "by number", "by depth",
    "hooked",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["equal", "zeros", *UNLIKE])
def test_what_is_not_equal_is_traced_and_told(how: str, tmp_path: Path) -> None:
    """Each of these is the same at both ends of the stack, or equal in structure: a guess would be wrong in silence."""
    part = tower(how)
    (graph,), told = lowered([part], None, stamp=True)
    assert (told == []) == (how not in UNLIKE), told
    assert all("every layer is traced, because" in line for line in told)
    if how not in UNLIKE:
        (plain,), _ = lowered([part], None, stamp=False)
        assert written(graph) == written(plain)
    for batch, length, past in ((2, 3, 5), (1, 1, 0)):
        feeds, found = outputs(graph, tmp_path / "model.onnx", batch, length, past)
        with torch.no_grad():
            expected = part.module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        for name, value in expected.items():
            torch.testing.assert_close(torch.from_numpy(found[name]), value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("live", "over"), [(False, 400), (False, 10**6), (True, 400)])
def test_a_layer_that_is_unlike_past_a_length_is_traced(
    live: bool, over: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle, where a shortened program has no guard that would make the proof ask there."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward, told = LlamaDecoderLayer.forward, list[str]()

    def unlike(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        made = forward(self, hidden_states, *args, **kwargs)
        return made * 2 if self.self_attn.layer_idx == 4 and hidden_states.shape[1] > over else made

    model = zoo.build("llama", num_hidden_layers=8)
    model.save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setattr(LlamaDecoderLayer, "forward", unlike)
    trueport.export(
        model if live else tmp_path / "checkpoint", tmp_path / "out", tokenizer=None, proof=False, progress=told.append
    )
    assert any("layers.4 does not do what" in line for line in told) == (over == 400), told


def spoil_operator(graph: Any, nodes: list[Any]) -> None:
    """Another attribute in the last layer."""
    import onnx_ir as ir

    next(node for node in nodes if node.op_type == "Concat").attributes["axis"] = ir.AttrInt64("axis", 0)


def spoil_weight(graph: Any, nodes: list[Any]) -> None:
    """Another layer's weight in the last layer."""
    weight = next(v for name, v in graph.initializers.items() if name.startswith("layers.1.") and "weight" in name)
    own = next(v for name, v in graph.initializers.items() if name.startswith("layers.8.") and "weight" in name)
    own.replace_all_uses_with(weight)


def spoil_edge(graph: Any, nodes: list[Any]) -> None:
    """The last layer reads what the first one gave, too."""
    early = next(node for node in graph if node.metadata_props.get(lowering.MODULE_KEY) == "layers.0")
    nodes[-1].replace_input_with(0, early.outputs[0])


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [spoil_operator, spoil_weight, spoil_edge])
def test_a_graph_whose_layers_differ_is_not_stamped(
    spoil: Callable[[Any, list[Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion could do to the last layer what it does to no other."""
    strip, spoiled = lowering._strip, []

    def spoiling(model: Any) -> None:
        strip(model)
        if not spoiled:
            nodes = [n for n in model.graph if n.metadata_props.get(lowering.MODULE_KEY, "").startswith("layers.8")]
            spoil(model.graph, nodes)
            spoiled.append(1)

    monkeypatch.setattr(lowering, "_strip", spoiling)
    part = tower("equal")
    (graph,), told = lowered([part], None, stamp=True)
    assert len(told) == 1 and "differs between layers that should be equal" in told[0]
    (plain,), _ = lowered([part], None, stamp=False)
    assert written(graph) == written(plain)


def test_the_model_is_whole_again() -> None:
    part = tower("sums up")
    before = list(part.module.named_parameters())
    lowered([part], None, stamp=True)
    assert [(n, id(p)) for n, p in part.module.named_parameters()] == [(n, id(p)) for n, p in before]
