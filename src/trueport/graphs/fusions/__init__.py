"""Fusions: several operators of a graph as one of ONNX Runtime's."""

from trueport.graphs.fusions.fit import Optimized, fit
from trueport.graphs.fusions.table import CACHES, FUSIONS, Applied, Fusion, fusions_for

__all__ = ["CACHES", "FUSIONS", "Applied", "Fusion", "Optimized", "fit", "fusions_for"]
