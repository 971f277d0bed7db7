"""From a picture to the input tensor, as the card's ``[image]`` section says; and back for coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from educe.model.card import ImageInput

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}

Size = tuple[int, int]
Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class Placement:
    """Where a picture stands in the tensor: x in the tensor is ``x * scale[0] + offset[0]``.

    Attributes:
        scale: Of x and of y.
        offset: Of x and of y, in pixels of the tensor.
        size: Width and height of the original picture.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: Size

    def to_original(self, boxes: np.ndarray) -> np.ndarray:
        """Return `boxes` f32[N, 4] (left, top, right, bottom) in pixels of the original picture."""
        offset = np.array(self.offset * 2, np.float32)
        scale = np.array(self.scale * 2, np.float32)
        return np.asarray((boxes - offset) / scale)


class ImageTransform:
    """Turns pictures into the input tensor.

    Args:
        spec: The card's section.
        dtype: The element type of the tensor.
    """

    def __init__(self, spec: ImageInput, dtype: np.dtype) -> None:
        self._spec = spec
        self._dtype = dtype
        low, high = spec.range
        std = np.array(spec.std, np.float64)
        gain = (high - low) / 255 / std
        bias = (low - np.array(spec.mean, np.float64)) / std
        broadcast = (-1, 1, 1) if spec.layout == "nchw" else (1, 1, -1)
        work = np.float64 if dtype == np.float64 else np.float32
        self._gain = gain.astype(work).reshape(broadcast)
        self._bias = bias.astype(work).reshape(broadcast)
        holds_pixels = np.can_cast(np.uint8, dtype)
        self._is_plain = bool(holds_pixels and (gain == 1).all() and (bias == 0).all())
        self._has_bias = bool((bias != 0).any())

    def __call__(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, list[Placement]]:
        """Return the tensor of all `images`, and where each stands in its part."""
        width, height = self._spec.size
        mode = _MODES[self._spec.color]
        channels = len(mode)
        shape = (channels, height, width) if self._spec.layout == "nchw" else (height, width, channels)
        tensor = np.empty((len(images), *shape), self._dtype)
        placements = []
        for image, out in zip(images, tensor, strict=True):
            fitted, placement = self._fit(image if image.mode == mode else image.convert(mode))
            self._write(fitted, out)
            placements.append(placement)
        return tensor, placements

    def _write(self, image: Image.Image, out: np.ndarray) -> None:
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self._spec.color == "bgr":
            pixels = pixels[:, :, ::-1]
        if self._spec.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        if self._is_plain:
            out[...] = pixels
        elif out.dtype == self._gain.dtype:
            np.multiply(pixels, self._gain, out=out)
            if self._has_bias:
                out += self._bias
        else:
            out[...] = _cast(pixels * self._gain + self._bias, out.dtype)

    def _fit(self, image: Image.Image) -> tuple[Image.Image, Placement]:
        if self._spec.fit == "crop":
            return self._crop(image)
        if self._spec.fit == "letterbox":
            return self._letterbox(image)
        whole = (0.0, 0.0, float(image.width), float(image.height))
        return self._resize(image, self._spec.size, whole), _placed(image, self._spec.size, (0, 0))

    def _crop(self, image: Image.Image) -> tuple[Image.Image, Placement]:
        width, height = self._spec.size
        shorter, found = self._spec.shorter_side or max(width, height), min(image.size)
        # The longer side is cut off to whole pixels, as in torchvision.
        scaled = (image.width * shorter // found, image.height * shorter // found)
        left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
        # Only what is cut out is computed: of a narrow picture, all of it would not fit into memory.
        region = _scaled_region((left, top, left + width, top + height), scaled, image.size)
        return self._resize(image, self._spec.size, region), _placed(image, scaled, (-left, -top))

    def _letterbox(self, image: Image.Image) -> tuple[Image.Image, Placement]:
        width, height = self._spec.size
        if image.width * height > image.height * width:
            scaled = (width, max(1, image.height * width // image.width))
        else:
            scaled = (max(1, image.width * height // image.height), height)
        centred = self._spec.anchor == "center"
        left = (width - scaled[0]) // 2 if centred else 0
        top = (height - scaled[1]) // 2 if centred else 0
        fill = self._spec.fill if image.mode == "L" else (self._spec.fill,) * 3
        canvas = Image.new(image.mode, (width, height), fill)
        whole = (0.0, 0.0, float(image.width), float(image.height))
        canvas.paste(self._resize(image, scaled, whole), (left, top))
        return canvas, _placed(image, scaled, (left, top))

    def _resize(self, image: Image.Image, size: Size, region: Region) -> Image.Image:
        """Return `region` of `image` (left, top, right, bottom) at another size."""
        resampling = _FILTERS[self._spec.filter]
        if self._spec.antialias:
            return image.resize(size, resampling, region)
        # An affine transform samples at pixel centres with a filter of fixed width.
        left, top, right, bottom = region
        affine = ((right - left) / size[0], 0, left, 0, (bottom - top) / size[1], top)
        return image.transform(size, Image.Transform.AFFINE, affine, resampling)


def _placed(image: Image.Image, scaled: Size, offset: Size) -> Placement:
    scale = (scaled[0] / image.width, scaled[1] / image.height)
    return Placement(scale, (float(offset[0]), float(offset[1])), image.size)


def _scaled_region(region: tuple[int, int, int, int], scaled: Size, size: Size) -> Region:
    """Return where `region` of a picture scaled to `scaled` lies in the picture of `size` itself."""
    left, top, right, bottom = region
    across, down = size[0] / scaled[0], size[1] / scaled[1]
    return left * across, top * down, min(right * across, size[0]), min(bottom * down, size[1])


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        values = np.clip(np.rint(values), bounds.min, bounds.max)
    return values.astype(dtype)
