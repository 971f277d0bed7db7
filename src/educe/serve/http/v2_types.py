"""What the Open Inference Protocol's HTTP has in its bodies.

Source: the protocol's REST specification, https://github.com/open-inference-protocol.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

Parameters = dict[str, bool | int | float | str]


class InferInput(Struct, forbid_unknown_fields=True):
    """A tensor of a request; its elements in `data`, or behind the JSON if a parameter gives their size."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | UnsetType = UNSET


class WantedOutput(Struct, forbid_unknown_fields=True):
    """An output that a request wants."""

    name: str
    parameters: Parameters = {}


class InferRequest(Struct, forbid_unknown_fields=True):
    """A request for a run of a model, whose name KServe's client says here, too."""

    inputs: list[InferInput]
    outputs: list[WantedOutput] = []
    id: str = ""
    parameters: Parameters = {}
    model_name: str | None = None


class InferOutput(Struct, omit_defaults=True):
    """A tensor of an answer."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | UnsetType = UNSET


class InferResponse(Struct, omit_defaults=True):
    """What a run gave."""

    model_name: str
    model_version: str
    outputs: list[InferOutput]
    id: str = ""
    parameters: Parameters = {}


class ServerMetadata(Struct):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(Struct):
    """Whether a model answers at once."""

    name: str
    ready: bool


class Live(Struct):
    """Whether the server runs."""

    live: bool


class Ready(Struct):
    """Whether the server and its models answer at once."""

    ready: bool


class IndexRequest(Struct, forbid_unknown_fields=True):
    """Which models to list."""

    ready: bool = False


class IndexEntry(Struct):
    """A model that the server knows."""

    name: str
    version: str
    state: str
    reason: str


class LoadRequest(Struct, forbid_unknown_fields=True):
    """How to load or unload a model; there is nothing to say."""

    parameters: dict[str, Any] = {}


class Nothing(Struct):
    """Nothing."""


class V2Error(Struct):
    """Why a request was refused."""

    error: str
