"""Feature tokenizer: a patch's token is the id of the centroid nearest to its features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clustermim_fast import ops
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers import centroid_files, feature_fit, storage, token_fit
from clustermim_fast.tokenizers.base import Codebook
from clustermim_fast.tokenizers.feature_network import FeatureNetwork, NetworkSettings
from clustermim_fast.tokenizers.kmeans_minibatch import STARVED
from clustermim_fast.tokenizers.kmeans_report import KMeansReport
from clustermim_fast.tokenizers.pixel_data import FitOptions
from clustermim_fast.tokenizers.pixel_settings import require_choice, require_count

METRICS = ("euclidean", "cosine", "dot")
NETWORK = "network."


class FeatureTokenizer(Codebook):
    """Images to ids of the centroids nearest to a frozen network's patch features.

    Make one with :meth:`fit`, :meth:`from_centroids` or :func:`load_tokenizer`. Not a Module: the
    network is never a part of the model that is trained, and no model's initialisation touches it.

    The ids are exact for the features that the network gives; these depend, in their last bits, on
    the device, the number of threads and the batch, as every forward pass of torch does.

    Attributes:
        network: :class:`FeatureNetwork`.
        centroids: [K, D] float32.
        metric: "euclidean", "cosine" or "dot".
        pictures: uint8 [K, 3, p, p], of each centroid the patch of the fit that is nearest to it;
            None until :meth:`look_at` was called, for given centroids.
        report: :class:`KMeansReport` of the fit, None for given centroids.
    """

    kind = "feature"

    def __init__(
        self,
        network: FeatureNetwork,
        centroids: Tensor,
        *,
        patch_size: int | None = None,
        metric: str = "euclidean",
        pictures: Tensor | None = None,
        report: KMeansReport | None = None,
    ) -> None:
        require_choice("metric", metric, METRICS)
        if centroids.dim() != 2 or len(centroids) == 0 or centroids.shape[1] != network.dim:
            raise ValueError(
                f"centroids must be of shape [K, {network.dim}], the width of layer "
                f"{network.settings.layer} of {network.settings.architecture}, got "
                f"{tuple(centroids.shape)}"
            )
        if not bool(torch.isfinite(centroids).all()):
            raise ValueError("centroids contain NaN or infinity; such a centroid would never win")
        self.network = network
        self.centroids = centroids.detach().to(torch.float32).contiguous()
        self._patch_size = require_count(
            "patch_size", network.stride if patch_size is None else patch_size
        )
        self.metric, self.pictures, self.report = metric, pictures, report

    @property
    def patch_size(self) -> int:
        """Pixels of an image that a token stands for, on each side."""
        return self._patch_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the network's input, one value a channel in [0, 1] pixel units."""
        return self.network.settings.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Divides pixels after ``mean``."""
        return self.network.settings.std

    @classmethod
    def fit(
        cls,
        images_or_loader: Tensor | Iterable[Any],
        num_clusters: int,
        model: str = "vit_small_patch16_224.dino",
        *,
        weights: str | Path | None = None,
        model_options: dict[str, Any] | None = None,
        layer: int = -1,
        apply_norm: bool = True,
        patch_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        precision: str = "float32",
        metric: str = "euclidean",
        algorithm: str = "minibatch",
        max_iter: int | None = None,
        tol: float = 1e-4,
        init: str = "k-means++",
        batch_size: int | None = None,
        reassignment_ratio: float = STARVED,
        keep_features: bool = False,
        seed: int = 0,
        verbose: bool = False,
        device: torch.device | str | None = None,
    ) -> FeatureTokenizer:
        """Cluster the patch features of the images; prefix tokens ([cls], registers) are left out.

        The network runs again in every pass over the images, and no more than a batch of features
        is held: max_iter + 2 passes, the last of which looks for each centroid's nearest patch.

        Args:
            images_or_loader, num_clusters, algorithm, max_iter, tol, init, reassignment_ratio,
                seed, verbose: as in :meth:`PixelTokenizer.fit`. ClusterMIM's released script is
                num_clusters=100, algorithm="clustermim" on features after the last block; its code
                reads the images class by class, ours does not.
            model: a timm name, whose tag says which weights timm fetches; or a folder: a run, its
                export/, or any with timm's config.json and model.safetensors.
            weights: a checkpoint file in place of timm's: safetensors, or .pth of tensors (never
                unpickled further), in timm's names or in those of a codebase that timm converts
                (DINO, DeiT, MAE, BEiT, ...). One that lacks a tensor is refused.
            model_options: timm's keyword arguments (img_size, ...). ViTs take any size as they are.
            layer: which of timm's intermediate features: block of a ViT, stage of a CNN; -1 is the
                last.
            apply_norm: pass them through the final norm. A model that norms after pooling has none.
            patch_size: pixels of an image a token; None: the network's stride. Another one resizes
                the images for the network, so that any network gives tokens for any grid.
            mean, std: of the network's input; None: those that timm knows for ``model`` (by its
                tag: vit_small_patch16_224.dino has ImageNet's, vit_small_patch16_224 has 0.5).
            precision: "float32", or "bfloat16": the network runs under autocast.
            metric: "euclidean"; "cosine", both sides normalised (spherical k-means); or "dot":
                fitted as "euclidean", assigned by the largest dot product, which is what
                ClusterMIM's ``token_normalize`` computes (it normalises the features only).
            batch_size: images of a batch of a tensor; None: 128.
            keep_features: hold all features, 4 bytes a value, and run the network twice in all.
            device: of the network; None: the CPU.

        Raises:
            ValueError: weights that do not fit, no such layer, images as in PixelTokenizer.fit.
        """

        def read() -> tuple[FeatureNetwork, FitOptions]:
            count = require_count("num_clusters", num_clusters)
            require_choice("metric", metric, METRICS)
            fitted = "euclidean" if metric == "dot" else metric
            options = FitOptions(
                count, fitted, algorithm, max_iter, tol, init, batch_size, seed, verbose,
                reassignment_ratio,
            )  # fmt: skip
            network = FeatureNetwork.open(
                model,
                weights=weights,
                model_options=model_options,
                layer=layer,
                apply_norm=apply_norm,
                mean=mean,
                std=std,
                precision=precision,
            )
            return network.to(device or "cpu"), options

        network, options = everyone().agree(read)
        empty = torch.zeros(1, network.dim, device=network.device)
        tokenizer = cls(network, empty, patch_size=patch_size, metric=metric)
        open_rows = feature_fit.rows_opener(tokenizer, options.metric)
        centers, tokenizer.report = token_fit.fit(
            lambda checked: feature_fit.open_loader(
                images_or_loader, open_rows, checked, network.device, keep_features
            ),
            (network.settings, tokenizer.patch_size, metric),
            options,
            cls.kind,
        )
        tokenizer.centroids = centers.float()
        tokenizer.look_at(images_or_loader, batch_size).note(tokenizer.report)
        return tokenizer

    @classmethod
    def from_centroids(
        cls,
        array: Any,
        model: str = "vit_small_patch16_224.dino",
        *,
        patch_size: int | None = None,
        metric: str = "euclidean",
        **network: Any,
    ) -> FeatureTokenizer:
        """A tokenizer from centroids made elsewhere: [K, D], or a .pth (ClusterMIM) or .npy file.

        ``network``: weights, model_options, layer, apply_norm, mean, std, precision as in
        :meth:`fit`. The centroids have no pictures until :meth:`look_at` is called.
        """
        opened = FeatureNetwork.open(model, **network)
        centroids = centroid_files.as_centroids(array)
        return cls(opened, centroids, patch_size=patch_size, metric=metric)

    def features(self, images: Tensor, normalized: bool = False) -> Tensor:
        """What is compared with the centroids: [B, rows, columns, D]."""
        grid = self.grid_size(*images.shape[-2:])
        return self.network.features(images, grid, normalized=normalized)

    def vectors(self, images: Tensor) -> Tensor:
        """The same as float32 rows [B * L, D]."""
        return self.features(images).flatten(0, 2).float()

    def __call__(self, images: Tensor, normalized: bool = False) -> Tensor:
        """Token ids int64 [B, L] of images [B, C, H, W], uint8 0..255 or floating 0..1.

        ``normalized``: this tokenizer's mean and std are already applied.
        """
        return self.assign(self.features(images, normalized))

    def assign(self, features: Tensor) -> Tensor:
        """Ids [B, L] of :meth:`features` [B, rows, columns, D]."""
        return ops.nearest_centroid(features.flatten(1, 2), self.centroids, metric=self.metric)

    def vectors_key(self) -> str:
        """Of the network and the size of its images."""
        return f"{self.network.fingerprint()} {self.patch_size}"

    def look_at(
        self, images_or_loader: Tensor | Iterable[Any], batch_size: int | None = None
    ) -> feature_fit.Seen:
        """Find each centroid's nearest patch in these images, for :meth:`decode` and pictures."""
        metric = "euclidean" if self.metric == "dot" else self.metric
        open_rows = feature_fit.rows_opener(self, metric)
        loader = feature_fit.as_loader(images_or_loader, batch_size)
        seen = feature_fit.look(loader, open_rows, self.centroids, metric)
        self.pictures = seen.pictures
        return seen

    def centroid_images(self) -> Tensor:
        """Each centroid's nearest patch: float32 [K, 3, p, p] in [0, 1]."""
        if self.pictures is None:
            raise ValueError("decode: given centroids have no pictures; call look_at(images) once")
        return self.pictures.float() / 255

    def to(self, device: torch.device | str) -> FeatureTokenizer:
        """The same tokenizer with network and centroids on ``device`` (in place)."""
        self.network.to(device)
        self.centroids = self.centroids.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """Every setting, by name."""
        return {**asdict(self.network.settings), "metric": self.metric}

    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over network, centroids and every setting that changes ids."""
        meaning = f"{self.kind} {self.vectors_key()} {self.metric}"
        digest = hashlib.sha256(meaning.encode())
        digest.update(self.centroids.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """One safetensors file: centroids, pictures, the network's weights up to the layer."""
        tensors = {NETWORK + name: value for name, value in self.network.state().items()}
        tensors["centroids"] = self.centroids
        if self.pictures is not None:
            tensors["pictures"] = self.pictures
        settings = {
            "network": asdict(self.network.settings),
            "patch_size": self.patch_size,
            "metric": self.metric,
            "report": None if self.report is None else self.report.as_dict(),
        }
        storage.write(path, self.kind, tensors, settings)

    @classmethod
    def from_storage(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> FeatureTokenizer:
        """From what :func:`storage.read` gives."""
        values = settings["network"]
        pairs = {name: tuple(values[name]) for name in ("mean", "std")}
        state = {k.removeprefix(NETWORK): v for k, v in tensors.items() if k.startswith(NETWORK)}
        report = settings["report"]
        return cls(
            FeatureNetwork.from_state(NetworkSettings(**{**values, **pairs}), state),
            tensors["centroids"],
            patch_size=settings["patch_size"],
            metric=settings["metric"],
            pictures=tensors.get("pictures"),
            report=None if report is None else KMeansReport.from_dict(report),
        )

    def __repr__(self) -> str:
        return (
            f"FeatureTokenizer(num_clusters={self.num_clusters}, patch_size={self.patch_size}, "
            f"metric={self.metric!r}, network={self.network.settings})"
        )
