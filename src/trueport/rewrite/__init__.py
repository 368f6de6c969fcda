"""Control flow that depends on a tensor's value, found by running and rewritten to cond, while_loop and scan."""

from trueport.rewrite.apply import Rewrite, find, rewritten

__all__ = ["Rewrite", "find", "rewritten"]
