"""Where a node of a graph comes from: the path of its module, as torch notes it and as Trueport keeps it."""

from __future__ import annotations

import ast

MODULE_KEY = "trueport.module"
"""Metadata key of a node's module path; all else that torch notes holds paths of this machine."""


def module_path(scopes: str) -> str:
    """The innermost module of torch's list of scopes, whose last entry is the operation itself."""
    names = ast.literal_eval(scopes) if scopes.startswith("[") else []
    path = names[-2] if len(names) > 1 else ""
    return path.removeprefix("inner.").removeprefix("model.") if path.startswith("inner.") else ""
