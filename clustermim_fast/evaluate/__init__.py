"""Frozen-feature evaluation: kNN and a linear probe, always beside random initialisation and raw
pixels."""

from .features import encoder_features, pixel_features
from .knn import KNNPredictions, knn_predict
from .linear import LinearPredictions, linear_predict
from .protocol import FeatureOptions, knn, linear
from .rows import Labelled, Subject, feature_rows
from .table import format_table

__all__ = [
    "FeatureOptions",
    "KNNPredictions",
    "Labelled",
    "LinearPredictions",
    "Subject",
    "encoder_features",
    "feature_rows",
    "format_table",
    "knn",
    "knn_predict",
    "linear",
    "linear_predict",
    "pixel_features",
]
