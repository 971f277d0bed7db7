"""Videos: their frames and times, what is left of broken ones, and videos written."""

from __future__ import annotations

import gc
import io
import json
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import educe
from educe.errors import InputError, LimitError
from educe.limits import Limits
from educe.media import video
from educe.media.frames import is_video, read_frames
from educe.media.video import VideoWriter, read_video, video_container, video_facts

LIMITS = Limits()


@pytest.fixture(scope="module")
def traffic(zoo) -> Path:
    return zoo / "video" / "traffic_frames.mp4"


def write(path: Path, codec: str = "libx264", size=(64, 48), frames: int = 6, degrees: int = 0) -> Path:
    """A black video with a red upper left corner."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if degrees:
            stream.set_display_rotation(degrees)
        picture = Image.new("RGB", size)
        picture.paste("red", (0, 0, size[0] // 2, size[1] // 4))
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def test_frames_and_times(traffic):
    frames = list(read_video(traffic, LIMITS))
    assert [frame.index for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.time_seconds for frame in frames], np.arange(20) / 30, atol=1e-3)
    assert {(frame.image.size, frame.image.mode) for frame in frames} == {((960, 540), "RGB")}
    facts = video_facts(traffic, LIMITS)
    assert (facts.width, facts.height, facts.num_frames) == (960, 540, 20)
    assert facts.frames_per_second == pytest.approx(30)


def test_detections_in_every_frame(zoo, traffic):
    expected = json.loads((zoo / "video" / "expected.json").read_text())["yolox_nano_detections_by_frame"]
    answers = {
        answer.frame: answer
        for answer in educe.predictor(zoo / "yolox_nano" / "model.onnx", threshold=0.4, threads=1).stream(
            traffic
        )
    }
    assert list(answers) == list(range(20))
    for frame, boxes in expected.items():
        answer = answers[int(frame)]
        assert answer.time_seconds == pytest.approx(int(frame) / 30, abs=1e-3)
        for box in boxes:
            corners = np.clip(box["box_xyxy"], 0, (960, 540) * 2)
            assert any(
                one.label == box["class"]
                and abs(one.score - box["score"]) < 0.02
                and np.abs(np.array(one.box) - corners).max() < 2
                for one in answer.predictions
            ), (frame, box, answer)


def test_memory_is_constant(tmp_path):
    path = write(tmp_path / "long.mp4", frames=120)
    alive: list[weakref.ref] = []
    most = 0
    for frame in read_video(path, LIMITS):
        alive.append(weakref.ref(frame.image))
        del frame
        gc.collect(0)
        most = max(most, sum(one() is not None for one in alive))
    assert len(alive) == 120
    assert most <= 2


def test_a_video_is_read_only_as_far_as_it_is_used(traffic):
    frames = read_video(traffic, LIMITS)
    assert next(frames).index == 0
    frames.close()


@pytest.mark.parametrize(
    ("degrees", "size", "corner"),
    [(0, (64, 48), (5, 5)), (90, (48, 64), (5, 58)), (180, (64, 48), (58, 42)), (270, (48, 64), (42, 5))],
)
def test_rotated_videos_are_turned_upright(tmp_path, degrees, size, corner):
    path = write(tmp_path / "phone.mp4", degrees=degrees)
    for frame in read_video(path, LIMITS):
        assert frame.image.size == size
        red, green, _ = frame.image.getpixel(corner)
        assert red > 200
        assert green < 60
        assert np.asarray(frame.image)[:, :, 0].mean() < 60


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".avi", "mpeg4"),
        (".mkv", "libx264"),
        (".webm", "libvpx"),
        (".ts", "libx264"),
        (".mpg", "mpeg1video"),
        (".mov", "libx264"),
        (".flv", "flv1"),
    ],
)
def test_other_containers(tmp_path, suffix, codec):
    path = write(tmp_path / f"clip{suffix}", codec, frames=6)
    renamed = path.rename(tmp_path / "photo.jpg")
    assert is_video(renamed)
    frames = list(read_video(renamed, LIMITS))
    assert len(frames) == 6
    times = [frame.time_seconds for frame in frames]
    assert times == sorted(times)
    assert frames[3].image.getpixel((5, 5))[0] > 180


@pytest.mark.parametrize(
    ("size", "written"), [((65, 49), (64, 48)), ((64, 48), (64, 48)), ((1, 1), (2, 2)), ((3, 50), (2, 50))]
)
def test_written_videos_can_be_read(tmp_path, size, written):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 12.5) as writer:
        for level in range(0, 250, 50):
            writer.write(Image.new("RGB", size, (level, level, level)))
    frames = list(read_video(path, LIMITS))
    assert [frame.image.size for frame in frames] == [written] * 5
    np.testing.assert_allclose([frame.time_seconds for frame in frames], np.arange(5) / 12.5, atol=1e-3)
    np.testing.assert_allclose(
        [frame.image.getpixel((0, 0))[1] for frame in frames], range(0, 250, 50), atol=12
    )
    facts = video_facts(path, LIMITS)
    assert facts.frames_per_second == pytest.approx(12.5)
    assert facts.num_frames == 5


@pytest.mark.parametrize("rate", [0.5, 24000 / 1001, 29.97, 60.0])
def test_frame_rates_are_kept(tmp_path, rate):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, rate) as writer:
        for _ in range(4):
            writer.write(Image.new("RGB", (16, 16)))
    assert video_facts(path, LIMITS).frames_per_second == pytest.approx(rate)


def test_frames_of_another_size_are_cut_or_filled_up(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 10) as writer:
        for size in ((32, 32), (16, 64), (64, 16)):
            writer.write(Image.new("RGB", size, "white"))
    first, second, third = (np.asarray(frame.image)[:, :, 0] for frame in read_video(path, LIMITS))
    assert first.min() > 240
    assert second[:, :12].min() > 200
    assert second[:, 20:].max() < 60
    assert third[:12].min() > 200
    assert third[20:].max() < 60


@pytest.mark.parametrize("share", [0.53, 0.7, 0.9, 0.99999])
def test_a_video_cut_off_gives_its_frames_and_then_an_error(tmp_path, streamable, share):
    path = tmp_path / "cut.mp4"
    path.write_bytes(streamable[: int(len(streamable) * share)])
    found = []
    with pytest.raises(InputError, match=r"ends before its last frame|cannot be decoded") as caught:
        found.extend(frame.index for frame in read_video(path, LIMITS))
    assert found == list(range(len(found)))
    assert 0 < len(found) < 20
    assert caught.value.path == str(path)
    assert caught.value.place == f"frame {len(found)}"
    assert caught.value.remedy


def test_a_predictor_answers_up_to_the_break(zoo, tmp_path, streamable):
    path = tmp_path / "cut.mp4"
    path.write_bytes(streamable[: len(streamable) * 7 // 10])
    results = list(educe.predictor(zoo / "mobilenet_v2" / "model.onnx", batch=4, threads=1).results([path]))
    assert len(results) > 1
    assert all(result.error is None for result in results[:-1])
    assert isinstance(results[-1].error, InputError)


@pytest.mark.parametrize("end", [1, 4, 12, 20, 100, 300, 900, 1064, 1100, 3000, 30_000])
def test_a_stump_of_a_video(tmp_path, streamable, end):
    path = tmp_path / "stump.mp4"
    path.write_bytes(streamable[:end])
    with pytest.raises(InputError):
        list(read_video(path, LIMITS))


def test_a_video_without_its_index(tmp_path, traffic):
    path = tmp_path / "cut.mp4"
    path.write_bytes(traffic.read_bytes()[:-1000])
    with pytest.raises(InputError, match="is a broken video"):
        list(read_video(path, LIMITS))
    with pytest.raises(InputError, match="is a broken video"):
        video_facts(path, LIMITS)


@pytest.mark.parametrize("part", ["index", "frames", "all"])
def test_flipped_bits(tmp_path, streamable, rng, part):
    index_bytes = streamable.find(b"mdat")
    low, high = {
        "index": (0, index_bytes),
        "frames": (index_bytes, len(streamable)),
        "all": (0, len(streamable)),
    }[part]
    path = tmp_path / "flipped.mp4"
    whole = 0
    for trial in range(12):
        content = bytearray(streamable)
        for _ in range(1 + trial % 4):
            content[rng.integers(low, high)] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            for frame in read_video(path, LIMITS):
                assert frame.image.mode == "RGB"
            whole += 1
        except (InputError, LimitError):
            pass
    assert whole >= (0 if part == "index" else 1)


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def test_a_sound_is_no_video(tmp_path):
    path = sound_only(tmp_path / "song.mp4")
    for read in (lambda: list(read_video(path, LIMITS)), lambda: video_facts(path, LIMITS)):
        with pytest.raises(InputError, match="holds no video stream"):
            read()


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"<html>404</html>",
        b"",
    ],
)
def test_a_playlist_is_refused_unopened(tmp_path, monkeypatch, content):
    path = tmp_path / "list.mp4"
    path.write_bytes(content)
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("FFmpeg was asked to open it"))
    assert not is_video(path)
    with pytest.raises(InputError, match="is no video that Educe reads"):
        list(read_video(path, LIMITS))
    with pytest.raises(InputError):
        list(read_frames(path, LIMITS))


def test_a_playlist_in_disguise_opens_nothing(tmp_path):
    """A playlist that begins as an MP4 does is read as an MP4, and nothing that it names is looked for."""
    target = write(tmp_path / "target.ts")
    path = tmp_path / "list.mp4"
    path.write_bytes(
        b"\0\0\0\x20ftypisom\n#EXTM3U\n#EXTINF:1,\n" + str(target).encode() + b"\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(InputError):
        list(read_video(path, LIMITS))


def test_large_frames_are_refused(traffic):
    small = Limits(image_pixels=960 * 540 - 1)
    for read in (lambda: list(read_video(traffic, small)), lambda: video_facts(traffic, small)):
        with pytest.raises(LimitError, match="image_pixels") as caught:
            read()
        assert caught.value.path == str(traffic)
    assert next(read_video(traffic, Limits(image_pixels=960 * 540))).index == 0


def test_frames_larger_than_the_header_says_are_refused(tmp_path):
    """The size in an MPEG-4 file stands in its index and again in its frames; the index is made to lie."""
    path = write(tmp_path / "large.avi", "mpeg4", size=(640, 480))
    content = path.read_bytes()
    size = (640).to_bytes(4, "little") + (480).to_bytes(4, "little")
    assert size in content
    path.write_bytes(content.replace(size, (16).to_bytes(4, "little") * 2))
    with pytest.raises((InputError, LimitError)):
        list(read_video(path, Limits(image_pixels=64 * 64)))


def test_a_gif_is_a_picture(tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    ((image, index, time_seconds),) = read_frames(path, LIMITS)
    assert not is_video(path)
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert index is None
    assert time_seconds is None


def test_frames_of_a_video_and_of_a_picture(traffic, zoo):
    indices = [index for _, index, _ in read_frames(traffic, LIMITS)]
    assert indices == list(range(20))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    for source in (buffer.getvalue(), zoo / "images" / "cat.bmp", np.zeros((4, 4), np.uint8)):
        assert [index for _, index, _ in read_frames(source, LIMITS)] == [None]


def test_containers_are_known_by_their_content(traffic):
    assert video_container(traffic.read_bytes()[: video.HEAD_BYTES]) == "mov"
    assert video_container(b"") is None
    assert video_container(b"RIFF\0\0\0\0AVI LIST") == "avi"
    assert video_container(b"RIFF\0\0\0\0WEBPVP8 ") is None
    assert video_container(b"G" * 200) == "mpegts"
    assert video_container(b"G" + bytes(199)) is None
