"""A generator: many texts at once, each as if it were alone; streams, ends, errors and chances."""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import educe
from educe.errors import (
    EduceError,
    EngineError,
    InputError,
    ModelFileError,
    OptionError,
    UnsupportedModelError,
)
from educe.formats import checkpoint
from educe.generate.generator import Generator
from educe.generate.perplexity import windows
from educe.generate.runner import Runner
from educe.generate.statistics import Statistics
from educe.generate.step import Slice
from educe.generate.stream import Completion, Inbox, Piece
from educe.generate.writing import Writing
from educe.text.constraint import ConstraintCompiler
from tests.stories import STORIES, write_chat_model

SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("Once upon a time", {"max_tokens": 40, "logprobs": 2}),
    ("Once upon a time", {**SAMPLED, "seed": 1, "n": 3, "logprobs": 0}),
    ("Tom had a red ball. Tom had a red ball. Tom had", {"max_tokens": 40}),
    ("Tom had a red ball. Tom had a red ball. Tom had", {**SAMPLED, "seed": 2, "repetition_penalty": 1.2}),
    ("Lily and her mom went to the park. " * 12, {**SAMPLED, "seed": 3, "top_p": 0.9}),
    ("", {**SAMPLED, "seed": 4, "top_k": 5, "min_tokens": 3}),
    ("One day,", {"max_tokens": 12, "regex": "[a-z ,.]*"}),
]


@pytest.fixture(scope="module")
def writer() -> Any:
    with educe.generator(STORIES) as generator:
        yield generator


@pytest.fixture(scope="module")
def alone(writer: Generator) -> list[Completion]:
    return [writer.generate(prompt, **options) for prompt, options in REQUESTS]


def test_a_text_of_no_tokens_only_reads_the_prompt(writer: Generator) -> None:
    for options in ({}, {"n": 2, "logprobs": 3}, {"json_object": True}, {"stop": "a"}):
        found = writer.generate("Once upon a time", max_tokens=0, **options)  # type: ignore[arg-type]
        assert found.num_prompt_tokens == len(writer.encode("Once upon a time"))
        assert {(each.text, each.tokens, each.finish_reason) for each in found.outputs} == {
            ("", (), "length")
        }
    with pytest.raises(OptionError, match="min_tokens"):
        writer.generate("Once", max_tokens=0, min_tokens=1)
    full = [1] * writer.context
    before = writer.statistics().num_tokens
    assert writer.generate(full, max_tokens=0).num_prompt_tokens == len(full)
    assert writer.statistics().num_tokens == before
    with pytest.raises(InputError, match="the context"):
        writer.generate(full)


def test_a_number_of_tokens_may_be_of_the_smallest_kind(writer: Generator) -> None:
    assert writer.generate("Once", max_tokens=np.uint8(255), ignore_eos=True).num_tokens == 255


def outputs(completions: list[Completion]) -> list[Any]:
    return [completion.outputs for completion in completions]


def test_many_at_once_are_each_as_if_alone(writer: Generator, alone: list[Completion]) -> None:
    for seed in range(2):
        order = random.Random(seed).sample(range(len(REQUESTS)), len(REQUESTS))
        streams = {number: writer.stream(REQUESTS[number][0], **REQUESTS[number][1]) for number in order}
        assert outputs([streams[number].result() for number in range(len(REQUESTS))]) == outputs(alone)


@pytest.mark.parametrize("options", [{"lookup": False}, {"threads": 1, "max_sequences": 3, "context": 256}])
def test_guesses_threads_and_memory_change_no_bit(alone: list[Completion], options: dict[str, Any]) -> None:
    with educe.generator(STORIES, **options) as other:
        streams = [other.stream(prompt, **wanted) for prompt, wanted in REQUESTS]
        assert outputs([stream.result() for stream in streams]) == outputs(alone)


def test_little_memory_only_makes_texts_wait(alone: list[Completion]) -> None:
    with educe.generator(STORIES, memory_bytes=8 * 61_440, context=384) as small:
        streams = [small.stream(prompt, **options) for prompt, options in REQUESTS]
        assert outputs([stream.result() for stream in streams]) == outputs(alone)


def test_one_seed_gives_one_text_200_times_under_mixed_load(writer: Generator) -> None:
    options = {**SAMPLED, "seed": 11, "logprobs": 0}
    chance, streams = random.Random(5), []
    for number in range(200):
        streams.append(writer.stream("Once upon a time", **options))
        if number % 4 == 0:
            prompt = "Tom and Lily " * chance.randint(1, 20)
            other = writer.stream(prompt, temperature=1.0, max_tokens=chance.randint(1, 20))
            if chance.random() < 0.5:
                other.cancel()
    assert len({stream.result().outputs for stream in streams}) == 1


def test_threads_may_call_at_once(writer: Generator, alone: list[Completion]) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: writer.generate(request[0], **request[1]), REQUESTS * 2))
    assert outputs(found) == outputs(alone) * 2


def test_pieces_are_the_text_and_nothing_is_shown_of_a_stop_string(writer: Generator) -> None:
    whole = writer.generate("Once upon a time", max_tokens=60).text
    stop = whole[20:31]
    stream = writer.stream("Once upon a time", max_tokens=60, stop=["never", stop])
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == whole[:20] == stream.result().text
    (output,) = stream.result().outputs
    assert (output.stop, output.finish_reason, pieces[-1].finish_reason) == (stop, "stop", "stop")
    assert [token for piece in pieces for token in piece.tokens] == list(output.tokens)


def test_a_text_is_cancelled_midway_and_costs_no_other(writer: Generator, alone: list[Completion]) -> None:
    other = writer.stream(REQUESTS[0][0], **REQUESTS[0][1])
    with writer.stream("Once upon a time") as stream:
        shown = [next(stream) for _ in range(3)]
    shown += stream
    completion = stream.result()
    assert completion.finish_reason == "cancelled"
    assert completion.text == "".join(piece.text for piece in shown)
    assert 3 <= completion.num_tokens < 400
    assert other.result().outputs == alone[0].outputs


def test_event_loops_read_gather_and_cancel(writer: Generator, alone: list[Completion]) -> None:
    async def write(number: int) -> Completion:
        prompt, options = REQUESTS[number]
        return await writer.stream(prompt, **options)

    async def pieces() -> str:
        return "".join([piece.text async for piece in writer.stream("Tom had a", max_tokens=9)])

    async def run() -> None:
        numbers = range(len(REQUESTS))
        found = await asyncio.gather(*(write(number) for number in numbers))
        assert outputs(list(found)) == outputs(alone)
        assert await pieces() == writer.generate("Tom had a", max_tokens=9).text
        stream = writer.stream("Once upon a time")
        await anext_of(stream)
        task = asyncio.ensure_future(whole(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await stream).finish_reason == "cancelled"

    async def whole(stream: Any) -> Any:
        return await stream

    async def anext_of(stream: Any) -> Any:
        return await stream.__anext__()

    asyncio.run(run())


def test_a_batch_gives_errors_in_their_places(writer: Generator) -> None:
    good = {"prompt": "Lily", "max_tokens": 2}
    bad: list[Any] = [
        {"prompt": "x" * 2000},
        {"prompt": "x", "temperature": -1},
        {"prompt": "x", "stop": 3},
        {"prompt": "x", "logit_bias": 3},
        {"prompt": "x", "logit_bias": {512: 1}},
        {"prompt": "x", "regex": 3},
        {"prompt": "x", "json_object": 1},
        {"prompt": "x", "json_object": {"type": "object"}},
        {"prompt": "x", "json_schema": False},
        {"prompt": "x", "choice": [3]},
        {"prompt": "x", "priority": "high"},
        {"prompt": "x", "tempo": 1},
        {"prompt": "x", "messages": []},
        {"messages": [{"role": "user", "content": "x"}]},
        {},
        3,
        [10**9],
    ]
    requests = [part for each in bad for part in (each, good)]
    results = list(writer.batch(iter(requests), max_tokens=4))
    assert all(isinstance(result, EduceError) for result in results[::2]), results[::2]
    assert {result.text for result in results[1::2]} == {writer.generate("Lily", max_tokens=2).text}
    with pytest.raises(OptionError, match=r"'temprature'.*'temperature'"):
        next(writer.batch(["x"], temprature=1))


def test_a_batch_takes_prompts_as_they_are_needed(writer: Generator) -> None:
    taken: list[int] = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield "Tom"

    results = writer.batch(endless(), max_tokens=1)
    assert next(results).num_tokens == 1  # type: ignore[union-attr]
    assert len(taken) < 100


def test_a_request_that_fails_at_a_step_harms_no_other(
    writer: Generator, alone: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(self: Writing, logits: np.ndarray, draft: Any) -> Any:
        return plain(self, logits * np.nan if self.sequence.max_tokens == 5 else logits, draft)

    plain = Writing.choose
    monkeypatch.setattr(Writing, "choose", choose)
    beside = [writer.stream(prompt, **options) for prompt, options in REQUESTS]
    failing = writer.stream("Tom had a", max_tokens=5, n=2)
    with pytest.raises(EngineError, match="a logit is no finite number"):
        failing.result()
    assert outputs([stream.result() for stream in beside]) == outputs(alone)


def test_a_token_leaves_before_the_next_row_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(self: Writing, logits: np.ndarray, draft: Any) -> Any:
        if self.sequence.max_tokens == 11:
            chosen.append(1)
        else:
            with changed:
                come.append(changed.wait_for(lambda: len(read) >= len(chosen), 30))
        return plain(self, logits, draft)

    plain, changed = Writing.choose, threading.Condition()
    chosen: list[int] = []
    read: list[object] = []
    come: list[bool] = []
    monkeypatch.setattr(Writing, "choose", choose)
    with educe.generator(STORIES) as own:
        first = own.stream("Once upon a time", max_tokens=11)
        second = own.stream("One day,", max_tokens=10)
        for piece in first:
            with changed:
                read.append(piece)
                changed.notify_all()
        assert second.result().num_tokens == 10
    assert all(come)


@pytest.mark.parametrize("place", ["choose", "take"])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_fault_in_one_sample_ends_its_request_once_and_returns_all_blocks(
    monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    def fail(self: Writing, *given: Any) -> Any:
        if self.sequence.tokens[: len(prompt)] != prompt:  # of a generator that an earlier test has dropped
            return plain(self, *given)
        calls.append(self)
        if len(calls) > number:
            raise RuntimeError("broken")
        return plain(self, *given)

    def put(self: Inbox, item: Any) -> None:
        came.append((self, item))
        plain_put(self, item)

    calls: list[Writing] = []
    came: list[tuple[Inbox, Any]] = []
    plain, plain_put = getattr(Writing, place), Inbox.put
    monkeypatch.setattr(Writing, place, fail)
    monkeypatch.setattr(Inbox, "put", put)
    with educe.generator(STORIES) as own:
        prompt = list(own.tokenizer.encode("Tom had a"))
        stream = own.stream("Tom had a", max_tokens=50, n=3)
        with pytest.raises(EngineError, match="broken"):
            stream.result()
        monkeypatch.undo()
        assert own.generate("Once", max_tokens=3).num_tokens == 3
        found = own.statistics()
    assert len(calls) == number + 1
    ends = [item for inbox, item in came if inbox is stream._inbox]
    assert isinstance(ends[-1], EngineError)
    assert all(isinstance(item, Piece) or item is ends[-1] for item in ends)
    assert (found.num_failed, found.num_used_blocks, found.num_running, found.num_waiting) == (1, 0, 0, 0)


def test_statistics_count_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(self: Writing, logits: np.ndarray, draft: Any) -> Any:
        if self.sequence.max_tokens == 5:
            raise RuntimeError("broken")
        if self.sequence.max_tokens == 20:
            at_once.append(own.statistics())
        return plain(self, logits, draft)

    at_once: list[Statistics] = []
    plain, prompt = Writing.choose, "Tom had a red ball. " * 12
    monkeypatch.setattr(Writing, "choose", choose)
    with educe.generator(STORIES, max_sequences=3) as own:
        before = own.statistics()
        assert (before.num_requests, before.num_steps, before.num_used_blocks) == (0, 0, 0)
        first = own.generate(prompt, max_tokens=4)
        again = own.generate(prompt, max_tokens=20, n=3)
        with pytest.raises(EngineError):
            own.generate("Once", max_tokens=5)
        found = own.statistics()
    assert (found.num_requests, found.num_completed, found.num_failed) == (3, 2, 1)
    assert found.num_prompt_tokens == 2 * first.num_prompt_tokens + len(own.encode("Once"))
    assert found.num_cached_tokens == again.num_cached_tokens >= found.block_size
    assert found.num_tokens == first.num_tokens + again.num_tokens
    assert 0 < found.num_accepted_tokens <= found.num_draft_tokens
    assert 0 < found.num_steps <= found.num_tokens + 2
    assert (found.num_running, found.num_waiting, found.num_used_blocks, found.num_preemptions) == (
        0,
        0,
        0,
        0,
    )
    assert (at_once[0].num_running, at_once[0].num_waiting) == (1, 2)
    assert {each.num_running for each in at_once[3:6]} == {3}
    assert all(0 < each.num_used_blocks <= each.num_blocks for each in at_once)


def test_what_does_not_fit_is_refused_and_never_cut(writer: Generator) -> None:
    long = "Once upon a time " * 300
    with pytest.raises(InputError, match=r"the prompt has [\d,]+ tokens, and the context 512"):
        writer.generate(long)
    with pytest.raises(InputError, match="the prompt has 513 tokens, and the context 512"):
        writer.generate([1] * 513)
    with pytest.raises(InputError, match="has 513 tokens"):
        writer.score([1] * 513)
    with pytest.raises(InputError, match="do not fit"):
        writer.generate("Once upon a time", max_tokens=510)
    with pytest.raises(InputError, match=r"the text has [\d,]+ tokens.*perplexity"):
        writer.score(long)
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        writer.chat([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize("top", [0, -1, 21, 2.0, "all"])
def test_how_many_likeliest_are_scored_is_a_number(writer: Generator, top: Any) -> None:
    with pytest.raises(OptionError, match=r"top: .*is .*; it has to be a whole number from 1 to 20"):
        writer.score("Tom had a", top=top)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"memory_bytes": 1000}, "hold no block"),
        ({"memory_bytes": 200_000, "context": 512}, "512 tokens do not fit"),
        ({"context": 513}, "expected 1 to 512"),
        ({"max_sequences": 0}, "max_sequences: .*is 0; it has to be a whole number from 1 to 1024"),
        ({"max_sequences": 10**9}, "max_sequences: .*has to be a whole number from 1 to 1024"),
        ({"num_draft_tokens": 1.5}, "num_draft_tokens: .*is 1.5; it has to be a whole number from 1 to 64"),
        ({"context": "x"}, "context: .*is 'x'"),
        ({"memory_bytes": "1GB"}, "memory_bytes: .*is '1GB'"),
        ({"threads": "x"}, "threads: .*is 'x'"),
        ({"lookup": "x"}, "lookup: .*is 'x'"),
        ({"progress": 5}, "progress: .*is 5"),
        ({"limits": 5}, "limits: .*is 5"),
        ({"draft": 5}, "loaded from a int"),
        ({"cache": 5}, "unknown cache 5"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options: dict[str, Any], cause: str) -> None:
    with pytest.raises(OptionError, match=cause):
        educe.generator(STORIES, **options)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"priority": "high"}, "^priority: .*is 'high'; it has to be a whole number "),
        ({"priority": 1.5}, "^priority: .*is 1.5; it has to be a whole number "),
        ({"salt": 3}, "^salt: is 3; it has to be a text "),
    ],
)
def test_a_rank_or_a_salt_that_is_none_is_refused_by_its_name(
    writer: Generator, options: dict[str, Any], cause: str
) -> None:
    with pytest.raises(OptionError, match=cause):
        writer.generate("Once upon a time", **options)


def test_threads_that_ask_for_forms_at_once_share_one_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*args: Any, **options: Any) -> ConstraintCompiler:
        made.append(1)
        time.sleep(0.2)
        return ConstraintCompiler(*args, **options)

    made: list[int] = []
    monkeypatch.setattr("educe.generate.order.ConstraintCompiler", make)
    with educe.generator(STORIES) as own, ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: own.generate("One", max_tokens=3, regex="[a-z ]*").text, range(4)))
    assert len(set(texts)) == len(made) == 1


def test_what_the_files_of_a_model_say_of_its_texts(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path)
    said = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
        "max_new_tokens": 600,
        "eos_token_id": [2, 403],
    }
    (folder / "generation_config.json").write_text(json.dumps(said))
    with educe.generator(folder) as own:
        assert dict(own.defaults) == {"temperature": 0.7, "top_k": 5, "max_tokens": 600}
        assert own.generate([1], seed=1, temperature=0.0).tokens == (403,)
        assert (
            own.chat([{"role": "user", "content": "Once upon a time"}], max_tokens=3, seed=1).num_tokens == 3
        )
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(ModelFileError, match="eos_token_id"):
        educe.generator(folder)


def test_closing_ends_all_texts_and_refuses_more() -> None:
    writer = educe.generator(STORIES)
    streams = [writer.stream("Once upon a time") for _ in range(20)]
    next(streams[0])
    closers = [threading.Thread(target=writer.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    assert {stream.result().finish_reason for stream in streams} <= {"cancelled", "stop", "length"}
    assert streams[-1].result().finish_reason == "cancelled"
    for call in (writer.generate, writer.score):
        with pytest.raises(OptionError, match="closed"):
            call("Once upon a time")


def test_closing_gives_the_memory_of_the_model_back() -> None:
    writer = educe.generator(STORIES)
    writer.generate("Once upon a time", max_tokens=3)
    held = weakref.ref(writer._engine._runner)
    assert held() is not None
    writer.close()
    writer.close()
    assert held() is None
    with pytest.raises(OptionError, match="closed"):
        writer.generate("Once upon a time")


@cache
def runner() -> Runner:
    found = Runner(checkpoint.load(STORIES), max_length=512, block_size=64, cache="bf16")
    found.allocate(8)
    return found


def plain_log_probabilities(ids: list[int]) -> np.ndarray:
    """Return the log-probability of each token after the first, by log-softmax in double precision."""
    logits = runner().run([Slice(ids, 0, range(8), len(ids))])[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits[np.arange(len(ids) - 1), ids[1:]]


@pytest.fixture(scope="module")
def reader() -> Any:
    with educe.generator(STORIES, precision="f32") as generator:
        yield generator


def test_a_score_is_the_plain_log_softmax(reader: Generator) -> None:
    text = reader.generate("Once upon a time", max_tokens=100).text
    ids = reader.encode("Once upon a time" + text)
    expected = plain_log_probabilities(ids)
    score = reader.score("Once upon a time" + text)
    np.testing.assert_allclose([choice.logprob for choice in score.choices], expected, atol=1e-5)
    assert score.logprob == pytest.approx(expected.sum(), abs=1e-4)
    assert score.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-5)
    assert not reader.score("Tom had a").greedy
    rest = reader.score(text, after="Once upon a time")
    assert rest.greedy
    assert rest.choices == score.choices[-len(rest.choices) :]


def test_a_long_text_is_weighed_in_windows_each_token_once(reader: Generator) -> None:
    text = (reader.generate("Once upon a time", max_tokens=200).text + " ") * 3
    ids = reader.encode(text)
    seen: list[tuple[int, int]] = []
    found = reader.perplexity(text, window=64, stride=24, progress=lambda *each: seen.append(each))
    expected = list(plain_log_probabilities(ids[:64]))
    for start in range(64, len(ids), 24):
        end = min(start + 24, len(ids))
        expected += list(plain_log_probabilities([ids[0], *ids[end - 63 : end]]))[start - end :]
    np.testing.assert_allclose(found.logprobs, expected, atol=1e-5)
    assert (found.num_tokens, found.num_bytes) == (len(ids) - 1, len(text.encode()))
    mean, spread = np.mean(expected), np.std(expected, ddof=1)
    assert found.per_token == pytest.approx(math.exp(-mean), rel=1e-5)
    assert found.standard_error == pytest.approx(math.exp(-mean) * spread / len(expected) ** 0.5, rel=1e-4)
    assert found.per_byte**found.num_bytes == pytest.approx(found.per_token**found.num_tokens, rel=1e-6)
    assert 2**found.bits_per_byte == pytest.approx(found.per_byte, rel=1e-6)
    assert seen[-1] == (len(ids) - 1, len(ids) - 1)
    whole = reader.perplexity("Once upon a time")
    score = reader.score("Once upon a time")
    np.testing.assert_array_equal(whole.logprobs, [choice.logprob for choice in score.choices])


def test_windows_count_every_token_once_and_begin_as_texts_do() -> None:
    chance = random.Random(3)
    for _ in range(300):
        num_special, body = chance.randint(0, 2), list(range(100, 100 + chance.randint(2, 60)))
        size = num_special + chance.randint(2, 20)
        stride = chance.randint(1, size - max(1, num_special))
        special = list(range(num_special))
        counted: list[int] = []
        for window in windows([*special, *body], num_special, size, stride):
            assert len(window.tokens) <= size
            assert list(window.tokens[:num_special]) == special
            assert 1 <= window.num_counted < len(window.tokens)
            counted += window.tokens[-window.num_counted :]
        assert counted == body[0 if num_special else 1 :]


@pytest.mark.parametrize(
    ("options", "kind", "cause"),
    [
        ({"window": 513}, OptionError, "expected 1 to 512"),
        ({"window": 64, "stride": 64}, OptionError, "a stride of 1 to 63"),
        ({"window": 64, "stride": 0}, OptionError, "a stride of 1 to 63"),
        ({"window": 1}, OptionError, "a stride of 1 to 0"),
        ({"text": ""}, InputError, "nothing to weigh"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    writer: Generator, options: dict[str, Any], kind: type[EduceError], cause: str
) -> None:
    with pytest.raises(kind, match=cause):
        writer.perplexity(**{"text": "Once upon a time", **options})


def test_a_fault_while_a_text_is_spelled_harms_no_other(
    writer: Generator, alone: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    take, prepare = Writing.take, Runner.prepare
    monkeypatch.setattr(Runner, "prepare", fail)
    monkeypatch.setattr(
        Writing, "take", lambda self, *rest: fail() if self.sequence.max_tokens == 7 else take(self, *rest)
    )
    broken = writer.stream("Once", max_tokens=7)
    assert writer.generate(REQUESTS[0][0], **REQUESTS[0][1]).outputs == alone[0].outputs
    with pytest.raises(EduceError, match="broken"):
        broken.result()
    monkeypatch.setattr(Writing, "take", take)
    monkeypatch.setattr(Writing, "__init__", fail)
    with pytest.raises(RuntimeError):
        writer.stream("Once", max_tokens=7)
    monkeypatch.undo()
    assert Runner.prepare is prepare
    assert writer.generate(REQUESTS[0][0], **REQUESTS[0][1]).outputs == alone[0].outputs


@pytest.mark.parametrize(
    ("prompts", "cause"), [("abc", "found one text"), (5, "found a int"), ({"prompt": "a"}, "found a dict")]
)
def test_one_prompt_is_no_batch(writer: Generator, prompts: Any, cause: str) -> None:
    with pytest.raises(InputError, match=f"expected many prompts, {cause}"):
        writer.batch(prompts)


def test_what_is_no_text_is_not_weighed(writer: Generator) -> None:
    with pytest.raises(InputError, match="after: is a NoneType, no text"):
        writer.score("Tom", after=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a list is no text"):
        writer.perplexity([1, 2])  # type: ignore[arg-type]
    for name in ("window", "stride"):
        with pytest.raises(OptionError, match=f"{name}: is 'x'; it has to be a whole number"):
            writer.perplexity("Tom had a", **{name: "x"})
    with pytest.raises(OptionError, match="did you mean 'window'"):
        writer.perplexity("Tom had a", windw=3)


@pytest.mark.parametrize("source", [None, 5, b"stories"])
def test_what_is_no_path_is_no_language_model(source: Any) -> None:
    for door in (educe.generator, educe.translator, educe.transcriber, educe.embedder):
        with pytest.raises(OptionError, match=f"loaded from a {type(source).__name__}"):
            door(source)


def test_limits_are_limits() -> None:
    limits: dict[str, Any] = {"limits": 5}
    for door in (
        educe.generator,
        educe.translator,
        educe.transcriber,
        educe.embedder,
        educe.load,
        educe.predictor,
    ):
        with pytest.raises(OptionError, match="limits: is 5"):
            door(STORIES, **limits)


def test_numbers_of_numpy_and_none_are_options(writer: Generator) -> None:
    plain = writer.generate("Tom had a", max_tokens=4, stop=["."])
    left_out = dict.fromkeys(["temperature", "top_p", "n", "logit_bias", "priority", "salt", "tool_choice"])
    assert writer.generate("Tom had a", max_tokens=np.int64(4), stop=".", **left_out).tokens == plain.tokens
    tokens = np.array(writer.encode("Tom had a"))
    for prompt in (tokens, list(tokens)):
        assert writer.generate(prompt, max_tokens=4, stop=None).tokens[:3] == plain.tokens[:3]
    for wrong in (tokens.astype(float), tokens[None], None):
        with pytest.raises(InputError, match="is no prompt"):
            writer.generate(wrong)  # type: ignore[arg-type]


def test_more_texts_of_a_prompt_than_run_at_once_are_refused_by_name(writer: Generator) -> None:
    with pytest.raises(OptionError, match=r"^n: is 17; .*1 to 16 .*max_sequences"):
        writer.generate("Tom", n=17, max_tokens=1)


def test_a_form_ends_where_it_does(writer: Generator) -> None:
    with pytest.raises(OptionError, match=r"^ignore_eos: .*ends where the form does"):
        writer.generate("Tom", choice=["a"], ignore_eos=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grammar": "start: ("}, "Expected token"),
        ({"regex": 5}, "has to be a text, and is of the type int"),
    ],
)
def test_what_is_wrong_with_a_form_is_one_line(writer: Generator, options: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        writer.generate("Tom", **options)
    assert "\n" not in str(caught.value)


def test_a_model_of_pydantics_is_no_schema(writer: Generator) -> None:
    class Person:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return {}

    with pytest.raises(OptionError, match=r"give its model_json_schema\(\)"):
        writer.generate("Tom", json_schema=Person)


def test_a_form_of_calls_is_checked_without_tools(writer: Generator) -> None:
    with pytest.raises(OptionError, match=r"tool_format: .*zzz"):
        writer.generate("Tom", tool_format="zzz")
