"""``python -m benchmarks.kernels [--quick] [--docs]``: forms of quantised products, their speed, and whether rows are alone.

A chain of 24 products 768 x 2048 and back (38 million weights) in each form that ONNX Runtime has, one thread; the smallest
of many runs for 1, 8 and 64 rows. A form is exact where a row in a batch of any of these sizes is, bit for bit, the row
alone; else how far it is off, relative to the largest entry: after one product, and at the end of the chain. ``--docs``
writes the table into docs/quantisation.md.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import context, measure

ROWS = (1, 8, 64)
RUNS = 30
DOMAIN = "com.microsoft"
BEGIN = "<!-- benchmarks.kernels -->"
PLACE = measure.ROOT / "docs" / "quantisation.md"
FORMS: dict[str, tuple[Any, ...]] = {
    "float32": ("float",),
    "`DynamicQuantizeMatMul`": ("dynamic",),
    **{f"{bits} bits, blocks of {size}": ("blocks", bits, size, 4) for bits in (8, 4) for size in (32, 64, 128)},
    "8 bits, blocks of 64, accuracy level 0": ("blocks", 8, 64, 0),
    "static, uint8 x int8": ("static",),
}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short chain of small products: does everything run?")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/quantisation.md")
    given = parser.parse_args()
    count, width, inner = (2, 64, 128) if given.quick else (24, 768, 2048)
    lines = [
        "| form | " + " | ".join(map(str, ROWS)) + " | a row in a batch against the row alone | and after the chain |"
    ]
    lines.append("|---|" + "--:|" * len(ROWS) + "---|---|")
    for name, form in FORMS.items():
        session, single = _session(form, count, width, inner), _session(form, 1, width, inner)
        draw = np.random.default_rng(1).standard_normal((ROWS[-1], width)).astype(np.float32)
        times = [_milliseconds(session, draw[:rows]) for rows in ROWS]
        figures = [f"{value:.1f}" for value in times] + [_off(single, draw), _off(session, draw)]
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
        print(lines[-1], flush=True)
    about = measure.machine()
    where = (
        f"onnxruntime {about['versions']['onnxruntime']}, {_processor()}, one thread, load {about['load_at_start']}.\n"
    )
    if given.docs:
        context.write(BEGIN, [where, *lines, ""], PLACE)


def _off(session: Any, draw: np.ndarray) -> str:
    """How far rows in batches are from themselves alone, in words."""
    alone = np.concatenate([session.run(None, {"x": draw[i : i + 1]})[0] for i in range(ROWS[-1])])
    together = [session.run(None, {"x": draw[:rows]})[0] for rows in ROWS]
    off = max(float(np.abs(batch - alone[: len(batch)]).max()) for batch in together) / float(np.abs(alone).max())
    return f"**off by {off:.0e}**" if off else "exact"


def _processor() -> str:
    """What decides which kernels run, without the processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "").split()
    except OSError:
        return "a processor that tells no flags"
    return ", ".join(name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags)


def _milliseconds(session: Any, x: np.ndarray) -> float:
    best = float("inf")
    for _ in range(RUNS):
        begun = time.perf_counter()
        session.run(None, {"x": x})
        best = min(best, time.perf_counter() - begun)
    return best * 1e3


def _session(form: tuple[Any, ...], count: int, width: int, inner: int) -> Any:
    import onnxruntime

    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    stored: list[Any] = []
    value = "x"
    for index in range(count):
        sizes = (width, inner) if index % 2 == 0 else (inner, width)
        matrix = (rng.standard_normal(sizes) / np.sqrt(sizes[0])).astype(np.float32)
        value = _product(form, value, matrix, index, nodes, stored)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["rows", None])],
        stored,
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _product(form: tuple[Any, ...], x: str, matrix: np.ndarray, index: int, nodes: list[Any], stored: list[Any]) -> str:
    """One product with a (width, outputs) matrix in a form; the name of its result."""
    from trueport.targets.onnx.blocks import in_blocks, in_columns

    def store(name: str, array: np.ndarray | np.generic) -> str:
        stored.append(onnx.numpy_helper.from_array(np.asarray(array), f"{name}{index}"))
        return f"{name}{index}"

    out, kind = f"y{index}", form[0]
    if kind == "float":
        nodes.append(helper.make_node("MatMul", [x, store("w", matrix)], [out]))
    elif kind == "blocks":
        _, bits, size, level = form
        blocks = in_blocks(matrix.T.copy(), bits, size)
        names = [store("w", blocks.packed), store("s", blocks.scales)]
        names += [store("z", blocks.zeros)] if blocks.zeros is not None else []
        numbers = {
            "K": matrix.shape[0],
            "N": matrix.shape[1],
            "bits": bits,
            "block_size": size,
            "accuracy_level": level,
        }
        nodes.append(helper.make_node("MatMulNBits", [x, *names], [out], domain=DOMAIN, **numbers))
    else:
        columns = in_columns(matrix.T.copy())
        weights = [store("w", columns.values), store("s", columns.scales)]
        if kind == "dynamic":
            nodes.append(helper.make_node("DynamicQuantizeMatMul", [x, *weights], [out], domain=DOMAIN))
        else:
            scale, zero = store("a", np.float32(8 / 255)), store("b", np.uint8(128))
            nodes.append(helper.make_node("QuantizeLinear", [x, scale, zero], [f"q{index}"]))
            inputs = [f"q{index}", weights[0], scale, weights[1], zero]
            nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [out], domain=DOMAIN))
    return out


if __name__ == "__main__":
    main()
