"""Images: folders and built-in sets, evaluation views, training crops."""

from clustermim_fast.data.augment import CropParams, crop_params
from clustermim_fast.data.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from clustermim_fast.data.decode import decode_image
from clustermim_fast.data.headers import all_labels, native_size
from clustermim_fast.data.images import ImageSet, open_images
from clustermim_fast.data.masks import MaskedImages, open_masked_images

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CropParams",
    "DataConfig",
    "ImageSet",
    "MaskedImages",
    "all_labels",
    "crop_params",
    "decode_image",
    "native_size",
    "open_images",
    "open_masked_images",
]
