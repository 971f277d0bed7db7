"""Suppression of boxes, pooling of regions and sampling, against ONNX's evaluator."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from educe import engines, formats
from educe.engines.native import NativeExecutable
from educe.errors import EduceError

TYPES = {np.dtype("f4"): TensorProto.FLOAT, np.dtype("i8"): TensorProto.INT64}


class Node:
    """One node as a model of its own, whose inputs are all given at run time."""

    def __init__(
        self, operator: str, feeds: dict[str, np.ndarray], opset: int = 20, **attributes: Any
    ) -> None:
        self.feeds = feeds
        graph = helper.make_graph(
            [helper.make_node(operator, list(feeds), ["y"], **attributes)],
            "node",
            [helper.make_tensor_value_info(k, TYPES[v.dtype], [None] * v.ndim) for k, v in feeds.items()],
            [helper.make_empty_tensor_value_info("y")],
        )
        graph.output[0].type.tensor_type.elem_type = (
            TensorProto.INT64 if operator == "NonMaxSuppression" else TensorProto.FLOAT
        )
        self.proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        made = engines.compile(formats.load(self.proto.SerializeToString()), "native")
        assert isinstance(made, NativeExecutable)
        self.executable = made

    def run(self) -> np.ndarray:
        """Run it as machine code, without any part of it on the host."""
        segments = self.executable.program(self.feeds)
        assert not any(segment.step is not None and segment.step.call for segment in segments)
        return np.asarray(self.executable.run(self.feeds)["y"])

    def expected(self) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(ReferenceEvaluator(self.proto).run(None, self.feeds)[0])


def limits(most: int, overlap: float, least: float | None) -> dict[str, np.ndarray]:
    found = {"most": np.array([most]), "overlap": np.array([overlap], np.float32)}
    return found if least is None else found | {"least": np.array([least], np.float32)}


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize(
    ("number", "most", "least"), [(1, 5, 0.1), (37, 6, 0.3), (90, 200, None), (20, 0, 0.5)]
)
def test_suppression(number: int, most: int, least: float | None, centred: int) -> None:
    rng = np.random.default_rng(0)
    boxes = rng.random((2, number, 4)).astype(np.float32)
    scores = np.round(rng.random((2, 3, number)), 1 if number == 37 else 6).astype(np.float32)
    node = Node(
        "NonMaxSuppression",
        {"boxes": boxes, "scores": scores} | limits(most, 0.4, least),
        center_point_box=centred,
    )
    found = node.run()
    assert found.shape[0] or not most
    np.testing.assert_array_equal(found, node.expected())


def test_suppression_of_another_number_of_boxes() -> None:
    rng = np.random.default_rng(1)
    boxes = rng.random((1, 30, 4)).astype(np.float32)
    scores = rng.random((1, 2, 30)).astype(np.float32)
    node = Node("NonMaxSuppression", {"boxes": boxes, "scores": scores} | limits(9, 0.3, 0.5))
    sizes = set()
    for scale in (1.0, 0.6, 0.1, 1.5):
        node.feeds["scores"] = scores * np.float32(scale)
        found = node.run()
        sizes.add(len(found))
        np.testing.assert_array_equal(found, node.expected())
    assert len(sizes) > 2
    assert 0 in sizes


def test_scores_that_are_no_numbers_are_not_chosen() -> None:
    boxes = np.array([[[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]], np.float32)
    scores = np.array([[[np.nan, 0.5, -np.inf]]], np.float32)
    found = Node("NonMaxSuppression", {"boxes": boxes, "scores": scores} | limits(9, 0.3, None)).run()
    np.testing.assert_array_equal(found, [[0, 0, 1], [0, 0, 2]])


def test_boxes_that_do_not_fit_are_refused() -> None:
    feeds = {"boxes": np.zeros((1, 3, 4), np.float32), "scores": np.zeros((1, 2, 4), np.float32)}
    node = Node("NonMaxSuppression", feeds | limits(1, 0.5, None))
    with pytest.raises(EduceError, match="do not fit"):
        node.executable.run(node.feeds)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("transform", ["half_pixel", "output_half_pixel"])
def test_regions(mode: str, ratio: int, transform: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 3, 11, 13)).astype(np.float32)
    corners = rng.uniform(-4, 30, size=(5, 2, 2)).astype(np.float32)
    regions = np.concatenate([corners.min(1), corners.max(1)], 1)
    regions[0] = [1, 1, 1, 1]
    node = Node(
        "RoiAlign",
        {"x": x, "regions": regions, "items": np.array([0, 1, 1, 0, 1])},
        mode=mode,
        sampling_ratio=ratio,
        output_height=5,
        output_width=4,
        spatial_scale=0.5,
        coordinate_transformation_mode=transform,
    )
    np.testing.assert_allclose(node.run(), node.expected(), rtol=1e-4, atol=1e-5)


def test_regions_of_items_that_are_not_there_stay_inside_the_image() -> None:
    x = np.ones((2, 1, 4, 4), np.float32)
    regions = np.array([[0, 0, 3, 3], [-1e30, -1e30, 1e30, 1e30], [np.nan] * 4], np.float32)
    node = Node("RoiAlign", {"x": x, "regions": regions, "items": np.array([1 << 40, -7, 0])})
    assert node.run()[0] == 1


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("rank", [2, 3])
def test_sampling(rank: int, mode: str, padding: str, corners: int) -> None:
    if rank == 3 and mode == "cubic":
        pytest.skip("runs on the host")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 2, *(4, 5, 3)[:rank])).astype(np.float32)
    grid = rng.uniform(-1.6, 1.6, size=(2, *(3, 4, 2)[:rank], rank)).astype(np.float32)
    node = Node("GridSample", {"x": x, "grid": grid}, mode=mode, padding_mode=padding, align_corners=corners)
    np.testing.assert_allclose(node.run(), node.expected(), rtol=1e-4, atol=1e-5)


def test_places_that_are_no_numbers_read_inside_the_image() -> None:
    x = np.ones((1, 1, 3, 3), np.float32)
    grid = np.array([[[[np.nan, np.inf], [-np.inf, 1e30]]]], np.float32)
    for padding in ("zeros", "border", "reflection"):
        for mode in ("nearest", "linear", "cubic"):
            node = Node("GridSample", {"x": x, "grid": grid}, mode=mode, padding_mode=padding)
            assert node.run().shape == (1, 1, 1, 2)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("sizes", [(3, 4), (2, 3, 5)])
def test_affine_grid(sizes: tuple[int, ...], corners: int) -> None:
    rng = np.random.default_rng(4)
    theta = rng.normal(size=(2, len(sizes), len(sizes) + 1)).astype(np.float32)
    feeds = {"theta": theta, "size": np.array([2, 1, *sizes])}
    node = Node("AffineGrid", feeds, align_corners=corners)
    np.testing.assert_allclose(node.run(), node.expected(), rtol=1e-5, atol=1e-6)
