"""The report of a run, and several runs compared: offline pages that show what was learned."""

from .choice import Scored, ranking_picture, ranking_table
from .comparison import write_comparison
from .crops import crop_sheet
from .features import attention_chart, attention_maps, frequency_chart, neighbour_sheet
from .figures import codebook_picture, token_map_picture
from .page import LIVE, write_report
from .painting import paint_epoch
from .results import ComparedRun, evaluation_title
from .view import RunView

__all__ = [
    "LIVE",
    "ComparedRun",
    "RunView",
    "Scored",
    "attention_chart",
    "attention_maps",
    "codebook_picture",
    "crop_sheet",
    "evaluation_title",
    "frequency_chart",
    "neighbour_sheet",
    "paint_epoch",
    "ranking_picture",
    "ranking_table",
    "token_map_picture",
    "write_comparison",
    "write_report",
]
