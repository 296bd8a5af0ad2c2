"""The report of a run: one offline page that shows what was learned."""

from .choice import Scored, ranking_picture, ranking_table
from .figures import codebook_picture, token_map_picture
from .page import write_report
from .view import RunView

__all__ = [
    "RunView",
    "Scored",
    "codebook_picture",
    "ranking_picture",
    "ranking_table",
    "token_map_picture",
    "write_report",
]
