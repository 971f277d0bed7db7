"""The template `class_scores`: what classifiers of ai.onnx.ml make of raw scores."""

from __future__ import annotations

from collections.abc import Callable

from educe.compiler import vector_math as vm
from educe.compiler.emit import F32, I64, Function, Kind, Val, Var
from educe.compiler.kernel import template
from educe.compiler.target import Target


@template("class_scores")
def class_scores(fn: Function, target: Target, kind: Kind, transform: str, pair: str) -> None:
    """Write each row's scores after a post transform, and the label of the highest.

    ::

        for unit in begin..end:                                      # as many rows as a vector has lanes
            scores[row, c] = raw[row, c]                             # or the pair made of a single one
            highest = max(scores[row, c] for c)                      # softmax only
            total = sum(exp(scores[row, c] - highest) for c)
            scores[row, c] = transform(scores[row, c], highest, total)
            label[row] = labels[argmax(scores[row, c] for c)]

    Pointers: scores, label, raw, labels. Sizes: rows, classes, the strides of raw.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: Of the raw scores; the others are f32.
        transform: NONE, LOGISTIC, SOFTMAX or SOFTMAX_ZERO.
        pair: How two scores are made of one: ``1-p``, ``-p``, or empty where they are given.
    """
    lanes = target.lanes
    rows, classes, row_step, class_step = (fn.size(index) for index in range(4))
    scores, label, raw, labels = (fn.pointer(index) for index in range(4))
    with fn.loop(fn.begin, fn.end) as unit:
        row = fn.lane_numbers(lanes) + unit * lanes
        mask = row < fn.splat(rows, lanes)

        def read(c: Val, row: Val = row, mask: Val = mask) -> Val:
            place = row * row_step if pair else row * row_step + c * class_step
            value = fn.cast(fn.gather(kind, raw, place, mask), F32)
            if not pair:
                return value
            other = 1.0 - value if pair == "1-p" else -value
            return fn.select(fn.splat(c == 0, lanes), other, value)

        transformed = _transform(fn, transform, lanes, classes, read)
        best = fn.var(fn.const(F32, -float("inf"), lanes))
        chosen = fn.var(fn.const(I64, 0, lanes))
        with fn.loop(0, classes) as c:
            value = transformed(c)
            fn.scatter(value, scores, row * classes + c, mask)
            better = value > best.get()
            best.set(fn.select(better, value, best.get()))
            chosen.set(fn.select(better, fn.splat(c, lanes), chosen.get()))
        fn.store(fn.gather(I64, labels, chosen.get(), mask), label, unit * lanes, mask)


def _transform(
    fn: Function, name: str, lanes: int, classes: Val, read: Callable[[Val], Val]
) -> Callable[[Val], Val]:
    """Return what gives the transformed score of a class, after the passes that it needs."""
    if name == "NONE":
        return read
    if name == "LOGISTIC":
        return lambda c: 1.0 / (1.0 + vm.exp(fn, -read(c)))
    highest = fn.var(fn.const(F32, -float("inf"), lanes))
    total = fn.var(fn.const(F32, 0.0, lanes))
    with fn.loop(0, classes) as c:
        highest.set(fn.maximum(highest.get(), read(c)))

    def weight(c: Val) -> Val:
        value = read(c)
        exp = vm.exp(fn, value - highest.get())
        if name == "SOFTMAX":
            return exp
        is_zero = (value <= 0.0000001) & (value >= -0.0000001)
        return fn.select(is_zero, value * vm.exp(fn, -highest.get()), exp)

    with fn.loop(0, classes) as c:
        total.set(total.get() + weight(c))
    return lambda c: _share(fn, name, weight(c), total)


def _share(fn: Function, name: str, weight: Val, total: Var) -> Val:
    share = weight / total.get()
    return share if name == "SOFTMAX" else fn.select(total.get() == 0.0, 0.5, share)
