"""The errors that a user meets: each says what is wrong, where, and what to do."""

from __future__ import annotations


class TrueportError(Exception):
    """Something cannot be done (exit code 2).

    Args:
        problem: what is wrong and where, one sentence without a full stop at its end.
        remedy: what the user can do about it, one sentence; empty when there is nothing to do.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}. {remedy}" if remedy else problem)


class SourceError(TrueportError):
    """The model, its weights or its tokenizer cannot be had."""


class CaptureError(TrueportError):
    """torch.export could not capture the model."""


class SpecializationError(CaptureError):
    """A dimension that was to be dynamic became constant."""


class LoweringError(TrueportError):
    """The captured program has no form in the target."""


class ArtifactError(TrueportError):
    """A folder cannot be written, or is not what its manifest says."""


class RunError(TrueportError):
    """The artefact refuses these inputs."""


class ProofError(TrueportError):
    """The artefact is not the model that left (exit code 1)."""

    exit_code = 1


class RewriteError(CaptureError):
    """Control flow that depends on a tensor's values has no form in a graph."""


class StorageError(TrueportError):
    """A place for artefacts cannot be read or written; it may be another time."""


class Interruption(TrueportError):
    """Ctrl-C, in the words of a command that can say more than that."""

    exit_code = 130
