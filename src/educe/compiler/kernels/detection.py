"""Templates of detection: the choice among overlapping boxes, and the pooling of regions."""

from __future__ import annotations

from educe.compiler.emit import BOOL, F32, I32, I64, Function, Val
from educe.compiler.kernel import template
from educe.compiler.target import Target

FIELDS = 7
"""Numbers that are kept of a candidate: score, place, top, left, bottom, right, area."""


@template("suppression")
def suppression(fn: Function, target: Target, centred: bool, bounded: bool) -> None:
    """Write the boxes of each class that no better one overlaps too much, the best first.

    ::

        for unit in begin..end:                               # a class of an item
            candidates = boxes whose score is above the threshold
            while a candidate is left and fewer than `most` are chosen:
                best = the candidate with the highest score, the first of equal ones
                chosen[unit, count[unit]++] = best
                drop best, and every candidate whose overlap with it is above the threshold

    Pointers: chosen (i32), count (i32), boxes, scores, most (i64), overlap threshold, score threshold.
    Sizes: boxes of an item, classes, places for chosen boxes of a unit.

    Args:
        fn: The function to write.
        target: Its machine.
        centred: Whether a box is its centre and size, not two corners.
        bounded: Whether there is a threshold of scores.
    """
    _Suppression(fn, target.lanes, centred, bounded).write()


class _Suppression:
    """The loop nest of `suppression` while it is written."""

    def __init__(self, fn: Function, lanes: int, centred: bool, bounded: bool) -> None:
        self.fn, self.lanes, self.centred, self.bounded = fn, lanes, centred, bounded
        self.boxes, self.classes, self.places = (fn.size(index) for index in range(3))
        self.overlap = fn.load(F32, fn.pointer(5))
        self.least = fn.load(F32, fn.pointer(6))
        width = self.boxes + lanes
        self.fields = [fn.at(F32, fn.scratch, width * index) for index in range(FIELDS)]

    def write(self) -> None:
        """Write the loop over classes."""
        fn = self.fn
        most = fn.minimum(fn.load(I64, fn.pointer(4)), self.places)
        with fn.loop(fn.begin, fn.end) as unit:
            chosen = fn.at(I32, fn.pointer(0), unit * self.places)
            candidates = self._candidates(unit)
            count = fn.var(fn.const(I64, 0))
            with fn.when((most > 0) & (candidates > 0)), fn.repeat_while() as go_on:
                best = self._best(candidates)
                with fn.when(best >= 0):
                    fn.store(fn.load(I32, self.fields[1], best), chosen, count.get())
                    count.set(count.get() + 1)
                    self._drop(candidates, best)
                go_on((best >= 0) & (count.get() < most))
            fn.store(fn.cast(count.get(), I32), fn.pointer(1), unit)

    def _candidates(self, unit: Val) -> Val:
        """Write the candidates of a class, a vector of scores at a time, and return how many there are."""
        fn, lanes = self.fn, self.lanes
        scores = fn.at(F32, fn.pointer(3), unit * self.boxes)
        boxes = fn.at(F32, fn.pointer(2), (unit // self.classes) * self.boxes * 4)
        count = fn.var(fn.const(I64, 0))
        with fn.loop(0, self.boxes, lanes) as first:
            mask = fn.tail_mask(self.boxes - first, lanes)
            score = fn.load(F32, scores, first, lanes, mask)
            passing = mask & (score > self.least if self.bounded else score == score)
            with fn.when(_any(fn, passing)), fn.loop(first, fn.minimum(first + lanes, self.boxes)) as i:
                self._add(fn.load(F32, scores, i), boxes, i, count.get())
                value = fn.load(F32, scores, i)
                passes = value > self.least if self.bounded else value == value
                count.set(count.get() + fn.select(passes, fn.const(I64, 1), 0))
        nothing = fn.const(F32, float("nan"), lanes)
        fn.store(nothing, self.fields[0], count.get())
        return count.get()

    def _add(self, score: Val, boxes: Val, i: Val, place: Val) -> None:
        fn = self.fn
        a, b, c, d = (fn.load(F32, boxes, i * 4 + part) for part in range(4))
        if self.centred:
            sides = (b - d * 0.5, a - c * 0.5, b + d * 0.5, a + c * 0.5)
        else:
            sides = (fn.minimum(a, c), fn.minimum(b, d), fn.maximum(a, c), fn.maximum(b, d))
        top, left, bottom, right = sides
        fn.store(score, self.fields[0], place)
        fn.store(fn.cast(i, I32), self.fields[1], place)
        for field, value in enumerate((*sides, (right - left) * (bottom - top)), 2):
            fn.store(value, self.fields[field], place)

    def _best(self, candidates: Val) -> Val:
        """Return the place of the best candidate, or -1."""
        fn, lanes = self.fn, self.lanes
        best = fn.var(fn.const(F32, -float("inf"), lanes))
        places = fn.var(fn.const(I32, -1, lanes))
        with fn.loop(0, candidates, lanes) as i:
            score = fn.load(F32, self.fields[0], i, lanes)
            better = (score > best.get()) | ((places.get() < 0) & (score == score))
            best.set(fn.select(better, score, best.get()))
            here = fn.lane_numbers(lanes, I32) + fn.cast(i, I32)
            places.set(fn.select(better, here, places.get()))
        held, numbers = fn.stack(F32, lanes), fn.stack(I32, lanes)
        fn.store(best.get(), held)
        fn.store(places.get(), numbers)
        highest, chosen = fn.var(fn.const(F32, -float("inf"))), fn.var(fn.const(I32, -1))
        with fn.loop(0, lanes) as lane:
            score, place = fn.load(F32, held, lane), fn.load(I32, numbers, lane)
            first = (score == highest.get()) & ((place < chosen.get()) | (chosen.get() < 0))
            better = (place >= 0) & ((score > highest.get()) | first)
            highest.set(fn.select(better, score, highest.get()))
            chosen.set(fn.select(better, place, chosen.get()))
        return fn.cast(chosen.get(), I64)

    def _drop(self, candidates: Val, best: Val) -> None:
        """Mark the best candidate, and those that overlap it too much, as no candidates."""
        fn, lanes = self.fn, self.lanes
        nothing = float("nan")
        top, left, bottom, right, area = (
            fn.load(F32, self.fields[field], best) for field in range(2, FIELDS)
        )
        with fn.loop(0, candidates, lanes) as i:
            own = [fn.load(F32, self.fields[field], i, lanes) for field in range(2, FIELDS)]
            height = fn.minimum(own[2], bottom) - fn.maximum(own[0], top)
            width = fn.minimum(own[3], right) - fn.maximum(own[1], left)
            common = width * height
            union = own[4] + area - common
            are_boxes = (own[4] > 0.0) & (fn.splat(area, lanes) > 0.0) & (union > 0.0)
            drops = (height > 0.0) & (width > 0.0) & are_boxes & (common / union > self.overlap)
            score = fn.load(F32, self.fields[0], i, lanes)
            fn.store(fn.select(drops, nothing, score), self.fields[0], i)
        fn.store(fn.const(F32, nothing), self.fields[0], best)


def _any(fn: Function, mask: Val) -> Val:
    """Return whether some lane of a mask is true."""
    bits = f"i{mask.lanes}"
    whole = fn.emit(I64, 0, f"bitcast {mask.type} {mask.ref} to {bits}")
    return fn.emit(BOOL, 0, f"icmp ne {bits} {whole.ref}, 0")


@template("suppression_rows")
def suppression_rows(fn: Function, target: Target) -> None:
    """Write the chosen boxes of all classes one after the other, and how many there are.

    ::

        for unit in begin..end:                               # there is one
            for class of an item:
                for k below count[class]:
                    rows[total++] = (item, class, chosen[class, k])

    Pointers: rows (i64), total (i64), chosen (i32), count (i32). Sizes: units of `suppression`, classes,
    places for chosen boxes of a unit.
    """
    del target
    units, classes, places = (fn.size(index) for index in range(3))
    rows, chosen, counts = fn.pointer(0), fn.pointer(2), fn.pointer(3)
    with fn.loop(fn.begin, fn.end):
        total = fn.var(fn.const(I64, 0))
        with fn.loop(0, units) as unit, fn.loop(0, fn.cast(fn.load(I32, counts, unit), I64)) as k:
            box = fn.cast(fn.load(I32, chosen, unit * places + k), I64)
            for column, value in enumerate((unit // classes, unit % classes, box)):
                fn.store(value, rows, total.get() * 3 + column)
            total.set(total.get() + 1)
        fn.store(total.get(), fn.pointer(1))


@template("roi_align")
def roi_align(fn: Function, target: Target, pooling: str) -> None:
    """Write the pooled samples of regions of an image (He et al., Mask R-CNN, 2017).

    ::

        for unit in begin..end:                               # a region and a channel
            for cells of the output, a vector at a time:
                for iy in grid_h, ix in grid_w:
                    y, x = the sample's place in the cell
                    four = weight * X[item, channel, corner] for the four corners around it
                    total = total + sum(four)                 # or max(total, max(four))
                out[region, channel, cell] = total / (grid_h * grid_w)

    Pointers: out, X, regions, items (i64). Sizes: items, channels, height, width, out height, out width,
    samples along a cell (0: as many as pixels), whether pixels have their centre at a half, then the bits of
    the f32 scale.

    Args:
        fn: The function to write.
        target: Its machine.
        pooling: avg or max.
    """
    _Regions(fn, target.lanes, pooling).write()


_MAX_SAMPLES = 1024


class _Regions:
    """The loop nest of `roi_align` while it is written."""

    def __init__(self, fn: Function, lanes: int, pooling: str) -> None:
        self.fn, self.lanes, self.pooling = fn, lanes, pooling
        self.items, self.channels, self.height, self.width, self.out_height, self.out_width = (
            fn.size(index) for index in range(6)
        )
        self.samples, self.shifted = fn.size(6), fn.size(7)
        self.scale = fn.bitcast(fn.cast(fn.size(8), I32), F32)

    def write(self) -> None:
        """Write the loop over regions and channels."""
        fn, lanes = self.fn, self.lanes
        cells = self.out_height * self.out_width
        with fn.loop(fn.begin, fn.end) as unit:
            region, channel = unit // self.channels, unit % self.channels
            item = fn.load(I64, fn.pointer(3), region)
            item = fn.maximum(fn.minimum(item, self.items - 1), 0)
            plane = (item * self.channels + channel) * self.height * self.width
            image = fn.at(F32, fn.pointer(1), plane)
            starts, steps, grids = self._cells(region)
            count = fn.cast(fn.maximum(grids[0] * grids[1], 1), F32)
            with fn.loop(0, cells, lanes) as first:
                mask = fn.tail_mask(cells - first, lanes)
                cell = fn.lane_numbers(lanes, I32) + fn.cast(first, I32)
                out_width = fn.cast(self.out_width, I32)
                place = (fn.cast(cell // out_width, F32), fn.cast(cell % out_width, F32))
                total = fn.var(fn.const(F32, 0.0, lanes))
                with fn.loop(0, grids[0]) as iy, fn.loop(0, grids[1]) as ix:
                    y, x = (
                        place[axis] * steps[axis]
                        + starts[axis]
                        + (fn.cast(index, F32) + 0.5) * steps[axis] / fn.cast(grids[axis], F32)
                        for axis, index in enumerate((iy, ix))
                    )
                    corners = self._corners(image, y, x, mask)
                    total.set(self._pooled(total.get(), corners, (iy + ix) == 0))
                result = total.get() / count if self.pooling == "avg" else total.get()
                fn.store(result, fn.at(F32, fn.pointer(0), unit * cells), first, mask)

    def _cells(self, region: Val) -> tuple[list[Val], list[Val], list[Val]]:
        """Return the start of a region, the size of its cells, and the samples along one: rows, columns."""
        fn = self.fn
        shift = fn.cast(self.shifted, F32) * 0.5
        left, top, right, bottom = (
            fn.load(F32, fn.pointer(2), region * 4 + side) * self.scale - shift for side in range(4)
        )
        steps, grids = [], []
        for size, cells in ((bottom - top, self.out_height), (right - left, self.out_width)):
            size = fn.select(self.shifted == 1, size, fn.maximum(size, 1.0))
            steps.append(size / fn.cast(cells, F32))
            found = fn.cast(fn.intrinsic("ceil", steps[-1]), I64)
            found = fn.maximum(fn.minimum(found, _MAX_SAMPLES), 0)
            grids.append(fn.select(self.samples > 0, self.samples, found))
        return [top, left], steps, grids

    def _corners(self, image: Val, y: Val, x: Val, mask: Val) -> list[Val]:
        """Return the weighted values of the four pixels around a sample, zeros outside the image."""
        fn = self.fn
        inside = mask
        low, high, part = [], [], []
        for value, size in ((y, self.height), (x, self.width)):
            inside = inside & (value >= -1.0) & (value <= fn.cast(size, F32))
            value = fn.maximum(value, 0.0)
            last = fn.splat(fn.cast(size - 1, I32), self.lanes)
            whole = fn.cast(value, I32)
            is_last = whole >= last
            low.append(fn.select(is_last, last, whole))
            high.append(fn.select(is_last, last, whole + 1))
            part.append(fn.select(is_last, 0.0, value - fn.cast(whole, F32)))
        width = fn.cast(self.width, I32)
        found = []
        for row, weight in ((low[0], 1.0 - part[0]), (high[0], part[0])):
            for column, share in ((low[1], 1.0 - part[1]), (high[1], part[1])):
                pixel = fn.gather(F32, image, row * width + column, inside)
                found.append(fn.select(inside, weight * share, 0.0) * pixel)
        return found

    def _pooled(self, total: Val, corners: list[Val], is_first: Val) -> Val:
        fn = self.fn
        if self.pooling == "avg":
            return total + (corners[0] + corners[1] + corners[2] + corners[3])
        highest = corners[0]
        for each in corners[1:]:
            highest = fn.combine("max", highest, each)
        return fn.select(is_first, highest, fn.combine("max", total, highest))
