"""The template `grid_sample`: an image or volume read at given places."""

from __future__ import annotations

import itertools

from educe.compiler.emit import BOOL, F32, I32, Function, Val
from educe.compiler.kernel import template
from educe.compiler.target import Target

BLOCK = 1024
"""Places that are one unit of work."""

_CUBIC = -0.75


@template("grid_sample")
def grid_sample(fn: Function, target: Target, rank: int, mode: str, padding: str, corners: bool) -> None:
    """Write the values of each channel at the places of a grid.

    ::

        for unit in begin..end:                               # a block of an item's places
            for places of the block, a vector at a time:
                at[d] = the place in pixels along dimension d, inside the borders unless padding is zeros
                taps[d] = (index, weight) of the 1, 2 or 4 pixels around it along dimension d
                for channel:
                    out = sum(X[item, channel, i_0, i_1, ..] w_0 w_1 .. for every combination of taps)

    Pointers: out, X, grid. Sizes: channels, places, blocks, elements of a plane, sizes of the dimensions.

    Args:
        fn: The function to write.
        target: Its machine.
        rank: Dimensions of space.
        mode: nearest, linear or cubic.
        padding: zeros, border or reflection.
        corners: Whether -1 and 1 are the centres of the outermost pixels, not their outer sides.
    """
    lanes = target.lanes
    channels, places, blocks, plane = (fn.size(index) for index in range(4))
    sizes = [fn.size(4 + axis) for axis in range(rank)]
    with fn.loop(fn.begin, fn.end) as unit:
        item, block = unit // blocks, unit % blocks
        first = block * BLOCK
        with fn.loop(first, fn.minimum(first + BLOCK, places), lanes) as i:
            mask = fn.tail_mask(places - i, lanes)
            grid = fn.at(F32, fn.pointer(2), (item * places + i) * rank)
            taps = []
            for axis, size in enumerate(sizes):
                number = fn.lane_numbers(lanes, I32) * rank + (rank - 1 - axis)
                dimension = _Dimension(fn, size, padding, corners)
                taps.append(dimension.taps(fn.gather(F32, grid, number, mask), mode))
            combined = [_combined(fn, sizes, each, mask) for each in itertools.product(*taps)]
            with fn.loop(0, channels) as channel:
                image = fn.at(F32, fn.pointer(1), (item * channels + channel) * plane)
                total = None
                for index, weight, inside in combined:
                    value = fn.gather(F32, image, index, inside)
                    value = value if weight is None else value * weight
                    total = value if total is None else total + value
                assert total is not None
                fn.store(total, fn.at(F32, fn.pointer(0), (item * channels + channel) * places), i, mask)


class _Dimension:
    """One dimension of space: from a place in the grid to pixels and their weights."""

    def __init__(self, fn: Function, size: Val, padding: str, corners: bool) -> None:
        self.fn, self.padding, self.corners = fn, padding, corners
        self.last = fn.cast(size - 1, I32)
        self.length = fn.cast(size, F32)
        self.lowest = fn.const(F32, 0.0 if corners else -0.5)
        self.highest = self.length - (1.0 if corners else 0.5)

    def taps(self, place: Val, mode: str) -> list[tuple[Val, Val | None, Val]]:
        """Return the pixels around a place: the index, the weight if not 1, and whether it is there."""
        fn = self.fn
        at = (place + 1.0) * 0.5 * (self.length - 1.0)
        if not self.corners:
            at = ((place + 1.0) * self.length - 1.0) * 0.5
        if mode == "nearest":
            at = fn.intrinsic("roundeven", at)
        outside = (at < self.lowest) | (at > self.highest)
        if self.padding == "border":
            at = fn.select(outside, fn.minimum(fn.maximum(at, 0.0), self.length - 1.0), at)
        if self.padding == "reflection":
            at = fn.select(outside, self._reflected(at), at)
        if mode == "nearest":
            return [self._tap(fn.cast(at, I32), None)]
        floor = fn.intrinsic("floor", at)
        whole, part = fn.cast(floor, I32), at - floor
        if mode == "linear":
            return [self._tap(whole, 1.0 - part), self._tap(whole + 1, part)]
        distances = (part + 1.0, part, 1.0 - part, 2.0 - part)
        return [self._tap(whole + (tap - 1), _cubic(distance)) for tap, distance in enumerate(distances)]

    def _tap(self, index: Val, weight: Val | None) -> tuple[Val, Val | None, Val]:
        fn = self.fn
        if self.padding == "reflection":
            index = fn.cast(self._reflected(fn.cast(index, F32)), I32)
        inside = fn.const(BOOL, True, index.lanes)
        if self.padding == "zeros":
            inside = (index >= 0) & (index <= self.last)
        return fn.maximum(fn.minimum(index, self.last), 0), weight, inside

    def _reflected(self, x: Val) -> Val:
        """Return `x` reflected at both borders until it is between them."""
        fn = self.fn
        span = self.highest - self.lowest
        is_below = x < self.lowest
        distance = fn.select(is_below, self.lowest - x, x - self.highest)
        turns = fn.intrinsic("trunc", distance / span)
        rest = distance - turns * span
        is_odd = turns - fn.intrinsic("floor", turns * 0.5) * 2.0 != 0.0
        mirrored = fn.select(is_below ^ is_odd, rest + self.lowest, self.highest - rest)
        return fn.select(is_below | (x > self.highest), mirrored, x)


def _cubic(distance: Val) -> Val:
    """Return the weight of a pixel at a distance of 0 to 2 (Keys, 1981)."""
    fn = distance.fn
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1.0
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return fn.select(distance <= 1.0, near, far)


def _combined(
    fn: Function, sizes: list[Val], taps: tuple[tuple[Val, Val | None, Val], ...], mask: Val
) -> tuple[Val, Val | None, Val]:
    """Return the index in a plane, the weight, and whether it is read, of one tap of each dimension."""
    index, weight, inside = fn.const(I32, 0, mask.lanes), None, mask
    for size, (place, share, is_there) in zip(sizes, taps, strict=True):
        index = index * fn.cast(size, I32) + place
        inside = inside & is_there
        if share is not None:
            weight = share if weight is None else weight * share
    return index, weight, inside
