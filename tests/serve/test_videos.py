"""Videos over HTTP: an answer for each frame, as in Python, in memory that does not grow with them."""

from __future__ import annotations

import io
import json
from typing import Any

import av
import pytest

import educe
from tests.conftest import ROOT
from tests.serve.conftest import serving

VIDEO = ROOT / "zoo" / "video" / "traffic_frames.mp4"


def test_a_video_has_an_answer_for_each_frame() -> None:
    with serving("fastestdet") as client:
        status, fields, content = client.ask("POST", "/v1/models/fastestdet/predict", VIDEO.read_bytes())
    assert (status, fields["content-type"]) == (200, "application/x-ndjson")
    found: list[Any] = [json.loads(line) for line in content.splitlines()]
    expected = list(educe.predictor(ROOT / "zoo" / "fastestdet").stream(VIDEO))
    assert [each["frame"] for each in found] == list(range(len(expected)))
    for ours, theirs in zip(found, expected, strict=True):
        predictions = theirs.to_dict()["predictions"]
        assert [each["label"] for each in ours["predictions"]] == [each["label"] for each in predictions]
        for one, other in zip(ours["predictions"], predictions, strict=True):
            assert one["box"] == pytest.approx(other["box"], abs=0.01)
    assert "temp" not in content.decode()


def _in_order() -> bytes:
    """Return the video in a container that can be read from its begin."""
    file = io.BytesIO()
    with av.open(VIDEO) as source, av.open(file, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return file.getvalue()


def test_a_video_that_is_cut_off_has_answers_as_far_as_it_goes() -> None:
    whole = _in_order()
    with serving("fastestdet") as client:
        status, _, content = client.ask("POST", "/v1/models/fastestdet/predict", whole[: len(whole) * 2 // 3])
    found = [json.loads(line) for line in content.splitlines()]
    frames = [each["frame"] for each in found if "predictions" in each]
    assert (status, frames) == (200, list(range(len(frames))))
    expected = len(list(educe.predictor(ROOT / "zoo" / "fastestdet").stream(VIDEO)))
    assert 0 < len(frames) < expected


def test_a_video_whose_index_is_cut_off_is_refused() -> None:
    with serving("fastestdet") as client:
        status, _, content = client.ask("POST", "/v1/models/fastestdet/predict", VIDEO.read_bytes()[:60_000])
    assert (status, "error" in json.loads(content)) == (400, True)
    assert "/tmp" not in content.decode()
