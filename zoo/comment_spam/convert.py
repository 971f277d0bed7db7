"""Convert the TensorFlow Lite blog comment spam classifier to ONNX, and its vocabulary to a tokenizer.

The original is `model.tflite` of github.com/googlecodelabs/odml-pathways (folder
TextClassificationOnMobile/models/TFLite/second): an embedding of 2003 words, the mean over 20 tokens, two
dense layers and a softmax. The file is also a zip archive, which holds the vocabulary.

    pip install onnx tflite tokenizers
    python convert.py model.tflite model.onnx       (tokenizer.json is written beside model.onnx)
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import tflite
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

OPSET = 17
IR_VERSION = 8
TOKENS = 20


def weights(model: tflite.Model, index: int) -> NDArray[np.float32]:
    """Return a constant of the original."""
    tensor = model.Subgraphs(0).Tensors(index)
    raw = np.asarray(model.Buffers(tensor.Buffer()).DataAsNumpy(), np.uint8)
    return np.reshape(raw.view(np.float32), tuple(tensor.ShapeAsNumpy()))


def convert(model: tflite.Model) -> onnx.ModelProto:
    """Return the ONNX form of the original: Gather, ReduceMean, two Gemm, Softmax."""
    graph = model.Subgraphs(0)
    gather, _, hidden, output = (graph.Operators(i) for i in range(4))
    constants = {
        "embedding": weights(model, gather.Inputs(0)),
        "hidden": weights(model, hidden.Inputs(1)),
        "hidden_bias": weights(model, hidden.Inputs(2)),
        "dense": weights(model, output.Inputs(1)),
        "dense_bias": weights(model, output.Inputs(2)),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["vectors"], axis=0),
        helper.make_node("ReduceMean", ["vectors"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "hidden", "hidden_bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["relu"]),
        helper.make_node("Gemm", ["relu", "dense", "dense_bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    result = helper.make_model(
        helper.make_graph(
            nodes,
            "comment_spam",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", TOKENS])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="educe zoo",
    )
    onnx.checker.check_model(result, full_check=True)
    return result


def tokenizer(archive: Path) -> Tokenizer:
    """Return the tokenizer: lower case, words of letters, digits, _ and ', <START> before them."""
    with zipfile.ZipFile(archive) as file:
        lines = file.read("vocab.txt").decode("utf-8").splitlines()
    vocabulary = {word: int(code) for word, code in (line.rsplit(" ", 1) for line in lines)}
    result = Tokenizer(models.WordLevel(vocabulary, unk_token="<UNKNOWN>"))
    result.normalizer = normalizers.Lowercase()
    result.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\w']+"), "removed")
    result.post_processor = processors.TemplateProcessing(
        single="<START> $A", special_tokens=[("<START>", vocabulary["<START>"])]
    )
    result.enable_truncation(TOKENS)
    result.enable_padding(pad_id=vocabulary["<PAD>"], pad_token="<PAD>", length=TOKENS)
    return result


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.write_bytes(convert(tflite.Model.GetRootAs(source.read_bytes(), 0)).SerializeToString())
    tokenizer(source).save(str(target.with_name("tokenizer.json")))
