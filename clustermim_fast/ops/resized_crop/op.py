"""``resized_crop``: RandomResizedCrop's work for a batch whose boxes are drawn already."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clustermim_fast.ops import _backend, _checks
from clustermim_fast.ops._library import define_op
from clustermim_fast.ops.resized_crop.reference import resized_crop_reference

OP = "resized_crop"
IMPLEMENTED = ("reference", "cpu")
MOST_SCALE = 100


def _crop_into(
    out: torch.Tensor,
    images: Sequence[torch.Tensor],
    boxes: torch.Tensor,
    flip: torch.Tensor,
    threads: int | None = None,
) -> None:
    """The core's crops of CPU images, into a contiguous uint8 [B, C, H, W]."""
    images = [image.contiguous() for image in images]
    facts = [(image.data_ptr(), image.shape[1], image.shape[2]) for image in images]
    table = torch.tensor(facts, dtype=torch.int64).reshape(-1, 3).t().contiguous()
    boxes, flip = boxes.contiguous(), flip.contiguous()
    _backend.core().resized_crop(
        images=table[0].data_ptr(),
        heights=table[1].data_ptr(),
        widths=table[2].data_ptr(),
        boxes=boxes.data_ptr(),
        flip=flip.data_ptr(),
        out=out.data_ptr(),
        batch=len(images),
        channels=out.shape[1],
        out_height=out.shape[2],
        out_width=out.shape[3],
        threads=torch.get_num_threads() if threads is None else threads,
    )


def _crop_reference(
    images: Sequence[torch.Tensor], boxes: torch.Tensor, flip: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    _require_boxes(images, boxes, size)
    if len({image.shape for image in images}) == 1:
        return resized_crop_reference(torch.stack(list(images)), boxes, flip, size)
    rows = zip(images, boxes.split(1), flip.split(1), strict=True)
    crops = [
        resized_crop_reference(image[None], box, mirrored, size) for image, box, mirrored in rows
    ]
    return torch.cat(crops)


def _require_boxes(
    images: Sequence[torch.Tensor], boxes: torch.Tensor, size: tuple[int, int]
) -> None:
    """What the core refuses, in its words."""
    for index, (image, box) in enumerate(zip(images, boxes.tolist(), strict=True)):
        top, left, height, width = box
        inside = 0 <= top <= image.shape[1] - height and 0 <= left <= image.shape[2] - width
        if min(height, width) < 1 or not inside:
            raise ValueError(
                f"{OP}: box {index} (top {top}, left {left}, height {height}, width {width}) must "
                f"have pixels and lie inside its image of {image.shape[1]} x {image.shape[2]}"
            )
        if height > MOST_SCALE * size[0] or width > MOST_SCALE * size[1]:
            raise ValueError(
                f"{OP}: box {index} is more than {MOST_SCALE} times as large as the output; "
                "shrink in two steps"
            )


def _impl(
    images: list[torch.Tensor],
    boxes: torch.Tensor,
    flip: torch.Tensor,
    height: int,
    width: int,
    backend: str,
) -> torch.Tensor:
    if backend == "reference":
        return _crop_reference(images, boxes.cpu(), flip.cpu(), (height, width))
    out = images[0].new_empty((len(images), images[0].shape[0], height, width))
    _crop_into(out, images, boxes, flip)
    return out


def _fake(
    images: list[torch.Tensor],
    boxes: torch.Tensor,
    flip: torch.Tensor,
    height: int,
    width: int,
    backend: str,
) -> torch.Tensor:
    return images[0].new_empty((len(images), images[0].shape[0], height, width))


_op = define_op(
    "resized_crop(Tensor[] images, Tensor boxes, Tensor flip, int height, int width, str backend)"
    " -> Tensor",
    impl=_impl,
    fake=_fake,
)


def resized_crop(
    images: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    size: tuple[int, int],
    *,
    flip: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    threads: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Boxes of images, mirrored where asked, resized to one size.

    Antialiased bicubic, the same integers as torchvision's ``resized_crop(..., BICUBIC,
    antialias=True)`` of a uint8 tensor on a CPU with AVX2 (mirrored before it is resized), on every
    device and for any number of threads.

    Args:
        images: [B, C, h, w] uint8, or B of [C, h, w] of any sizes.
        boxes: [B, 4] int64 (top, left, height, width), pixels, inside of each image; on the CPU, as
            they are checked and the weights made there.
        size: (H, W) of the crops.
        flip: [B] bool, mirrored left to right; None: none.
        out: [B, C, H, W] uint8, contiguous, on the images' device, to write to; not under
            torch.compile.
        threads: of the CPU core where ``out`` is given; None: torch's number. One leaves torch's
            OpenMP threads to a network that runs at the same time.
        backend: "reference", "cpu" or None (chosen by device).

    Returns:
        uint8 [B, C, H, W]; ``out`` where it is given.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    listed = list(images)
    _checks.require_tensor(OP, "boxes", boxes, dtypes=(torch.int64,), ndim=2, shape="[B, 4]")
    if boxes.shape != (len(listed), 4):
        raise _checks.bad_value(
            OP, "boxes", f"[B, 4] = ({len(listed)}, 4)", _checks.describe(boxes)
        )
    flip = torch.zeros(len(listed), dtype=torch.bool) if flip is None else flip
    _checks.require_tensor(OP, "flip", flip, dtypes=(torch.bool,), ndim=1, shape="[B]")
    if len(flip) != len(listed):
        raise _checks.bad_value(OP, "flip", f"[B] = ({len(listed)},)", _checks.describe(flip))
    height, width = int(size[0]), int(size[1])
    if min(height, width) < 1:
        raise ValueError(f"{OP}: size must be positive pixels, got {tuple(size)}")
    if threads is not None and threads < 1:
        raise _checks.bad_value(OP, "threads", "at least 1, or None", threads)
    for name, tensor in (("boxes", boxes), ("flip", flip)):
        if tensor.device.type not in ("cpu", "meta"):
            raise ValueError(f"{OP}: {name} must be on the CPU, got {tensor.device}")
    for image in listed:
        _checks.require_tensor(
            OP, "images", image, dtypes=(torch.uint8,), ndim=3, shape="[B, C, h, w]"
        )
        if image.shape[0] != listed[0].shape[0] or image.device != listed[0].device:
            raise ValueError(
                f"{OP}: images must have one number of channels and one device, got "
                f"{_checks.describe(image)} beside {_checks.describe(listed[0])}"
            )
    of_none = images.shape[1] if isinstance(images, torch.Tensor) else 3
    channels = listed[0].shape[0] if listed else of_none
    shape = (len(listed), channels, height, width)
    if out is not None and (
        out.dtype != torch.uint8 or tuple(out.shape) != shape or not out.is_contiguous()
    ):
        expected = f"contiguous uint8 [B, C, H, W] = {shape}"
        raise _checks.bad_value(OP, "out", expected, _checks.describe(out))
    if not listed:
        return torch.empty(shape, dtype=torch.uint8) if out is None else out
    name = _backend.resolve(OP, backend, listed[0].device, IMPLEMENTED)
    if out is None:
        made: torch.Tensor = _op(listed, boxes, flip, height, width, name)
        return made
    if name == "cpu" and out.device.type == "cpu":
        _crop_into(out, listed, boxes, flip, threads)
    else:
        out.copy_(_impl(listed, boxes, flip, height, width, name))
    return out
