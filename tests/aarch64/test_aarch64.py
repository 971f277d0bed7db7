"""The zoo and cases of ONNX's backend suite, as AArch64 code under QEMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from educe import api, engines, formats
from educe.bench.feeds import random_feeds
from tests.aarch64.emulator import COMPILER, EMULATOR, IS_INSTALLED, run
from tests.compiler.test_runtime import chain
from tests.conformance.backend import cases, difference, plain
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason=f"needs {COMPILER} and {EMULATOR}")

ZOO = (
    "breast_cancer",
    "comment_spam",
    "face_detection",
    "fastestdet",
    "gtsrb",
    "kws",
    "mnist",
    "silero_vad",
)
CASES = (
    "ai_onnx_ml_tree_ensemble_single_tree",
    "argmax_default_axis_random",
    "attention_4d_causal",
    "averagepool_2d_pads",
    "basic_conv_with_padding",
    "batchnorm_example",
    "bitshift_left_uint8",
    "cast_BFLOAT16_to_FLOAT",
    "cast_DOUBLE_to_FLOAT16",
    "cast_FLOAT16_to_DOUBLE",
    "cast_FLOAT16_to_FLOAT",
    "cast_FLOAT_to_BFLOAT16",
    "cast_FLOAT_to_FLOAT16",
    "convtranspose",
    "cumsum_2d_axis_1",
    "dequantizelinear_axis",
    "dynamicquantizelinear",
    "einsum_batch_matmul",
    "erf",
    "exp",
    "gather_elements_negative_indices",
    "gather_negative_indices",
    "gathernd_example_float32",
    "gelu_tanh_2",
    "gemm_all_attributes",
    "gridsample_bicubic",
    "gru_defaults",
    "instancenorm_example",
    "isinf_float16",
    "layer_normalization_4d_axis2",
    "log",
    "lstm_bidirectional",
    "lstm_with_peepholes",
    "matmul_4d",
    "matmulinteger",
    "max_float16",
    "maxpool_2d_dilations",
    "mod_mixed_sign_int64",
    "pow",
    "qlinearconv",
    "qlinearmatmul_2D_int8_float32",
    "quantizelinear",
    "reduce_l2_keep_dims_random",
    "reduce_max_negative_axes_keepdims_random",
    "reduce_sum_do_not_keepdims_random",
    "resize_upsample_scales_cubic",
    "resize_upsample_scales_linear_align_corners",
    "roialign_aligned_true",
    "scatter_elements_with_reduction_max",
    "scatternd_add",
    "sin",
    "softmax_axis_1",
    "tanh",
    "top_k_smallest",
    "where_long_example",
)


def test_pointwise(tmp_path: Path):
    model = chain()
    x = np.random.default_rng(0).standard_normal((37, 257), np.float32)
    found = run(model, {"x": x}, tmp_path)
    expected = engines.compile(model, "reference").run({"x": x})
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_gives_the_answers_of_the_reference(name: str, tmp_path: Path):
    model = api.load(ROOT / "zoo" / name)
    feeds = random_feeds(model, seed=3)
    found = run(model, feeds, tmp_path)
    for key, expected in api.compile(model, engine="reference").run(feeds).items():
        assert difference(found[key], expected, 0, 1e-4 * np.abs(expected).max()) is None


@pytest.mark.parametrize("name", CASES)
def test_the_suite_of_onnx_passes(name: str, tmp_path: Path):
    case = cases()[f"test_{name}"]
    inputs, expected = ([plain(each) for each in values] for values in case.data_sets[0])
    model = formats.load(with_weights(case.model, inputs).SerializeToString())
    found = run(model, {case.model.graph.input[0].name: inputs[0]}, tmp_path)
    for value, wanted in zip(found.values(), expected, strict=True):
        assert difference(value, wanted, case.rtol, case.atol) is None


def with_weights(model: onnx.ModelProto, inputs: list[np.ndarray]) -> onnx.ModelProto:
    """Return `model` with all inputs but the first as constants, which programs without host steps need."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for declared, array in zip(model.graph.input[1:], inputs[1:], strict=True):
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, declared.name))
        made.graph.input.remove(declared)
    return made
