"""``python -m trueport``, and the command ``trueport``."""

import gc
import os
import signal
import sys

SEED = "PYTHONHASHSEED"


def start() -> None:
    """Run the command, in a process whose sets have one order.

    Models walk over sets of names, and torch over sets of symbols: what is computed first, and so the bytes of a graph,
    would hang on Python's random hashes. Who sets the seed keeps it.
    """
    _check_stand()
    if SEED not in os.environ and sys.flags.hash_randomization and os.name == "posix" and sys.executable:
        os.environ[SEED] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from trueport.cli import main

    try:
        main()
    except KeyboardInterrupt:  # pressed again, while the first was answered
        sys.exit(130)
    finally:
        gc.freeze()  # as it ends, Python searches all that torch and transformers made, for seconds beside other work
        # Python shows a traceback where Ctrl-C meets what tidies up behind this: from here on it just ends.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _check_stand() -> None:
    """Refuse to begin where libraries would end the process in words of their own."""
    try:
        os.getcwd()
    except FileNotFoundError:
        print(
            "trueport: The folder that this shell stands in is gone. Enter another, or with `cd .` the one in its place.",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    start()
