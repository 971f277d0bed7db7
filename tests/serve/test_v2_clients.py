"""Triton's own clients, unmodified, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import educe
from educe.serve import ModelSource
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving

pytest.importorskip("tritonclient.http.aio")
pytest.importorskip("tritonclient.grpc.aio")

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

SECONDS = 60
PROMPT = "Once upon a time"
TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
NUMPY: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "BF16": np.float32, "FP32": np.float32, "FP64": np.float64, "BYTES": np.object_,
}  # fmt: skip


def write_echo(path: Any) -> None:
    """Write a model that gives what it takes, of every type."""
    inputs, outputs, nodes = [], [], []
    for name, kind in TYPES.items():
        inputs.append(helper.make_tensor_value_info(name.lower(), kind, ["N", 3]))
        outputs.append(helper.make_tensor_value_info(f"{name.lower()}_out", kind, ["N", 3]))
        nodes.append(helper.make_node("Identity", [name.lower()], [f"{name.lower()}_out"]))
    graph = helper.make_graph(nodes, "echo", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)


def values(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([[b"a", b"", b"\0 "], ["ü".encode(), b"b", b"c" * 300]], object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    return np.array([[0, 1, 2], [3, 100, 7]]).astype(NUMPY[datatype])


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Client]:
    path = tmp_path_factory.mktemp("echo") / "model.onnx"
    write_echo(path)
    sources = (ModelSource("echo", path), "breast_cancer", "mobilenet_v2", "stories260K", "transliteration")
    with serving(*sources, grpc_port=0, admin=True) as client:
        yield client


@contextmanager
def connected(module: Any, server: Client, **options: Any) -> Iterator[Any]:
    address = server.address if module is tritonclient.http else server.grpc_address
    with module.InferenceServerClient(address, **options) as client:
        yield client
    # It would close itself once more when it is collected, which it may not in another thread.
    client.close = lambda: None


@pytest.fixture(params=[tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def triton(request, server) -> Iterator[tuple[Any, Any]]:
    with connected(request.param, server) as client:
        yield request.param, client


def plain(answer: Any) -> Any:
    """Return what gRPC's client gives as HTTP's does."""
    if isinstance(answer, dict | list):
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


def features(module: Any, rows: int = 2) -> tuple[Any, np.ndarray]:
    array = np.random.default_rng(rows).normal(size=(rows, 30)).astype(np.float32)
    tensor = module.InferInput("features", array.shape, "FP32")
    tensor.set_data_from_numpy(array)
    return tensor, array


def probabilities(array: np.ndarray) -> np.ndarray:
    executable = educe.predictor(str(ROOT / "zoo" / "breast_cancer")).executable
    return executable.run({"features": array})["probabilities"]


def test_health_and_metadata(triton) -> None:
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("breast_cancer")
    assert client.is_model_ready("breast_cancer", "1")
    assert not client.is_model_ready("breast_cancer", "2")
    metadata = plain(client.get_server_metadata())
    assert (metadata["name"], metadata["version"]) == ("educe", educe.__version__)
    metadata = plain(client.get_model_metadata("breast_cancer"))
    assert metadata["platform"] == "educe_predictor"
    (given,) = metadata["inputs"]
    assert (given["name"], given["datatype"], list(map(int, given["shape"]))) == (
        "features",
        "FP32",
        [-1, 30],
    )
    config = plain(client.get_model_config("stories260K"))
    config = config.get("config", config)
    assert config["name"] == "stories260K"
    assert config["model_transaction_policy"]["decoupled"]
    assert config["input"][0]["data_type"] == "TYPE_STRING"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_every_type_comes_back(triton, binary_in, binary_out) -> None:
    module, client = triton
    inputs, outputs = [], []
    for name in TYPES:
        array = values(name)
        tensor = module.InferInput(name.lower(), array.shape, name)
        wanted = module.InferRequestedOutput(f"{name.lower()}_out")
        if module is tritonclient.http:
            is_binary = binary_in or name in ("FP16", "BF16") or name == "BYTES"
            tensor.set_data_from_numpy(array, binary_data=is_binary)
            wanted = module.InferRequestedOutput(wanted.name(), binary_data=binary_out or name == "BYTES")
        else:
            tensor.set_data_from_numpy(array)
        inputs.append(tensor)
        outputs.append(wanted)
    result = client.infer("echo", inputs, outputs=outputs, request_id="7")
    for name in TYPES:
        found = result.as_numpy(f"{name.lower()}_out")
        assert found.tolist() == values(name).tolist(), name
    assert plain(result.get_response())["id"] == "7"


def test_compressed_bodies(server) -> None:
    with connected(tritonclient.http, server) as client:
        tensor, array = features(tritonclient.http, 5)
        for coding in ("gzip", "deflate"):
            result = client.infer("breast_cancer", [tensor], request_compression_algorithm=coding)
            np.testing.assert_array_equal(result.as_numpy("probabilities"), probabilities(array))
    with connected(tritonclient.grpc, server) as client:
        tensor, array = features(tritonclient.grpc, 5)
        result = client.infer("breast_cancer", [tensor], compression_algorithm="gzip")
        np.testing.assert_array_equal(result.as_numpy("probabilities"), probabilities(array))


def test_options_of_requests(triton) -> None:
    module, client = triton
    tensor, array = features(module)
    result = client.infer(
        "breast_cancer", [tensor], model_version="1", priority=1, timeout=60_000_000, headers={"x-more": "1"}
    )
    np.testing.assert_array_equal(result.as_numpy("probabilities"), probabilities(array))
    result = client.infer("breast_cancer", [tensor], parameters={"timing": True})
    assert "batch_rows" in plain(result.get_response())["parameters"]
    with pytest.raises(InferenceServerException, match="color"):
        client.infer("breast_cancer", [tensor], parameters={"color": "red"})
    with pytest.raises(InferenceServerException, match="sequence"):
        client.infer("breast_cancer", [tensor], sequence_id=3, sequence_start=True)


def test_errors_are_told(triton) -> None:
    module, client = triton
    tensor, _ = features(module)
    with pytest.raises(InferenceServerException, match="no model"):
        client.infer("nothing", [tensor])
    with pytest.raises(InferenceServerException, match="no version"):
        client.infer("breast_cancer", [tensor], model_version="9")
    wrong = module.InferInput("features", [1, 3], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with pytest.raises(InferenceServerException, match="30"):
        client.infer("breast_cancer", [wrong])
    wanted = module.InferRequestedOutput("probabilities", class_count=2)
    with pytest.raises(InferenceServerException, match="classification"):
        client.infer("breast_cancer", [tensor], outputs=[wanted])


def test_many_at_once(server) -> None:
    tensor, array = features(tritonclient.http, 3)
    with connected(tritonclient.http, server, concurrency=4) as client:
        waiting = [client.async_infer("breast_cancer", [tensor]) for _ in range(20)]
        for each in waiting:
            found = each.get_result(timeout=SECONDS).as_numpy("probabilities")
            np.testing.assert_array_equal(found, probabilities(array))
    tensor, array = features(tritonclient.grpc, 3)
    answers: Queue[Any] = Queue()
    with connected(tritonclient.grpc, server) as client:
        for _ in range(20):
            client.async_infer("breast_cancer", [tensor], lambda result, error: answers.put((result, error)))
        for _ in range(20):
            result, error = answers.get(timeout=SECONDS)
            assert error is None
            np.testing.assert_array_equal(result.as_numpy("probabilities"), probabilities(array))


def test_event_loops(server) -> None:
    import tritonclient.grpc.aio
    import tritonclient.http.aio

    async def ask(module: Any, base: Any, address: str) -> None:
        tensor, array = features(base)
        async with module.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(*(client.infer("breast_cancer", [tensor]) for _ in range(8)))
        for answer in answers:
            np.testing.assert_array_equal(answer.as_numpy("probabilities"), probabilities(array))

    asyncio.run(ask(tritonclient.http.aio, tritonclient.http, server.address))
    asyncio.run(ask(tritonclient.grpc.aio, tritonclient.grpc, server.grpc_address))


def test_the_repository(triton) -> None:
    _, client = triton

    def states() -> dict[str, str]:
        index = plain(client.get_model_repository_index())
        models = index["models"] if isinstance(index, dict) else index
        return {model["name"]: model["state"] for model in models}

    assert set(states().values()) == {"READY"}
    client.unload_model("mobilenet_v2")
    assert states()["mobilenet_v2"] == "UNAVAILABLE"
    assert not client.is_model_ready("mobilenet_v2")
    client.load_model("mobilenet_v2")
    assert states()["mobilenet_v2"] == "READY"
    with pytest.raises(InferenceServerException, match="as the server was started"):
        client.load_model("mobilenet_v2", config="{}")
    with pytest.raises(InferenceServerException, match="no model"):
        client.load_model("nothing")


def test_statistics(triton) -> None:
    module, client = triton
    tensor, _ = features(module)

    def asked() -> dict[str, Any]:
        (found,) = plain(client.get_inference_statistics("breast_cancer"))["model_stats"]
        return found

    client.infer("breast_cancer", [tensor])
    before = asked()
    for _ in range(3):
        client.infer("breast_cancer", [tensor])
    after = asked()
    assert (
        int(after["inference_stats"]["success"]["count"])
        == int(before["inference_stats"]["success"]["count"]) + 3
    )
    assert int(after["inference_stats"]["success"]["ns"]) > int(before["inference_stats"]["success"]["ns"])
    names = {each["name"] for each in plain(client.get_inference_statistics())["model_stats"]}
    assert {"echo", "breast_cancer", "stories260K"} <= names
    with pytest.raises(InferenceServerException):
        client.get_inference_statistics("nothing")


def texts(module: Any, *elements: str) -> Any:
    tensor = module.InferInput("text_input", [len(elements)], "BYTES")
    tensor.set_data_from_numpy(np.array([each.encode() for each in elements], object))
    return tensor


def test_texts(triton) -> None:
    module, client = triton
    prompts = (PROMPT, "The dog")
    options = {"max_tokens": 10, "temperature": 0}
    result = client.infer("stories260K", [texts(module, *prompts)], parameters=options)
    with educe.generator(ROOT / "zoo" / "stories260K") as own:
        wanted = [own.generate(prompt, **options).text for prompt in prompts]
    assert [each.decode() for each in result.as_numpy("text_output")] == wanted
    result = client.infer("transliteration", [texts(module, "hello")])
    wanted = educe.translator(ROOT / "zoo" / "transliteration").translate(["hello"])
    assert [each.decode() for each in result.as_numpy("text_output")] == wanted


@pytest.mark.parametrize("empty_final", [True, False])
def test_a_stream_of_pieces(server, empty_final) -> None:
    answers: Queue[Any] = Queue()
    with connected(tritonclient.grpc, server) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        options = {"max_tokens": 10, "temperature": 0}
        tensor = texts(tritonclient.grpc, PROMPT)
        client.async_stream_infer(
            "stories260K",
            [tensor],
            request_id="a",
            parameters=options,
            enable_empty_final_response=empty_final,
        )
        pieces = []
        is_last = False
        while not is_last:
            result, error = answers.get(timeout=SECONDS)
            assert error is None
            pieces.append(result.as_numpy("text_output")[0])
            response = result.get_response()
            assert response.id == "a"
            is_last = response.parameters["triton_final_response"].bool_param
        whole = client.infer("stories260K", [tensor], parameters=options).as_numpy("text_output")[0]
        assert b"".join(pieces) == whole
        client.async_stream_infer("nothing", [tensor])
        _, error = answers.get(timeout=SECONDS)
        assert "no model" in str(error)
        client.stop_stream()


@pytest.mark.parametrize("model", ["stories260K", "breast_cancer"])
def test_a_stream_tells_its_times_with_the_last_piece(server, model) -> None:
    answers: Queue[Any] = Queue()
    is_text = model == "stories260K"
    options = {"timing": True, **({"max_tokens": 10, "temperature": 0} if is_text else {})}
    tensor = texts(tritonclient.grpc, PROMPT) if is_text else features(tritonclient.grpc)[0]
    with connected(tritonclient.grpc, server) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(model, [tensor], parameters=options)
        told: list[Any] = []
        while not told or not told[-1]["triton_final_response"].bool_param:
            result, error = answers.get(timeout=SECONDS)
            assert error is None
            told.append(dict(result.get_response().parameters))
        client.stop_stream()
    last = told.pop()
    assert last["run_us"].int64_param > 0
    assert last["queue_us"].int64_param >= 0
    assert last["batch_rows"].int64_param == (1 if is_text else 2)
    assert bool(told) == is_text
    assert all(each.keys() == {"triton_final_response"} for each in told)


def test_keys() -> None:
    key = "a-key-of-many-letters"
    with serving("breast_cancer", grpc_port=0, api_keys=(key,)) as server:
        headers = {"authorization": f"Bearer {key}"}
        for module in (tritonclient.http, tritonclient.grpc):
            with connected(module, server) as client:
                tensor, _ = features(module)
                with pytest.raises(InferenceServerException, match="no key"):
                    client.infer("breast_cancer", [tensor])
                answer = client.infer("breast_cancer", [tensor], headers=dict(headers))
                assert answer.as_numpy("probabilities").shape == (2, 2)
