"""Sequences, maps and optionals: Python lists, dicts, and None, which only the host handles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from educe.compiler.operators.base import Call

ObjectCall = Callable[..., list[Any]]

OBJECT_CALLS: dict[tuple[str, str], ObjectCall] = {}
"""What runs each operator of such values, by domain and name: ``call(node, *inputs)`` returns the outputs."""


def _register(name: str, domain: str = "") -> Callable[[ObjectCall], ObjectCall]:
    def register(run: ObjectCall) -> ObjectCall:
        OBJECT_CALLS[domain, name] = run
        return run

    return register


@_register("SequenceEmpty")
def _empty(call: Call) -> list[Any]:
    return [[]]


@_register("SequenceConstruct")
def _construct(call: Call, *items: Any) -> list[Any]:
    return [list(items)]


@_register("SequenceInsert")
def _insert(call: Call, sequence: list[Any], item: Any, position: Any = None) -> list[Any]:
    place = len(sequence) if position is None else int(np.asarray(position).item())
    if not -len(sequence) <= place <= len(sequence):
        raise ValueError(f"position {place} is none of a sequence of {len(sequence)}")
    place += len(sequence) if place < 0 else 0
    return [[*sequence[:place], item, *sequence[place:]]]


@_register("SequenceErase")
def _erase(call: Call, sequence: list[Any], position: Any = None) -> list[Any]:
    place = _place(sequence, -1 if position is None else position)
    return [[*sequence[:place], *sequence[place + 1 :]]]


@_register("SequenceAt")
def _at(call: Call, sequence: list[Any], position: Any) -> list[Any]:
    return [sequence[_place(sequence, position)]]


@_register("SequenceLength")
def _length(call: Call, sequence: list[Any]) -> list[Any]:
    return [np.array(len(sequence), np.int64)]


@_register("ConcatFromSequence")
def _concat(call: Call, sequence: list[Any]) -> list[Any]:
    axis = int(call.get("axis"))
    return [np.stack(sequence, axis) if call.get("new_axis", 0) else np.concatenate(sequence, axis)]


@_register("Optional")
def _optional(call: Call, value: Any = None) -> list[Any]:
    return [value]


@_register("OptionalGetElement")
def _element(call: Call, value: Any) -> list[Any]:
    if value is None:
        raise ValueError("the optional is empty")
    return [value]


@_register("OptionalHasElement")
def _has_element(call: Call, value: Any = None) -> list[Any]:
    return [np.array(value is not None)]


@_register("ZipMap", domain="ai.onnx.ml")
def _zip_map(call: Call, scores: np.ndarray) -> list[Any]:
    labels = call.get("classlabels_int64s") or call.get("classlabels_strings") or ()
    rows = scores.reshape(-1, scores.shape[-1]) if scores.ndim else scores.reshape(1, 1)
    if rows.shape[1] != len(labels):
        raise ValueError(f"{rows.shape[1]} scores are given for {len(labels)} labels")
    return [[dict(zip(labels, row.tolist(), strict=True)) for row in rows]]


def _place(sequence: list[Any], position: Any) -> int:
    place = int(np.asarray(position).item())
    if not -len(sequence) <= place < len(sequence):
        raise ValueError(f"position {place} is none of a sequence of {len(sequence)}")
    return place % len(sequence)
