"""The image processors of transformers and timm, as far as a card can say what they do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from educe.errors import CardError
from educe.model.card import ImageInput

# The numbers of Pillow's resampling filters.
_FILTERS: tuple[Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"], ...] = (
    "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming",
)  # fmt: skip
_LEVIT_SHARE = 256 / 224
_CONVNEXT_SHARE = 224 / 256
_CONVNEXT_STRETCHES_FROM = 384
_KNOWN_STEPS = {
    "do_center_crop", "do_convert_rgb", "do_flip_channel_order", "do_normalize", "do_rescale", "do_resize",
}  # fmt: skip


class Preprocessor(msgspec.Struct):
    """The fields of `preprocessor_config.json` that every image processor shares."""

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    size: int | dict[str, int] | None = None
    crop_size: int | dict[str, int] | None = None
    crop_pct: float | None = None
    resample: int | None = None
    rescale_factor: float = 1 / 255
    image_mean: float | tuple[float, ...] | None = None
    image_std: float | tuple[float, ...] | None = None
    do_resize: bool = True
    do_center_crop: bool | None = None
    do_rescale: bool = True
    do_normalize: bool | None = None
    do_flip_channel_order: bool = False
    rescale_offset: bool = False
    include_top: bool = False


@dataclass(frozen=True)
class _Processor:
    """What a class of image processors does with a size that is one number, and by itself.

    Attributes:
        square: One number is both sides, not the shorter side.
        crops: It cuts out the centre unless told otherwise.
    """

    square: bool
    crops: bool


_PROCESSORS = {
    "BeitImageProcessor": _Processor(square=True, crops=False),
    "BitImageProcessor": _Processor(square=False, crops=True),
    "CLIPImageProcessor": _Processor(square=False, crops=True),
    "ConvNextImageProcessor": _Processor(square=False, crops=False),
    "DeiTImageProcessor": _Processor(square=True, crops=True),
    "EfficientNetImageProcessor": _Processor(square=True, crops=False),
    "LevitImageProcessor": _Processor(square=False, crops=True),
    "MobileNetV1ImageProcessor": _Processor(square=False, crops=True),
    "MobileNetV2ImageProcessor": _Processor(square=False, crops=True),
    "MobileViTImageProcessor": _Processor(square=False, crops=True),
    "SiglipImageProcessor": _Processor(square=True, crops=False),
    "ViTImageProcessor": _Processor(square=True, crops=False),
}


def image_input(fields: Preprocessor, steps: set[str], path: Path) -> ImageInput:
    """Return what an image processor of transformers does, as a card's section.

    Args:
        fields: Its configuration.
        steps: The names of all ``do_`` fields that are true.
        path: The file that errors name.

    Raises:
        CardError: the class is not known here, or a step is set that no card can express.
    """
    name = (fields.image_processor_type or fields.feature_extractor_type or "").removesuffix("Fast")
    name = name.replace("FeatureExtractor", "ImageProcessor")
    processor = _PROCESSORS.get(name)
    if processor is None:
        raise CardError(f"the image processor {name or '(unnamed)'!r} is not known here", path=path)
    if unknown := sorted(steps - _KNOWN_STEPS):
        raise CardError(f"no card can say {unknown[0]}", path=path)
    if not fields.do_resize or fields.size is None or fields.resample is None:
        raise CardError("size and resample must be set, and do_resize be true", path=path)
    if not 0 <= fields.resample < len(_FILTERS):
        raise CardError(f"there is no filter number {fields.resample}", path=path, place="resample")
    size, fit, shorter = _fit(name, processor, fields, path)
    mean, std = _mean_std(name, fields, path)
    return ImageInput(
        size=size,
        color="bgr" if fields.do_flip_channel_order else "rgb",
        fit=fit,
        shorter_side=shorter,
        filter=_FILTERS[fields.resample],
        range=_range(fields, path),
        mean=mean,
        std=std,
    )


def timm_input(
    size: tuple[int, int],
    crop_pct: float,
    crop_mode: str,
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ImageInput:
    """Return what timm does when it evaluates: scale to ``size / crop_pct``, cut out the centre.

    Args:
        size: Width and height of the tensor.

    Raises:
        CardError: the numbers or the mode are none that a card can express.
    """
    if not 0 < crop_pct <= 1 or size[0] < 1 or size[1] < 1:
        raise CardError(
            f"expected 0 < crop_pct <= 1 and a size, found {crop_pct} and {size}", place="pretrained_cfg"
        )
    shorter = math.floor(max(size) / crop_pct)
    if crop_mode == "squash" and crop_pct == 1:
        return ImageInput(size=size, filter=interpolation, mean=mean, std=std)
    if crop_mode != "center" or size[0] != size[1]:
        raise CardError(
            f"no card can say crop_mode {crop_mode!r} at {size[0]} x {size[1]}", place="pretrained_cfg"
        )
    return ImageInput(size=size, fit="crop", shorter_side=shorter, filter=interpolation, mean=mean, std=std)


def _fit(
    name: str, processor: _Processor, fields: Preprocessor, path: Path
) -> tuple[tuple[int, int], Literal["stretch", "crop"], int | None]:
    """Return width and height, how the picture is brought to them, and its shorter side on the way."""
    size = fields.size
    if isinstance(size, int):
        size = {"height": size, "width": size} if processor.square else {"shortest_edge": size}
    crops = processor.crops if fields.do_center_crop is None else fields.do_center_crop
    if size is not None and set(size) == {"shortest_edge"}:
        edge = _edge(size["shortest_edge"], path)
        if name == "ConvNextImageProcessor":
            return _fit_convnext(edge, fields.crop_pct, path)
        if crops and fields.crop_size is not None:
            shorter = int(_LEVIT_SHARE * edge) if name == "LevitImageProcessor" else edge
            return _width_height(fields.crop_size, path), "crop", shorter
    elif size is not None and set(size) == {"height", "width"} and name != "ConvNextImageProcessor":
        stretched = _width_height(size, path)
        if not crops or (fields.crop_size is not None and _width_height(fields.crop_size, path) == stretched):
            return stretched, "stretch", None
    raise CardError(f"no card can say size {fields.size} with crop_size {fields.crop_size}", path=path)


def _fit_convnext(
    edge: int, crop_pct: float | None, path: Path
) -> tuple[tuple[int, int], Literal["stretch", "crop"], int | None]:
    """From 384 pixels ConvNext's processor stretches; below, it cuts `crop_pct` out of the centre."""
    if edge >= _CONVNEXT_STRETCHES_FROM:
        return (edge, edge), "stretch", None
    share = _CONVNEXT_SHARE if crop_pct is None else crop_pct
    if not 0 < share <= 1:
        raise CardError(f"expected 0 < crop_pct <= 1, found {share}", path=path)
    return (edge, edge), "crop", int(edge / share)


def _width_height(size: int | dict[str, int], path: Path) -> tuple[int, int]:
    if isinstance(size, int):
        return _edge(size, path), _edge(size, path)
    if set(size) != {"height", "width"}:
        raise CardError(f"expected height and width, found {size}", path=path)
    return _edge(size["width"], path), _edge(size["height"], path)


def _edge(pixels: int, path: Path) -> int:
    if pixels < 1:
        raise CardError(f"expected a size of 1 or more, found {pixels}", path=path)
    return pixels


def _range(fields: Preprocessor, path: Path) -> tuple[float, float]:
    if fields.rescale_offset:
        raise CardError("no card can say rescale_offset, whose meaning differs between versions", path=path)
    if not fields.do_rescale:
        return 0.0, 255.0
    # 1/255 is often written with fewer digits than a float has.
    high = 255 * fields.rescale_factor
    return 0.0, 1.0 if math.isclose(high, 1.0, rel_tol=1e-6) else high


def _mean_std(name: str, fields: Preprocessor, path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    normalizes = fields.image_mean is not None if fields.do_normalize is None else fields.do_normalize
    mean, std = _numbers(fields.image_mean), _numbers(fields.image_std)
    if (normalizes and mean is None) or (std is None and (normalizes or fields.include_top)):
        raise CardError("image_mean and image_std must be set", path=path)
    mean, scale = (mean or (0.0,), std or (1.0,)) if normalizes else ((0.0,), (1.0,))
    if name == "EfficientNetImageProcessor" and fields.include_top:
        # Its classifiers divide by the standard deviation once more.
        again = std or (1.0,)
        scale = tuple(
            first * second for first, second in zip(scale * (len(again) // len(scale)), again, strict=True)
        )
    return mean, scale


def _numbers(value: float | tuple[float, ...] | None) -> tuple[float, ...] | None:
    return (value,) if isinstance(value, float | int) else value
