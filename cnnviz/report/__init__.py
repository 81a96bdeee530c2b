"""Pages: what every technique sees in a photograph, and how techniques compare over many."""

from .evaluation import evaluation_folder, save_evaluation
from .map import save_map
from .page import Failure, Report, Section, make_report

__all__ = ["Failure", "Report", "Section", "evaluation_folder", "make_report", "save_evaluation", "save_map"]
