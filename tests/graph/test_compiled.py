"""Random graphs as machine code give what ONNX's evaluator gives, with and without the passes."""

from __future__ import annotations

from random import Random

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from educe import engines, formats
from tests.graph.random_graphs import random_model
from tests.graph.test_passes import assert_same, evaluated, noise_of


def check(number: int) -> None:
    """Compare a random graph as it is compiled with the graph itself."""
    proto, feeds = random_model(Random(number), exact=bool(number % 2))
    graph = ir.serde.deserialize_model(proto)
    expected = evaluated(graph, feeds)
    # Sums are taken in another order than NumPy's, which counts as a few roundings more.
    noise = [4 * each for each in noise_of(graph, feeds, expected)]
    model = formats.load(proto.SerializeToString())
    for optimization in ("none", "all"):
        compiled = engines.compile(model, "native", graph_optimization=optimization, threads=1 + number % 2)
        found = [np.asarray(each) for each in compiled.run(feeds).values()]
        assert_same(found, expected, noise)


@pytest.mark.parametrize("part", range(2))
def test_random_graphs_keep_their_meaning_as_machine_code(part: int) -> None:
    is_deep = settings().max_examples > settings.get_profile("default").max_examples

    @settings(deadline=None, max_examples=settings().max_examples if is_deep else 3, database=None)
    @seed(part)
    @given(st.integers(0, 2**40))
    def run(number: int) -> None:
        check(number)

    run()
