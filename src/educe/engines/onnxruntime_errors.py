"""ONNX Runtime's messages, turned into typed errors without source paths and signatures."""

from __future__ import annotations

import re

from educe.errors import EduceError, EngineError, ModelFileError, Problem, UnsupportedModelError
from educe.model import Model

_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (?P<kind>[A-Z_]+) : ")
_RUNNING = re.compile(
    r"Non-zero status code returned while running (?P<operator>\w+) node\. "
    r"Name:'(?P<node>.*?)' Status Message: "
)
_NO_KERNEL = re.compile(
    r"Could not find an implementation for (?P<operator>[\w.:]+)\((?P<version>\d+)\) "
    r"node with name '(?P<node>.*?)'"
)
_NO_OPERATOR = re.compile(r"(?P<operator>[\w.:]+)\(-?\d+\) is not a registered function/op")
_CONDITION = re.compile(r"^(?P<signature>.*?\)) (?P<condition>.*?) was false\.\s*(?P<reason>.*)$", re.DOTALL)
_SOURCE = re.compile(r"/\S+\.(?:cc|h|cpp|hpp|cu):\d+ ")
_SIGNATURE = re.compile(r"^.*?\)(?: const)?\s+(?=[A-Z])", re.DOTALL)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def compile_error(fault: Exception, model: Model) -> EduceError:
    """Return what the failure to compile `model` means: an operator it lacks, or a model it finds broken."""
    kind, text = _split(str(fault))
    missing = _NO_KERNEL.search(text)
    if missing:
        reason = f"ONNX Runtime has no kernel for version {missing['version']} with these element types"
        return _lacking(model, Problem(missing["node"] or missing["operator"], missing["operator"], reason))
    unknown = _NO_OPERATOR.search(text)
    if unknown:
        operator = unknown["operator"].lstrip(":")
        return _lacking(model, Problem(operator, operator, "ONNX Runtime has no such operator"))
    if kind == "NOT_IMPLEMENTED" or "is not currently registered or supported" in text:
        return UnsupportedModelError(f"ONNX Runtime cannot run {model.name}: {clean(text)}", path=model.path)
    if kind in ("INVALID_GRAPH", "INVALID_PROTOBUF", "INVALID_ARGUMENT", "FAIL"):
        return ModelFileError(f"ONNX Runtime finds the model broken: {clean(text)}", path=model.path)
    return EngineError(f"ONNX Runtime failed to compile {model.name}: {clean(text)}", path=model.path)


def run_error(fault: Exception) -> EduceError:
    """Return the error of a run, with the node as its place where the library names it."""
    kind, text = _split(str(fault))
    running = _RUNNING.search(text)
    if running is None:
        return EngineError(f"ONNX Runtime failed: {clean(text)}")
    node, operator, reason = running["node"], running["operator"], clean(text[running.end() :])
    if kind == "NOT_IMPLEMENTED":
        problem = Problem(node or operator, operator, reason)
        return UnsupportedModelError("ONNX Runtime lacks a part of an operator", problems=[problem])
    return EngineError(f"ONNX Runtime failed: {reason}", place=f"node {node!r} ({operator})")


def clean(text: str) -> str:
    """Return a message of the library without source paths, C++ signatures and addresses."""
    source = _SOURCE.search(text)
    if source:
        before, after = text[: source.start()], text[source.end() :]
        condition = _CONDITION.match(after)
        if condition:
            after = condition["reason"] or f"{condition['condition']} does not hold"
        else:
            after = _SIGNATURE.sub("", after, count=1)
        text = before + after
    return " ".join(_ADDRESS.sub("", text).split())


def _split(text: str) -> tuple[str, str]:
    prefix = _PREFIX.match(text)
    return (prefix["kind"], text[prefix.end() :]) if prefix else ("", text)


def _lacking(model: Model, problem: Problem) -> UnsupportedModelError:
    cause = f"the engine onnxruntime cannot run {model.name}"
    remedy = "try the engine reference"
    return UnsupportedModelError(cause, problems=[problem], path=model.path, remedy=remedy)
