"""The driver as functions: pretrain, fit a tokenizer, evaluate, report, compare, export."""

from .caching import cache_images, verify_cache
from .choosing import rank_tokenizers, tcas_of_tokenizers
from .comparing import compare_runs
from .evaluating import evaluate_run
from .exporting import export_run
from .looking import evaluate_attention, evaluate_unlabeled
from .pretraining import fit_tokenizer, pretrain, starting_config
from .reporting import report_run, show_tokenizer
from .segmenting import evaluate_segmentation

__all__ = [
    "cache_images",
    "compare_runs",
    "evaluate_attention",
    "evaluate_run",
    "evaluate_segmentation",
    "evaluate_unlabeled",
    "export_run",
    "fit_tokenizer",
    "pretrain",
    "rank_tokenizers",
    "report_run",
    "show_tokenizer",
    "starting_config",
    "tcas_of_tokenizers",
    "verify_cache",
]
