"""Linear models, support vectors and the preparation of features of ai.onnx.ml."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from educe.compiler.emit import F32, F64, I64, Kind
from educe.compiler.operators.base import Call, NotCompiled, operator, operators
from educe.compiler.operators.product import cast, matrix_product
from educe.compiler.operators.scores import classified, transformed
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

DOMAIN = "ai.onnx.ml"


@operator("LinearRegressor", domain=DOMAIN)
def linear_regressor(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The product with the coefficients of each target, plus its intercept."""
    x = _matrix(low, x)
    targets = int(call.get("targets", 1))
    raw = _linear(low, x, call, targets)
    return transformed(low, raw, _text(call.get("post_transform", "NONE")))


@operator("LinearClassifier", domain=DOMAIN)
def linear_classifier(low: Lowering, call: Call, x: Tensor) -> list[Tensor]:
    """The label and the scores of each row, by the product with the coefficients of each class."""
    labels = call.get("classlabels_ints")
    if labels is None or not len(labels):
        raise NotCompiled
    x = _matrix(low, x)
    coefficients = len(call.get("coefficients", ()))
    classes = coefficients // max(x.shape[1], 1)
    is_pair = classes == 1 and len(labels) == 2
    if not is_pair and classes != len(labels):
        raise NotCompiled
    if classes < 2 and not is_pair:
        raise NotCompiled
    raw = _linear(low, x, call, classes)
    transform = _text(call.get("post_transform", "NONE"))
    label, scores = classified(low, raw, np.array(labels, np.int64), transform, "-p" if is_pair else "")
    return [label, scores]


@operator("SVMRegressor", domain=DOMAIN)
def svm_regressor(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The sum over support vectors of their coefficient times the kernel's value, plus rho."""
    x = _matrix(low, x)
    coefficients = np.array(call.get("coefficients", ()), np.float64)
    vectors = int(call.get("n_supports", 0))
    rho = np.array(call.get("rho", (0.0,)), np.float64)[:1]
    kernel = _text(call.get("kernel_type", "LINEAR"))
    if int(call.get("one_class", 0)) or rho.size != 1:
        raise NotCompiled
    if vectors:
        support = np.array(call.get("support_vectors", ()), np.float64)
        if support.size != vectors * x.shape[1] or coefficients.size != vectors:
            raise ValueError(f"{support.size} numbers of {vectors} support vectors of {x.shape[1]} features")
        values = _kernel_values(low, x, support.reshape(vectors, -1), kernel, call)
    elif kernel == "LINEAR" and coefficients.size == x.shape[1]:
        values = cast(low, x, F64)
    else:
        raise NotCompiled
    weights = _made(low, call, ("weights",), coefficients.reshape(-1, 1))
    raw = low.apply("Add", matrix_product(low, values, weights), _made(low, call, ("rho",), rho))
    return transformed(low, raw, _text(call.get("post_transform", "NONE")))


def _kernel_values(low: Lowering, x: Tensor, support: np.ndarray, kernel: str, call: Call) -> Tensor:
    """Return the kernel's value of each row with each support vector, in f64: distances cancel digits."""
    gamma, coef0, degree = (float(each) for each in call.get("kernel_params") or (0.0, 0.0, 0.0))
    x = low.need(cast(low, x, F64))
    products = matrix_product(low, x, _made(low, call, ("support",), support.T))
    if kernel == "LINEAR":
        return products
    if kernel == "RBF":
        axes = low.constant(low.constants.made("columns", lambda: np.array([1])))
        squares = operators()["", "ReduceSumSquare"](low, _reduction(call, "SumSquare"), x, axes)
        assert isinstance(squares, Tensor)
        lengths = _made(low, call, ("squares",), (support**2).sum(1)[None])
        cross = low.apply("Mul", products, _number(low, -2.0, F64))
        distances = low.apply(
            "Max", low.apply("Add", low.apply("Add", cross, squares), lengths), _number(low, 0.0, F64)
        )
        return low.apply("Exp", low.apply("Mul", distances, _number(low, -gamma, F64)))
    inner = low.apply("Add", low.apply("Mul", products, _number(low, gamma, F64)), _number(low, coef0, F64))
    if kernel == "SIGMOID":
        return low.apply("Tanh", inner)
    if kernel != "POLY":
        raise ValueError(f"there is no kernel {kernel!r}")
    return low.apply("Pow", inner, _number(low, float(int(degree)), F64))


@operator("Scaler", domain=DOMAIN)
def scaler(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """(x - offset) · scale, as f32."""
    x = cast(low, x, F64 if x.kind is F64 else F32)
    for name, step in (("offset", "Sub"), ("scale", "Mul")):
        values = np.array(call.get(name, ()), dtype_of(x.kind))
        if values.size not in (1, x.shape[-1] if x.rank else 1):
            raise ValueError(f"{values.size} numbers of {name!r} for {x!r}")
        x = low.apply(step, x, _made(low, call, (name, x.kind.name), values))
    return cast(low, x, F32)


@operator("Normalizer", domain=DOMAIN)
def normalizer(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Each row divided by its norm: MAX, L1 or L2."""
    norm = _text(call.get("norm", "MAX"))
    if norm not in ("MAX", "L1", "L2"):
        raise ValueError(f"there is no norm {norm!r}")
    if x.rank != 2:
        raise NotCompiled
    x = low.need(cast(low, x, F64 if x.kind is F64 else F32))
    name = {"MAX": "Max", "L1": "L1", "L2": "L2"}[norm]
    reduce = operators()["", f"Reduce{name}"]
    axes = low.constant(low.constants.made("columns", lambda: np.array([1])))
    size = reduce(low, _reduction(call, name), low.apply("Abs", x) if norm == "MAX" else x, axes)
    assert isinstance(size, Tensor)
    least = _number(low, 1e-30, x.kind)
    return cast(low, low.apply("Div", x, low.apply("Max", size, least)), F32)


def _reduction(call: Call, name: str) -> Call:
    return Call(f"Reduce{name}", "", 18, {"keepdims": 1}, (), (), call.label)


@operator("Binarizer", domain=DOMAIN)
def binarizer(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """1 where x is above the threshold, else 0."""
    threshold = float(call.get("threshold", 0.0))
    wide = x if x.kind.is_float else cast(low, x, F64)
    above = low.apply("Less", _number(low, threshold, wide.kind), wide)
    return low.apply("Cast", above, to=x.kind.name)


@operator("Imputer", domain=DOMAIN)
def imputer(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """Values in place of those that are missing."""
    kind = "int64s" if x.kind is I64 else "floats"
    values = np.array(call.get(f"imputed_value_{kind}", ()), dtype_of(x.kind))
    missing = call.get("replaced_value_int64" if x.kind is I64 else "replaced_value_float", 0)
    if x.rank != 2 or values.size not in (1, x.shape[1]) or not (x.kind.is_float or x.kind is I64):
        raise NotCompiled
    x = low.need(x)
    if isinstance(missing, float) and math.isnan(missing):
        is_missing = low.apply("IsNaN", x)
    else:
        is_missing = low.apply("Equal", x, _number(low, missing, x.kind))
    return low.apply("Where", is_missing, _made(low, call, ("imputed", x.kind.name), values), x)


@operator("ArrayFeatureExtractor", domain=DOMAIN)
def array_feature_extractor(low: Lowering, call: Call, x: Tensor, places: Tensor) -> Tensor:
    """The chosen elements of the last dimension."""
    if not x.rank or not places.size:
        raise NotCompiled
    rows = low.reshape(x, (1, x.size)) if x.rank == 1 else x
    gather = Call("Gather", "", 13, {"axis": rows.rank - 1}, (), (), call.label)
    result = operators()["", "Gather"](low, gather, rows, low.reshape(places, (places.size,)))
    assert isinstance(result, Tensor)
    return result


@operator("FeatureVectorizer", domain=DOMAIN)
def feature_vectorizer(low: Lowering, call: Call, *parts: Tensor) -> Tensor:
    """The columns of all inputs side by side, as f32."""
    sizes = [int(each) for each in call.get("inputdimensions", ())]
    columns = [low.reshape(part, (part.size, 1)) if part.rank == 1 else part for part in parts]
    if [part.shape[1:] for part in columns] != [(size,) for size in sizes]:
        raise NotCompiled
    concat = Call("Concat", "", 13, {"axis": 1}, (), (), call.label)
    result = operators()["", "Concat"](low, concat, *(cast(low, part, F32) for part in columns))
    assert isinstance(result, Tensor)
    return result


# Parts -----------------------------------------------------------------------------------------------


def _matrix(low: Lowering, x: Tensor) -> Tensor:
    """Return `x` as rows of floats."""
    if x.rank not in (1, 2):
        raise ValueError(f"{x!r} is no matrix")
    x = low.reshape(x, (1, x.size)) if x.rank == 1 else x
    return cast(low, x, F64 if x.kind is F64 else F32)


def _linear(low: Lowering, x: Tensor, call: Call, targets: int) -> Tensor:
    """Return x · coefficients + intercepts, one column for each target."""
    dtype = dtype_of(x.kind)
    coefficients = np.array(call.get("coefficients", ()), dtype)
    if coefficients.size != targets * x.shape[1] or not targets:
        raise ValueError(f"{coefficients.size} coefficients for {targets} targets of {x.shape[1]} features")
    matrix = coefficients.reshape(targets, x.shape[1]).T
    raw = matrix_product(low, x, _made(low, call, ("coefficients", dtype.name), matrix))
    intercepts = call.get("intercepts")
    if intercepts is None or not len(intercepts):
        return raw
    if len(intercepts) not in (1, targets):
        raise ValueError(f"{len(intercepts)} intercepts for {targets} targets")
    return low.apply("Add", raw, _made(low, call, ("intercepts", dtype.name), np.array(intercepts, dtype)))


def _number(low: Lowering, value: float, kind: Kind) -> Tensor:
    dtype = dtype_of(kind)
    return low.constant(low.constants.made(("number", value, dtype.name), lambda: np.full((), value, dtype)))


def _made(low: Lowering, call: Call, key: Sequence[Any], array: np.ndarray) -> Tensor:
    """Return a constant of one node, the same array whenever it is lowered."""
    return low.constant(low.constants.made((call, *key), lambda: array))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
