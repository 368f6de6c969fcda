"""Equal layers, traced once: a shortened model is captured, and the layers that it lacks are stamped into its graph.

``stacks`` finds rows of layers that repeat, by their structure. ``trace`` runs the whole model once, on shapes, and holds
every repetition against the second one, operation by operation. ``shorten`` captures the model with three repetitions.
``match`` holds the second against the last in the graph, node by node. ``stamp`` puts copies between them. Wherever two
things that should be equal are not, the model goes the plain way: nothing is guessed.
"""

from __future__ import annotations

__all__ = ["RefusedError"]


class RefusedError(Exception):
    """The layers cannot be stamped; the message is the reason, a clause that goes on after "because"."""
