"""Weights as byte ranges of a checkpoint's files: found without reading them, and carried into an artefact."""
