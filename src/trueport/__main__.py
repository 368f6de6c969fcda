"""``python -m trueport``."""

from trueport.cli import main

main()
