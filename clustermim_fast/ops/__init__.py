"""The ops: exact nearest-centroid assignment and masked token cross-entropy."""

from clustermim_fast.ops._backend import use_backend
from clustermim_fast.ops._self_checks import warmup
from clustermim_fast.ops._stats import AssignmentStats, assignment_stats, record_stats
from clustermim_fast.ops.lloyd_step import lloyd_step, lloyd_step_images
from clustermim_fast.ops.masked_cross_entropy import masked_cross_entropy
from clustermim_fast.ops.masked_linear_cross_entropy import Metrics, masked_linear_cross_entropy
from clustermim_fast.ops.nearest_centroid import nearest_centroid
from clustermim_fast.ops.patch_tokens import patch_tokens
from clustermim_fast.ops.replace_patches import replace_patches
from clustermim_fast.ops.resized_crop import resized_crop

__all__ = [
    "AssignmentStats",
    "Metrics",
    "assignment_stats",
    "lloyd_step",
    "lloyd_step_images",
    "masked_cross_entropy",
    "masked_linear_cross_entropy",
    "nearest_centroid",
    "patch_tokens",
    "record_stats",
    "replace_patches",
    "resized_crop",
    "use_backend",
    "warmup",
]
