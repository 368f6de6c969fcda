"""``python -m trueport``, and the command ``trueport``."""

import os
import sys

SEED = "PYTHONHASHSEED"


def start() -> None:
    """Run the command, in a process whose sets have one order.

    Models walk over sets of names, and torch over sets of symbols: what is computed first, and so the bytes of a graph,
    would hang on Python's random hashes. Who sets the seed keeps it.
    """
    if SEED not in os.environ and sys.flags.hash_randomization and os.name == "posix" and sys.executable:
        os.environ[SEED] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from trueport.cli import main

    main()


if __name__ == "__main__":
    start()
