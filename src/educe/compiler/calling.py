"""How Python calls machine code: arrays are checked and looked into, and dicts of them are taken and given.

A run of microseconds costs less than the Python that would prepare it. For such programs `builtin` makes a
function of Python whose code is compiled like a kernel: it takes the dict of inputs, checks them, allocates
the outputs, runs the program, and returns the dict of outputs, all through Python's C interface.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from educe.compiler.emit import BOOL, I8, I32, I64, PTR, Function, Val
from educe.compiler.loader import keep
from educe.errors import InternalError

CONTEXT_FIELDS = (
    "table", "count", "bases", "objects", "scratch", "stride", "pool", "threads", "clock", "inputs", "types",
)  # fmt: skip
"""What a run is told, one 64-bit word each; see `runtime._run` and `_call`."""

# Where an array object holds its fields (numpy.org, C API, PyArrayObject): they follow Python's own header.
_HEADER = object.__basicsize__
ARRAY_DATA, _RANK, _SHAPE, _DTYPE, _FLAGS = (_HEADER + offset for offset in (0, 8, 16, 40, 48))
_CLASS = _HEADER - 8
LAYOUT = _HEADER
"""What compiled code takes for granted of this Python's objects."""

Answer: TypeAlias = "Callable[[Any], dict[str, np.ndarray] | None]"
"""A builtin function from a dict of inputs to that of outputs; to None for inputs that it does not take."""

_BLOCK_FIELDS = ("context", "num_inputs", "num_outputs", "dict", "empty", "none", "status", "num_checks")
_MAX_VALUES = 32
_TAKES_ONE_ARGUMENT = 0x8


def _check() -> Function:
    """Write ``check(context)``: 1 if the first `inputs` of the bases are arrays of the given types, else 0.

    `types` holds the class of arrays, and then for each input its dtype object, its rank and its shape. An
    array passes if its class is that one, its elements lie in order, and its dtype, rank and shape are those.
    """
    fn = Function("educe_check", [PTR], I64)
    (context,) = fn.arguments
    bases = fn.load(PTR, context, CONTEXT_FIELDS.index("bases"))
    inputs = fn.load(I64, context, CONTEXT_FIELDS.index("inputs"))
    types = fn.load(PTR, context, CONTEXT_FIELDS.index("types"))
    array_class = fn.load(I64, types)
    place = fn.var(fn.const(I64, 1))
    fits = fn.var(fn.const(BOOL, True))
    with fn.loop(0, inputs) as index:
        array = fn.load(PTR, bases, index)
        expected = fn.at(I64, types, place.get())
        is_array = fn.load(I64, fn.at(I8, array, _CLASS)) == array_class
        with fn.either(is_array) as otherwise:
            rank = fn.extend(fn.load(I32, fn.at(I8, array, _RANK)), I64)
            wanted = fn.load(I64, expected, 1)
            same = fn.load(I64, fn.at(I8, array, _DTYPE)) == fn.load(I64, expected, 0)
            in_order = (fn.load(I32, fn.at(I8, array, _FLAGS)) & 1) != 0
            whole = (rank == wanted) & same & in_order
            fits.set(fits.get() & whole)
            with fn.when(whole):
                shape = fn.load(PTR, fn.at(I8, array, _SHAPE))
                with fn.loop(0, wanted) as axis:
                    fits.set(fits.get() & (fn.load(I64, shape, axis) == fn.load(I64, expected, axis + 2)))
            place.set(place.get() + wanted + 2)
            otherwise()
            fits.set(fn.const(BOOL, False))
            place.set(place.get() + fn.load(I64, expected, 1) + 2)
    fn.ret(fn.extend(fits.get(), I64))
    return fn


def _call() -> Function:
    """Write ``call(context)``: run it if `check` passes, and return whether it did."""
    fn = Function("educe_call", [PTR], I64)
    (context,) = fn.arguments
    passed = fn.emit(I64, 0, f"call i64 @educe_check(ptr {context.ref})")
    with fn.when(passed != 0):
        fn.line(f"call void @educe_run(ptr {context.ref})")
    fn.ret(passed)
    return fn


def _answer() -> Function:
    """Write ``answer(own, feeds)``: a builtin function of Python with one argument.

    `own` is an array that holds the fields of a block: `_BLOCK_FIELDS`, the names of inputs and of outputs,
    and for each output the arguments of `numpy.empty`. All of Python that may run other Python code comes
    before the context is touched, which another call could use meanwhile; inputs are held until the end.

    ::

        if feeds is no dict of num_inputs entries: return None
        values = [feeds[name] for name in inputs]; if one is missing: return None
        result = {name: empty(shape, dtype) for name, shape, dtype in outputs}
        bases = values + outputs
        if not check(context): return None
        run(context)
        return None if a check failed, else result
    """
    fn = Function("educe_answer", [PTR, PTR], PTR)
    own, feeds = fn.arguments
    refused, failed, done = fn.fresh("refused"), fn.fresh("failed"), fn.fresh("done")
    block = fn.load(PTR, fn.at(I8, own, ARRAY_DATA))
    context, empty, none, status = (
        fn.load(PTR, block, _BLOCK_FIELDS.index(name)) for name in ("context", "empty", "none", "status")
    )
    num_inputs, num_outputs, dict_class, num_checks = (
        fn.load(I64, block, _BLOCK_FIELDS.index(name))
        for name in ("num_inputs", "num_outputs", "dict", "num_checks")
    )
    names = fn.at(I64, block, len(_BLOCK_FIELDS))
    values = fn.stack(PTR, _MAX_VALUES)
    result_at, num_held = fn.var(fn.const(PTR, 0)), fn.var(fn.const(I64, 0))

    _go_on_if(fn, fn.load(I64, fn.at(I8, feeds, _CLASS)) == dict_class, refused)
    _go_on_if(fn, fn.call("PyDict_Size", I64, 0, feeds) == num_inputs, refused)
    with fn.loop(0, num_inputs) as index:
        value = fn.call("PyDict_GetItem", PTR, 0, feeds, fn.load(PTR, names, index))
        _go_on_if(fn, _is_there(fn, value), refused)
        # From here on other Python code may run, which may take it out of the dict.
        fn.call("Py_IncRef", None, 0, value)
        fn.store(value, values, index)
        num_held.set(num_held.get() + 1)

    result = fn.call("PyDict_New", PTR, 0)
    result_at.set(result)
    _go_on_if(fn, _is_there(fn, result), failed)
    with fn.loop(0, num_outputs) as index:
        arguments = fn.at(I64, names, num_inputs + num_outputs + index * 2)
        name = fn.load(PTR, names, num_inputs + index)
        fn.store(_new_output(fn, result, name, empty, arguments, failed), values, num_inputs + index)

    bases = fn.load(PTR, context, CONTEXT_FIELDS.index("bases"))
    with fn.loop(0, num_inputs + num_outputs) as index:
        fn.store(fn.load(PTR, values, index), bases, index)
    passed = fn.emit(I64, 0, f"call i64 @educe_check(ptr {context.ref})")
    _go_on_if(fn, passed != 0, refused)
    fn.line(f"call void @educe_run(ptr {context.ref})")
    met = fn.var(fn.const(I8, 0))
    with fn.loop(0, num_checks) as index:
        met.set(met.get() | fn.load(I8, status, index))
        fn.store(fn.const(I8, 0), status, index)
    _go_on_if(fn, met.get() == 0, refused)
    fn.line(f"br label %{done}")

    fn.label(refused)
    fn.call("Py_DecRef", None, 0, result_at.get())
    fn.call("Py_IncRef", None, 0, none)
    result_at.set(none)
    fn.line(f"br label %{done}")
    fn.label(failed)
    fn.call("Py_DecRef", None, 0, result_at.get())
    result_at.set(fn.const(PTR, 0))
    fn.line(f"br label %{done}")
    fn.label(done)
    with fn.loop(0, num_held.get()) as index:
        fn.call("Py_DecRef", None, 0, fn.load(PTR, values, index))
    fn.ret(result_at.get())
    return fn


def _new_output(fn: Function, result: Val, name: Val, empty: Val, arguments: Val, failed: str) -> Val:
    """Return a new array, which the dict `result` holds under `name`; go to `failed` without one."""
    made = fn.call("PyObject_Vectorcall", PTR, 0, empty, arguments, fn.const(I64, 2), fn.const(PTR, 0))
    _go_on_if(fn, _is_there(fn, made), failed)
    stored = fn.call("PyDict_SetItem", I32, 0, result, name, made)
    fn.call("Py_DecRef", None, 0, made)
    _go_on_if(fn, stored == 0, failed)
    return made


def _is_there(fn: Function, pointer: Val) -> Val:
    return fn.emit(BOOL, 0, f"icmp ne ptr {pointer.ref}, null")


def _go_on_if(fn: Function, condition: Val, otherwise: str) -> None:
    following = fn.fresh("on")
    fn.line(f"br i1 {condition.ref}, label %{following}, label %{otherwise}")
    fn.label(following)


def functions() -> list[Function]:
    """Return the functions by which Python calls the function ``educe_run``."""
    return [_check(), _call(), _answer()]


class _Block(np.ndarray):
    """An array of addresses that holds what they are the addresses of."""

    held: Sequence[Any]


class _Method(ctypes.Structure):
    """PyMethodDef (Python, C API)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("text", ctypes.c_char_p),
    )


@cache
def _method(address: int) -> _Method:
    """Return the description of a builtin function, which must outlive every function made of it."""
    method = _Method(b"run", address, _TAKES_ONE_ARGUMENT, b"Return the outputs for a dict of inputs.")
    keep(method)
    return method


def builtin(
    address: int,
    context: int,
    status: bytearray,
    inputs: Sequence[str],
    outputs: Sequence[tuple[str, tuple[int, ...], np.dtype[Any]]],
    held: object,
) -> Answer | None:
    """Return a builtin function that runs one context; None if this Python or these values rule it out.

    The function returns None for inputs that are not what the context was made for, and where an index was
    out of range. It holds the interpreter's lock from beginning to end, so that no two runs of it meet.

    Args:
        address: The function ``educe_answer``.
        context: The address of the context, whose bases start with inputs and outputs.
        status: The bytes of the run's checks.
        inputs: Names of the inputs.
        outputs: Names, shapes and types of the outputs.
        held: What must live as long as the function.
    """
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    are_distinct = len({name for name, _, _ in outputs}) == len(outputs)
    if not has_lock or not are_distinct or len(inputs) + len(outputs) > _MAX_VALUES:
        return None
    names = [sys.intern(name) for name in (*inputs, *(name for name, _, _ in outputs))]
    arguments = [part for _, *given in outputs for part in given]
    status_at = ctypes.c_char.from_buffer(status) if status else None
    fields = (
        context, len(inputs), len(outputs), id(dict), id(np.empty), id(None),
        0 if status_at is None else ctypes.addressof(status_at), len(status),
    )  # fmt: skip
    block = np.array([*fields, *map(id, (*names, *arguments))], np.int64).view(_Block)
    block.held = (names, arguments, status_at, held)
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
        ("PyCFunction_NewEx", ctypes.pythonapi)
    )
    made: Answer = make(ctypes.addressof(_method(address)), block, None)
    return made


def check_arrays(call: Callable[[int], int], pool: int) -> None:
    """Raise `InternalError` unless the fields of an array are where compiled code looks for them.

    Args:
        call: What checks arrays and runs a context, of which nothing is launched here.
        pool: The address of the pool of threads.
    """
    array = np.zeros((2, 3))
    for shape, passes in (((2, 3), True), ((3, 2), False)):
        bases = (ctypes.c_int64 * 1)(id(array))
        types = (ctypes.c_int64 * 5)(id(np.ndarray), id(array.dtype), 2, *shape)
        context = (ctypes.c_int64 * len(CONTEXT_FIELDS))(0, 0, ctypes.addressof(bases), 1)
        context[CONTEXT_FIELDS.index("pool")] = pool
        context[-2:] = [1, ctypes.addressof(types)]
        passed = call(ctypes.addressof(context))
        if passed != passes or (passes and bases[0] != array.ctypes.data):
            raise InternalError("this Python keeps the fields of NumPy's arrays in unknown places")
