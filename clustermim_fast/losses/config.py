"""Options of the losses."""

from __future__ import annotations

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
    """

    label_smoothing: float = 0.0
    norm_pix_loss: bool | None = None
    token_weight: float = 1.0
    pixel_weight: float = 1.0
    token_patches: str = "corrupted"
    pixel_patches: str = "corrupted"

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        for name in ("token_weight", "pixel_weight"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"loss.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("token_patches", "pixel_patches"):
            if getattr(self, name) not in PATCHES:
                names = ", ".join(f'"{value}"' for value in PATCHES)
                raise ValueError(f"loss.{name} must be one of {names}, got {getattr(self, name)!r}")
