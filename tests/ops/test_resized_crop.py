"""resized_crop: torchvision's pixels on every path, whatever the batch, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops.resized_crop.reference import axis_weights
from tests.ops.harness import (
    assert_same,
    check_compile,
    check_opcheck,
    check_refusal,
    check_threads,
    every_path,
    guarded,
    running,
)

# (image h, w), box, (H, W): why
CASES = [
    ((256, 341), (3, 5, 229, 229), (224, 224), "a photograph, little larger"),
    ((256, 341), (11, 20, 120, 160), (224, 224), "enlarged"),
    ((256, 341), (0, 0, 256, 341), (224, 224), "all of it, narrower than high"),
    ((32, 32), (1, 2, 30, 27), (32, 32), "CIFAR"),
    ((1, 1), (0, 0, 1, 1), (5, 7), "one pixel: fewer inputs than weights"),
    ((3, 2), (0, 0, 3, 2), (16, 16), "fewer inputs than weights"),
    ((40, 5), (0, 0, 40, 5), (9, 31), "five inputs: weights stay odd"),
    ((70, 120), (0, 0, 70, 120), (33, 50), "shrunk 2.4 times: bytes from two registers"),
    ((90, 300), (0, 0, 90, 300), (17, 35), "8.6 times: 36 weights"),
    ((64, 400), (0, 3, 64, 397), (64, 100), "3.97 times: outputs too far apart for two registers"),
    ((20, 48), (2, 16, 16, 32), (16, 32), "neither pass changes the size"),
]


def truth(image, box, size, flip):
    """One crop by the definition, in Python's integers."""
    top, left, height, width = box
    pixels = image[:, top : top + height, left : left + width].numpy().astype(np.int64)
    pixels = pixels[..., ::-1] if flip else pixels
    for outputs in (size[1], size[0]):
        pixels = along_last(pixels, outputs).swapaxes(1, 2)
    return torch.from_numpy(pixels.astype(np.uint8))


def along_last(pixels, outputs):
    inputs = pixels.shape[-1]
    scale = inputs / outputs
    support = 2 * max(scale, 1.0)
    rows = []
    for i in range(outputs):
        center = scale * (i + 0.5)
        low, high = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), inputs)
        values = [cubic((j - center + 0.5) / max(scale, 1.0)) for j in range(low, high)]
        rows.append((low, [value / sum(values) for value in values]))
    largest = max(max(values) for _, values in rows)
    shift = next(s for s in range(23) if s == 22 or int(0.5 + largest * 2 ** (s + 1)) >= 2**15)
    out = np.empty((*pixels.shape[:-1], outputs), dtype=np.int64)
    for i, (low, values) in enumerate(rows):
        weights = [int(v * 2**shift + (0.5 if v >= 0 else -0.5)) for v in values]
        total = pixels[..., low : low + len(weights)] @ np.array(weights)
        out[..., i] = np.clip((total + 2 ** (shift - 1)) >> shift, 0, 255)
    return out


def cubic(x):
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


def picture(shape, kind="noise", seed=0):
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=draw)
    return image if kind == "noise" else (image > 127).to(torch.uint8) * 255  # overshoots both ends


@every_path
@pytest.mark.parametrize("kind", ["noise", "black and white"])
@pytest.mark.parametrize("shape, box, size, why", CASES, ids=[case[3] for case in CASES])
def test_the_definition(path, shape, box, size, why, kind):
    image = picture(shape, kind)
    boxes, flip = torch.tensor([box, box]), torch.tensor([False, True])
    with running(path) as backend:
        got = ops.resized_crop([image, image], boxes, size, flip=flip, backend=backend)
    for row, mirrored in enumerate((False, True)):
        assert torch.equal(got[row], truth(image, box, size, mirrored)), why


@every_path
def test_torchvision(path):
    transforms = pytest.importorskip("torchvision.transforms.v2", reason="no torchvision here")
    resize, cubic_ = transforms.functional.resize, transforms.InterpolationMode.BICUBIC
    native = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    draw = np.random.default_rng(0)
    images, boxes, wanted, flips = [], [], [], []
    for seed in range(12):
        h, w = draw.integers(8, 300, 2)
        height, width = draw.integers(1, h + 1), draw.integers(1, w + 1)
        top, left = draw.integers(0, h - height + 1), draw.integers(0, w - width + 1)
        images.append(picture((h, w), "noise" if seed % 2 else "black and white", seed))
        boxes.append([top, left, height, width])
        flips.append(bool(seed % 3))
        crop = images[-1][:, top : top + height, left : left + width]
        crop = crop.flip(-1) if flips[-1] else crop
        wanted.append(resize(crop, [48, 56], cubic_, antialias=True))
    flip = torch.tensor(flips)
    with running(path) as backend:
        got = ops.resized_crop(images, torch.tensor(boxes), (48, 56), flip=flip, backend=backend)
    # Without AVX2 torchvision computes in float32 and rounds once: another grey level at most.
    most = (got.int() - torch.stack(wanted).int()).abs().max()
    assert most <= (0 if native else 1)


def batch(count=5, shape=(40, 60)):
    images = torch.stack([picture(shape, seed=seed) for seed in range(count)])
    boxes = torch.tensor([[i, 2 * i, 20 + i, 30 - i] for i in range(count)])
    return images, boxes, torch.arange(count) % 2 == 1


@every_path
def test_a_batch_is_its_images_one_by_one(path):
    images, boxes, flip = batch()
    with running(path) as backend:
        whole = ops.resized_crop(images, boxes, (16, 24), flip=flip, backend=backend)
        listed = ops.resized_crop(list(images), boxes, (16, 24), flip=flip, backend=backend)
        alone = [
            ops.resized_crop([image], box[None], (16, 24), flip=mirrored[None], backend=backend)
            for image, box, mirrored in zip(images, boxes, flip, strict=True)
        ]
        out = torch.empty(5, 3, 16, 24, dtype=torch.uint8)
        ops.resized_crop(images, boxes, (16, 24), flip=flip, out=out, backend=backend)
    for other in (listed, torch.cat(alone), out):
        assert_same(other, whole)


def test_images_in_other_layouts():
    images, boxes, flip = batch()
    expected = ops.resized_crop(images, boxes, (16, 24), flip=flip)
    for other in (images.to(memory_format=torch.channels_last), images.mT.contiguous().mT):
        assert_same(ops.resized_crop(other, boxes, (16, 24), flip=flip), expected)


@every_path
@pytest.mark.parametrize("at_end", [False, True])
def test_reads_nothing_outside_of_the_image(path, at_end):
    # Pages that cannot be read stand before and behind it, as behind a shard's last image.
    for width in (1, 7, 31, 33, 100):
        image = guarded(picture((9, width)), at_end)
        box = torch.tensor([[0, 0, 9, width]])
        with running(path) as backend:
            got = ops.resized_crop([image], box, (12, 40), backend=backend)
        assert torch.equal(got[0], truth(image.clone(), (0, 0, 9, width), (12, 40), False))


def test_threads_opcheck_and_compile():
    images, boxes, flip = batch(4)
    before = torch.get_num_threads()
    try:
        check_threads(torch.set_num_threads, lambda: ops.resized_crop(images, boxes, (16, 24)))
    finally:
        torch.set_num_threads(before)
    overload = torch.ops.clustermim.resized_crop.default
    check_opcheck(overload, list(images), boxes, flip, 16, 24, "cpu")
    check_compile(lambda a, b, f: ops.resized_crop(a, b, (16, 24), flip=f), images, boxes, flip)


@every_path
def test_no_images(path):
    with running(path) as backend:
        none = ops.resized_crop(
            torch.empty(0, 3, 8, 8, dtype=torch.uint8),
            torch.empty(0, 4, dtype=torch.int64),
            (16, 24),
            backend=backend,
        )
    assert none.shape == (0, 3, 16, 24)


@every_path
@pytest.mark.parametrize("box", [(0, 0, 41, 1), (0, 31, 1, 30), (-1, 0, 2, 2), (0, 0, 0, 5)])
def test_boxes_outside(path, box):
    images = batch(2)[0]
    boxes = torch.tensor([(0, 0, 1, 1), box])
    with running(path) as backend:
        check_refusal(
            lambda: ops.resized_crop(images, boxes, (8, 8), backend=backend),
            ValueError,
            "box 1 (top",
            "inside its image of 40 x 60",
        )


@every_path
@pytest.mark.parametrize("shape", [(101, 4), (4, 101)])
def test_boxes_too_large(path, shape):
    image = picture(shape)
    box = torch.tensor([(0, 0, *shape)])
    with running(path) as backend:
        check_refusal(
            lambda: ops.resized_crop([image], box, (1, 1), backend=backend),
            ValueError,
            "box 0 is more than 100 times as large as the output; shrink in two steps",
        )
        box = box.clamp(max=100)
        assert ops.resized_crop([image], box, (1, 1), backend=backend).shape == (1, 3, 1, 1)


def test_refusals():
    images, boxes, flip = batch(2)
    call = ops.resized_crop
    check_refusal(
        lambda: call(images.float(), boxes, (8, 8)), TypeError, "images must be of dtype uint8"
    )
    check_refusal(
        lambda: call(images, boxes.int(), (8, 8)), TypeError, "boxes must be of dtype int64"
    )
    check_refusal(lambda: call(images, boxes[:1], (8, 8)), ValueError, "[B, 4] = (2, 4)")
    check_refusal(lambda: call(images, boxes, (8, 8), flip=flip[:1]), ValueError, "[B] = (2,)")
    check_refusal(lambda: call(images, boxes, (8, 0)), ValueError, "size must be positive")
    other = [images[0], images[1, :1]]
    check_refusal(lambda: call(other, boxes, (8, 8)), ValueError, "one number of channels")
    out = torch.empty(2, 3, 8, 9, dtype=torch.uint8)
    check_refusal(
        lambda: call(images, boxes, (8, 8), out=out), ValueError, "out must be contiguous"
    )
    check_refusal(
        lambda: call(images[:0], boxes[:0], (8, 8), out=out), ValueError, "out must be contiguous"
    )
    out = torch.empty(2, 3, 8, 8, dtype=torch.uint8)
    check_refusal(
        lambda: call(images, boxes, (8, 8), out=out, threads=0), ValueError, "threads must be at"
    )


def test_weights_of_a_batch_are_those_of_each():
    together = axis_weights(torch.tensor([3, 40, 500]), 20)
    for row, size in enumerate((3, 40, 500)):
        first, weights, shift = axis_weights(torch.tensor([size]), 20)
        taps = weights.shape[-1]
        assert torch.equal(together[0][row], first[0])
        assert torch.equal(together[1][row, :, :taps], weights[0])
        assert not together[1][row, :, taps:].any()
        assert together[2][row] == shift[0]
