"""A report: one self-contained HTML page with a photograph, what the network says, and every technique's picture."""

from .page import Failure, Report, Section, make_report

__all__ = ["Failure", "Report", "Section", "make_report"]
