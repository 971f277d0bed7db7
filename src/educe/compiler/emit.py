"""Emission of LLVM IR: functions under construction, and the values inside them.

A `Function` writes text of LLVM's language (llvm.org/docs/LangRef) line by line. A `Val` is one of its
values: a scalar, or a vector of `lanes` elements, of a `Kind`. Python's operators on values emit
instructions; numbers become constants, and a scalar that meets a vector is broadcast.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Kind:
    """An element type.

    Attributes:
        name: As in signatures: ``f32``, ``u8``, ``bool``.
        llvm: LLVM's type in a register. ``bf16`` is carried as its bits.
        size_bytes: Size in memory.
    """

    name: str
    llvm: str
    size_bytes: int
    is_float: bool = False
    is_signed: bool = False

    @property
    def memory(self) -> str:
        """LLVM's type in memory."""
        return "i8" if self.name == "bool" else self.llvm

    def __repr__(self) -> str:
        return self.name


F32 = Kind("f32", "float", 4, True, True)
F64 = Kind("f64", "double", 8, True, True)
F16 = Kind("f16", "half", 2, True, True)
BF16 = Kind("bf16", "i16", 2, True, True)
I8, I16, I32, I64 = (Kind(f"i{bits}", f"i{bits}", bits // 8, False, True) for bits in (8, 16, 32, 64))
U8, U16, U32, U64 = (Kind(f"u{bits}", f"i{bits}", bits // 8) for bits in (8, 16, 32, 64))
BOOL = Kind("bool", "i1", 1)
PTR = Kind("ptr", "ptr", 8)

KINDS = {kind.name: kind for kind in (F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, BOOL)}
"""Every element type that kernels take, by its name in signatures."""

_BITS = {F32: I32, F64: I64, F16: I16, BF16: I16}
_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


class Val:
    """A value inside a `Function`: `lanes` elements of `kind`, or one if `lanes` is 0."""

    __slots__ = ("fn", "kind", "lanes", "ref")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, fn: Function, kind: Kind, ref: str, lanes: int = 0) -> None:
        self.fn, self.kind, self.ref, self.lanes = fn, kind, ref, lanes

    @property
    def type(self) -> str:
        """LLVM's type of this value."""
        return f"<{self.lanes} x {self.kind.llvm}>" if self.lanes else self.kind.llvm

    def __add__(self, other: Operand) -> Val:
        return self.fn.binary("add", self, other)

    def __radd__(self, other: Operand) -> Val:
        return self.fn.binary("add", other, self)

    def __sub__(self, other: Operand) -> Val:
        return self.fn.binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Val:
        return self.fn.binary("sub", other, self)

    def __mul__(self, other: Operand) -> Val:
        return self.fn.binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Val:
        return self.fn.binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Val:
        return self.fn.binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Val:
        return self.fn.binary("div", other, self)

    def __floordiv__(self, other: Operand) -> Val:
        return self.fn.binary("div", self, other)

    def __mod__(self, other: Operand) -> Val:
        return self.fn.binary("rem", self, other)

    def __and__(self, other: Operand) -> Val:
        return self.fn.binary("and", self, other)

    def __or__(self, other: Operand) -> Val:
        return self.fn.binary("or", self, other)

    def __xor__(self, other: Operand) -> Val:
        return self.fn.binary("xor", self, other)

    def __lshift__(self, other: Operand) -> Val:
        return self.fn.binary("shl", self, other)

    def __rshift__(self, other: Operand) -> Val:
        return self.fn.binary("shr", self, other)

    def __invert__(self) -> Val:
        return self.fn.binary("xor", self, True if self.kind is BOOL else -1)

    def __neg__(self) -> Val:
        if self.kind.is_float:
            return self.fn.neg(self)
        return self.fn.binary("sub", 0, self)

    def __lt__(self, other: Operand) -> Val:
        return self.fn.compare("<", self, other)

    def __le__(self, other: Operand) -> Val:
        return self.fn.compare("<=", self, other)

    def __gt__(self, other: Operand) -> Val:
        return self.fn.compare(">", self, other)

    def __ge__(self, other: Operand) -> Val:
        return self.fn.compare(">=", self, other)

    def __eq__(self, other: Operand) -> Val:  # type: ignore[override]
        return self.fn.compare("==", self, other)

    def __ne__(self, other: Operand) -> Val:  # type: ignore[override]
        return self.fn.compare("!=", self, other)

    def __repr__(self) -> str:
        return f"<Val {self.type} {self.ref}>"


Operand: TypeAlias = "Val | int | float | bool"


class Var:
    """A variable of a `Function`, which LLVM turns into registers."""

    __slots__ = ("_pointer", "kind", "lanes")

    def __init__(self, pointer: Val, kind: Kind, lanes: int) -> None:
        self._pointer, self.kind, self.lanes = pointer, kind, lanes

    def get(self) -> Val:
        """Return the present value."""
        fn = self._pointer.fn
        kind = f"<{self.lanes} x {self.kind.llvm}>" if self.lanes else self.kind.llvm
        return fn.emit(self.kind, self.lanes, f"load {kind}, ptr {self._pointer.ref}")

    def set(self, value: Operand) -> None:
        """Give the variable a new value."""
        fn = self._pointer.fn
        value = fn.as_val(value, self.kind, self.lanes)
        fn.line(f"store {value.type} {value.ref}, ptr {self._pointer.ref}")


class Function:
    """A function under construction, with the two-pointer signature of a kernel.

    A kernel is ``void (ptr P, ptr S, i64 begin, i64 end, ptr scratch)``: `P` holds the addresses of its
    buffers, `S` its sizes, and it does the units of work from `begin` up to `end`. `scratch` is memory of
    the thread's own.

    Args:
        name: The symbol.
        parameters: Kinds of the parameters; a kernel's if absent.
        has_half: Whether the target converts f16 by instructions.
    """

    def __init__(
        self,
        name: str,
        parameters: Sequence[Kind] = (PTR, PTR, I64, I64, PTR),
        returns: Kind | None = None,
        has_half: bool = True,
    ) -> None:
        self.name = name
        self._has_half = has_half
        self._lines: list[str] = []
        self._entry: list[str] = []
        self._count = 0
        self._declared: dict[str, str] = {}
        self._globals: list[str] = []
        self._returns = returns
        self._kinds = tuple(parameters)
        self.arguments = [Val(self, kind, f"%a{index}") for index, kind in enumerate(parameters)]

    # Kernel parameters -------------------------------------------------------------------------------

    @property
    def begin(self) -> Val:
        """The first unit of work."""
        return self.arguments[2]

    @property
    def end(self) -> Val:
        """The end of the units of work."""
        return self.arguments[3]

    @property
    def scratch(self) -> Val:
        """Memory of this thread's own."""
        return self.arguments[4]

    def pointer(self, index: int) -> Val:
        """Return the address of the kernel's buffer `index`."""
        return self.load(PTR, self.arguments[0], index)

    def size(self, index: Operand) -> Val:
        """Return the kernel's size `index`."""
        return self.load(I64, self.arguments[1], index)

    # Text --------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """Add a line of LLVM IR."""
        self._lines.append(f"  {text}")

    def fresh(self, prefix: str = "v") -> str:
        """Return a name that is not yet in use."""
        self._count += 1
        return f"{prefix}{self._count}"

    def emit(self, kind: Kind, lanes: int, text: str) -> Val:
        """Add an instruction and return its result."""
        ref = f"%{self.fresh()}"
        self._lines.append(f"  {ref} = {text}")
        return Val(self, kind, ref, lanes)

    def label(self, name: str) -> None:
        """Start the block `name`."""
        self._lines.append(f"{name}:")

    def text(self) -> str:
        """Return the function as LLVM IR, with its declarations."""
        kinds = ", ".join(f"{kind.llvm} %a{index}" for index, kind in enumerate(self._kinds))
        returns = self._returns.llvm if self._returns else "void"
        body = [f"define {returns} @{self.name}({kinds}) #0 {{", "entry:", *self._entry, *self._lines]
        if not self._returns:
            body.append("  ret void")
        return "\n".join([*self._globals, *self._declared.values(), *body, "}", ""])

    # Constants ---------------------------------------------------------------------------------------

    def const(self, kind: Kind, value: float | bool, lanes: int = 0) -> Val:
        """Return a constant; for vectors, the same in every lane."""
        ref = _literal(kind, value)
        if lanes:
            ref = f"splat ({kind.llvm} {ref})"
        return Val(self, kind, ref, lanes)

    def vector_const(self, kind: Kind, values: Sequence[float]) -> Val:
        """Return a constant vector of `values`."""
        items = ", ".join(f"{kind.llvm} {_literal(kind, value)}" for value in values)
        return Val(self, kind, f"<{items}>", len(values))

    def as_val(self, value: Operand, kind: Kind, lanes: int) -> Val:
        """Return `value` as a value of `kind` and `lanes`: numbers as constants, scalars broadcast."""
        if not isinstance(value, Val):
            return self.const(kind, value, lanes)
        assert value.kind.llvm == kind.llvm, (value, kind)
        return self.splat(value, lanes) if lanes and not value.lanes else value

    def splat(self, value: Val, lanes: int) -> Val:
        """Return a vector with the scalar `value` in every lane."""
        if not lanes or value.lanes:
            return value
        if not value.ref.startswith("%"):
            return Val(self, value.kind, f"splat ({value.kind.llvm} {value.ref})", lanes)
        kind = f"<{lanes} x {value.kind.llvm}>"
        one = self.emit(value.kind, lanes, f"insertelement {kind} poison, {value.type} {value.ref}, i64 0")
        zeros = f"<{lanes} x i32> zeroinitializer"
        return self.emit(value.kind, lanes, f"shufflevector {kind} {one.ref}, {kind} poison, {zeros}")

    def lane_numbers(self, lanes: int, kind: Kind = I64) -> Val:
        """Return the vector 0, 1, 2, ..."""
        return self.vector_const(kind, range(lanes))

    # Arithmetic --------------------------------------------------------------------------------------

    def _pair(self, a: Operand, b: Operand) -> tuple[Val, Val]:
        model = a if isinstance(a, Val) else b
        assert isinstance(model, Val)
        lanes = max(a.lanes if isinstance(a, Val) else 0, b.lanes if isinstance(b, Val) else 0)
        return self.as_val(a, model.kind, lanes), self.as_val(b, model.kind, lanes)

    def binary(self, name: str, a: Operand, b: Operand) -> Val:
        """Return `a` `name` `b`: add, sub, mul, div, rem, and, or, xor, shl, shr.

        Integers wrap; div and rem of integers round toward zero and must not meet a zero divisor.
        f16 is computed in f32 and rounded.
        """
        a, b = self._pair(a, b)
        kind = a.kind
        if kind in (F16, BF16):
            return self.cast(self.binary(name, self.cast(a, F32), self.cast(b, F32)), kind)
        if kind.is_float:
            name = f"f{name}"
        elif name in ("div", "rem"):
            name = ("s" if kind.is_signed else "u") + name
        elif name == "shr":
            name = "ashr" if kind.is_signed else "lshr"
        return self.emit(kind, a.lanes, f"{name} {a.type} {a.ref}, {b.ref}")

    def neg(self, a: Val) -> Val:
        """Return the float `a` with its sign changed."""
        if a.kind is BF16:
            return self.binary_bits("xor", a, 0x8000)
        return self.emit(a.kind, a.lanes, f"fneg {a.type} {a.ref}")

    def binary_bits(self, name: str, a: Val, bits: int) -> Val:
        """Return the float `a` after the bitwise operation `name` of its bits with `bits`."""
        whole = self.bitcast(a, _BITS[a.kind])
        return self.bitcast(self.binary(name, whole, bits), a.kind)

    def compare(self, sign: str, a: Operand, b: Operand) -> Val:
        """Return whether `a` `sign` `b`; with NaN only ``!=`` is true."""
        a, b = self._pair(a, b)
        if a.kind in (F16, BF16):
            a, b = self.cast(a, F32), self.cast(b, F32)
        kind = a.kind
        if kind.is_float:
            name = {"==": "oeq", "!=": "une"}.get(sign) or f"o{_COMPARE[sign]}"
            return self.emit(BOOL, a.lanes, f"fcmp {name} {a.type} {a.ref}, {b.ref}")
        prefix = "s" if kind.is_signed else "u"
        name = {"==": "eq", "!=": "ne"}.get(sign) or prefix + _COMPARE[sign]
        return self.emit(BOOL, a.lanes, f"icmp {name} {a.type} {a.ref}, {b.ref}")

    def select(self, condition: Val, a: Operand, b: Operand) -> Val:
        """Return `a` where `condition` is true, else `b`."""
        a, b = self._pair(a, b)
        lanes = max(condition.lanes, a.lanes)
        a, b = self.splat(a, lanes), self.splat(b, lanes)
        condition = self.splat(condition, lanes)
        return self.emit(
            a.kind, lanes, f"select {condition.type} {condition.ref}, {a.type} {a.ref}, {b.type} {b.ref}"
        )

    def minimum(self, a: Operand, b: Operand) -> Val:
        """Return the smaller; NaN if `a` is."""
        a, b = self._pair(a, b)
        return self.select(b < a, b, a)

    def maximum(self, a: Operand, b: Operand) -> Val:
        """Return the larger; NaN if `a` is."""
        a, b = self._pair(a, b)
        return self.select(b > a, b, a)

    def is_nan(self, a: Val) -> Val:
        """Return whether the float `a` is not a number."""
        return a != a

    def fma(self, a: Operand, b: Operand, c: Operand) -> Val:
        """Return `a` × `b` + `c`, rounded once where the target has the instruction."""
        model = next(each for each in (a, b, c) if isinstance(each, Val))
        lanes = max(each.lanes for each in (a, b, c) if isinstance(each, Val))
        a, b, c = (self.as_val(each, model.kind, lanes) for each in (a, b, c))
        name = f"llvm.fmuladd.{_suffix(a)}"
        return self.call(name, a.kind, lanes, a, b, c)

    def intrinsic(self, name: str, *arguments: Val) -> Val:
        """Return LLVM's function ``llvm.name`` of values of one type, such as ``floor`` or ``sqrt``."""
        first = arguments[0]
        if first.kind in (F16, BF16):
            wide = [self.cast(each, F32) for each in arguments]
            return self.cast(self.intrinsic(name, *wide), first.kind)
        return self.call(f"llvm.{name}.{_suffix(first)}", first.kind, first.lanes, *arguments)

    def call(self, name: str, kind: Kind | None, lanes: int, *arguments: Val) -> Val:
        """Call the function `name`, which is declared at its first use."""
        returns = "void" if kind is None else Val(self, kind, "", lanes).type
        self.declare(name, returns, [each.type for each in arguments])
        given = ", ".join(f"{each.type} {each.ref}" for each in arguments)
        if kind is None:
            self.line(f"call void @{name}({given})")
            return Val(self, I64, "0")
        return self.emit(kind, lanes, f"call {returns} @{name}({given})")

    def declare(self, name: str, returns: str, types: Sequence[str]) -> None:
        """Declare a function that is defined elsewhere."""
        self._declared[name] = f"declare {returns} @{name}({', '.join(types)})"

    # Conversions -------------------------------------------------------------------------------------

    def bitcast(self, a: Val, kind: Kind) -> Val:
        """Return the bits of `a` as another kind of the same size."""
        if a.kind.llvm == kind.llvm:
            return Val(self, kind, a.ref, a.lanes)
        to = Val(self, kind, "", a.lanes).type
        return self.emit(kind, a.lanes, f"bitcast {a.type} {a.ref} to {to}")

    def cast(self, a: Val, kind: Kind) -> Val:
        """Return `a` converted to `kind`: floats round to nearest even, or toward zero to integers.

        Out of range, a float becomes the nearest integer of `kind`, NaN becomes 0. Integers wrap.
        """
        if a.kind is kind:
            return a
        if a.kind is BF16:
            wide = self.binary("shl", self.extend(Val(self, U16, a.ref, a.lanes), U32), 16)
            return self.cast(self.bitcast(wide, F32), kind)
        if kind is BF16:
            return self._to_bf16(self._to_odd(a) if a.kind is F64 else self.cast(a, F32))
        if a.kind is F16 and kind is not F32:
            return self.cast(self.cast(a, F32), kind)
        if kind is F16 and a.kind is not F32:
            return self.cast(self._to_odd(a) if a.kind is F64 else self.cast(a, F32), kind)
        if F16 in (a.kind, kind) and not self._has_half:
            return self._from_half(a) if a.kind is F16 else self._to_half(a)
        if kind is BOOL:
            return self.compare("!=", a, 0)
        to = Val(self, kind, "", a.lanes).type
        if a.kind.is_float and kind.is_float:
            name = "fpext" if kind.size_bytes > a.kind.size_bytes else "fptrunc"
        elif a.kind.is_float:
            return self._to_integer(a, kind)
        elif kind.is_float:
            name = "sitofp" if a.kind.is_signed else "uitofp"
        else:
            return self.extend(a, kind)
        return self.emit(kind, a.lanes, f"{name} {a.type} {a.ref} to {to}")

    def truncate(self, a: Val, kind: Kind) -> Val:
        """Return the f32 or f64 `a` as an integer rounded toward zero; undefined where there is none."""
        if kind.size_bytes < 4:
            return self.extend(self.truncate(a, I32), kind)
        to = Val(self, kind, "", a.lanes).type
        return self.emit(kind, a.lanes, f"fpto{'s' if kind.is_signed else 'u'}i {a.type} {a.ref} to {to}")

    def _to_integer(self, a: Val, kind: Kind) -> Val:
        """Return the f32 or f64 `a` as an integer; LLVM's own saturating conversions go lane by lane."""
        bits = 8 * kind.size_bytes - kind.is_signed
        precision = 24 if a.kind is F32 else 53
        most = (1 << bits) - 1
        # The largest number of the float's kind that the integer's has as well.
        bound = most if bits <= precision else most - (1 << (bits - precision)) + 1
        low = -(1 << bits) if kind.is_signed else 0
        inside = self.minimum(self.maximum(a, float(low)), float(bound))
        whole = self.truncate(self.select(self.is_nan(a), 0.0, inside), kind)
        return whole if bound == most else self.select(a > float(bound), most, whole)

    def extend(self, a: Val, kind: Kind) -> Val:
        """Return the integer or truth `a` as an integer of another size."""
        to = Val(self, kind, "", a.lanes).type
        if kind.llvm == a.kind.llvm:
            return Val(self, kind, a.ref, a.lanes)
        bits = 0 if a.kind is BOOL else a.kind.size_bytes
        name = "trunc" if kind.size_bytes < bits else "sext" if a.kind.is_signed else "zext"
        return self.emit(kind, a.lanes, f"{name} {a.type} {a.ref} to {to}")

    def _to_bf16(self, a: Val) -> Val:
        bits = self.bitcast(a, U32)
        rounded = self.binary("add", bits, ((bits >> 16) & 1) + 0x7FFF)
        kept = self.select(self.is_nan(a), (bits | 0x400000), rounded)
        whole = self.extend(kept >> 16, U16)
        return Val(self, BF16, whole.ref, whole.lanes)

    def _to_odd(self, a: Val) -> Val:
        """Return the f64 `a` as f32 with its last bit set if that is not exact: it can be rounded again.

        Boldo and Melquiond, Emulation of FMA and Correctly Rounded Sums, 2008.
        """
        near = self.cast(a, F32)
        back = self.cast(near, F64)
        bits = self.bitcast(near, U32)
        is_beyond = self.intrinsic("fabs", back) > self.intrinsic("fabs", a)
        bits = bits - self.extend(is_beyond, U32)
        is_rounded = (back < a) | (back > a)
        return self.bitcast(bits | self.extend(is_rounded, U32), F32)

    def _from_half(self, a: Val) -> Val:
        """Return f16 as f32: the exponent's bias is changed by a product, which takes in denormal numbers."""
        bits = self.extend(self.bitcast(a, U16), U32)
        moved = (bits & 0x7FFF) << 13
        scaled = self.bitcast(self.bitcast(moved, F32) * 2.0**112, U32)
        is_finite = (bits & 0x7C00) != 0x7C00
        size = self.select(is_finite, scaled, moved | 0x7F800000)
        return self.bitcast(size | ((bits & 0x8000) << 16), F32)

    def _to_half(self, a: Val) -> Val:
        """Return f32 as f16, rounded to nearest, the even one of two."""
        whole = self.bitcast(a, U32)
        size = whole & 0x7FFFFFFF
        normal = (size + ((size >> 13) & 1) + (0xFFF - (112 << 23) + (1 << 32))) >> 13
        # The sum has its last place where that of the denormal numbers of f16 is.
        sum_ = self.bitcast(self.bitcast(size, F32) + 0.5, U32)
        bits = self.select(size < 0x38800000, sum_ - 0x3F000000, normal)
        beyond = self.select(self.is_nan(a), ((size >> 13) & 0x3FF) | 0x7E00, 0x7C00)
        bits = self.select(size < 0x477FF000, bits, beyond) | ((whole >> 16) & 0x8000)
        return self.bitcast(self.extend(bits, U16), F16)

    # Memory ------------------------------------------------------------------------------------------

    def at(self, kind: Kind, pointer: Val, index: Operand) -> Val:
        """Return the address of element `index` of the `kind` array at `pointer`."""
        index = self.as_val(index, I64, 0)
        return self.emit(PTR, 0, f"getelementptr {kind.memory}, ptr {pointer.ref}, i64 {index.ref}")

    def load(
        self, kind: Kind, pointer: Val, index: Operand = 0, lanes: int = 0, mask: Val | None = None
    ) -> Val:
        """Load the element at `index`, or `lanes` elements from there on; zeros where `mask` is false."""
        address = self.at(kind, pointer, index)
        memory = Kind(kind.name, kind.memory, kind.size_bytes, kind.is_float, kind.is_signed)
        type_ = Val(self, memory, "", lanes).type
        if mask is None:
            value = self.emit(kind, lanes, f"load {type_}, ptr {address.ref}, align {kind.size_bytes}")
        else:
            name = f"llvm.masked.load.{_suffix(Val(self, memory, '', lanes))}.p0"
            self.declare(name, type_, ["ptr", f"<{lanes} x i1>", type_])
            value = self.emit(
                kind,
                lanes,
                f"call {type_} @{name}(ptr align {kind.size_bytes} {address.ref}, "
                f"{mask.type} {mask.ref}, {type_} zeroinitializer)",
            )
        if kind is BOOL:
            return self.emit(
                BOOL,
                lanes,
                f"icmp ne {type_} {value.ref}, zeroinitializer"
                if lanes
                else f"icmp ne {type_} {value.ref}, 0",
            )
        return value

    def store(self, value: Val, pointer: Val, index: Operand = 0, mask: Val | None = None) -> None:
        """Store `value` at element `index` and after; only where `mask` is true."""
        address = self.at(value.kind, pointer, index)
        size = value.kind.size_bytes
        if value.kind is BOOL:
            value = self.extend(value, U8)
        if mask is None:
            self.line(f"store {value.type} {value.ref}, ptr {address.ref}, align {size}")
            return
        name = f"llvm.masked.store.{_suffix(value)}.p0"
        self.declare(name, "void", [value.type, "ptr", mask.type])
        self.line(
            f"call void @{name}({value.type} {value.ref}, ptr align {size} {address.ref}, "
            f"{mask.type} {mask.ref})"
        )

    def gather(self, kind: Kind, pointer: Val, indices: Val, mask: Val | None = None) -> Val:
        """Load the elements at `indices`, a vector of i64; zeros where `mask` is false."""
        lanes = indices.lanes
        memory = Kind(kind.name, kind.memory, kind.size_bytes, kind.is_float, kind.is_signed)
        type_ = Val(self, memory, "", lanes).type
        pointers = self.emit(
            PTR, lanes, f"getelementptr {kind.memory}, ptr {pointer.ref}, {indices.type} {indices.ref}"
        )
        mask = mask or self.const(BOOL, True, lanes)
        name = f"llvm.masked.gather.{_suffix(Val(self, memory, '', lanes))}.v{lanes}p0"
        self.declare(name, type_, [pointers.type, mask.type, type_])
        value = self.emit(
            kind,
            lanes,
            f"call {type_} @{name}({pointers.type} align {kind.size_bytes} {pointers.ref}, "
            f"{mask.type} {mask.ref}, {type_} zeroinitializer)",
        )
        if kind is BOOL:
            return self.emit(BOOL, lanes, f"icmp ne {type_} {value.ref}, zeroinitializer")
        return value

    def scatter(self, value: Val, pointer: Val, indices: Val, mask: Val | None = None) -> None:
        """Store each lane of `value` at its element of `indices`, in the order of lanes."""
        lanes = indices.lanes
        kind = value.kind
        if kind is BOOL:
            value = self.extend(value, U8)
        pointers = self.emit(
            PTR, lanes, f"getelementptr {kind.memory}, ptr {pointer.ref}, {indices.type} {indices.ref}"
        )
        mask = mask or self.const(BOOL, True, lanes)
        name = f"llvm.masked.scatter.{_suffix(value)}.v{lanes}p0"
        self.declare(name, "void", [value.type, pointers.type, mask.type])
        self.line(
            f"call void @{name}({value.type} {value.ref}, {pointers.type} align {kind.size_bytes} "
            f"{pointers.ref}, {mask.type} {mask.ref})"
        )

    def prefetch(self, pointer: Val, locality: int = 3) -> None:
        """Ask for the cache line at `pointer`: 3 into all caches, 2 not into the first."""
        self.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
        self.line(f"call void @llvm.prefetch.p0(ptr {pointer.ref}, i32 0, i32 {locality}, i32 1)")

    def stack(self, kind: Kind, count: int) -> Val:
        """Return the address of `count` elements on the stack."""
        ref = f"%{self.fresh('s')}"
        self._entry.append(f"  {ref} = alloca {kind.memory}, i64 {count}, align 64")
        return Val(self, PTR, ref)

    def table(self, kind: Kind, values: Sequence[float]) -> Val:
        """Return the address of a constant array."""
        name = f"@{self.name}.{self.fresh('t')}"
        items = ", ".join(f"{kind.memory} {_literal(kind, value)}" for value in values)
        self._globals.append(
            f"{name} = internal constant [{len(values)} x {kind.memory}] [{items}], align 64"
        )
        return Val(self, PTR, name)

    # Lanes -------------------------------------------------------------------------------------------

    def extract(self, vector: Val, lane: int) -> Val:
        """Return one lane."""
        return self.emit(vector.kind, 0, f"extractelement {vector.type} {vector.ref}, i64 {lane}")

    def shuffle(self, a: Val, b: Val, lanes: Sequence[int]) -> Val:
        """Return the given lanes of `a` and, from `a.lanes` on, of `b`."""
        chosen = ", ".join(f"i32 {lane}" for lane in lanes)
        return self.emit(
            a.kind,
            len(lanes),
            f"shufflevector {a.type} {a.ref}, {b.type} {b.ref}, <{len(lanes)} x i32> <{chosen}>",
        )

    def reduce(self, name: str, vector: Val) -> Val:
        """Return all lanes combined by halves with `name`: add, mul, min, max, and, or.

        The order is the same for every vector of as many lanes.
        """
        while vector.lanes > 1:
            half = vector.lanes // 2
            low = self.shuffle(vector, vector, range(half))
            high = self.shuffle(vector, vector, range(half, 2 * half))
            vector = self.combine(name, low, high)
        return self.extract(vector, 0)

    def combine(self, name: str, a: Val, b: Val) -> Val:
        """Return `a` and `b` combined with add, mul, min, max, and, or; min and max keep a NaN of either."""
        if name not in ("min", "max"):
            return self.binary(name, a, b)
        if a.kind is BOOL:
            return self.binary("and" if name == "min" else "or", a, b)
        best = self.minimum(a, b) if name == "min" else self.maximum(a, b)
        return self.select(self.is_nan(b), b, best) if a.kind.is_float else best

    def tail_mask(self, count: Val, lanes: int) -> Val:
        """Return a mask that is true in the first `count` lanes."""
        return self.compare("<", self.lane_numbers(lanes, I32), self.splat(self.extend(count, I32), lanes))

    # Control -----------------------------------------------------------------------------------------

    def var(self, value: Val) -> Var:
        """Return a variable that starts as `value`."""
        ref = f"%{self.fresh('x')}"
        self._entry.append(f"  {ref} = alloca {value.type}")
        variable = Var(Val(self, PTR, ref), value.kind, value.lanes)
        variable.set(value)
        return variable

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Val]:
        """Run the block for each index from `start` below `stop`."""
        start, stop = self.as_val(start, I64, 0), self.as_val(stop, I64, 0)
        head, body, done = self.fresh("head"), self.fresh("body"), self.fresh("done")
        index = self.var(start)
        self.line(f"br label %{head}")
        self.label(head)
        current = index.get()
        inside = self.compare("<", current, stop)
        self.line(f"br i1 {inside.ref}, label %{body}, label %{done}")
        self.label(body)
        yield current
        index.set(current + step)
        self.line(f"br label %{head}")
        self.label(done)

    @contextmanager
    def when(self, condition: Val) -> Iterator[None]:
        """Run the block if the scalar `condition` is true."""
        then, done = self.fresh("then"), self.fresh("done")
        self.line(f"br i1 {condition.ref}, label %{then}, label %{done}")
        self.label(then)
        yield
        self.line(f"br label %{done}")
        self.label(done)

    @contextmanager
    def either(self, condition: Val) -> Iterator[Any]:
        """Run the block if `condition` is true; what follows the call of the yielded function if not.

        ``with fn.either(c) as otherwise: ...; otherwise(); ...``
        """
        then, other, done = self.fresh("then"), self.fresh("else"), self.fresh("done")
        self.line(f"br i1 {condition.ref}, label %{then}, label %{other}")
        self.label(then)

        def otherwise() -> None:
            self.line(f"br label %{done}")
            self.label(other)

        yield otherwise
        self.line(f"br label %{done}")
        self.label(done)

    @contextmanager
    def repeat_while(self) -> Iterator[Any]:
        """Run the block again and again; it calls the yielded function with the condition to go on."""
        body, done = self.fresh("body"), self.fresh("done")
        self.line(f"br label %{body}")
        self.label(body)

        def go_on(condition: Val) -> None:
            self.line(f"br i1 {condition.ref}, label %{body}, label %{done}")
            self.label(done)

        yield go_on

    def ret(self, value: Val) -> None:
        """Return `value` from the function."""
        self.line(f"ret {value.type} {value.ref}")


def _suffix(value: Val) -> str:
    name = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}.get(value.kind.llvm, value.kind.llvm)
    return f"v{value.lanes}{name}" if value.lanes else name


def _literal(kind: Kind, value: float) -> str:
    if kind is BOOL:
        return "true" if value else "false"
    if kind is PTR:
        return "null"
    if kind is BF16:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        return str((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    if not kind.is_float:
        return str(int(value))
    if kind is F16:
        return f"0xH{struct.unpack('<H', struct.pack('<e', value))[0]:04X}"
    wide = struct.unpack("<f", struct.pack("<f", value))[0] if kind is F32 else float(value)
    return f"0x{struct.unpack('<Q', struct.pack('<d', wide))[0]:016X}"
