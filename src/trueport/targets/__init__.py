"""The runtimes that Trueport exports to."""
