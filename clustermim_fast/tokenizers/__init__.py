"""K-means, and tokenizers made with it: images to cluster ids and back."""

from typing import TYPE_CHECKING, Any

from clustermim_fast.tokenizers.alignment import TokenStatistics, tcas, token_statistics
from clustermim_fast.tokenizers.base import Tokenizer
from clustermim_fast.tokenizers.counting import token_class_counts
from clustermim_fast.tokenizers.kmeans_report import Iteration, KMeansReport
from clustermim_fast.tokenizers.loading import load_tokenizer
from clustermim_fast.tokenizers.pixel import PixelTokenizer
from clustermim_fast.tokenizers.stability import Stability, token_stability

if TYPE_CHECKING:
    from clustermim_fast.tokenizers.feature import FeatureTokenizer
    from clustermim_fast.tokenizers.kmeans import KMeans

__all__ = [
    "FeatureTokenizer",
    "Iteration",
    "KMeans",
    "KMeansReport",
    "PixelTokenizer",
    "Stability",
    "TokenStatistics",
    "Tokenizer",
    "load_tokenizer",
    "tcas",
    "token_class_counts",
    "token_stability",
    "token_statistics",
]


def __getattr__(name: str) -> Any:
    if name == "KMeans":  # needs scikit-learn; the tokenizers do not
        from clustermim_fast.tokenizers.kmeans import KMeans

        return KMeans
    if name == "FeatureTokenizer":  # needs timm
        from clustermim_fast.tokenizers.feature import FeatureTokenizer

        return FeatureTokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
