"""Deadlines: what a task waits for ends at them, whatever it is, and nothing else does."""

from __future__ import annotations

import asyncio
import io
import math
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from educe.generate.embedding import Embedder
from educe.generate.engine import Engine
from educe.generate.generator import Generator
from educe.generate.transcription import Transcriber
from educe.serve import ModelSource, ServerLimits, inference, repository
from educe.serve.cost import CostCurve
from educe.serve.deadline import Deadline, as_fault
from educe.serve.faults import DeadlineExceeded
from educe.serve.http import v2
from educe.serve.http.openai import audio
from educe.serve.served import PredictorModel
from tests.conftest import ROOT
from tests.serve.conftest import Client, Hang, serving, until
from tests.serve.models import wav, write_embedder, write_transcriber

SOON = 0.02


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """What runs a coroutine, in each kind of loop."""
    return asyncio.run if request.param == "asyncio" else pytest.importorskip("uvloop").run


async def late(at: float, on_end: Callable[[BaseException], object] = lambda fault: None) -> None:
    """Wait until a deadline ends it, and tell what came then, unless the moment has passed before."""
    with Deadline(at):
        try:
            await asyncio.Event().wait()
        except BaseException as fault:
            on_end(fault)
            raise


def test_what_waits_ends_at_the_deadline_and_the_task_goes_on(run) -> None:
    async def main() -> None:
        start = now()
        with pytest.raises(DeadlineExceeded):
            await late(start + SOON)
        assert now() >= start + SOON - 0.002  # the clock of timers is coarse
        await asyncio.sleep(2 * SOON)  # no cancellation is left
        with Deadline(now() + SOON):
            await asyncio.sleep(0)
        await asyncio.sleep(2 * SOON)

    run(main())


def test_a_moment_that_has_passed_lets_nothing_begin(run) -> None:
    async def main() -> None:
        with pytest.raises(DeadlineExceeded), Deadline(now()):
            pytest.fail("it began")
        with Deadline(math.inf):
            await asyncio.sleep(0)

    run(main())


def test_a_client_that_goes_is_no_deadline(run) -> None:
    async def main() -> None:
        task = asyncio.create_task(late(now() + 60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python does not count cancellations")
def test_a_client_that_goes_at_the_deadline_has_gone(run) -> None:
    async def main() -> None:
        async def leave(seen: list[BaseException]) -> None:
            task = asyncio.current_task()
            assert task is not None
            await late(now() + SOON, lambda fault: (seen.append(fault), task.cancel()))

        seen: list[BaseException] = []
        while not seen:
            task = asyncio.create_task(leave(seen))
            (done,), _ = await asyncio.wait([task])
        assert done.cancelled()

    run(main())


def test_other_faults_stay_what_they_are(run) -> None:
    def fail(fault: BaseException) -> None:
        raise ValueError

    async def main() -> None:
        found: BaseException = DeadlineExceeded("it has not begun")
        while isinstance(found, DeadlineExceeded):
            task = asyncio.create_task(late(now() + SOON, fail))
            await asyncio.wait([task])
            found = task.exception() or AssertionError("it ended")
        assert type(found) is ValueError

    run(main())


def test_the_first_of_two_deadlines_counts(run) -> None:
    async def main() -> None:
        start = now()
        with Deadline(start + 60):
            with pytest.raises(DeadlineExceeded):
                await late(start + SOON)
            await asyncio.sleep(SOON)
        seen: list[BaseException] = []
        while not seen:
            with pytest.raises(DeadlineExceeded), Deadline(now() + SOON):
                await late(now() + 60, seen.append)
        assert isinstance(*seen, asyncio.CancelledError)
        with pytest.raises(DeadlineExceeded):  # none is left of those before
            await late(now() + SOON)

    run(main())


def test_a_task_within_has_a_deadline_of_its_own(run) -> None:
    async def main() -> None:
        with Deadline(now() + 60):
            task = asyncio.create_task(late(now() + SOON))
        with pytest.raises(DeadlineExceeded):
            await task
        with Deadline(now() + SOON):
            task = asyncio.create_task(late(now() + 2 * SOON))
        with pytest.raises(DeadlineExceeded):
            await task

    run(main())


def test_what_is_cancelled_by_a_deadline_has_failed_of_it(run) -> None:
    async def main() -> None:
        seen: list[BaseException] = []
        while not seen:
            with pytest.raises(DeadlineExceeded):
                await late(now() + SOON, lambda fault: seen.append(as_fault(fault)))
        cancelled, wrong = asyncio.CancelledError(), ValueError()
        with Deadline(now() + 60):
            seen += [as_fault(cancelled), as_fault(wrong)]
        assert isinstance(seen[0], DeadlineExceeded)
        assert seen[1:] == [cancelled, wrong]

    run(main())


# A server's requests --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("models")
    reader, listener = write_embedder(folder / "reader"), write_transcriber(folder / "listener")
    sources = [ModelSource("reader", reader), ModelSource("listener", listener)]
    with serving("breast_cancer", "mobilenet_v2", "stories260K", *sources, admin=True) as client:
        yield client


PICTURE = (ROOT / "zoo" / "images" / "zebra.jpeg").read_bytes()
PREDICT = "/v1/models/mobilenet_v2/predict"
SOON_FIELD = {"x-request-timeout-ms": "1000"}


def rows(count: int) -> dict[str, Any]:
    data = [0.5] * (30 * count)
    return {"inputs": [{"name": "features", "datatype": "FP32", "shape": [count, 30], "data": data}]}


def written(**options: Any) -> dict[str, Any]:
    return {"model": "stories260K", "prompt": "Once upon a time", "max_tokens": 4, **options}


def sound() -> tuple[bytes, dict[str, str]]:
    """Return the body and the header field of a request for a transcription."""
    content = wav(np.random.default_rng(4).integers(-9000, 9000, 30_000, np.int16))
    parts = [("model", "", b"listener"), ("file", '; filename="a.wav"', content)]
    lines = [
        b'--x\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (name.encode(), more.encode(), value)
        for name, more, value in parts
    ]
    return b"".join([*lines, b"--x--\r\n"]), {"content-type": "multipart/form-data; boundary=x"}


INFER = "/v2/models/breast_cancer/infer"
HANGS: dict[str, tuple[Any, str, str, Any]] = {
    "reading": (PredictorModel, "open", PREDICT, PICTURE),
    "video": (inference, "store", PREDICT, (ROOT / "zoo" / "video" / "traffic_frames.mp4").read_bytes()),
    "tensors": (v2, "_read", INFER, rows(10_000)),
    "run": (PredictorModel, "_answer", PREDICT, PICTURE),
    "loading": (repository, "open_model", "/v2/repository/models/breast_cancer/load", {}),
    "prompt": (Generator, "stream", "/v1/completions", written(regex="a+")),
    "step": (Engine, "_step", "/v1/completions", written()),
    "text tensor": (Engine, "_step", "/v2/models/stories260K/generate", {"text_input": "Once"}),
    "score": (Generator, "begin_score", "/v1/completions", written(echo=True, logprobs=1)),
    "tokens": (Embedder, "tokens", "/v1/embeddings", {"model": "reader", "input": ["b"]}),
    "embedding": (Embedder, "embed_tokens", "/v1/embeddings", {"model": "reader", "input": ["b"]}),
    "sound": (audio, "open_sound", "/v1/audio/transcriptions", sound),
    "hearing": (Transcriber, "transcribe", "/v1/audio/transcriptions", sound),
}


def number(client: Client, name: str) -> float:
    """Return a number of a server's metrics; 0 if there is none."""
    lines = client.ask("GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("name", HANGS)
def test_whatever_hangs_is_not_waited_for_longer_than_the_deadline(
    server: Client, hang: Callable[..., Hang], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    owner, function, path, body = HANGS[name]
    body, fields = body() if callable(body) else (body, {})
    assert server.ask("POST", path, body, fields)[0] == 200
    hanging = hang(owner, function)
    # None is refused since it is expected to last longer.
    monkeypatch.setattr(CostCurve, "seconds", lambda self, rows: 0.0)
    status, _, content = server.ask("POST", path, body, {**fields, **SOON_FIELD})
    assert status == 504, content
    assert b"the request's time has passed" in content
    assert hanging.num_ended == 0 < hanging.num_begun
    assert server.ask("GET", "/livez")[0] == 200  # not for so short a time
    hanging.end()
    until(lambda: server.ask("POST", path, body, fields)[0] == 200)


def test_the_time_of_a_request_for_tensors_may_be_shorter(server: Client, hang: Callable[..., Hang]) -> None:
    hanging = hang(PredictorModel, "_infer")
    body = {**rows(1000), "parameters": {"timeout": 200_000}}
    assert server.ask("POST", INFER, body, {"x-request-timeout-ms": "60000"})[0] == 504
    assert hanging.num_ended == 0 < hanging.num_begun


def test_a_text_that_nobody_waits_for_any_more_is_not_written(
    server: Client, hang: Callable[..., Hang]
) -> None:
    hanging = hang(Generator, "stream")
    num_tokens = number(server, 'educe_tokens_total{model="stories260K"}')
    body = written(max_tokens=480, min_tokens=480)
    assert server.ask("POST", "/v1/completions", body, SOON_FIELD)[0] == 504
    hanging.end()
    until(lambda: number(server, 'educe_running_requests{model="stories260K"}') == 0)
    assert number(server, 'educe_tokens_total{model="stories260K"}') < num_tokens + 480


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", written(stream=True, max_tokens=480, min_tokens=480)),
        ("/v2/models/stories260K/generate_stream", {"text_input": "Once", "parameters": {"max_tokens": 480}}),
    ],
)
def test_a_stream_that_hangs_ends_at_the_deadline(
    server: Client, hang: Callable[..., Hang], path: str, body: Any
) -> None:
    hanging = hang(Engine, "_step", 5)
    status, _, content = server.ask("POST", path, body, {"x-request-timeout-ms": "3000"})
    assert status == 200
    assert b"the request's time has passed" in content
    assert hanging.num_ended == 5


@pytest.mark.parametrize("function", ["open", "_answer"])
def test_what_a_thread_uses_takes_room_until_it_has_ended(hang: Callable[..., Hang], function: str) -> None:
    picture = PICTURE + bytes(10_000_000)  # its pixels take less
    limits = ServerLimits(bodies_bytes=int(1.5 * len(picture)))
    with serving("mobilenet_v2", server_limits=limits) as client:
        assert client.ask("POST", PREDICT, picture)[0] == 200
        hanging = hang(PredictorModel, function)
        assert client.ask("POST", PREDICT, picture, SOON_FIELD)[0] == 504
        status, fields, content = client.ask("POST", PREDICT, picture)
        assert (status, "retry-after" in fields) == (503, True), content
        hanging.end()
        until(lambda: client.ask("POST", PREDICT, picture)[0] == 200)


def test_what_is_made_of_a_body_takes_room_until_it_is_answered() -> None:
    small, large = io.BytesIO(), io.BytesIO()
    Image.new("P", (1000, 1000)).save(small, "png")
    Image.new("P", (4000, 4000)).save(large, "png")
    assert len(large.getvalue()) < 100_000
    with serving("mobilenet_v2", server_limits=ServerLimits(bodies_bytes=30_000_000)) as client:
        status, fields, content = client.ask("POST", PREDICT, large.getvalue())
        assert (status, "retry-after" in fields) == (503, True), content
        for _ in range(20):  # of which eight would fill it
            assert client.ask("POST", PREDICT, small.getvalue())[0] == 200


def test_an_input_that_is_read_for_nobody_still_has_its_place(hang: Callable[..., Hang]) -> None:
    with serving("mobilenet_v2", max_waiting=1) as client:
        hanging = hang(PredictorModel, "open")
        assert client.ask("POST", PREDICT, PICTURE, SOON_FIELD)[0] == 504
        assert client.ask("POST", PREDICT, PICTURE)[0] == 503
        assert hanging.num_begun == 1
        hanging.end()
        until(lambda: client.ask("POST", PREDICT, PICTURE)[0] == 200)


def test_a_request_whose_time_has_passed_is_counted_as_such(hang: Callable[..., Hang]) -> None:
    with serving("mobilenet_v2") as client:
        hang(PredictorModel, "_answer")
        assert client.ask("POST", PREDICT, PICTURE, SOON_FIELD)[0] == 504
        outcome = 'educe_requests_total{model="mobilenet_v2",outcome="%s"}'
        assert number(client, outcome % "DeadlineExceeded") == 1
        assert number(client, outcome % "Cancelled") == 0
