"""Where an artefact leaves its original: the first operation whose result differs beyond the noise floor."""

from trueport.diagnosis.divergence.against import Comparison, Divergence, diagnose_against

__all__ = ["Comparison", "Divergence", "diagnose_against"]
