"""The template `fft`: discrete Fourier transforms of many rows."""

from __future__ import annotations

from educe.compiler.emit import I64, Function, Kind, Val
from educe.compiler.kernel import template
from educe.compiler.target import Target


@template("fft")
def fft(fn: Function, target: Target, kind: Kind, lanes: int) -> None:
    """Write the transform of each row, `lanes` rows at a time.

    The passes go from one half of the scratch memory to the other and leave the result in order (Stockham's
    form; Van Loan, Computational Frameworks for the Fast Fourier Transform, 1992, section 1.7).

    ::

        for unit in begin..end:                                   # `lanes` rows
            a[n] = x[row, n], conjugated for the inverse
            n, s = length, 1
            for r in factors:
                m = n / r
                for p in m:
                    for q in s:
                        for k in r:
                            sum = sum(a[q + s (p + m j)] root(r)^(j k) for j in r)
                            b[q + s (r p + k)] = sum root(n)^(p k)
                a, b, n, s = b, a, m, s r
            out[row, k] = a[k], conjugated and divided by the length for the inverse

    Pointers: out, x, roots (cos and -sin of 2 pi i / length), factors (i64). Sizes: rows, length, numbers of
    x in a row, numbers of out in a row, parts of one of x (1 real, 2 complex), parts of one of out, whether
    it is the inverse, whether x is the first half of a symmetric row, factors.

    Args:
        fn: The function to write.
        target: Its machine.
        kind: f32 or f64.
        lanes: Rows that are transformed together; 0 for one.
    """
    del target
    _Transform(fn, kind, lanes).write()


class _Transform:
    """The loop nest of `fft` while it is written."""

    def __init__(self, fn: Function, kind: Kind, lanes: int) -> None:
        self.fn, self.kind, self.lanes = fn, kind, lanes
        self.width = max(lanes, 1)
        self.rows, self.length, self.given, self.wanted, self.parts_in, self.parts_out = (
            fn.size(index) for index in range(6)
        )
        self.inverse, self.symmetric, self.passes = (fn.size(index) for index in range(6, 9))
        self.out, self.x, self.roots, self.factors = (fn.pointer(index) for index in range(4))
        self.sign = fn.cast(1 - self.inverse * 2, kind)

    def write(self) -> None:
        """Write the loop over units."""
        fn = self.fn
        half = self.length * (2 * self.width)
        first, second = fn.scratch, fn.at(self.kind, fn.scratch, half)
        with fn.loop(fn.begin, fn.end) as unit:
            row = unit * self.width
            self._load(row, first)
            size, stride = fn.var(self.length), fn.var(fn.const(I64, 1))
            source, to = fn.var(first), fn.var(second)
            with fn.loop(0, self.passes) as number:
                factor = fn.load(I64, self.factors, number)
                self._pass(source.get(), to.get(), size.get() // factor, stride.get(), factor)
                size.set(size.get() // factor)
                stride.set(stride.get() * factor)
                swapped = source.get()
                source.set(to.get())
                to.set(swapped)
            self._store(row, source.get())

    # Numbers -----------------------------------------------------------------------------------------

    def _number(self, pointer: Val, place: Val) -> tuple[Val, Val]:
        """Return the real and the imaginary part of a number of each row in scratch memory."""
        start = place * (2 * self.width)
        real = self.fn.load(self.kind, pointer, start, self.lanes)
        return real, self.fn.load(self.kind, pointer, start + self.width, self.lanes)

    def _put(self, pointer: Val, place: Val, real: Val, imaginary: Val) -> None:
        start = place * (2 * self.width)
        self.fn.store(real, pointer, start)
        self.fn.store(imaginary, pointer, start + self.width)

    def _root(self, place: Val) -> tuple[Val, Val]:
        return self.fn.load(self.kind, self.roots, place * 2), self.fn.load(
            self.kind, self.roots, place * 2 + 1
        )

    def _times(self, a: tuple[Val, Val], root: tuple[Val, Val]) -> tuple[Val, Val]:
        return a[0] * root[0] - a[1] * root[1], a[0] * root[1] + a[1] * root[0]

    def _places(self, row: Val, size: Val, index: Val) -> tuple[Val, Val | None]:
        """Return where a number of each row lies among those of `size`, and which rows there are."""
        if not self.lanes:
            return row * size + index, None
        rows = self.fn.lane_numbers(self.lanes) + row
        return rows * size + index, rows < self.fn.splat(self.rows, self.lanes)

    def _load(self, row: Val, to: Val) -> None:
        fn = self.fn
        with fn.loop(0, self.length) as n:
            mirrored = (self.symmetric == 1) & (n > self.length // 2)
            place = fn.select(mirrored, self.length - n, n)
            sign = fn.select(mirrored, -self.sign, self.sign)
            zero = fn.const(self.kind, 0.0, self.lanes)
            real, imaginary = fn.var(zero), fn.var(zero)
            with fn.when(place < self.given):
                real.set(self._read(row, place * self.parts_in))
                with fn.when(self.parts_in > 1):
                    imaginary.set(self._read(row, place * self.parts_in + 1) * sign)
            self._put(to, n, real.get(), imaginary.get())

    def _read(self, row: Val, index: Val) -> Val:
        places, mask = self._places(row, self.given * self.parts_in, index)
        if mask is None:
            return self.fn.load(self.kind, self.x, places)
        return self.fn.gather(self.kind, self.x, places, mask)

    def _store(self, row: Val, source: Val) -> None:
        fn = self.fn
        whole = fn.cast(self.length, self.kind)
        share = fn.select(self.inverse == 1, 1.0 / whole, 1.0)
        with fn.loop(0, self.wanted) as k:
            real, imaginary = self._number(source, k)
            self._write(row, k * self.parts_out, real * share)
            with fn.when(self.parts_out > 1):
                self._write(row, k * self.parts_out + 1, imaginary * (share * self.sign))

    def _write(self, row: Val, index: Val, value: Val) -> None:
        places, mask = self._places(row, self.wanted * self.parts_out, index)
        if mask is None:
            self.fn.store(value, self.out, places)
        else:
            self.fn.scatter(value, self.out, places, mask)

    # Passes ------------------------------------------------------------------------------------------

    def _pass(self, source: Val, to: Val, count: Val, stride: Val, factor: Val) -> None:
        fn = self.fn
        with fn.either(factor == 4) as otherwise:
            with fn.loop(0, count) as p, fn.loop(0, stride) as q:
                self._four(source, to, count, stride, p, q)
            otherwise()
            step = self.length // factor
            with fn.loop(0, count) as p, fn.loop(0, factor) as k, fn.loop(0, stride) as q:
                zero = fn.const(self.kind, 0.0, self.lanes)
                real, imaginary = fn.var(zero), fn.var(zero)
                with fn.loop(0, factor) as j:
                    a = self._number(source, q + stride * (p + count * j))
                    term = self._times(a, self._root((j * k) % factor * step))
                    real.set(real.get() + term[0])
                    imaginary.set(imaginary.get() + term[1])
                turned = self._times((real.get(), imaginary.get()), self._root(p * k * stride))
                self._put(to, q + stride * (factor * p + k), *turned)

    def _four(self, source: Val, to: Val, count: Val, stride: Val, p: Val, q: Val) -> None:
        """Write the sums of four numbers, whose roots are 1, -i, -1 and i."""
        a, b, c, d = (self._number(source, q + stride * (p + count * j)) for j in range(4))
        even, odd = (a[0] + c[0], a[1] + c[1]), (a[0] - c[0], a[1] - c[1])
        both, turned = (b[0] + d[0], b[1] + d[1]), (b[1] - d[1], d[0] - b[0])
        sums = [
            (even[0] + both[0], even[1] + both[1]),
            (odd[0] + turned[0], odd[1] + turned[1]),
            (even[0] - both[0], even[1] - both[1]),
            (odd[0] - turned[0], odd[1] - turned[1]),
        ]
        for k, each in enumerate(sums):
            place = q + stride * (4 * p + k)
            self._put(to, place, *(self._times(each, self._root(p * k * stride)) if k else each))
