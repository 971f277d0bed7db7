"""What the server counts, logs and traces: of models, texts, runs and requests."""

from __future__ import annotations

import io
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextvars import copy_context
from http.client import HTTPConnection
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from educe.errors import MissingLibraryError, OptionError
from educe.generate.engine import Engine
from educe.generate.stream import Completion, Output, Seconds
from educe.serve import core
from educe.serve.faults import Overloaded
from educe.serve.metrics import COUNTERS, HISTOGRAMS
from educe.serve.observation import Timing, note_model, note_text, note_timing
from educe.serve.observer import Observer
from educe.serve.statistics import Histogram, ModelStatistics
from educe.serve.tracing import Tracer, tracer_from_environment
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving

KEY = "a key of sixteen characters and more"


@pytest.fixture(scope="module")
def own() -> Iterator[Client]:
    """A client of a server that nobody else asks, which has answered a few requests."""
    with serving("breast_cancer", "mobilenet_v2", "stories260K") as client:
        columns = next(iter(client.json("GET", "/v2/models/breast_cancer")["inputs"]))
        tensor = {
            "name": columns["name"],
            "shape": [2, columns["shape"][-1]],
            "datatype": columns["datatype"],
        }
        tensor["data"] = [0.5] * (2 * columns["shape"][-1])
        for _ in range(3):
            client.json("POST", "/v2/models/breast_cancer/infer", {"inputs": [tensor]})
        status, _, _ = client.ask(
            "POST", "/v2/models/breast_cancer/infer", {"inputs": [{**tensor, "name": "other"}]}
        )
        assert status == 400
        zebra = (ROOT / "zoo" / "images" / "zebra.jpeg").read_bytes()
        client.ask("POST", "/v1/models/mobilenet_v2/predict", zebra)
        question = {"model": "stories260K", "prompt": "Once upon a time", "max_tokens": 8}
        client.json("POST", "/v1/completions", question)
        assert client.ask("POST", "/v1/completions", {**question, "stream": True})[0] == 200
        assert client.ask("GET", "/nothing")[0] == 404
        yield client


def metrics(client: Client) -> dict[tuple[str, ...], float]:
    """Return the samples, by their names and the values of their labels."""
    status, headers, text = client.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(text.decode())
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_metrics_count_what_was_asked(own: Client) -> None:
    found = metrics(own)
    assert found["educe_requests_total", "breast_cancer", "ok"] == 3
    assert sum(v for (name, *labels), v in found.items() if name == "educe_requests_total") == 7
    assert found["educe_batch_rows_sum", "breast_cancer"] >= 6
    assert found["educe_queue_seconds_count", "breast_cancer"] == 3
    assert found["educe_run_seconds_sum", "mobilenet_v2"] > 0
    assert found["educe_model_memory_bytes", "mobilenet_v2"] > 1e6
    assert found["educe_model_ready", "stories260K"] == 1
    assert found["educe_waiting_requests", "breast_cancer"] == 0
    assert found["educe_running_requests", "stories260K"] == 0
    infer = "/v2/models/{model}/infer"
    assert found["educe_http_requests_total", "POST", infer, "200"] == 3
    assert found["educe_http_requests_total", "POST", infer, "400"] == 1
    assert found["educe_http_request_seconds_count", infer] == 4
    assert found["educe_http_requests_total", "", "", "404"] == 1
    assert found["process_resident_memory_bytes",] > 1e6


def test_metrics_count_texts_and_their_tokens(own: Client) -> None:
    found = metrics(own)
    assert found["educe_requests_total", "stories260K", "ok"] == 2
    assert found["educe_tokens_total", "stories260K"] == 16
    assert found["educe_prompt_tokens_total", "stories260K"] == 10
    assert found["educe_first_token_seconds_count", "stories260K"] == 2
    assert found["educe_between_tokens_seconds_count", "stories260K"] == 14
    assert 0 <= found["educe_kv_cache_used_ratio", "stories260K"] <= 1


def test_every_metric_is_documented_and_all_are_there(own: Client) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    names = {name for name, *_ in metrics(own) if name.startswith("educe_")}
    for name in names:
        base = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        assert f"`{base}`" in text, base
    assert names >= {f"{name}_count" for name in HISTOGRAMS} | {f"{name}_total" for name in COUNTERS}


def test_statistics_are_those_of_the_open_inference_protocol(own: Client) -> None:
    (found,) = own.json("GET", "/v2/models/breast_cancer/stats")["model_stats"]
    assert (found["name"], found["version"]) == ("breast_cancer", "1")
    assert found["execution_count"] == 3
    assert abs(found["last_inference"] / 1000 - time.time()) < 600
    stats = found["inference_stats"]
    assert stats["success"]["count"] == stats["queue"]["count"] == stats["compute_infer"]["count"] == 3
    assert stats["fail"]["count"] == 1
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    assert sum(each["compute_infer"]["count"] for each in found["batch_stats"]) == 3
    assert found["memory_usage"][0]["byte_size"] > 0
    everything = own.json("GET", "/v2/models/stats")["model_stats"]
    assert {each["name"] for each in everything} == {"breast_cancer", "mobilenet_v2", "stories260K"}
    assert own.json("GET", "/v2/models/breast_cancer/versions/1/stats")["model_stats"][0]["version"] == "1"
    assert own.ask("GET", "/v2/models/nothing/stats")[0] == 404
    assert own.ask("GET", "/v2/models/breast_cancer/versions/7/stats")[0] == 404


def test_metrics_need_a_key_where_one_is_set() -> None:
    with serving("comment_spam", api_keys=(KEY,)) as client:
        assert client.ask("GET", "/metrics")[0] == 401
        assert client.ask("GET", "/v2/models/stats")[0] == 401
        assert client.ask("GET", "/metrics", headers={"authorization": f"Bearer {KEY}"})[0] == 200


def test_counting_a_request_is_cheap() -> None:
    found, count = ModelStatistics(), 20_000
    observer = Observer()
    start = time.perf_counter()
    for _ in range(count):
        found.answered(0.003, 0.01)
        found.ran(4, 0.01)
        observer.end(observer.begin("POST"))
    # Some microseconds; the bound is one that a busy machine keeps.
    assert (time.perf_counter() - start) / count < 1e-3


def test_a_histogram_counts_each_value_in_its_class() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    histogram.add(2.0, times=2)
    assert histogram.counts == [2, 3, 1]
    assert (histogram.count, histogram.sum) == (6, 16.0)


def test_the_times_of_a_text_are_counted_by_its_tokens() -> None:
    found = ModelStatistics()
    outputs = (Output("abc", (1, 2, 3), "length"),)
    found.wrote(Completion(outputs, 5, 0, Seconds(0.25, 1.0, 3.0)))
    found.wrote(Completion((Output("", (), "stop"),), 5, 0, Seconds(0.25, 1.0, 1.0)))
    assert found.num_answered == 2
    assert (found.first_token.count, found.first_token.sum) == (1, 1.0)
    assert (found.between_tokens.count, found.between_tokens.sum) == (2, 2.0)


def test_failures_are_counted_by_kind() -> None:
    found = ModelStatistics()
    for fault in (Overloaded("too many"), Overloaded("too many"), GeneratorExit()):
        found.failed(fault)
    assert found.failures == {"Overloaded": 2, "Cancelled": 1}


def test_texts_are_counted_whatever_interface_asks_for_them() -> None:
    def answer() -> ModelStatistics:
        found = ModelStatistics()
        note_model("stories", "1", found)
        note_text(Completion((Output("a", (1,), "stop"),), 5, 0, Seconds(0.25, 1.0, 1.0)))
        return found

    assert copy_context().run(answer).num_answered == 1


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def observe(observer: Observer, **extra: str) -> None:
    """Have an observer see a request to a model."""
    observed = observer.begin("POST")
    observed.route, observed.id, observed.status = "/v2/models/{model}/infer", "abc-1", 200
    for name, value in extra.items():
        setattr(observed, name, value)
    note_model("mnist", "3", ModelStatistics())
    note_timing(Timing(0.002, 0.005, 8))
    observer.end(observed)


def test_a_line_about_each_request_is_json_for_machines_and_text_for_people() -> None:
    log = io.StringIO()
    observe(Observer(log))
    (line,) = log.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found.pop("seconds") >= 0
    assert found == {
        "id": "abc-1",
        "method": "POST",
        "route": "/v2/models/{model}/infer",
        "model": "mnist",
        "version": "3",
        "status": 200,
        "queue_seconds": 0.002,
        "run_seconds": 0.005,
        "batch_rows": 8,
    }
    terminal = _Terminal()
    observe(Observer(terminal))
    for word in ("200", "POST", "mnist", "queue 2.00", "run 5.00", "abc-1"):
        assert word in terminal.getvalue()


def test_requests_are_logged_only_if_that_is_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    for wanted in (False, True):
        with serving("comment_spam", log_requests=wanted) as client:
            assert client.ask("GET", "/v2/models/comment_spam", headers={"x-request-id": "mine"})[0] == 200
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
        assert [line["id"] for line in lines] == (["mine"] if wanted else [])
    assert (lines[0]["model"], lines[0]["status"]) == ("comment_spam", 200)


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_is_logged_by_its_id(capfd: pytest.CaptureFixture[str], is_stream: bool) -> None:
    asked = {"model": "stories260K", "prompt": "Once upon a time", "max_tokens": 490, "stream": is_stream}
    asked |= {"min_tokens": 490, "ignore_eos": True}
    with serving("stories260K", log_requests=True) as client:
        connection = HTTPConnection(client.address, timeout=60)
        fields = {"content-type": "application/json", "x-request-id": "mine"}
        connection.request("POST", "/v1/completions", json.dumps(asked), fields)
        if is_stream:
            assert connection.getresponse().read1(10)
        else:
            wait_until_running(client)
        connection.close()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["route"] == "/v1/completions"]
    assert (line["id"], line["status"]) == ("mine", 499)


def wait_until_running(client: Client) -> None:
    end = time.monotonic() + 60
    while not metrics(client)["educe_running_requests", "stories260K"] and time.monotonic() < end:
        time.sleep(0.001)


def spans_of(**extra: str) -> list[Any]:
    """Return the spans of a request, by the SDK's own exporter."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter"
    ).InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    observer = Observer(tracer=Tracer(provider))
    observe(observer, **extra)
    found = list(memory.get_finished_spans())
    observer.close()
    return found


def test_a_request_is_a_span_with_its_wait_and_its_run_in_it() -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    queue, run, request = spans_of(traceparent=f"00-{trace}-{parent}-01")
    assert [queue.name, run.name, request.name] == ["queue", "run", "POST /v2/models/{model}/infer"]
    assert {f"{span.context.trace_id:032x}" for span in (queue, run, request)} == {trace}
    assert f"{request.parent.span_id:016x}" == parent
    assert queue.parent.span_id == run.parent.span_id == request.context.span_id
    assert queue.end_time == run.start_time
    assert run.end_time - run.start_time == 5_000_000
    assert request.attributes["educe.model"] == "mnist"
    assert request.attributes["http.response.status_code"] == 200


def test_a_request_without_a_parent_begins_a_trace_and_a_broken_one_counts_as_none() -> None:
    assert spans_of()[-1].parent is None
    assert spans_of(traceparent="00-nothing-01")[-1].parent is None


def test_an_answer_of_500_is_an_error_in_traces() -> None:
    assert not spans_of()[-1].status.description
    assert spans_of(status=503)[-1].status.status_code.name == "ERROR"  # type: ignore[arg-type]


def test_traces_are_made_only_if_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    assert tracer_from_environment() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert tracer_from_environment() is None
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    tracer = tracer_from_environment()
    assert tracer is not None
    tracer.close()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    with pytest.raises(OptionError, match="carrier-pigeon"):
        tracer_from_environment()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    for name, value in (("ENDPOINT", "foo"), ("PROTOCOL", "grpc"), ("TRACES_PROTOCOL", "grpc")):
        with monkeypatch.context() as patched:
            patched.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
            with pytest.raises(OptionError, match=value) as refused:
                tracer_from_environment()
            assert refused.value.place == f"OTEL_EXPORTER_OTLP_{name}"
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingLibraryError, match="opentelemetry-exporter-otlp-proto-http"):
        tracer_from_environment()


def test_a_span_of_a_text_has_its_tokens() -> None:
    span = spans_of(num_prompt_tokens=5, num_tokens=7)[-1]  # type: ignore[arg-type]
    assert span.attributes["gen_ai.usage.input_tokens"] == 5
    assert span.attributes["gen_ai.usage.output_tokens"] == 7


def test_a_refused_request_is_logged_with_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    with serving("stories260K", log_requests=True) as client:
        asked = {"model": "stories260K", "prompt": "Once", "max_tokens": 2}
        for fields in (asked, {**asked, "temperature": 9}):
            client.ask("POST", "/v1/completions", fields)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["status"], line.get("error")) for line in lines] == [(200, None), (400, "BadRequest")]
    assert lines[1]["message"] == "temperature: Expected `float` <= 2.0"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"model": "stories260K", "prompt": "Once", "stream": True, "max_tokens": 20}),
        ("/v2/models/stories260K/generate_stream", {"text_input": "Once", "max_tokens": 20}),
    ],
)
def test_a_stream_that_fails_is_logged_and_counted_with_its_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], path: str, asked: Any
) -> None:
    step, numbers = Engine._step, itertools.count()

    def fail_later(engine: Engine) -> None:
        if next(numbers) == 5:
            raise RuntimeError("the sixth step fails")
        step(engine)

    with serving("stories260K", log_requests=True) as client:
        monkeypatch.setattr(Engine, "_step", fail_later)
        status, _, content = client.ask("POST", path, asked, {"x-request-id": "mine"})
        assert (status, b"the server failed at this request" in content) == (200, True)
        found = metrics(client)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["id"] == "mine"]
    assert (line["status"], line["error"]) == (200, "EngineError")
    assert "the server failed at this request" in line["message"]
    assert found["educe_requests_total", "stories260K", "EngineError"] == 1
    assert not found["educe_requests_total", "stories260K", "ok"]


@pytest.mark.parametrize("text", ["\n12:00:00 200 forged", "\x1b[2J", "\x9b31m", "\u202e", "\u2028", "\r"])
def test_nothing_that_a_terminal_would_not_print_is_written_to_it(text: str) -> None:
    terminal = _Terminal()
    observe(Observer(terminal), message=f"ä {text} end")
    (line,) = terminal.getvalue().splitlines()
    assert line.isprintable()
    assert line.endswith(f"ä {text.encode('unicode_escape').decode()} end")


def test_the_server_honours_traceparent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Recorder:
        def trace(self, observed: Any, seconds: float) -> None:
            seen.append(observed)

        def close(self) -> None: ...

    monkeypatch.setattr(core, "tracer_from_environment", Recorder)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with serving("comment_spam") as client:
        client.ask("POST", "/v1/models/comment_spam/predict", b"free money", {"traceparent": parent})
    (observed,) = seen
    assert observed.traceparent == parent
    assert observed.model == "comment_spam"
    assert observed.timing.run > 0


def test_raw_input_that_is_not_answered_is_no_run() -> None:
    truncated = (ROOT / "zoo" / "images" / "zebra.jpeg").read_bytes()[:2000]
    with serving("breast_cancer", "mobilenet_v2") as client:
        for model, body in (("breast_cancer", {"radius": 1}), ("mobilenet_v2", truncated)):
            for _ in range(2):
                assert client.ask("POST", f"/v1/models/{model}/predict", body)[0] == 400
        found = metrics(client)
    for model in ("breast_cancer", "mobilenet_v2"):
        assert found["educe_requests_total", model, "InputError"] == 2
        assert not found.get(("educe_requests_total", model, "ok"))
        for name in ("educe_batch_rows_count", "educe_run_seconds_count", "educe_queue_seconds_count"):
            assert not found.get((name, model))


def test_a_log_that_nobody_reads_ends_no_request() -> None:
    class Gone(io.StringIO):
        num = 0

        def write(self, text: str) -> int:
            self.num += 1
            raise BrokenPipeError

    gone, closed = Gone(), io.StringIO()
    closed.close()
    for log in (gone, closed):
        observer = Observer(log)
        for _ in range(2):
            copy_context().run(observe, observer)
        assert sum(observer.requests.values()) == 2
    assert gone.num == 1


def test_runs_of_many_rows_share_places() -> None:
    statistics = ModelStatistics()
    for rows in range(1, 1001):
        statistics.ran(rows, 1.0)
    assert list(statistics.batches) == [*range(1, 65), 128, 256, 512, 1024]
    assert statistics.batches[128] == (64, 64.0)
