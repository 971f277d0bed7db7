"""Pictures of every kind, whole and broken: each gives its pixels, or one of Educe's own errors."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, PngImagePlugin

from educe.errors import InputError, LimitError
from educe.limits import Limits
from educe.media.image import MAX_SCANS, read_image

LIMITS = Limits()
TRANSPOSITIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
"""What a camera stores of an upright picture, for each orientation that it notes (EXIF 2.3, 4.6.4 A)."""


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content, limits: Limits = LIMITS) -> np.ndarray:
    return np.asarray(read_image(content, limits))


def photo(rng: np.random.Generator, width: int = 48, height: int = 32) -> Image.Image:
    """A smooth random picture, which also compresses as photos do."""
    small = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes, *extra: bytes, bits: int = 8, color: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def constant_rows(width: int, height: int) -> bytes:
    """The rows of a black grey PNG as one zlib stream, its checksum left out; a hundred rows at a time."""
    packer = zlib.compressobj(9)
    rows = bytes(100 * (width + 1))
    first = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (height // 100 - 1) + b"\3\0"


@pytest.mark.parametrize("orientation", TRANSPOSITIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientations_are_undone(rng, orientation, kind):
    upright = np.asarray(photo(rng))
    stored = Image.fromarray(np.ascontiguousarray(TRANSPOSITIONS[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    read = pixels(encoded(stored, kind, exif=exif, **options))
    assert read.shape == upright.shape
    if kind == "JPEG":
        assert np.abs(read.astype(int) - upright).mean() < 4
    else:
        np.testing.assert_array_equal(read, upright)


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_is_passed_over(rng, orientation):
    image, exif = photo(rng), Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", exif=exif)), np.asarray(image))


def test_a_pillow_image_is_turned_upright_and_left_as_it_was(rng):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(photo(rng), "PNG", exif=exif)))
    assert read_image(image, LIMITS).size == (32, 48)
    assert image.size == (48, 32)
    assert image.getexif()[0x0112] == 6


def test_16_bit_grey_keeps_its_upper_bits(rng, tmp_path):
    values = rng.integers(0, 65536, (7, 5), dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        read = read_image(encoded(Image.fromarray(values), kind), LIMITS)
        assert read.mode == "L"
        np.testing.assert_array_equal(np.asarray(read), values >> 8)
    pgm = b"P5 5 7 65535\n" + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels(pgm), values >> 8)


def test_pixels_of_unknown_range_are_refused_with_a_remedy(tmp_path):
    for array in (np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32), np.full((2, 2), -1)):
        image = Image.fromarray(array.astype(np.int32) if array.dtype == np.int64 else array)
        path = tmp_path / "range.tif"
        image.save(path)
        for source in (path, image):
            with pytest.raises(InputError, match="range is not known") as caught:
                read_image(source, LIMITS)
            assert "8 or 16 bits" in caught.value.remedy
            assert "broken" not in caught.value.cause
        assert caught.value.path is None


def test_one_bit_pictures(rng):
    bits = rng.integers(0, 2, (9, 13), dtype=np.uint8) * 255
    image = Image.fromarray(bits).convert("1")
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        read = read_image(encoded(image, kind), LIMITS)
        assert read.mode == "L"
        np.testing.assert_array_equal(np.asarray(read), bits)


def test_palettes_are_resolved(rng):
    image = photo(rng).quantize(16)
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_a_transparent_palette_entry_becomes_white(rng):
    image = photo(rng).quantize(16)
    expected = np.array(image.convert("RGB"))
    expected[np.asarray(image) == 3] = 255
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", transparency=3)), expected)
    shares = bytes([255] * 3 + [0] + [255] * 12)
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", transparency=shares)), expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_color_becomes_white(mode):
    array = np.full((4, 5), 80, np.uint8) if mode == "L" else np.full((4, 5, 3), 80, np.uint8)
    array[1, 2] = 7
    content = encoded(Image.fromarray(array), "PNG", transparency=7 if mode == "L" else (7, 7, 7))
    read = read_image(content, LIMITS)
    assert read.getpixel((2, 1)) == (255, 255, 255)
    assert read.getpixel((0, 0)) == (80, 80, 80)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "La", "RGBa"])
def test_transparent_parts_become_white(mode):
    image = Image.new("RGBA", (3, 1), (10, 10, 10, 255))
    image.putpixel((1, 0), (10, 10, 10, 0))
    image.putpixel((2, 0), (10, 10, 10, 128))
    converted = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    read = pixels(converted)
    assert read.shape == (1, 3, 3)
    np.testing.assert_array_equal(read[0, :2], [[10] * 3, [255] * 3])
    np.testing.assert_allclose(read[0, 2], 10 * 128 / 255 + 255 * 127 / 255, atol=2)


def test_cmyk(rng):
    image = photo(rng)
    read = pixels(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(read.astype(int) - np.asarray(image)).mean() < 8
    np.testing.assert_array_equal(pixels(encoded(image.convert("CMYK"), "TIFF")), np.asarray(image))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    read = read_image(content, LIMITS)
    assert read.size == (8, 6)
    np.testing.assert_allclose(read.getpixel((4, 3)), (255, 0, 0), atol=2)


def test_lossless_kinds_give_their_exact_pixels(rng, tmp_path):
    image = photo(rng)
    for kind, options in {
        "PNG": {},
        "BMP": {},
        "PPM": {},
        "WEBP": {"lossless": True},
        "TIFF": {"compression": "tiff_lzw"},
    }.items():
        path = tmp_path / "picture"  # the content decides, not the name
        path.write_bytes(encoded(image, kind, **options))
        np.testing.assert_array_equal(pixels(path), np.asarray(image))
        np.testing.assert_array_equal(pixels(str(path)), np.asarray(image))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_of_pillow(mode):
    read = read_image(Image.new(mode, (3, 2)), LIMITS)
    assert read.mode in ("L", "RGB")
    assert read.size == (3, 2)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16L", "I;16B", "I;16N"])
def test_every_deep_mode_of_pillow(mode):
    read = read_image(Image.new(mode, (3, 2), 0x4321), LIMITS)
    assert (read.mode, read.size, read.getpixel((0, 0))) == ("L", (3, 2), 0x43)


def test_arrays(rng):
    grey = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    color = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(grey), grey)
    np.testing.assert_array_equal(pixels(grey[:, :, None]), grey)
    np.testing.assert_array_equal(pixels(color), color)
    np.testing.assert_array_equal(pixels(color[::-1, :, ::-1]), color[::-1, :, ::-1])
    clear = np.concatenate([color, np.zeros((5, 7, 1), np.uint8)], 2)
    assert (pixels(clear) == 255).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_an_array_is_copied(shape):
    array = np.full(shape, 255, np.uint8)
    read = read_image(array, LIMITS)
    array[...] = 0
    assert np.asarray(read).min() == 255


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7), np.float32),
        np.zeros((5, 7), bool),
        np.zeros((5, 7, 3), np.int64),
        np.zeros((3, 5, 7), np.uint8),
        np.zeros((5, 7, 2), np.uint8),
        np.zeros((1, 5, 7, 3), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 7), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        np.array(["a"], object),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_other_arrays_are_refused(array):
    with pytest.raises(InputError, match=r"the array is .*\(give u8\[height, width\]"):
        read_image(array, LIMITS)


@pytest.mark.parametrize("source", [None, 7, [1, 2], io.BytesIO(b""), bytearray(b"\xff\xd8\xff"), {"a": 1}])
def test_other_sources_are_refused(source):
    with pytest.raises(InputError, match="expected a picture, found a"):
        read_image(source, LIMITS)


def test_what_is_no_picture_is_refused(tmp_path):
    path = tmp_path / "cat.jpg"
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    for content, cause in {
        b"": "is empty",
        page: r"no picture that Educe reads; it begins with b'<!DOCTYP'",
        b"%PDF-1.7\n": "no picture",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "no picture",
        b"\0" * 100: "no picture",
    }.items():
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(InputError, match=cause) as caught:
                read_image(source, LIMITS)
            assert caught.value.path == (str(path) if source is path else None)
            assert caught.value.remedy


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path, "a\0b"):
        with pytest.raises(InputError):
            read_image(path, LIMITS)


@pytest.fixture(scope="module")
def samples() -> dict[str, bytes]:
    image = photo(np.random.default_rng(3), 96, 64)
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description of some length"
    return {
        "jpeg": encoded(image, "JPEG", exif=exif),
        "progressive": encoded(image, "JPEG", progressive=True),
        "png": encoded(clear, "PNG", exif=exif),
        "palette": encoded(image.quantize(), "PNG", transparency=2),
        "gif": encoded(image.quantize(), "GIF", save_all=True, append_images=[image.quantize(7)]),
        "webp": encoded(clear, "WEBP", exif=exif),
        "lossless webp": encoded(clear, "WEBP", lossless=True),
        "tiff": encoded(image, "TIFF"),
        "lzw tiff": encoded(image, "TIFF", compression="tiff_lzw"),
        "jpeg tiff": encoded(image, "TIFF", compression="jpeg"),
        "bmp": encoded(image, "BMP"),
        "ppm": encoded(image, "PPM"),
        "plain ppm": b"P2 4 4 255\n" + b"1 2 3 4\n" * 4,
    }


KINDS = (
    "jpeg",
    "progressive",
    "png",
    "palette",
    "gif",
    "webp",
    "lossless webp",
    "tiff",
    "lzw tiff",
    "jpeg tiff",
    "bmp",
    "ppm",
    "plain ppm",
)


def read_or_refuse(content: bytes) -> bool:
    """Whether the picture was refused; it must take neither long nor another error."""
    start = time.perf_counter()
    try:
        mode = read_image(content, LIMITS).mode
    except (InputError, LimitError):
        mode = None
    assert time.perf_counter() - start < 20
    assert mode in ("L", "RGB", None)
    return mode is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_truncated_files(samples, rng, kind):
    content = samples[kind]
    cuts = {*range(1, 40), *rng.integers(1, len(content), 80).tolist()}
    refused = [read_or_refuse(content[:cut]) for cut in sorted(cuts) if cut < len(content)]
    assert sum(refused) > len(refused) / 3
    assert not read_or_refuse(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bits(samples, rng, kind):
    for trial in range(120):
        content = bytearray(samples[kind])
        for _ in range(1 + trial % 4):
            # Half of the flips hit the header, where they do the most harm.
            end = len(content) if trial % 2 else min(len(content), 120)
            content[rng.integers(end)] ^= 1 << int(rng.integers(8))
        read_or_refuse(bytes(content))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif"])
def test_a_broken_file_is_named(samples, tmp_path, kind):
    path = tmp_path / "broken"
    path.write_bytes(samples[kind][: len(samples[kind]) * 2 // 5])
    with pytest.raises(InputError, match="is a broken picture") as caught:
        read_image(path, LIMITS)
    assert caught.value.path == str(path)


def test_a_broken_pillow_image(samples):
    image = Image.open(io.BytesIO(samples["png"][:-60]))
    with pytest.raises(InputError, match="is a broken picture"):
        read_image(image, LIMITS)


def refused_cheaply(content: bytes, limits: Limits = LIMITS) -> None:
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with pytest.raises(LimitError):
                read_image(content, limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not seen
    assert peak < 4 * len(content) + 2**20
    assert time.perf_counter() - start < 10


def test_a_constant_png_unpacks():
    assert read_image(png(300, 200, constant_rows(300, 200)), LIMITS).size == (300, 200)


def test_a_png_bomb():
    bomb = png(30_000, 30_000, constant_rows(30_000, 30_000))
    assert len(bomb) < 2**20
    refused_cheaply(bomb)


def lying_headers() -> Iterator[tuple[str, bytes]]:
    side, size = 30_000, struct.pack("<HH", 30_000, 30_000)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    jpeg = bytearray(small.getvalue())
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    yield "png", png(side, side, zlib.compress(b"\0"))
    yield "wide png", png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0"))
    yield "jpeg", bytes(jpeg)
    yield "gif", b"GIF89a" + size + b"\0\0\0," + b"\0\0\0\0" + size + b"\0\2\1\0\0;"
    yield "bmp", b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "ppm", b"P6 30000 30000 255\n"
    yield (
        "webp",
        b"RIFF\x20\0\0\0WEBPVP8L\x09\0\0\0\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + bytes(9),
    )
    entries = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: 100}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    yield "tiff", b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + bytes(4)


@pytest.mark.parametrize(("kind", "content"), list(lying_headers()))
def test_lying_headers(kind, content):
    refused_cheaply(content)


def test_a_gif_that_clears_a_giant_frame_is_refused_before_it_is_made():
    control = b"!\xf9\x04\x08\0\0\0\0"
    size = struct.pack("<HH", 30_000, 30_000)
    refused_cheaply(b"GIF89a" + size + b"\0\0\0" + control + b",\0\0\0\0" + size + b"\0\2\1\0\0;")


def test_a_png_with_a_giant_text():
    text = b"Comment\0\1\0\0\0" + zlib.compress(bytes(64 * 2**20))
    start = time.perf_counter()
    with pytest.raises(InputError, match="too large"):
        read_image(png(1, 1, zlib.compress(b"\0\7"), chunk(b"iTXt", text)), LIMITS)
    assert time.perf_counter() - start < 10


def test_a_png_with_a_modest_text():
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("Comment", "a photo" * 100, zip=True)
    assert read_image(encoded(Image.new("L", (2, 2), 9), "PNG", pnginfo=notes), LIMITS).getpixel((1, 1)) == 9


def test_a_jpeg_of_countless_scans():
    content = encoded(Image.new("L", (512, 512), 99), "JPEG", progressive=True)
    scan = content[content.rfind(b"\xff\xda") : -2]
    assert read_image(content[:-2] + scan * 20 + content[-2:], LIMITS).size == (512, 512)
    with pytest.raises(LimitError, match="scans"):
        read_image(content[:-2] + scan * MAX_SCANS + content[-2:], LIMITS)


def test_the_limits_hold_by_themselves(tmp_path, rng):
    path = tmp_path / "photo.png"
    image = photo(rng)
    image.save(path)
    size = path.stat().st_size
    for source in (path, path.read_bytes()):
        assert read_image(source, Limits(image_bytes=size, image_pixels=48 * 32)).size == (48, 32)
        with pytest.raises(LimitError, match="limit image_bytes"):
            read_image(source, Limits(image_bytes=size - 1))
        with pytest.raises(LimitError, match="1,536 pixels found, the limit image_pixels is 1,535") as caught:
            read_image(source, Limits(image_pixels=48 * 32 - 1))
        assert caught.value.path == (str(path) if source is path else None)
    with pytest.raises(LimitError, match="image_pixels"):
        read_image(image, Limits(image_pixels=48 * 32 - 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "BMP", "PPM"])
@pytest.mark.parametrize("bound", [1000, 100])
def test_pillows_own_bound_neither_warns_nor_refuses(monkeypatch, rng, kind, bound):
    content = encoded(photo(rng), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", bound)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert read_image(content, LIMITS).size == (48, 32)
    assert not seen


@pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="this Pillow does not apply its bound to WebP when it is read so",
)
def test_pillows_own_bound_is_named_where_it_cannot_be_lifted(monkeypatch, rng):
    content = encoded(photo(rng), "WEBP")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(LimitError, match="MAX_IMAGE_PIXELS"):
        read_image(content, LIMITS)


@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"alpha": True}])
def test_the_pixels_of_a_webp_are_counted_before_it_is_opened(options):
    mode = "RGBA" if options.pop("alpha", False) else "RGB"
    content = encoded(Image.new(mode, (300, 200), 1), "WEBP", **options)
    assert read_image(content, Limits(image_pixels=60_000)).size == (300, 200)
    with pytest.raises(LimitError, match=r"60,000 pixels found, the limit image_pixels is 59,999"):
        read_image(content, Limits(image_pixels=59_999))


def test_the_photos_of_the_zoo(zoo):
    for path in Path(zoo / "images").iterdir():
        if path.suffix != ".csv":
            assert read_image(path, LIMITS).mode == "RGB"
