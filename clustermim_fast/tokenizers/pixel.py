"""Pixel tokenizer: a patch's token is the id of the nearest pixel centroid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clustermim_fast import ops
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers import (
    centroid_files,
    pixel_data,
    pixel_pictures,
    storage,
    token_fit,
)
from clustermim_fast.tokenizers.base import Codebook
from clustermim_fast.tokenizers.image_rows import PatchSettings
from clustermim_fast.tokenizers.kmeans_minibatch import STARVED
from clustermim_fast.tokenizers.kmeans_report import KMeansReport
from clustermim_fast.tokenizers.pixel_data import FitOptions
from clustermim_fast.tokenizers.pixel_settings import (
    check_channels,
    check_settings,
    read_settings,
    require_count,
)


class PixelTokenizer(Codebook):
    """Images to ids of their patches' nearest centroids, exact.

    Make one with :meth:`fit`, :meth:`from_centroids` or :func:`load_tokenizer`. Not a Module: its
    centroids are never parameters of a model.

    Attributes:
        centroids: [K, D] float32, D = patch_size^2 * C, values after mean/std (and per_patch_norm).
        settings: :class:`PatchSettings`: patch_size, mean, std, per_patch_norm, patch_order.
        metric: "euclidean" or "cosine".
        report: :class:`KMeansReport` of the fit, None for given centroids.
    """

    kind = "pixel"

    def __init__(
        self,
        centroids: torch.Tensor,
        settings: PatchSettings,
        *,
        metric: str = "euclidean",
        report: KMeansReport | None = None,
    ) -> None:
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric must be 'euclidean' or 'cosine', got {metric!r}")
        check_settings(settings)
        if centroids.dim() != 2 or 0 in centroids.shape:
            expected = "of shape [K, D], K >= 1"
            raise ValueError(f"centroids must be {expected}, got {tuple(centroids.shape)}")
        if not bool(torch.isfinite(centroids).all()):
            raise ValueError("centroids contain NaN or infinity; such a centroid would never win")
        area = settings.patch_size**2
        if centroids.shape[1] % area:
            raise ValueError(
                f"centroids have D = {centroids.shape[1]} values, which is not C * {area} for "
                f"patch_size = {settings.patch_size}; give the patch_size they were fitted with"
            )
        self.num_channels = centroids.shape[1] // area
        check_channels(settings, self.num_channels)
        self.centroids = centroids.detach().to(torch.float32).contiguous()
        self.settings = settings
        self.metric = metric
        self.report = report

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return self.settings.patch_size

    @property
    def patch_order(self) -> str:
        """ "hwc" or "chw"."""
        return self.settings.patch_order

    @property
    def per_patch_norm(self) -> bool:
        """Whether each patch is normalised by its own mean and variance."""
        return self.settings.per_patch_norm

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Subtracted from pixels in [0, 1], one value a channel, or None."""
        return self.settings.mean

    @property
    def std(self) -> tuple[float, ...] | None:
        """Divides pixels after ``mean``, one value a channel, or None."""
        return self.settings.std

    @classmethod
    def fit(
        cls,
        images_or_loader: torch.Tensor | Iterable[Any],
        num_clusters: int,
        patch_size: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        per_patch_norm: bool = False,
        patch_order: str = "hwc",
        metric: str = "euclidean",
        algorithm: str = "minibatch",
        max_iter: int | None = None,
        tol: float = 1e-4,
        init: str = "k-means++",
        batch_size: int | None = None,
        reassignment_ratio: float = STARVED,
        seed: int = 0,
        verbose: bool = False,
        device: torch.device | str | None = None,
    ) -> PixelTokenizer:
        """Cluster all patches of the images. Peak memory: the images + 64 MiB (+ a few [K, D]).

        Inside ``torch.distributed`` (``torchrun``) every rank calls it with its own images or
        loader and the same settings, and gets the same tokenizer. For uint8 images it is, bit for
        bit, the one that a single process would find in rank 0's images followed by rank 1's and
        so on (loaders: in batches that join those of all ranks); for float images it is that up to
        the rounding of float64 sums.

        Args:
            images_or_loader: un-normalised images, uint8 0..255 or floating 0..1: a tensor
                [N, C, H, W], or an iterable (a DataLoader) of batches [B, C, H, W] or of tuples
                that start with one. A tensor is read in a shuffled order. A loader should shuffle:
                its first centroids come from a sample of one whole pass (the same for any order of
                the images), but the order of its mini-batches is its own. It is passed over
                max_iter + 1 times, so a generator, which ends after one pass, is refused.
            num_clusters: K.
            patch_size: side of a patch, pixels.
            mean, std: normalisation to store and apply, one float a channel in [0, 1] pixel units.
            per_patch_norm: normalise each patch by its own mean and variance after that.
            patch_order: "hwc" = (row, column, channel), as MAE; "chw", as CCViT and F.unfold.
            metric: "euclidean", or "cosine" for spherical k-means.
            algorithm: "minibatch"; "lloyd" (every pass uses all patches; slower, better; CCViT's
                protocol is num_clusters=8192, patch_order="chw", init="random", max_iter=20, tol=0,
                no mean and std); or "clustermim", that paper's protocol: batches of 256 images of
                14 x 14 patches, each a MiniBatchKMeans.partial_fit of scikit-learn, for 100 passes,
                the first centroids by k-means++ from the first batch - but from shuffled images:
                the published script read a folder class by class, and so seeded all centroids from
                one class.
            max_iter: passes over the images; None: 10 for "minibatch", 50 for "lloyd", 100 for
                "clustermim".
            tol: "lloyd" stops when the squared shift of all centroids is at most tol times the
                mean variance of the values.
            init: "k-means++" or "random", on a sample of patches from all images ("clustermim": of
                the first batch).
            batch_size: images of a mini-batch of a tensor (of all ranks together); None: about
                50,000 patches.
            reassignment_ratio: centroids with fewer patches than this share of the mean number
                ("clustermim": of the largest) go to random ones; not of "lloyd".
            seed: same seed, same centroids, bit for bit, for any number of threads.
            verbose: show a progress bar (rank 0).
            device: where batches are moved to; None: where they are.

        Raises:
            ValueError: normalised or NaN images, fewer patches than clusters, bad settings.
            TypeError: not images.
        """

        def read() -> tuple[PatchSettings, FitOptions, torch.device | None]:
            settings = read_settings(patch_size, mean, std, per_patch_norm, patch_order)
            check_settings(settings)
            count = require_count("num_clusters", num_clusters)
            options = FitOptions(
                count, metric, algorithm, max_iter, tol, init, batch_size, seed, verbose,
                reassignment_ratio,
            )  # fmt: skip
            return settings, options, None if device is None else torch.device(device)

        settings, options, place = everyone().agree(read)
        centers, report = token_fit.fit(
            lambda checked: pixel_data.open_data(images_or_loader, settings, checked, place),
            settings,
            options,
            cls.kind,
        )
        return cls(centers.float(), settings, metric=metric, report=report)

    @classmethod
    def from_centroids(
        cls,
        array: Any,
        patch_size: int,
        *,
        patch_order: str = "hwc",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        per_patch_norm: bool = False,
        metric: str = "euclidean",
    ) -> PixelTokenizer:
        """A tokenizer from centroids made elsewhere.

        Args:
            array: [K, D] array or tensor (scikit-learn's ``cluster_centers_``, a faiss array),
                or a path to a .npy (CCViT) or .pth (ClusterMIM) file of one. Nothing is unpickled
                but plain tensors and arrays.
            patch_size, patch_order, mean, std, per_patch_norm, metric: what they were fitted with;
                CCViT's are "chw" on pixels in [0, 1] with no mean and std, ClusterMIM's "hwc" with
                ImageNet's.
        """
        centroids = centroid_files.as_centroids(array)
        settings = read_settings(patch_size, mean, std, per_patch_norm, patch_order)
        return cls(centroids, settings, metric=metric)

    def __call__(self, images: torch.Tensor, normalized: bool = False) -> torch.Tensor:
        """Token ids.

        Args:
            images: [B, C, H, W], uint8 0..255 or floating 0..1; H, W multiples of patch_size.
            normalized: the caller has already applied this tokenizer's mean and std.

        Returns:
            int64 [B, L], L row-major; -1 for a patch with NaN or Inf.
        """
        if normalized and images.dtype == torch.uint8:
            raise ValueError("normalized=True with uint8 images; uint8 pixels are never normalised")
        return ops.patch_tokens(
            images,
            self.centroids,
            self.patch_size,
            mean=None if normalized else self.mean,
            std=None if normalized else self.std,
            per_patch_norm=self.per_patch_norm,
            patch_order=self.patch_order,
            metric=self.metric,
        )

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """What is compared with the centroids: float32 rows [B * L, D]."""
        return self.settings.rows(images)

    def centroid_images(self) -> torch.Tensor:
        """Centroids un-normalised: float32 [K, C, p, p] in [0, 1]; see ``pixel_pictures``."""
        return pixel_pictures.centroid_pictures(
            self.centroids, self.settings, self.num_channels, scale_free=self.metric == "cosine"
        )

    def to(self, device: torch.device | str) -> PixelTokenizer:
        """The same tokenizer with its centroids on ``device`` (in place, as a Module's)."""
        self.centroids = self.centroids.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """Every setting, by name."""
        return {**asdict(self.settings), "metric": self.metric}

    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over the centroids and every setting that changes ids."""
        meaning = {**self.describe(), "kind": self.kind}
        digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.centroids.cpu().numpy(), dtype="<f4").tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """One safetensors file with all settings and the report in its metadata."""
        settings = {
            **self.describe(),
            "report": None if self.report is None else self.report.as_dict(),
        }
        storage.write(path, self.kind, {"centroids": self.centroids}, settings)

    @classmethod
    def from_storage(
        cls, tensors: dict[str, torch.Tensor], settings: dict[str, Any]
    ) -> PixelTokenizer:
        """From what :func:`storage.read` gives."""
        report = settings.pop("report", None)
        metric = settings.pop("metric")
        for name in ("mean", "std"):
            settings[name] = None if settings[name] is None else tuple(settings[name])
        return cls(
            tensors["centroids"],
            PatchSettings(**settings),
            metric=metric,
            report=None if report is None else KMeansReport.from_dict(report),
        )

    def __repr__(self) -> str:
        return (
            f"PixelTokenizer(num_clusters={self.num_clusters}, patch_size={self.patch_size}, "
            f"metric={self.metric!r}, settings={self.settings})"
        )
