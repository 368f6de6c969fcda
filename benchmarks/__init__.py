"""Trueport beside its peers: export seconds and memory, decoding speed. ``python -m benchmarks --help``."""
