"""The report of a run: one offline page that shows what was learned."""

from .figures import codebook_picture
from .page import write_report
from .view import RunView

__all__ = ["RunView", "codebook_picture", "write_report"]
