"""Videos over HTTP: an answer for each frame, as in Python, in memory that does not grow with them."""

from __future__ import annotations

import json
from typing import Any

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


def test_a_video_that_is_cut_off_says_so_after_its_frames(streamable: bytes) -> None:
    with serving("fastestdet") as client:
        cut_off = streamable[: len(streamable) * 2 // 3]
        status, _, content = client.ask("POST", "/v1/models/fastestdet/predict", cut_off)
    *found, last = [json.loads(line) for line in content.splitlines()]
    assert (status, [each["frame"] for each in found]) == (200, list(range(len(found))))
    expected = len(list(educe.predictor(ROOT / "zoo" / "fastestdet").stream(VIDEO)))
    assert 0 < len(found) < expected
    assert "error" in last
    assert "/tmp" not in content.decode()


def test_a_video_whose_index_is_cut_off_is_refused() -> None:
    with serving("fastestdet") as client:
        status, _, content = client.ask("POST", "/v1/models/fastestdet/predict", VIDEO.read_bytes()[:60_000])
    assert (status, "error" in json.loads(content)) == (400, True)
    assert "/tmp" not in content.decode()
