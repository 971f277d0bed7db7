"""A generator in a forked child, which has none of the threads of its parent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

import educe
from educe.errors import EngineError
from educe.generate.generator import Generator
from tests.stories import STORIES


@pytest.fixture
def writer() -> Iterator[Generator]:
    with educe.generator(STORIES) as generator:
        yield generator


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_writes_and_loses_only_what_its_parent_was_writing(
    writer: Generator,
) -> None:
    alone = writer.generate("Tom had a", max_tokens=9).outputs
    stream = writer.stream("Once upon a time")
    next(stream)
    child = os.fork()
    if not child:
        status = 1
        try:
            with pytest.raises(EngineError, match="forked"):
                stream.result()
            status = 0 if writer.generate("Tom had a", max_tokens=9).outputs == alone else 2
        finally:
            os._exit(status)
    end = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    stream.cancel()
    assert stream.result().num_tokens
