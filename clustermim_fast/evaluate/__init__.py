"""Frozen-feature evaluation: kNN and a linear probe, always beside random initialisation and raw
pixels, and attentive probes on tokens."""

from .attention import STATISTICS, AttentionStatistics, attention_statistics
from .attentive import AttentiveSettings, attentive
from .features import encoder_features, pixel_features
from .finetune import FinetuneSettings, finetune
from .finetune_training import FinetuneTraining
from .frequency import BlockFrequencies, block_frequencies, log_amplitude
from .intervals import accuracy_interval
from .knn import KNNPredictions, knn_predict
from .linear import LinearPredictions, linear_predict
from .pooling_maps import PoolingMaps
from .poolings import AbMILP, AbMILPSettings
from .probe import ProbeTraining
from .protocol import FeatureOptions, knn, linear
from .rows import Labelled, Subject, feature_rows, weights_fingerprint
from .segmentation import class_iou, confusion, pixel_patches, segment
from .shots import shots_label
from .table import ROW_NAMES, format_table, protocol_lines, row_name
from .tokens import TokenSource
from .unlabeled import nearest_neighbours, rankme

__all__ = [
    "ROW_NAMES",
    "STATISTICS",
    "AbMILP",
    "AbMILPSettings",
    "AttentionStatistics",
    "AttentiveSettings",
    "BlockFrequencies",
    "FeatureOptions",
    "FinetuneSettings",
    "FinetuneTraining",
    "KNNPredictions",
    "Labelled",
    "LinearPredictions",
    "PoolingMaps",
    "ProbeTraining",
    "Subject",
    "TokenSource",
    "accuracy_interval",
    "attention_statistics",
    "attentive",
    "block_frequencies",
    "class_iou",
    "confusion",
    "encoder_features",
    "feature_rows",
    "finetune",
    "format_table",
    "knn",
    "knn_predict",
    "linear",
    "linear_predict",
    "log_amplitude",
    "nearest_neighbours",
    "pixel_features",
    "pixel_patches",
    "protocol_lines",
    "rankme",
    "row_name",
    "segment",
    "shots_label",
    "weights_fingerprint",
]
