"""What is wrong with the masks of an ONNX graph, found without its model."""

from __future__ import annotations

from trueport.graphs.audit.report import Finding, Report
from trueport.graphs.audit.run import audit

__all__ = ["Finding", "Report", "audit"]
