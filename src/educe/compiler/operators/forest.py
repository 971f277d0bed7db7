"""`Forest`: an ensemble of trees read from a node's attributes, checked and put into tables for kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from educe.compiler.kernels.trees import EQUALITY, FEATURE_MASK, NAN_FIRST
from educe.compiler.operators.base import NotCompiled

LEQ, LT, GTE, GT, EQ, NEQ, MEMBER = range(7)
"""How a node tests a feature against its value, as operator set 5 numbers it."""

_MAX_CODES = {"u8": 255, "u16": 65535}


@dataclass
class Branch:
    """A node with two children. A child below 0 is the leaf of the number ``~child``.

    Attributes:
        feature: The column of X.
        value: What x is tested against: the first child is for x <= value, or for x == value.
        first: The child where the test is true.
        second: The other.
        nan_first: Whether NaN goes to the first.
        equality: Whether the test is for equality.
        members: Further values that count as equal.
    """

    feature: int
    value: float
    first: int
    second: int
    nan_first: bool
    equality: bool = False
    members: tuple[float, ...] = ()


def branch(
    mode: int, feature: int, value: float, children: tuple[int, int], tracks: bool, dtype: Any
) -> Branch:
    """Return the node of any mode as one of those that kernels know.

    Args:
        mode: One of the modes.
        feature: The column of X.
        value: What the feature is tested against.
        children: Those for true and for false.
        tracks: Whether NaN goes where the test is true.
        dtype: The type in which features are compared.

    Raises:
        NotCompiled: the test is against NaN, or is below minus infinity.
    """
    if np.isnan(value):
        raise NotCompiled
    if mode in (LT, GTE):
        if np.isneginf(value):
            raise NotCompiled
        value = float(np.nextafter(dtype(value), dtype(-np.inf)))
    first, second = children
    nan_first = tracks or mode == NEQ
    if mode in (GTE, GT, NEQ):
        first, second, nan_first = second, first, not nan_first
    return Branch(feature, float(dtype(value)), first, second, nan_first, mode in (EQ, NEQ))


@dataclass
class _Tree:
    """One tree in the order in which `trees_by_node` tests: parents first, the first child's side first."""

    nodes: list[int] = field(default_factory=list)
    leftmost: list[int] = field(default_factory=list)
    leftmost_of_second: dict[int, int] = field(default_factory=dict)
    leaves: list[int] = field(default_factory=list)
    depth: int = 0


class Forest:
    """Trees over a list of branches.

    Args:
        branches: Every branch of every tree.
        roots: Where each tree starts; below 0 for a tree that is only a leaf.
        leaves: For each leaf its targets with their weights.
        targets: How many targets there are.
        aggregate: add, min or max.
        dtype: Of features, thresholds and weights.

    Raises:
        ValueError: it is not a forest: a node is reached twice, or a number is out of range.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        roots: Sequence[int],
        leaves: Sequence[Sequence[tuple[int, float]]],
        targets: int,
        aggregate: str,
        dtype: Any,
    ) -> None:
        self.branches, self.leaves, self.targets = branches, leaves, targets
        self.aggregate, self.dtype = aggregate, np.dtype(dtype)
        self.features = 1 + max((each.feature for each in branches), default=-1)
        if any(not 0 <= each.feature <= FEATURE_MASK for each in branches):
            raise ValueError("a tree tests a feature below 0")
        if any(not 0 <= target < targets for leaf in leaves for target, _ in leaf):
            raise ValueError(f"a leaf's target is not below {targets}")
        seen = bytearray(len(branches))
        self.trees = [self._walk(root, seen) for root in roots]
        self.nodes = sum(len(tree.nodes) for tree in self.trees)
        self.steps = sum(tree.depth for tree in self.trees)

    def _walk(self, root: int, seen: bytearray) -> _Tree:
        tree = _Tree()
        waiting: list[tuple[int, int, int]] = [(root, -1, 0)]
        while waiting:
            child, parent, depth = waiting.pop()
            if parent >= 0:
                tree.leftmost_of_second[parent] = len(tree.leaves)
            if child < 0:
                if ~child >= len(self.leaves):
                    raise ValueError("a tree has a leaf that is not there")
                tree.leaves.append(~child)
                tree.depth = max(tree.depth, depth)
                continue
            if child >= len(self.branches):
                raise ValueError("a tree has a node that is not there")
            if seen[child]:
                raise ValueError("a node of a tree is reached in two ways")
            seen[child] = True
            node = self.branches[child]
            tree.nodes.append(child)
            tree.leftmost.append(len(tree.leaves))
            below = depth + 1 + len(node.members)
            waiting += [(node.second, child, below), (node.first, -1, below)]
        return tree

    # Tables of both kernels --------------------------------------------------------------------------

    @cached_property
    def columns(self) -> list[tuple[int, int, int]]:
        """For each tree and target that it has weights for: the tree, the target, where its weights start."""
        return self._weights_and_columns[1]

    @cached_property
    def weights(self) -> np.ndarray:
        """The weights of each column, one for each leaf of its tree."""
        return self._weights_and_columns[0]

    @cached_property
    def _weights_and_columns(self) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
        neutral = {"add": 0.0, "min": np.finfo(self.dtype).max, "max": np.finfo(self.dtype).min}
        combine = {"add": np.add, "min": np.minimum, "max": np.maximum}[self.aggregate]
        weights: list[np.ndarray] = [np.zeros(0, self.dtype)]
        columns: list[tuple[int, int, int]] = []
        size = 0
        for number, tree in enumerate(self.trees):
            own: dict[int, np.ndarray] = {}
            for place, leaf in enumerate(tree.leaves):
                for target, weight in self.leaves[leaf]:
                    if target not in own:
                        own[target] = np.full(len(tree.leaves), neutral[self.aggregate], self.dtype)
                    own[target][place] = combine(own[target][place], weight)
            for target in sorted(own):
                columns.append((number, target, size))
                weights.append(own[target])
                size += len(tree.leaves)
        return np.concatenate([*weights, np.zeros(1, self.dtype)]), columns

    # Tables of trees_by_node -------------------------------------------------------------------------

    @cached_property
    def planes(self) -> dict[tuple[int, bool], np.ndarray]:
        """The thresholds in order of each feature, apart by where NaN goes."""
        found: dict[tuple[int, bool], set[float]] = {}
        for tree in self.trees:
            for node in tree.nodes:
                each = self.branches[node]
                found.setdefault((each.feature, each.nan_first), set()).add(each.value)
        return {key: np.array(sorted(found[key]), self.dtype) for key in sorted(found)}

    @cached_property
    def code(self) -> str | None:
        """The type of codes in which every node can be tested for many rows, or None if it is too large."""
        most = max((thresholds.size for thresholds in self.planes.values()), default=0)
        most = max(most, max((len(tree.leaves) for tree in self.trees), default=0))
        if any(each.equality for each in self.branches):
            return None
        return next((name for name, largest in _MAX_CODES.items() if most <= largest), None)

    def by_node(self) -> list[np.ndarray]:
        """Return the tables of `trees_by_node`, as its docstring lists them from planes on."""
        planes: list[tuple[int, int, int, int]] = []
        thresholds = [np.zeros(0, self.dtype)]
        start = 0
        numbers: dict[tuple[int, bool], int] = {}
        for (feature, nan_first), each in self.planes.items():
            steps = int(each.size).bit_length()
            numbers[feature, nan_first] = len(planes)
            planes.append((feature, start, steps, 0 if nan_first else each.size))
            thresholds.append(
                np.concatenate([each, np.full((1 << steps) - 1 - each.size, np.inf, self.dtype)])
            )
            start += (1 << steps) - 1
        node_planes: list[int] = []
        codes: list[tuple[int, int, int]] = []
        tree_table: list[tuple[int, int]] = []
        column = 0
        counts = np.bincount([tree for tree, _, _ in self.columns], minlength=len(self.trees))
        for number, tree in enumerate(self.trees):
            tree_table.append((len(node_planes), column))
            column += int(counts[number])
            for node, leftmost in zip(tree.nodes, tree.leftmost, strict=True):
                tested = self.branches[node]
                key = (tested.feature, tested.nan_first)
                node_planes.append(numbers[key])
                place = int(np.searchsorted(self.planes[key], self.dtype.type(tested.value)))
                codes.append((leftmost, tree.leftmost_of_second[node], place))
        tree_table.append((len(node_planes), column))
        return [
            _table(planes, np.int32),
            np.concatenate([*thresholds, np.zeros(1, self.dtype)]),
            _table(node_planes, np.int32),
            _table(codes, np.dtype("uint8" if self.code == "u8" else "uint16")),
            _table(tree_table, np.int32),
            _table([(target, base) for _, target, base in self.columns], np.int32),
            self.weights,
        ]

    # Tables of trees_by_path -------------------------------------------------------------------------

    def by_path(self, together: int) -> list[np.ndarray]:
        """Return the tables of `trees_by_path` for `together` trees at once, from roots on."""
        rows: dict[int, list[Branch]] = {}
        starts: dict[int, int] = {}
        inner = 0
        for tree in self.trees:
            for node in tree.nodes:
                rows[node] = list(_chain(self.branches[node]))
                starts[node] = inner
                inner += len(rows[node])
        first_leaf = list(np.cumsum([inner, *(len(tree.leaves) for tree in self.trees)]))
        total = int(first_leaf[-1])
        features, values = np.zeros(total, np.uint32), np.zeros(total, self.dtype)
        children = np.repeat(np.arange(total, dtype=np.int32), 2).reshape(total, 2)
        roots = []
        for tree, leaf in zip(self.trees, first_leaf, strict=False):
            places = {number: int(leaf) + place for place, number in enumerate(tree.leaves)}

            def target(child: int, places: dict[int, int] = places) -> int:
                return starts[child] if child >= 0 else places[~child]

            for node in tree.nodes:
                for index, each in enumerate(rows[node], starts[node]):
                    features[index] = each.feature | NAN_FIRST * each.nan_first | EQUALITY * each.equality
                    values[index] = each.value
                    last = index == starts[node] + len(rows[node]) - 1
                    children[index] = target(each.first), target(each.second) if last else index + 1
            roots.append(starts[tree.nodes[0]] if tree.nodes else int(leaf))
        depths = [tree.depth for tree in self.trees]
        spare = -len(roots) % together
        roots += [int(first_leaf[0])] * spare
        depths += [0] * spare
        order = sorted(self.columns, key=lambda column: (column[1], column[0]))
        return [
            _table(roots, np.int32),
            _table(np.array(depths).reshape(-1, together).max(1), np.int32),
            features.view(np.int32),
            values,
            children,
            np.searchsorted([t for _, t, _ in order], np.arange(self.targets + 1)).astype(np.int32),
            _table([(tree, base - int(first_leaf[tree])) for tree, _, base in order], np.int32),
            self.weights,
        ]


def _chain(node: Branch) -> Iterator[Branch]:
    """Return a node as one for each value that it tests for, all with the same first child."""
    for value in (node.value, *node.members):
        yield Branch(node.feature, value, node.first, node.second, node.nan_first, node.equality)


def _table(rows: Any, dtype: Any) -> np.ndarray:
    """Return `rows` as an array that is never empty."""
    return np.ascontiguousarray(rows, dtype) if len(rows) else np.zeros(1, dtype)
