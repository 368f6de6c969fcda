"""Fusions of single graphs: what they match, what they leave alone, and that the numbers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes import common as passes

from trueport.errors import TrueportError
from trueport.graphs.fusions import FUSIONS, fusions_for
from trueport.graphs.fusions.apply import fuse
from trueport.graphs.fusions.heads import cut_by_heads
from trueport.graphs.fusions.reshape import drop_reshapes
from trueport.graphs.fusions.scale import scale_queries
from trueport.graphs.shapes import infer_shapes
from trueport.interface import Dimension, Interface, Tensor

FLOAT = TensorProto.FLOAT


def graph(nodes: list[onnx.NodeProto], inputs: dict[str, list], output: list, **constants: object) -> onnx.ModelProto:
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", FLOAT, output)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def fused(proto: onnx.ModelProto) -> tuple[dict[str, int], onnx.ModelProto]:
    model = ir.from_proto(proto)
    axes = {size for value in model.graph.inputs for size in value.shape or () if not isinstance(size, int)}
    interface = Interface(
        tuple(tensor(value) for value in model.graph.inputs),
        tuple(tensor(value) for value in model.graph.outputs),
        tuple(Dimension(str(axis.value)) for axis in axes),
    )
    done = fuse(model, interface, FUSIONS)
    return {name: applied.count for name, applied in done.items() if applied.count}, ir.to_proto(model)


def tensor(value: ir.Value) -> Tensor:
    assert value.shape is not None
    return Tensor(str(value.name), "float32", tuple(a if isinstance(a, int) else str(a.value) for a in value.shape))


def same(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """The largest difference between the two graphs' outputs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    runs = [
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for model in (before, after)
    ]
    first, second = (run.run(None, feeds)[0] for run in runs)
    return float(np.abs(first - second).max(initial=0.0))


def rms(power: float = 2.0, axis: int = -1, shape: tuple[int, ...] = (8,), swapped: bool = False) -> onnx.ModelProto:
    node = helper.make_node
    last = ["n", "w"] if swapped else ["w", "n"]
    nodes = [
        node("Pow", ["x", "p"], ["q"]), node("ReduceMean", ["q", "a"], ["m"]), node("Add", ["m", "e"], ["s"]),
        node("Sqrt", ["s"], ["r"]), node("Reciprocal", ["r"], ["i"]), node("Mul", ["x", "i"], ["n"]),
        node("Mul", last, ["y"]),
    ]  # fmt: skip
    weight = np.linspace(0.5, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return graph(nodes, {"x": ["b", "s", 8]}, ["b", "s", 8], p=np.float32(power), a=np.array([axis]),
                 e=np.float32(1e-6), w=weight)  # fmt: skip


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("rows", [(2, 3), (1, 1), (2, 0), (0, 3)])
def test_rms_norm(rows: tuple[int, int], swapped: bool) -> None:
    before = rms(swapped=swapped)
    counts, after = fused(before)
    assert counts == {"rms-norm": 1} and [node.op_type for node in after.graph.node] == ["RMSNormalization"]
    x = np.random.default_rng(0).standard_normal((*rows, 8), dtype=np.float32) * 30
    assert same(before, after, {"x": x}) < 1e-5


@pytest.mark.parametrize("other", [{"power": 3.0}, {"axis": 1}, {"shape": (1, 8)}, {"shape": (1,)}])
def test_what_is_no_rms_norm_of_the_last_axis_stays(other: dict[str, object]) -> None:
    counts, after = fused(rms(**other))  # type: ignore[arg-type]
    assert counts == {} and len(after.graph.node) == 7


def rotary(repeated: bool = True, half: int = 4, heads: bool = True) -> onnx.ModelProto:
    """Angles (batch, sequence, 8) of which the halves are equal, or not."""
    node = helper.make_node
    nodes = [
        node("Concat", ["f", "f" if repeated else "g"], ["c"], axis=-1), node("Cos", ["c"], ["cos3"]),
        node("Sin", ["c"], ["sin3"]), node("Mul", ["cos3", "scale"], ["cos2"]),
        node("Unsqueeze", ["cos2", "one" if heads else "two"], ["cos"]),
        node("Unsqueeze", ["sin3", "one" if heads else "two"], ["sin"]),
        node("Slice", ["x", "zero", "half", "three", "one"], ["low"]),
        node("Slice", ["x", "half", "end", "three", "one"], ["high"]), node("Neg", ["high"], ["minus"]),
        node("Concat", ["minus", "low"], ["turned"], axis=-1), node("Mul", ["x", "cos"], ["straight"]),
        node("Mul", ["turned", "sin"], ["across"]), node("Add", ["straight", "across"], ["y"]),
    ]  # fmt: skip
    shape = ["b", 2, "s", 8] if heads else ["b", "s", 2, 8]
    return graph(nodes, {"x": shape, "f": ["b", "s", 4], "g": ["b", "s", 4]}, shape, scale=np.float32(1.5),
                 one=np.array([1]), two=np.array([2]), three=np.array([3]), zero=np.array([0]), half=np.array([half]),
                 end=np.array([2**63 - 1]))  # fmt: skip


@pytest.mark.parametrize("rows", [(2, 5), (1, 1), (2, 0)])
def test_rotary_takes_the_angles_of_every_row(rows: tuple[int, int]) -> None:
    before = rotary()
    counts, after = fused(before)
    assert counts == {"rotary": 1} and "RotaryEmbedding" in {node.op_type for node in after.graph.node}
    draw = np.random.default_rng(0).standard_normal
    feeds = {"x": draw((rows[0], 2, rows[1], 8)), "f": draw((*rows, 4)) * 9, "g": draw((*rows, 4))}
    assert same(before, after, {name: value.astype(np.float32) for name, value in feeds.items()}) < 1e-5


@pytest.mark.parametrize("other", [{"repeated": False}, {"half": 3}, {"heads": False}])
def test_what_is_no_rotation_of_equal_halves_stays(other: dict[str, object]) -> None:
    counts, _ = fused(rotary(**other))  # type: ignore[arg-type]
    assert counts == {}


def attention(**attributes: float) -> onnx.ModelProto:
    """Over a cache that grows, with a mask by addition."""
    node = helper.make_node
    heads = {name: ["b", 2, "s", 8] for name in "qkv"}
    nodes = [
        node("Concat", ["past", "k"], ["y"], axis=-2),
        node("Attention", ["q", "y", "y", "m"], ["attended"], **attributes),
        node("Identity", ["attended"], ["z"]),
    ]
    return graph(nodes, {**heads, "past": ["b", 2, "p", 8], "m": ["b", 1, "s", "t"]}, ["b", 2, "t", 8])


@pytest.mark.parametrize("attributes", [{}, {"scale": 0.7}, {"scale": 0.7, "softcap": 2.0}, {"scale": 1.0}], ids=str)
@pytest.mark.parametrize("rows", [(2, 3), (1, 1)])
def test_queries_take_the_scale(rows: tuple[int, int], attributes: dict[str, float]) -> None:
    """The operator's own scale, that of its head size, a cap behind it; a scale of 1 is left alone."""
    before = attention(**attributes)
    before.graph.output[0].name = "attended"
    before.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "s"
    model = ir.from_proto(before)
    count = scale_queries(infer(model))
    after = ir.to_proto(model)
    assert count == (attributes.get("scale") != 1.0)
    draw = np.random.default_rng(0).standard_normal
    shapes = dict.fromkeys("qkv", (rows[0], 2, rows[1], 8)) | {"past": (rows[0], 2, 4, 8)}
    feeds = {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds["m"] = np.where(draw((rows[0], 1, rows[1], 4 + rows[1])) > 1, -np.inf, 0).astype(np.float32)
    assert same(before, after, feeds) < 1e-5


def turned(dim: int = 0, users: int = 1, scale: float = 0.125) -> onnx.ModelProto:
    """Attention of queries that a RotaryEmbedding gives, of which ``dim`` entries are turned (0: all)."""
    node = helper.make_node
    nodes = [
        node("RotaryEmbedding", ["q", "c", "s"], ["r"], rotary_embedding_dim=dim),
        node("RotaryEmbedding", ["k", "c", "s"], ["t"], rotary_embedding_dim=dim),
        node("Attention", ["r", "t", "t"], ["y"], scale=scale),
        *[node("Neg", ["r"], [f"z{place}"]) for place in range(users - 1)],
    ]
    half = (dim or 8) // 2
    inputs = {"q": ["b", 2, "s", 8], "k": ["b", 2, "s", 8], "c": ["b", "s", half], "s": ["b", "s", half]}
    return graph(nodes, inputs, ["b", 2, "s", 8])


@pytest.mark.parametrize(
    ("made", "kinds"),
    [
        ({}, ["Mul", "Mul", "RotaryEmbedding", "RotaryEmbedding", "Attention"]),
        ({"dim": 4}, ["RotaryEmbedding", "RotaryEmbedding", "Mul", "Attention"]),
        ({"users": 2}, ["RotaryEmbedding", "RotaryEmbedding", "Mul", "Attention", "Neg"]),
    ],
    ids=str,
)
def test_the_angles_take_the_scale_where_all_of_the_queries_alone_are_turned(made: dict, kinds: list[str]) -> None:
    """The keys' angles stay as they are."""
    before = turned(**made)
    model = ir.from_proto(before)
    assert scale_queries(infer(model)) == 1
    assert [node.op_type for node in model.graph] == kinds
    draw = np.random.default_rng(0).standard_normal
    half = (made.get("dim", 0) or 8) // 2
    for rows, length in ((2, 5), (1, 1)):
        shapes = dict.fromkeys("qk", (rows, 2, length, 8)) | dict.fromkeys("cs", (rows, length, half))
        feeds = {name: draw(shape).astype(np.float32) * 3 for name, shape in shapes.items()}
        assert same(before, ir.to_proto(model), feeds) < 1e-5


def cut(sizes: tuple[int, ...] = (16, 8, 8), perm: tuple[int, ...] = (0, 2, 1, 3), axis: int = -1, head: int = 8,
        left_over: int = -1, read_twice: bool = False) -> onnx.ModelProto:  # fmt: skip
    """A product of width 32, cut, each part given its heads; all joined again, for one output to compare."""
    node = helper.make_node
    nodes = [node("Split", ["x", "sizes"], ["p0", "p1", "p2"], axis=axis)]
    for place in range(3):
        nodes.append(node("Reshape", [f"p{place}", "shape"], [f"r{place}"]))
        nodes.append(node("Transpose", [f"r{place}"], [f"t{place}"], perm=perm))
    nodes.append(node("Concat", ["t0", "t1", "t2"], ["y"], axis=perm.index(2)))
    if read_twice:
        nodes.append(node("Neg", ["p1"], ["z"]))
    shape = np.array([0, 0, left_over, head])
    return graph(nodes, {"x": ["b", "s", 32]}, [None] * 4, sizes=np.array(sizes), shape=shape)


@pytest.mark.parametrize("rows", [(2, 5), (1, 1), (2, 0), (0, 3)])
@pytest.mark.parametrize("made", [{}, {"axis": 2}, {"sizes": (8, 16, 8)}, {"head": 4}], ids=str)
def test_heads_are_cut_at_once(made: dict, rows: tuple[int, int]) -> None:
    before = cut(**made)
    model = ir.from_proto(before)
    assert cut_by_heads(infer(model)) == 1
    passes.RemoveUnusedNodesPass()(model)
    after = ir.to_proto(model)
    x = np.random.default_rng(0).standard_normal((*rows, 32), dtype=np.float32)
    if 0 not in rows:  # a Reshape cannot tell what is left over where there is nothing
        assert same(before, after, {"x": x}) == 0
    run = onnxruntime.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])
    size = made.get("head", 8)
    assert run.run(None, {"x": x})[0].shape == (rows[0], 32 // size, rows[1], size)


@pytest.mark.parametrize(
    "made",
    [{"perm": (0, 1, 2, 3)}, {"read_twice": True}, {"sizes": (12, 12, 8)}, {"head": 5}],
    ids=str,
)
def test_what_is_not_cut_into_heads_stays(made: dict) -> None:
    assert cut_by_heads(infer(ir.from_proto(cut(**made)))) == 0


def reshaped(shape: list[int | str], made: list[int | str]) -> onnx.ModelProto:
    """Of q, (b, 2, s, 8): to sizes of its own axes by name, and others by number."""
    node = helper.make_node
    parts = [f"axis_{size}" if isinstance(size, str) else f"size_{place}" for place, size in enumerate(shape)]
    nodes = [
        node("Relu", ["q"], ["x"]), node("Shape", ["q"], ["axis_b"], start=0, end=1),
        node("Shape", ["q"], ["axis_s"], start=2, end=3), node("Concat", parts, ["shape"], axis=0),
        node("Reshape", ["x", "shape"], ["r"]), node("Neg", ["r"], ["y"]),
    ]  # fmt: skip
    sizes = {f"size_{place}": np.array([size]) for place, size in enumerate(shape) if isinstance(size, int)}
    return graph(nodes, {"q": ["b", 2, "s", 8]}, made, **sizes)


@pytest.mark.parametrize("shape", [["b", -1, "s", 8], ["b", 2, "s", 8], [-1, 2, "s", 8], ["b", 2, "s", -1]], ids=str)
def test_reshapes_that_change_nothing_go(shape: list[int | str]) -> None:
    before = reshaped(shape, ["b", 2, "s", 8])
    model = ir.from_proto(before)
    assert drop_reshapes(infer(model)) == 1
    after = ir.to_proto(model)
    for rows, length in ((2, 3), (1, 1)):
        q = np.random.default_rng(0).standard_normal((rows, 2, length, 8), dtype=np.float32)
        assert same(before, after, {"q": q}) == 0


@pytest.mark.parametrize(
    "shape",
    [["b", "s", 2, 8], ["b", 2, -1, 4], ["b", -1, "s", 4], ["b", 2, -1], ["s", 2, -1, 8], ["b", 5, "s", 8]],
    ids=str,
)
def test_reshapes_that_change_something_stay(shape: list[int | str]) -> None:
    """The last one is valid where b is 0: its axis is named, and not what is left over."""
    assert drop_reshapes(infer(ir.from_proto(reshaped(shape, [None] * len(shape))))) == 0


def infer(model: ir.Model) -> ir.Model:
    infer_shapes(model)
    return model


def quantised_norm() -> onnx.ModelProto:
    """A norm behind a product of 4 bits, which ONNX's inference stops at."""
    before = rms()
    product = helper.make_node(
        "MatMulNBits", ["x0", "packed", "scales"], ["x"], domain="com.microsoft", K=32, N=8, bits=4, block_size=32
    )
    before.graph.node.insert(0, product)
    before.opset_import.add(domain="com.microsoft", version=1)
    before.graph.input[0].name = "x0"
    before.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    packed = np.arange(8 * 16, dtype=np.uint8).reshape(8, 1, 16)
    for name, array in (("packed", packed), ("scales", np.full((8, 1), 0.1, np.float32))):
        before.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return before


def test_shapes_are_known_behind_quantised_products() -> None:
    """They are needed by most fusions; nothing but the fusion changes."""
    before = quantised_norm()
    model = infer(ir.from_proto(before))
    assert [str(axis) for axis in model.graph[0].outputs[0].shape or ()][2] == "8"
    counts, after = fused(before)
    assert counts == {"rms-norm": 1}
    assert [node.op_type for node in after.graph.node] == ["MatMulNBits", "RMSNormalization"]
    x = np.random.default_rng(0).standard_normal((2, 3, 32)).astype(np.float32)
    assert same(before, after, {"x0": x}) < 1e-5


def test_the_table_says_why() -> None:
    assert len({fusion.name for fusion in FUSIONS}) == len(FUSIONS)
    assert all(fusion.matches and fusion.operator and fusion.providers and fusion.reason for fusion in FUSIONS)
    copied = [
        "rms-norm",
        "heads-at-once",
        "rotary",
        "grouped-heads",
        "scaled-queries",
        "idle-reshapes",
        "whole-mask",
        "past-inside",
    ]
    assert [fusion.name for fusion in fusions_for("cpu")] == copied
    assert fusions_for("cpu", "in-place") == list(FUSIONS)
    with pytest.raises(TrueportError, match=r"no fusions for 'tpu'\. Give one of cpu"):
        fusions_for("tpu")
    with pytest.raises(TrueportError, match=r"no 'moved' caches\. Give one of copied, in-place"):
        fusions_for("cpu", "moved")


@pytest.mark.slow
def test_the_runtime_fuses_activations_itself(exported, tmp_path: Path) -> None:
    """Why the table has neither gelu nor silu: our spelling of them is one that ONNX Runtime knows when it loads."""
    wanted = {"llama": "QuickGelu", "gpt2": "FastGelu", "bert": "BiasGelu"}
    for name, operator in wanted.items():
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(exported(name) / "onnx/model.onnx", options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
        assert sum(node.op_type == operator for node in nodes) == 2
