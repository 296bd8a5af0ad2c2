"""The report of a run: one offline page that shows what was learned."""

from .page import write_report
from .view import RunView

__all__ = ["RunView", "write_report"]
