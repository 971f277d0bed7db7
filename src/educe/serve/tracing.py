"""`Tracer`: OpenTelemetry's spans of requests, where its standard environment variables ask for them.

A request is a span, with its wait and its run as children; it belongs to the trace that its ``traceparent``
names. Nothing of OpenTelemetry is imported unless it is asked for.
"""

from __future__ import annotations

import os
from typing import Any

from educe.errors import MissingLibraryError, OptionError
from educe.serve.observation import GRPC, Observed

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_PROTOCOL = "http/protobuf"
_FAILED = 500
# The codes that are an error of the server by the conventions.
_FAILED_CALLS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


def tracer_from_environment() -> Tracer | None:
    """Return the tracer that the environment asks for, if it does.

    Raises:
        MissingLibraryError: OpenTelemetry is not installed.
        OptionError: it names an exporter or protocol that is not known, or an address that is none.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    asked = exporter or any(os.environ.get(name) for name in _ENDPOINTS)
    if not asked or exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    _check_environment()
    try:
        return Tracer(_provider(exporter or "otlp"))
    except ImportError as fault:
        is_exporter = (fault.name or "").startswith("opentelemetry.exporter")
        library = "opentelemetry-exporter-otlp-proto-http" if is_exporter else "opentelemetry-sdk"
        purpose = "tracing, which variables named OTEL_... ask for,"
        raise MissingLibraryError(library, extra="otel", purpose=purpose) from None


def _check_environment() -> None:
    for name in _ENDPOINTS:
        given = os.environ.get(name, "")
        if given and not given.startswith(("http://", "https://")):
            raise OptionError(f"{given!r} is no URL of HTTP", place=name, remedy="give http://HOST:4318")
    for name in _PROTOCOLS:
        given = os.environ.get(name, "")
        if given not in ("", _PROTOCOL):
            raise OptionError(f"spans are not sent by {given!r}", place=name, remedy=f"use {_PROTOCOL}")


def _provider(name: str) -> Any:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    exporter: Any
    if name == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    elif name == "console":
        exporter = ConsoleSpanExporter()
    else:
        raise OptionError(
            f"unknown exporter {name!r}", place="OTEL_TRACES_EXPORTER", remedy="use otlp, console or none"
        )
    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "educe")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class Tracer:
    """What makes spans.

    Args:
        provider: OpenTelemetry's provider of tracers.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("educe.serve")
        self._propagator = TraceContextTextMapPropagator()

    def trace(self, observed: Observed, seconds: float) -> None:
        """Make the spans of a request that took so many seconds."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        carrier = {"traceparent": observed.traceparent, "tracestate": observed.tracestate}
        span = self._tracer.start_span(
            _name(observed),
            self._propagator.extract({name: value for name, value in carrier.items() if value}),
            SpanKind.SERVER,
            _attributes(observed),
            start_time=observed.start_ns,
        )
        status = observed.status
        if status in _FAILED_CALLS or (isinstance(status, int) and status >= _FAILED):
            span.set_status(Status(StatusCode.ERROR))
        if observed.timing is not None:
            context = set_span_in_context(span)
            end = observed.timing_end_ns
            run = end - round(observed.timing.run * 1e9)
            queue = run - round(observed.timing.queue * 1e9)
            rows = {"educe.batch_rows": observed.timing.rows}
            self._tracer.start_span("queue", context, start_time=queue).end(run)
            self._tracer.start_span("run", context, attributes=rows, start_time=run).end(end)
        span.end(observed.start_ns + round(seconds * 1e9))

    def close(self) -> None:
        """Send what is not sent yet."""
        self._provider.shutdown()


def _attributes(observed: Observed) -> dict[str, str | int]:
    """Return what is said of a request, by the names of OpenTelemetry's conventions."""
    found: dict[str, str | int] = {
        **_protocol(observed),
        "educe.request_id": observed.id,
        "educe.model": observed.model,
        "educe.model_version": observed.version,
        "error.type": observed.error,
    }
    if observed.num_tokens:
        found["gen_ai.usage.input_tokens"] = observed.num_prompt_tokens
        found["gen_ai.usage.output_tokens"] = observed.num_tokens
    return {name: value for name, value in found.items() if value != ""}


def _protocol(observed: Observed) -> dict[str, str | int]:
    if observed.method != GRPC:
        return {
            "http.request.method": observed.method,
            "http.route": observed.route,
            "http.response.status_code": observed.status,
        }
    service, _, method = observed.route.strip("/").partition("/")
    return {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.response.status_code": observed.status,
    }


def _name(observed: Observed) -> str:
    """Return the name of a request's span."""
    if observed.method == GRPC:
        return observed.route.strip("/") or GRPC
    return f"{observed.method} {observed.route}".strip()
