"""Frozen-feature evaluation: kNN and a linear probe, always beside random initialisation and raw
pixels, and attentive probes on tokens."""

from .attentive import AttentiveSettings, attentive
from .features import encoder_features, pixel_features
from .knn import KNNPredictions, knn_predict
from .linear import LinearPredictions, linear_predict
from .poolings import AbMILP, AbMILPSettings
from .probe import ProbeTraining
from .protocol import FeatureOptions, knn, linear
from .rows import Labelled, Subject, feature_rows
from .table import format_table, row_name

__all__ = [
    "AbMILP",
    "AbMILPSettings",
    "AttentiveSettings",
    "FeatureOptions",
    "KNNPredictions",
    "Labelled",
    "LinearPredictions",
    "ProbeTraining",
    "Subject",
    "attentive",
    "encoder_features",
    "feature_rows",
    "format_table",
    "knn",
    "knn_predict",
    "linear",
    "linear_predict",
    "pixel_features",
    "row_name",
]
