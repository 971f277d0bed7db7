"""`RecurrentRunner`: steps of a recurrent language model, for which a block is all that a text has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import ClassVar

import numpy as np

from educe.errors import OptionError, refuse_unknown
from educe.generate.architectures.recurrent import RECURRENT, Build, RecurrentGraph
from educe.generate.base import StepRunner
from educe.generate.cache import CACHES
from educe.generate.compiled import compiled
from educe.generate.configuration import Configuration
from educe.generate.packing import program_size, program_sizes
from educe.generate.parameters import Progress
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint

_PRECISIONS = ("auto", "f32")


class Recurrence:
    """A recurrent graph that runs rows of tokens, each row from a state of its own.

    Args:
        build: What builds the graph.
        checkpoint: The model.
        precision: ``f32``; ``auto`` is the same.
        threads: Threads of a step; the machine's cores if absent.

    Attributes:
        layouts: The shape of each state of one row, by name.

    Raises:
        ModelFileError: weights are missing or misshapen, or a field of the configuration cannot be.
        UnsupportedModelError: weights are left over, or an activation is not known.
        OptionError: another precision.
    """

    def __init__(
        self, build: Build, checkpoint: Checkpoint, precision: str = "f32", threads: int | None = None
    ) -> None:
        if precision not in _PRECISIONS:
            raise OptionError(
                f"recurrent models are not run in {precision!r}", place="precision", remedy="use 'f32'"
            )
        step = RecurrentGraph(checkpoint)
        graph = build(step, Configuration(checkpoint.config, checkpoint.path))
        self.layouts: dict[str, tuple[int, ...]] = {name: (1, size) for name, size in step.states.items()}
        self._executable = compiled(graph, checkpoint, threads)

    def run(
        self, rows: Sequence[Sequence[int]], num_logits: Sequence[int], states: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return logits, f32[wanted, vocabulary], and the states after the rows.

        Args:
            rows: The tokens of each row.
            num_logits: For how many tokens at the end of each row logits are wanted.
            states: The states before the rows, f32[rows, 1, features] by name.
        """
        outputs = self._outputs(rows, num_logits, states)
        return outputs["logits"][: sum(num_logits)], self._after(outputs, len(rows))

    def read(self, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """Return the states after rows that begin with states of zeros, for a graph without logits."""
        return self._after(self._outputs(rows, [0] * len(rows), {}), len(rows))

    def _outputs(
        self, rows: Sequence[Sequence[int]], num_logits: Sequence[int], states: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        width = program_size(max(map(len, rows)))
        feeds = self._blank(program_size(len(rows)), width, program_size(sum(num_logits)))
        first = 0
        for number, (row, num_wanted) in enumerate(zip(rows, num_logits, strict=True)):
            feeds["tokens"][number, : len(row)] = row
            feeds["lengths"][number] = len(row)
            end, last = number * width + len(row), first + num_wanted
            feeds["rows"][first:last] = range(end - num_wanted, end)
            first = last
        for name, state in states.items():
            feeds[name][: len(rows)] = state
        return self._executable.run({name: feeds[name] for name in self._executable.signature.inputs})

    def _after(self, outputs: Mapping[str, np.ndarray], num_rows: int) -> dict[str, np.ndarray]:
        return {name: outputs[f"next.{name}"][:num_rows] for name in self.layouts}

    def prepare(self, num_rows: int, width: int, num_logits: int) -> None:
        """Make the program for so many rows of so many tokens, without a run."""
        self._executable.prepare(self._blank(num_rows, width, num_logits))

    def _blank(self, num_rows: int, width: int, num_logits: int) -> dict[str, np.ndarray]:
        """Return what describes rows of tokens that stand for nothing."""
        return {
            "tokens": np.zeros((num_rows, width), np.int64),
            "lengths": np.zeros(num_rows, np.int32),
            "rows": np.zeros(num_logits, np.int64),
            **{name: np.zeros((num_rows, *shape), np.float32) for name, shape in self.layouts.items()},
        }


class RecurrentRunner(StepRunner):
    """A recurrent language model, whose blocks hold the state after what a text has read; see `StepRunner`.

    A block is never full, so that none is found again for another text. What was read cannot be dropped, so
    that drafts are not verified. The precision is ``f32``; ``auto`` is the same.
    """

    takes_drafts: ClassVar[bool] = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        max_sequences: int = 16,
        max_tokens: int = 512,
        precision: str = "f32",
        cache: str = "f32",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        build = RECURRENT[checkpoint.model_type]
        refuse_unknown("cache", [cache], CACHES, place="cache")
        self._network = Recurrence(build, checkpoint, precision, threads)
        self.block_size, self.sizes = max_length + 1, ()
        self._pools = {}
        self._layouts = self._network.layouts
        writing = [(rows, 1, rows) for rows in program_sizes(max_sequences)]
        self._unmade = [*writing, *((1, width, 1) for width in program_sizes(max_tokens)[1:])]

    def run(self, slices: Sequence[Slice]) -> np.ndarray:
        """Run tokens of some texts, those of about one length together; see `StepRunner.run`."""
        found: dict[int, np.ndarray] = {}
        order = sorted(range(len(slices)), key=lambda number: len(slices[number].tokens))
        for _, group in groupby(order, lambda number: program_size(len(slices[number].tokens))):
            found |= self._run_alike(slices, list(group))
        return np.concatenate([found[number] for number in range(len(slices))])

    def prepare(self) -> bool:
        """Make one more of the programs that steps may need; see `StepRunner.prepare`."""
        if not self._unmade:
            return False
        self._network.prepare(*self._unmade.pop(0))
        return True

    def _run_alike(self, slices: Sequence[Slice], numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """Return the logits of the slices of these numbers, each by its number."""
        parts = [slices[number] for number in numbers]
        blocks = [part.blocks[0] for part in parts]
        states = {name: pool[blocks] for name, pool in self._pools.items()}
        begins = [part.start == 0 for part in parts]
        for state in states.values():
            state[begins] = 0
        counts = [part.num_logits for part in parts]
        logits, after = self._network.run([part.tokens for part in parts], counts, states)
        for name, pool in self._pools.items():
            pool[blocks] = after[name]
        return dict(zip(numbers, np.split(logits, np.cumsum(counts)[:-1]), strict=True))
