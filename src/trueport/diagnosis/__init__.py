"""Why a module does not export: lines, dimensions, classes and patches, each with its mend."""

from trueport.diagnosis.diagnose import Diagnosis, diagnose
from trueport.diagnosis.divergence import Comparison, Divergence
from trueport.diagnosis.examine import Examination, Finding, examine

__all__ = ["Comparison", "Diagnosis", "Divergence", "Examination", "Finding", "diagnose", "examine"]
