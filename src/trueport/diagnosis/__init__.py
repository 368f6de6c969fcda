"""Why a module does not export: lines, dimensions, classes and patches, each with its mend."""

from trueport.diagnosis.diagnose import Diagnosis, diagnose
from trueport.diagnosis.examine import Examination, Finding, examine

__all__ = ["Diagnosis", "Examination", "Finding", "diagnose", "examine"]
