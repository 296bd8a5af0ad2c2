"""Options of the losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

PATCHES = ("corrupted", "masked", "all")


@dataclass(frozen=True)
class LossConfig:
    """Options of the losses.

    Attributes:
        label_smoothing: of the token loss (methods: 0, or 0.1).
        norm_pix_loss: the pixel loss normalises each target patch by its own mean and deviation;
            None: as the method does (ccvit does, mae does not).
        token_weight, pixel_weight: of the two losses of ccvit.
        token_patches, pixel_patches: which patches the losses of ccvit cover: "corrupted" (hidden
            or shown as a centroid), "masked" (hidden) or "all".
        spatial: of a2mim, "l1" or "focal_l1", |d| (2 sigmoid(spatial_alpha |d|) - 1)^spatial_gamma;
            None: focal_l1 on convolutional networks.
        fourier_weight: of a2mim's spectral term; None: 0.1, 0.5 on ResNet-50 and smaller, 0 on
            ResNet-200 and ConvNeXt.
        fourier_focal: weight each frequency by its distance ^ fourier_alpha, its logarithm with
            fourier_log, over the largest of the image and channel, of the batch with
            fourier_batch_max; None: yes, but on ResNet-101 and -152.
        fourier_batch_mean: compare only the mean spectrum of the batch, as released.
        fourier_unmasked_weight: of the visible pixels of the prediction; None: 0.001 on ResNet, 0.
        fourier_unmasked: what stands there for the rest: "target", "prediction" (detached), "mixed"
            (half of each) or "mean" (the image's mean colour).
    """

    label_smoothing: float = 0.0
    norm_pix_loss: bool | None = None
    token_weight: float = 1.0
    pixel_weight: float = 1.0
    token_patches: str = "corrupted"
    pixel_patches: str = "corrupted"
    spatial: str | None = None
    spatial_alpha: float = 0.2
    spatial_gamma: float = 1.0
    fourier_weight: float | None = None
    fourier_focal: bool | None = None
    fourier_alpha: float = 1.0
    fourier_log: bool = True
    fourier_batch_max: bool = False
    fourier_batch_mean: bool = False
    fourier_unmasked_weight: float | None = None
    fourier_unmasked: str = "mixed"

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in (
            "token_weight", "pixel_weight", "spatial_alpha", "spatial_gamma", "fourier_weight",
            "fourier_alpha", "fourier_unmasked_weight",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise ValueError(f"loss.{name} must be at least 0 and finite, got {value}")
        for name, known in (
            ("token_patches", PATCHES),
            ("pixel_patches", PATCHES),
            ("spatial", (None, "l1", "focal_l1")),
            ("fourier_unmasked", ("target", "prediction", "mixed", "mean")),
        ):
            if getattr(self, name) not in known:
                names = ", ".join(f'"{value}"' for value in known if value is not None)
                raise ValueError(f"loss.{name} must be one of {names}, got {getattr(self, name)!r}")
