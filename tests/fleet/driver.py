"""The command ``trueport``, with the fake worker in the place of the real one, as a process that tests may kill."""

from __future__ import annotations

import signal
from pathlib import Path

from trueport.cli import main
from trueport.fleet import run
from trueport.fleet.engines import ray

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test's worker process may ignore it
ray.LOOK, ray.LOST = 1.0, 4.0
run.__kwdefaults__.update(worker=(str(Path(__file__).with_name("fake_worker.py")),), backoff=0.01)
main()
