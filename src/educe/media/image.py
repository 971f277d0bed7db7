"""Pictures: a file, bytes, or an array to a Pillow image in one of two plain modes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from educe.errors import EduceError, InputError, LimitError
from educe.files import read_bytes
from educe.limits import Limits

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

MAX_SCANS = 200
"""Most passes over all pixels in a progressive JPEG, of which each can cost a few bytes; ten are usual."""

_HEAD_BYTES = 16
_START_OF_SCAN = b"\xff\xda"
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _TiffImageFile(TiffImagePlugin.TiffImageFile):
    """A TIFF that is allocated without Pillow's own warning about its size, as `Limits` bounds it."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size, None).im
        super().load_prepare()


_READERS: tuple[type[ImageFile.ImageFile], ...] = (
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    PpmImagePlugin.PpmImageFile,
    _TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)
FORMATS = tuple(str(reader.format) for reader in _READERS)
"""The kinds of picture that are decoded, by their Pillow names; Pillow's others stay closed."""


def read_image(source: ImageSource, limits: Limits) -> Image.Image:
    """Return the picture in `source`, upright, in the mode ``RGB`` or ``L``.

    The EXIF orientation is applied. 16-bit grey keeps its upper 8 bits, palettes and CMYK are resolved,
    transparent parts become white, and of several frames the first is taken. An array is taken as
    u8[height, width], or with 3 (RGB) or 4 (RGBA) channels behind, and is copied. A Pillow image that is
    upright and of a plain mode already is returned itself.

    Raises:
        InputError: the picture is broken, or of a kind that is not read.
        LimitError: it has more bytes or pixels than `limits` allow, which is checked before decoding.
    """
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    try:
        image = _opened(source, limits)
        limits.check("image_pixels", image.width * image.height)
        image.load()
        return _plain(_upright(image))
    except EduceError as error:
        raise (error.located(path) if path else error) from None
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise LimitError(
            "needs more memory than there is, or than PIL.Image.MAX_IMAGE_PIXELS allows",
            path=path,
            remedy="use a smaller picture",
        ) from None
    # A decoder meets hostile bytes here and may raise anything.
    except Exception as fault:
        raise InputError(
            f"is a broken picture: {fault}", path=path, remedy="open or download it again"
        ) from None


def _opened(source: ImageSource, limits: Limits) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes):
        limits.check("image_bytes", len(source))
        return _from_bytes(source, limits)
    if isinstance(source, (str, os.PathLike)):
        return _from_bytes(read_bytes(source, limits, "image_bytes"), limits)
    raise InputError(
        f"expected a picture, found a {type(source).__name__}",
        remedy="give a path, bytes, a Pillow image, or an array u8[height, width, 3] in RGB order",
    )


def _from_bytes(content: bytes, limits: Limits) -> Image.Image:
    """Return the picture, its header read; Image.open would hold it to Pillow's own bounds as well."""
    if not content:
        raise InputError("the file is empty", remedy="give a picture")
    head = content[:_HEAD_BYTES]
    for reader, name in zip(_READERS, FORMATS, strict=True):
        accepts = Image.OPEN[name][1]
        if accepts is not None and accepts(head) is True:
            if name == "WEBP":
                # Its reader makes the whole canvas while it reads the header.
                limits.check("image_pixels", _webp_pixels(content[:32]))
            image = reader(io.BytesIO(content))
            if image.info.get("progressive") and content.count(_START_OF_SCAN) > MAX_SCANS:
                raise LimitError(
                    f"is a JPEG of more than {MAX_SCANS} scans", remedy="save it again, not progressive"
                )
            return image
    raise InputError(
        f"is no picture that Educe reads; it begins with {content[:8]!r}",
        remedy=f"use one of {', '.join(FORMATS)}",
    )


def _webp_pixels(head: bytes) -> int:
    """Return how many pixels the header of a WebP file claims (RFC 9649); 0 where it is too short."""
    kind, body = head[12:16], head[20:]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[at : at + 3], "little") for at in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return width * height


def _from_array(array: np.ndarray) -> Image.Image:
    fits = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)))
    if not fits or array.size == 0:
        raise InputError(
            f"the array is {array.dtype}{list(array.shape)}",
            remedy="give u8[height, width], or u8[height, width, 3] in RGB order",
        )
    # Pillow shares the memory of some arrays, and callers may fill one array with picture after picture.
    return Image.fromarray(array.reshape(array.shape[:2]) if array.shape[2:] == (1,) else array).copy()


def _upright(image: Image.Image) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if transposition is None else image.transpose(transposition)


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _upper_bits(image)
    if image.mode == "F":
        raise InputError(
            "holds floating-point pixels, whose range is not known",
            remedy="save it with 8 or 16 bits a channel",
        )
    if image.has_transparency_data:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("RGB", "L"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _upper_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as 8 bits; Pillow holds it in a mode of 16 or of 32 bits."""
    values = np.asarray(image)
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > np.iinfo(np.uint16).max):
        raise InputError(
            f"holds pixels from {values.min()} to {values.max()}, whose range is not known",
            remedy="save it with 8 or 16 bits a channel",
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
