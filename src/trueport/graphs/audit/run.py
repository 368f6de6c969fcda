"""The audit of one file: load it as a stranger's, look at it once, ask every rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trueport.errors import TrueportError
from trueport.graphs.audit.report import SEVERITIES, Report
from trueport.graphs.loading import GraphError


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Whatever fails in here is the graph's fault: nodes without the inputs, or with other attributes, than they need.

    Raises:
        GraphError: in place of any error that has no message for users.
    """
    try:
        yield
    except (TrueportError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GraphError(f"{path.name} is not a valid ONNX graph ({reason})", "Check it with onnx.checker.") from error


def audit(path: str | Path) -> Report:
    """Find what is wrong with the masks of any ONNX graph, without its model.

    The file is not run; a config.json beside it, or one folder up, is read for its sliding window.

    Raises:
        GraphError: the file is not an ONNX graph, or does what none should (see ``trueport.graphs.loading``).
    """
    from trueport.graphs.audit.rule import place
    from trueport.graphs.audit.rules import RULES
    from trueport.graphs.audit.view import View

    with explained(Path(path)):
        view = View.open(Path(path))
        found = [finding for rule in RULES for finding in rule.check(rule, view)]
        known = {finding.node for finding in found if finding.severity == "error"}
        unjudged = sum(place(node) not in known for node in view.experiment.unknown)
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(Path(path).name, len(view.nodes), len(view.sites), tuple(dict.fromkeys(found)), unjudged)
