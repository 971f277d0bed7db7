"""Measuring and comparing engines: how fast, how much memory, how equal, and on what machine."""

from educe.bench.compare import Comparison, Difference, FirstDifference, compare, first_difference
from educe.bench.feeds import random_feeds
from educe.bench.measure import Measurement, measure
from educe.bench.memory import MemoryUse, measure_memory
from educe.bench.peaks import Machine, Peaks, machine, measure_peaks

__all__ = [
    "Comparison",
    "Difference",
    "FirstDifference",
    "Machine",
    "Measurement",
    "MemoryUse",
    "Peaks",
    "compare",
    "first_difference",
    "machine",
    "measure",
    "measure_memory",
    "measure_peaks",
    "random_feeds",
]
