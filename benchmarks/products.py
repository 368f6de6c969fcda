"""A decoder's matrix products with nothing between them: how near the runtime's own kernels come to the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import THREADS

PRODUCTS = {"MatMul", "Gemm", "MatMulNBits"}


class Products:
    """The products of a graph with its weights, in its order, each of one row of random numbers; takes steps as a
    ``Contender`` does, and looks at nothing that it is given.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        from trueport.runtime.large_pages import large_pages

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = THREADS, 3
        alone = path.with_name(f"products of {path.name}")
        widths = _alone(path, alone)
        with large_pages():
            self.session = onnxruntime.InferenceSession(str(alone), options, providers=["CPUExecutionProvider"])
        self.feeds = {name: torch.randn(1, width).numpy() for name, width in widths.items()}

    def start(self, rows: int, length: int, room: int) -> Any:
        """Nothing: products know no past."""
        return None

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """See ``Contender``; the first product."""
        return torch.from_numpy(self.session.run(None, self.feeds)[0]), state


def weights(path: Path) -> int:
    """Bytes of the matrices that one row is multiplied with."""
    from trueport.graphs.loading import load

    held = {
        id(value): value.const_value.nbytes
        for node in load(path).graph
        if node.op_type in PRODUCTS
        for value in map(_stored, node.inputs)
        if value is not None
    }
    return sum(held.values())


def _stored(value: Any) -> Any:
    """What lies in the file: of an operand, or of what is transposed to it as the session opens; else None."""
    maker = None if value is None else value.producer()
    if maker is not None and maker.op_type == "Transpose":
        value = maker.inputs[0]
    return None if value is None or value.const_value is None else value


def _alone(path: Path, out: Path) -> dict[str, int]:
    """Write the graph of its products beside a graph; the widths of its inputs, by name."""
    import onnx_ir as ir

    from trueport.graphs.loading import load

    model = load(path)
    graph = model.graph
    made: dict[str, ir.Value] = {}
    kept: set[int] = set()
    outputs = []
    for node in graph:
        matrix = _stored(node.inputs[1]) if node.op_type in PRODUCTS else None
        if matrix is None:
            continue
        # Of a matrix that lies transposed, the rows are the last axis.
        rows = matrix.shape[-2 if matrix is node.inputs[1] else -1]
        width = node.attributes["K"].as_int() if "K" in node.attributes else int(rows)
        name = f"x{width}"
        if name not in made:
            made[name] = ir.Input(name, shape=ir.Shape([1, width]), type=ir.TensorType(ir.DataType.FLOAT))
        node.replace_input_with(0, made[name])
        makers = (value.producer() for value in node.inputs if value is not None)
        kept |= {id(node)} | {id(maker) for maker in makers if maker is not None}
        result = node.outputs[0]
        result.shape, result.type = None, ir.TensorType(ir.DataType.FLOAT)
        outputs.append(result)
    graph.outputs[:] = outputs
    graph.remove([node for node in reversed(list(graph)) if id(node) not in kept], safe=False)
    graph.inputs[:] = list(made.values())
    used = {value.name for node in graph for value in node.inputs if value is not None}
    for name in [name for name in graph.initializers if name not in used]:
        graph.initializers.pop(name)
    out.write_bytes(ir.to_proto(model).SerializeToString())
    return {name: int(name[1:]) for name in made}
