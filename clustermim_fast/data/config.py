"""What is read and how training crops are taken."""

from __future__ import annotations

from dataclasses import dataclass

# Means and deviations of ImageNet's training pixels in [0, 1], as timm and torchvision use them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataConfig:
    """The images of a run.

    Attributes:
        path: a folder of images (class sub-folders or flat, with or without train/ and test/), or
            the built-in set "digits".
        image_size: (height, width) of the training crops in pixels; None lets the recipe choose.
        normalize: "imagenet" takes ImageNet's mean and std, "data" measures this set's;
            ignored where `mean` and `std` are given.
        mean, std: per channel, in [0, 1] pixel units; resolved before a run starts.
        crop_scale: range of the crop's share of the image area (RandomResizedCrop).
        crop_ratio: range of the crop's width / height.
        flip: mirror half of the crops.
        eval_crop: share of the resized image that the evaluation view keeps; None: 0.875 from 160
            pixels up, as ImageNet's 256 / 224, and 1 below.
        holdout: share of a folder without test/ that split="test" takes (per class).
        repeats: crops taken of each image that is read (repeated augmentation): a batch holds
            batch_size / repeats images, an epoch `repeats` crops of each.
        in_memory: "auto" keeps a set below 2 GiB (uint8, at its stored size) in memory; "device":
            one of one image size in that of the device, where its crops are then made.
    """

    path: str = ""
    image_size: tuple[int, int] | None = None
    normalize: str = "imagenet"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    eval_crop: float | None = None
    holdout: float = 0.0
    repeats: int = 1
    in_memory: str = "auto"

    def __post_init__(self) -> None:
        if self.normalize not in ("imagenet", "data"):
            raise ValueError(f'data.normalize must be "imagenet" or "data", got {self.normalize!r}')
        if (self.mean is None) != (self.std is None):
            raise ValueError("data.mean and data.std must be given together")
        if self.std is not None and not all(value > 0.0 for value in self.std):
            raise ValueError(f"data.std must be above 0, got {self.std}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"data.image_size must be positive pixels, got {self.image_size}")
        if self.eval_crop is not None and not 0.0 < self.eval_crop <= 1.0:
            raise ValueError(f"data.eval_crop must be in (0, 1], got {self.eval_crop}")
        low, high = self.crop_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(
                f"data.crop_scale must be a range within (0, 1], got {self.crop_scale}"
            )
        low, high = self.crop_ratio
        if not 0.0 < low <= high:
            raise ValueError(f"data.crop_ratio must be a range above 0, got {self.crop_ratio}")
        if self.repeats < 1:
            raise ValueError(f"data.repeats must be at least 1, got {self.repeats}")
        if not 0.0 <= self.holdout < 1.0:
            raise ValueError(f"data.holdout must be in [0, 1), got {self.holdout}")
        if self.in_memory not in ("auto", "yes", "no", "device"):
            raise ValueError(
                f'data.in_memory must be "auto", "yes", "no" or "device", got {self.in_memory!r}'
            )
