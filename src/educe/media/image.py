"""Pictures: a file, bytes, or an array to a Pillow image in one of three plain modes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from educe.errors import InputError, LimitError
from educe.files import read_bytes
from educe.limits import Limits

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

_PLUGINS = (
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    PpmImagePlugin.PpmImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)
FORMATS = tuple(str(plugin.format) for plugin in _PLUGINS)
"""The kinds of picture that are decoded, by their Pillow names; Pillow's others stay closed."""


def read_image(source: ImageSource, limits: Limits) -> Image.Image:
    """Return the picture in `source`, upright, in the mode ``RGB`` or ``L``.

    The EXIF orientation is applied. 16-bit grey keeps its upper 8 bits, palettes and CMYK are resolved,
    transparent parts become white, and of several frames the first is taken. An array is taken as
    u8[height, width], or with 3 (RGB) or 4 (RGBA) channels behind.

    Raises:
        InputError: the picture is broken, or of a kind that is not read.
        LimitError: it has more bytes or pixels than `limits` allow, which is checked before decoding.
    """
    if isinstance(source, np.ndarray):
        return _plain(_from_array(source))
    if isinstance(source, Image.Image):
        return _plain(_upright(source))
    content = source if isinstance(source, bytes) else read_bytes(source, limits, "image_bytes")
    path = None if isinstance(source, bytes) else Path(source)
    image = _opened(content, path, limits)
    try:
        image.load()
        return _plain(_upright(image))
    except (MemoryError, LimitError):
        raise
    # A decoder meets hostile bytes here and may raise anything.
    except Exception as fault:
        raise InputError(
            f"is a broken {image.format} picture: {fault}", path=path, remedy="open or download it again"
        ) from None


def _opened(content: bytes, path: Path | None, limits: Limits) -> Image.Image:
    if not content:
        raise InputError("the file is empty", path=path, remedy="give a picture")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError(
            f"is no picture that Educe reads; it begins with {content[:8]!r}",
            path=path,
            remedy=f"use one of {', '.join(FORMATS)}",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
        raise LimitError(
            f"would unpack to too many pixels: {bomb}".split(", could")[0],
            path=path,
            remedy="use a smaller picture",
        ) from None
    except Exception as fault:
        raise InputError(
            f"is a broken picture: {fault}", path=path, remedy="open or download it again"
        ) from None
    limits.check("image_pixels", image.width * image.height, path=path)
    return image


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if image.getexif() else image


def _from_array(array: np.ndarray) -> Image.Image:
    fits = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)))
    if not fits or array.size == 0:
        raise InputError(
            f"the array is {array.dtype}{list(array.shape)}",
            remedy="give u8[height, width], or u8[height, width, 3] in RGB order",
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "L"):
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise InputError(
            "holds floating-point pixels, whose range is not known",
            remedy="save it with 8 or 16 bits a channel",
        )
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if image.mode == "1" else "RGB")
