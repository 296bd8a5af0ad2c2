"""One image file -> uint8 planes of RGB. The only place that knows about file formats."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from clustermim_fast.image_files import jpeg_decoder

# What Pillow raises on files that are not what they claim to be. A fault of ours is not listed.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    struct.error,
    zlib.error,
    OverflowError,
    Image.DecompressionBombError,
)

_ORIENTATION = 0x0112

UInt8Array = npt.NDArray[np.uint8]


def decode_image(
    source: str | Path | bytes, max_short_side: int | None = None, decoder: str | None = None
) -> UInt8Array:
    """Read an image file, or the bytes of one, as uint8 [3, H, W].

    The EXIF orientation is applied. Grey becomes three equal channels, 16-bit grey is scaled to
    8 bits (65535 -> 255), transparency is composited on white, CMYK and palettes are converted.
    A short side above `max_short_side` is reduced to it (antialiased, aspect ratio kept).

    decoder: what decodes plain JPEG files, one of image_files.JPEG_DECODERS; None: the fastest
    installed. The pixels are the same; Pillow reads everything else, and what the others refuse.

    Raises one of DECODE_ERRORS where the file cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        opened = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:  # its own message holds an address
        raise UnidentifiedImageError("no image format that Pillow knows") from None
    with opened:
        return to_pixels(opened, max_short_side, data, decoder or jpeg_decoder())


def to_pixels(
    image: Image.Image,
    max_short_side: int | None = None,
    data: bytes = b"",
    decoder: str = "pillow",
) -> UInt8Array:
    """`decode_image` of an image that Pillow has opened; data: the bytes of its file."""
    size = image.size
    upright = "exif" not in image.info or image.getexif().get(_ORIENTATION, 1) == 1
    plain = image.format == "JPEG" and image.mode == "RGB" and upright
    if max_short_side is not None:
        # Lets the JPEG decoder drop resolution that the resize below would drop; it never goes
        # below the size asked for. Other formats ignore it.
        longest = max_short_side * max(size) // max(1, min(size)) + 1
        image.draft(None, (longest, longest))
    pixels = None
    if decoder != "pillow" and plain and image.size == size:
        pixels = _decode_jpeg(data, decoder)
    if pixels is None or pixels.shape != (3, size[1], size[0]):
        image.load()
        # Looking for a tag costs a third of the time of a JPEG of 32 pixels.
        if image.format != "JPEG" or "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        image = _to_rgb(image)
    elif max_short_side is None or min(size) <= max_short_side:
        return np.ascontiguousarray(pixels)
    else:
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if max_short_side is not None and min(image.size) > max_short_side:
        factor = max_short_side / min(image.size)
        width, height = (max(max_short_side, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return _planes(image)


def _planes(image: Image.Image) -> UInt8Array:
    """uint8 [3, H, W] of an RGB image, in half the time of an array and its transposition."""
    width, height = image.size
    planes = bytearray().join(image.tobytes("raw", band) for band in "RGB")
    return np.frombuffer(planes, dtype=np.uint8).reshape(3, height, width)


def _decode_jpeg(data: bytes, decoder: str) -> UInt8Array | None:
    """uint8 [3, H, W], in any order of memory, of a JPEG in RGB or YCbCr; None where the library
    refuses it.
    """
    if decoder == "simplejpeg":
        import simplejpeg

        try:
            return np.asarray(simplejpeg.decode_jpeg(data, "RGB")).transpose(2, 0, 1)
        except ValueError:
            return None
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):  # libjpeg would paint what is missing grey
        return None
    import torch
    from torchcodec.decoders import decode_jpeg

    try:
        planar = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None
    return planar.numpy()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _wide_grey_to_rgb(image)
    if image.mode == "F":
        raise ValueError("floating-point image: the range of its values is not known")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _wide_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey; Pillow's own convert() clips everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("32-bit integer image: the range of its values is not known")
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
