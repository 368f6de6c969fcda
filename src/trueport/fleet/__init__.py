"""Many models: each exported and proven in a process of its own, here or on a Ray cluster, from one plan."""

from trueport.fleet.plan import Entry, Plan, read_plan
from trueport.fleet.run import Summary, run

__all__ = ["Entry", "Plan", "Summary", "read_plan", "run"]
