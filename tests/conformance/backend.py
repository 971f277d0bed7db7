"""ONNX's own backend test suite, run through an engine.

``python -m tests.conformance.backend --engine native --match softmax`` prints what fails, and which nodes
ran on the host.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

_TWO_UNITS = {"float16": 2.0**-9, "bfloat16": 2.0**-6}
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class BackendCase:
    """One case: a model with inputs and the outputs it must give."""

    name: str
    kind: str
    model: onnx.ModelProto
    data_sets: tuple[tuple[list[Any], list[Any]], ...]
    rtol: float
    atol: float


@cache
def cases() -> dict[str, BackendCase]:
    """Return every case of the suite but those of training and preview domains."""
    return {case.name: case for case in _cases()}


def _cases() -> Iterator[BackendCase]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS:
            for case in load_model_tests(kind=kind):
                model, data = (
                    (case.model, case.data_sets) if case.model is not None else _read(Path(case.model_dir))
                )
                if any("preview" in each.domain for each in model.opset_import):
                    continue
                yield BackendCase(
                    case.name,
                    kind,
                    model,
                    tuple((list(a), list(b)) for a, b in data),
                    case.rtol,
                    case.atol,
                )


def _read(folder: Path) -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
    model = onnx.load(folder / "model.onnx")
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        values = []
        for prefix, declared in (("input", model.graph.input), ("output", model.graph.output)):
            files = sorted(data.glob(f"{prefix}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
            values.append(
                [_value(path.read_bytes(), info) for path, info in zip(files, declared, strict=False)]
            )
        sets.append((values[0], values[1]))
    return model, sets


def _value(content: bytes, info: onnx.ValueInfoProto) -> Any:
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        sequence = onnx.SequenceProto.FromString(content)
        return onnx.numpy_helper.to_list(sequence)
    if kind == "optional_type":
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content))


def plain(value: Any) -> Any:
    """Return a case's value as engines take it."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return [plain(item) for item in onnx.numpy_helper.to_list(value)]
    if isinstance(value, onnx.OptionalProto):
        return plain(onnx.numpy_helper.to_optional(value))
    if isinstance(value, np.ndarray) and value.dtype.kind in "SU":
        return value.astype(object)
    if isinstance(value, np.generic):
        return np.asarray(value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def difference(found: Any, expected: Any, rtol: float, atol: float) -> str | None:
    """Return how two values differ, or None."""
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return f"found {found!r}, expected a list of {len(expected)}"
        each = (difference(a, b, rtol, atol) for a, b in zip(found, expected, strict=True))
        return next((reason for reason in each if reason), None)
    if expected is None:
        return None if found is None else f"found {found!r}, expected nothing"
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"found {found.dtype}{found.shape}, expected {expected.dtype}{expected.shape}"
    if found.dtype == object:
        return None if np.array_equal(found, expected) else f"found {found}, expected {expected}"
    # Two units in the last place: the suite rounds what is in between, and kernels need not.
    rtol = max(rtol, _TWO_UNITS.get(found.dtype.name, 0.0))
    if found.dtype.kind not in "fiubc":
        found, expected = found.astype(np.float32), expected.astype(np.float32)
    try:
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
    except AssertionError as fault:
        return " ".join(str(fault).split())
    return None


def run(case: BackendCase, engine: str) -> str | None:
    """Run a case and return what is wrong, or None."""
    from educe import engines, formats

    model = formats.load(case.model.SerializeToString())
    executable = engines.compile(model, engine)
    names = list(model.signature.inputs)
    for inputs, expected in case.data_sets:
        feeds = dict(zip(names, (plain(value) for value in inputs), strict=False))
        found = list(executable.run(feeds).values())
        for value, wanted in zip(found, expected, strict=True):
            reason = difference(value, plain(wanted), case.rtol, case.atol)
            if reason:
                return reason
    return None


def main() -> None:
    """Run the cases whose names match, and print a summary."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--match", default="", help="part of the names; several separated by commas")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results: Counter[str] = Counter()
    start = time.time()
    for name, case in cases().items():
        if arguments.match and not any(part in name for part in arguments.match.split(",")):
            continue
        try:
            reason = run(case, arguments.engine)
        except Exception as fault:
            reason = f"{type(fault).__name__}: {fault}"
        results["failed" if reason else "passed"] += 1
        if reason and not arguments.quiet:
            print(f"{name}: {reason[:300]}")
    print(f"{results['passed']} passed, {results['failed']} failed, {time.time() - start:.0f} s")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
