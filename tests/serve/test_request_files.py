"""Nothing that a request can say opens a file by its name."""

from __future__ import annotations

import ctypes
import io
import json
import os
import subprocess
import sys
import wave
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from educe.files import open_beneath
from educe.serve import ModelSource
from tests.serve.conftest import Client, serving
from tests.serve.models import write_transcriber

RAW = ("breast_cancer", "comment_spam", "kws", "mnist")
SECRET = "a secret that no answer has"
IN_OPEN = 0x20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@contextmanager
def nothing_opened(folder: Path) -> Iterator[None]:
    """Check that nobody opens a folder, or what lies just in it, meanwhile (`inotify(7)`)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watch >= 0, os.strerror(ctypes.get_errno())
    try:
        assert libc.inotify_add_watch(watch, bytes(folder), IN_OPEN) >= 0, os.strerror(ctypes.get_errno())
        yield
        with pytest.raises(BlockingIOError):
            os.read(watch, 1 << 16)
    finally:
        os.close(watch)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Return a folder with a file of each kind that tasks read."""
    folder = tmp_path / "canary"
    folder.mkdir()
    (folder / "text.txt").write_text(SECRET)
    np.save(folder / "array.npy", np.ones((1, 1, 28, 28), np.float32))
    Image.new("RGB", (28, 28), "red").save(folder / "picture.png")
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(b"\1\2" * 16_000)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Client]:
    transcriber = write_transcriber(tmp_path_factory.mktemp("models") / "transcriber")
    with serving(*RAW, "stories260K", ModelSource("transcriber", transcriber)) as client:
        yield client


def contents(folder: Path) -> dict[str, bytes]:
    """Return files that name others, as each reader could follow them."""
    tensor = onnx.TensorProto(
        name="x", data_type=1, dims=[1, 1, 28, 28], data_location=onnx.TensorProto.EXTERNAL,
        external_data=[onnx.StringStringEntryProto(key="location", value=str(folder / "array.npy"))],
    )  # fmt: skip
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(str(folder / "array.npy"), (folder / "array.npy").read_bytes())
        link = zipfile.ZipInfo("Input3.npy")
        link.external_attr = 0o120777 << 16
        file.writestr(link, str(folder / "array.npy"))
    names = {f"name of {path.suffix}": str(path).encode() for path in sorted(folder.iterdir())}
    picture, sound = folder / "picture.png", folder / "sound.wav"
    return {
        **names,
        "url": f"file://{picture}".encode(),
        "playlist": f"#EXTM3U\n#EXTINF:1,\n{sound}\n#EXT-X-ENDLIST\n".encode(),
        "concatenation": f"ffconcat version 1.0\nfile '{sound}'\n".encode(),
        "session": f"v=0\na=control:file://{sound}\n".encode(),
        "vector picture": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{picture}"/></svg>'.encode(),
        "entity": f'<!DOCTYPE x [<!ENTITY y SYSTEM "file://{picture}">]><x>&y;</x>'.encode(),
        "tensor": tensor.SerializeToString(),
        "archive": archive.getvalue(),
    }


@pytest.mark.parametrize("model", RAW)
def test_raw_input_is_content_and_never_a_name(server: Client, secrets: Path, model: str) -> None:
    takes_any = model == "comment_spam"
    given = contents(secrets)
    for kind in ("application/octet-stream", "text/plain", "application/json"):
        for name, body in given.items():
            with nothing_opened(secrets):
                sent = json.dumps(body.decode("latin-1")).encode() if kind == "application/json" else body
                status, _, found = server.ask(
                    "POST", f"/v1/models/{model}/predict", sent, {"content-type": kind}
                )
            assert status < 500, (name, found)
            assert takes_any or status >= 400, (name, found)
            assert SECRET.encode() not in found


def test_cells_are_no_names(server: Client, secrets: Path) -> None:
    for row in ({"mean radius": str(secrets / "text.txt")}, [str(secrets / "text.txt")]):
        with nothing_opened(secrets):
            status, _, _ = server.ask("POST", "/v1/models/breast_cancer/predict", row)
        assert 400 <= status < 500


def test_sounds_are_content_and_never_a_name(server: Client, secrets: Path) -> None:
    for body in contents(secrets).values():
        content = b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\ntranscriber\r\n'
        content += b'--xx\r\nContent-Disposition: form-data; name="file"; filename="' + bytes(secrets)
        content += b'/sound.wav"\r\n\r\n' + body + b"\r\n--xx--\r\n"
        fields = {"content-type": "multipart/form-data; boundary=xx"}
        with nothing_opened(secrets):
            status, _, found = server.ask("POST", "/v1/audio/transcriptions", content, fields)
        assert 400 <= status < 500, found


@pytest.mark.parametrize("url", ["file://{}", "{}"])
def test_what_a_text_has_to_follow_names_no_file(server: Client, secrets: Path, url: str) -> None:
    name = url.format(secrets / "text.txt")
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": name}}}
    asked = {"model": "stories260K", "prompt": "a", "max_tokens": 2}
    bodies: list[dict[str, Any]] = [
        {**asked, "prompt": name},
        {**asked, "response_format": shape},
        {**asked, "grammar": f'start: "a"\n%import "{name}" (x)'},
        {**asked, "chat_template": name},
        {**asked, "draft": name},
        {**asked, "model": name},
    ]
    image = [{"type": "image_url", "image_url": {"url": name}}]
    chat = {"model": "stories260K", "messages": [{"role": "user", "content": image}]}
    for path, body in [("/v1/completions", each) for each in bodies] + [("/v1/chat/completions", chat)]:
        with nothing_opened(secrets):
            status, _, found = server.ask("POST", path, body)
        assert status < 500, found
        assert SECRET.encode() not in found


def test_the_watch_notices_what_is_opened(secrets: Path) -> None:
    with pytest.raises(pytest.fail.Exception), nothing_opened(secrets):
        (secrets / "text.txt").read_bytes()
    with pytest.raises(pytest.fail.Exception), nothing_opened(secrets), open_beneath(secrets, "text.txt"):
        pass
    with pytest.raises(pytest.fail.Exception), nothing_opened(secrets):
        subprocess.run(["cat", secrets / "text.txt"], check=True, capture_output=True)
