"""gRPC: the protocol's methods, keys, bounds, deadlines, cancellation, health and reflection."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import educe
from educe.errors import OptionError
from educe.serve import ServerLimits
from tests.conftest import ROOT
from tests.serve.conftest import Client, serving, until

grpc = pytest.importorskip("grpc")

from educe.serve import tensors  # noqa: E402
from educe.serve.faults import BadRequest  # noqa: E402
from educe.serve.grpc import messages  # noqa: E402
from educe.serve.grpc.contents import bytes_to_read, read_inputs, write_outputs  # noqa: E402
from educe.serve.grpc.memory import memory_bytes  # noqa: E402
from educe.serve.grpc.standard import Health  # noqa: E402

SECONDS = 60
KEY = "a-key-of-many-letters"
PROMPT = "Once upon a time"
LIVE = ("inference.GRPCInferenceService/ServerLive", "inference.ServerLiveRequest")
Request, Response = (messages.inference(f"ModelInfer{kind}") for kind in ("Request", "Response"))


class Stub:
    """Calls methods by their names, with messages by theirs."""

    def __init__(self, channel: Any, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.channel, self.metadata = channel, metadata

    def rpc(self, path: str) -> Any:
        service, _, name = path.rpartition("/")
        found = messages.pool().FindServiceByName(service).methods_by_name[name]
        kind = (
            "stream" if found.client_streaming else "unary",
            "stream" if found.server_streaming else "unary",
        )
        gives = messages.message(found.output_type.full_name)
        takes = messages.message(found.input_type.full_name)
        make = getattr(self.channel, "_".join(kind))
        return make(f"/{path}", takes.SerializeToString, gives.FromString)

    def ask(self, name: str, request: Any = None, **options: Any) -> Any:
        request = messages.inference(f"{name}Request")() if request is None else request
        options = {"timeout": SECONDS, "metadata": self.metadata, **options}
        return self.rpc(f"{messages.INFERENCE}/{name}")(request, **options)


@contextmanager
def connected(client: Client, *metadata: tuple[str, str]) -> Iterator[Stub]:
    with grpc.insecure_channel(client.grpc_address) as channel:
        yield Stub(channel, metadata)


@pytest.fixture(scope="module")
def server() -> Iterator[Client]:
    with serving("breast_cancer", "stories260K", "comment_spam", grpc_port=0) as client:
        yield client


@pytest.fixture(scope="module")
def stub(server) -> Iterator[Stub]:
    with connected(server) as found:
        yield found


def features(rows: int = 2, *, raw: bool = True, **parameters: Any) -> tuple[Any, np.ndarray]:
    array = np.random.default_rng(rows).normal(size=(rows, 30)).astype(np.float32)
    request = Request(model_name="breast_cancer", id="7")
    entry = request.inputs.add(name="features", datatype="FP32", shape=array.shape)
    if raw:
        request.raw_input_contents.append(array.tobytes())
    else:
        entry.contents.fp32_contents.extend(array.ravel().tolist())
    add(request, parameters)
    return request, array


def add(request: Any, parameters: dict[str, Any]) -> None:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(request.parameters[name], kinds[type(value)], value)


def text(prompt: str, model: str = "stories260K", **parameters: Any) -> Any:
    request = Request(model_name=model, id="t")
    entry = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    entry.contents.bytes_contents.append(prompt.encode())
    add(request, parameters)
    return request


def refused(call: Any, code: str) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is grpc.StatusCode[code], caught.value.details()
    return caught.value


def has_room(stub: Stub, request: Any) -> bool:
    try:
        stub.ask("ModelInfer", request)
    except grpc.RpcError as fault:
        return fault.code() is not grpc.StatusCode.UNAVAILABLE
    return True


def test_descriptions_are_those_of_the_proto_files(tmp_path) -> None:
    pytest.importorskip("grpc_tools")
    folder = Path(messages.__file__).parent
    names = sorted(path.name for path in folder.glob("*.proto"))
    made = tmp_path / "messages.binpb"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "--proto_path=.",
        f"--descriptor_set_out={made}",
        *names,
    ]
    subprocess.run(command, cwd=folder, check=True, timeout=SECONDS)
    assert made.read_bytes() == (folder / "messages.binpb").read_bytes()


def test_the_fields_are_those_of_tritons_client() -> None:
    triton = pytest.importorskip("tritonclient.grpc.service_pb2")
    from tritonclient.grpc import model_config_pb2

    file = messages.pool().FindFileContainingSymbol(messages.INFERENCE)

    def compare(ours: Any, theirs: Any) -> None:
        for field in ours.fields:
            if field.name in ("isLoaded", "isUnloaded") or (field.name, len(theirs.fields)) == (
                "model_name",
                0,
            ):
                continue
            other = theirs.fields_by_name[field.name]
            assert (other.number, other.type, other.is_repeated) == (
                field.number,
                field.type,
                field.is_repeated,
            )
        for nested in ours.nested_types:
            compare(nested, theirs.nested_types_by_name[nested.name])

    for name, found in file.message_types_by_name.items():
        known = triton.DESCRIPTOR.message_types_by_name
        compare(found, known.get(name) or model_config_pb2.DESCRIPTOR.message_types_by_name[name])
    types = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name
    for name, value in file.enum_types_by_name["DataType"].values_by_name.items():
        assert types[name].number == value.number
    theirs = triton.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for name, method in file.services_by_name["GRPCInferenceService"].methods_by_name.items():
        other = theirs[name]
        assert (other.client_streaming, other.server_streaming) == (
            method.client_streaming,
            method.server_streaming,
        )


@pytest.mark.parametrize("raw", [True, False])
def test_answers_are_those_of_the_model_in_the_form_of_the_request(stub, raw) -> None:
    request, array = features(raw=raw, timing=True)
    if raw:  # as KServe's client has it
        request.inputs[0].parameters["binary_data_size"].int64_param = array.nbytes
    answer = stub.ask("ModelInfer", request)
    assert (answer.model_name, answer.model_version, answer.id) == ("breast_cancer", "1", "7")
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("probabilities", "FP32", [2, 2])
    assert len(answer.raw_output_contents) == raw
    content = answer.raw_output_contents[0] if raw else np.array(output.contents.fp32_contents, np.float32)
    executable = educe.predictor(str(ROOT / "zoo" / "breast_cancer")).executable
    wanted = executable.run({"features": array})["probabilities"]
    np.testing.assert_array_equal(np.frombuffer(content, np.float32).reshape(2, 2), wanted)
    assert answer.parameters["batch_rows"].int64_param >= 2


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("BOOL", np.array([[True, False]])),
        ("UINT8", np.array([0, 255], np.uint8)),
        ("UINT16", np.array([2**16 - 1], np.uint16)),
        ("UINT32", np.array([2**32 - 1], np.uint32)),
        ("UINT64", np.array([2**64 - 1], np.uint64)),
        ("INT8", np.array([-128], np.int8)),
        ("INT16", np.array([-(2**15)], np.int16)),
        ("INT32", np.array([-(2**31)], np.int32)),
        ("INT64", np.array([-(2**63)], np.int64)),
        ("FP32", np.array([np.nan, np.inf, 1], np.float32)),
        ("FP64", np.array([0.1], np.float64)),
        ("FP64", np.array(0.5)),
        ("BYTES", np.array([b"\0\xff", b""], object)),
        ("FP32", np.empty((0, 3), np.float32)),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_come_back(datatype, array, raw) -> None:
    response = Response()
    write_outputs({"x": array}, [], raw, response)
    request = Request(raw_input_contents=response.raw_output_contents)
    (output,) = response.outputs
    assert output.datatype == datatype
    entry = request.inputs.add(name="x", datatype=datatype, shape=output.shape)
    if not raw:
        entry.contents.CopyFrom(output.contents)
    found = read_inputs(request)["x"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tolist() == array.tolist() or found.tobytes() == array.tobytes()


def test_half_floats_go_raw() -> None:
    response = Response()
    write_outputs({"x": np.ones(2, np.float16), "y": np.ones(1, np.float32)}, [], False, response)
    assert list(response.raw_output_contents) == [b"\0\x3c\0\x3c", b"\0\0\x80\x3f"]


def entry(request: Any, datatype: str = "FP32", shape: tuple[int, ...] = (1,), **contents: Any) -> None:
    found = request.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(found.contents, name).extend(values)


@pytest.mark.parametrize(
    ("entries", "raw"),
    [
        ([{"fp32_contents": [1, 2]}], []),
        ([{}], []),
        ([{"shape": (-1,), "fp32_contents": [1]}], []),
        ([{"shape": (2**40,), "fp32_contents": [1]}], []),
        ([{"shape": (2**62, 2**62), "fp32_contents": [1]}], []),
        ([{"fp64_contents": [1]}], []),
        ([{"fp32_contents": [1], "fp64_contents": [1]}], []),
        ([{"datatype": "INT8", "int_contents": [128]}], []),
        ([{"datatype": "UINT16", "uint_contents": [2**16]}], []),
        ([{"datatype": "UINT8", "int_contents": [1]}], []),
        ([{"datatype": "FP16", "fp32_contents": [1]}], []),
        ([{"datatype": "BF16"}], []),
        ([{"datatype": "FP99", "fp32_contents": [1]}], []),
        ([{"datatype": "BYTES", "fp32_contents": [1]}], []),
        ([{"fp32_contents": [1]}], [b"abcd"]),
        ([{}], [b"abc"]),
        ([{}], [b"abcd", b"abcd"]),
        ([{}, {}], [b"abcd"]),
        ([{}, {}], [b"abcd", b"abcd"]),
        ([{"shape": (2**60,)}], [b"abcd"]),
        ([{"datatype": "BYTES"}], [b"\5\0\0\0a"]),
        ([{"datatype": "BYTES"}], [b"\0\0\0\0a"]),
        ([{"datatype": "BYTES", "shape": (2**60,)}], [b"\0\0\0\0"]),
    ],
)
def test_a_tensor_that_is_none_is_refused(entries, raw) -> None:
    request = Request(raw_input_contents=raw)
    for each in entries:
        entry(request, **each)
    with pytest.raises(BadRequest):
        read_inputs(request)


def test_shared_memory_and_classes_are_refused(stub) -> None:
    request, _ = features()
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert (
        "shared_memory_region"
        in refused(lambda: stub.ask("ModelInfer", request), "INVALID_ARGUMENT").details()
    )
    request, _ = features()
    wanted = request.outputs.add(name="probabilities")
    wanted.parameters["classification"].int64_param = 1
    assert "classification" in refused(lambda: stub.ask("ModelInfer", request), "INVALID_ARGUMENT").details()


def test_errors_have_codes(stub) -> None:
    request, _ = features()
    request.model_name = "nothing"
    refused(lambda: stub.ask("ModelInfer", request), "NOT_FOUND")
    request, _ = features()
    request.model_version = "9"
    refused(lambda: stub.ask("ModelInfer", request), "NOT_FOUND")
    request, _ = features(color="red")
    assert "color" in refused(lambda: stub.ask("ModelInfer", request), "INVALID_ARGUMENT").details()
    request, _ = features()
    request.parameters["empty"].SetInParent()
    refused(lambda: stub.ask("ModelInfer", request), "INVALID_ARGUMENT")
    refused(lambda: stub.channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b""), "UNIMPLEMENTED")
    infer = stub.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    refused(lambda: infer(b"\xff\xff\xff"), "INVALID_ARGUMENT")
    name = messages.inference("ModelReadyRequest")(name="nothing")
    assert not stub.ask("ModelReady", name).ready
    request, _ = features(sequence_id=1, sequence_end=True)
    fault = refused(lambda: stub.ask("ModelInfer", request), "INVALID_ARGUMENT")
    assert fault.details() == (
        "parameters: unknown parameter 'sequence_id' (known: priority, timeout, timing)"
    )


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("place", ["inputs", "outputs", "parameters"])
def test_more_of_a_request_than_is_looked_at_is_refused(stub, place, is_stream) -> None:
    request = Request(model_name="breast_cancer")
    for number in range(tensors.MOST_NAMED + 1):
        if place == "parameters":
            request.parameters[str(number)].bool_param = True
        else:
            getattr(request, place).add(name=str(number))
    if is_stream:
        (answer,) = stub.rpc(f"{messages.INFERENCE}/ModelStreamInfer")(iter([request]), timeout=SECONDS)
        said = answer.error_message
    else:
        said = refused(lambda: stub.ask("ModelInfer", request), "INVALID_ARGUMENT").details()
    assert said == f"{place}: there are 1,025 (send at most 1,024)"


def test_of_a_shape_no_more_is_looked_at_than_is_refused() -> None:
    class Sizes:
        def __getitem__(self, asked: slice) -> list[int]:
            assert asked.stop <= tensors.MOST_AXES + 1
            return [1] * asked.stop

    tensor = SimpleNamespace(name="x", datatype="FP32", shape=Sizes(), parameters={})
    request = SimpleNamespace(inputs=[tensor], raw_input_contents=[])
    assert bytes_to_read(request) == 8
    with pytest.raises(BadRequest, match="more than 64 axes"):
        read_inputs(request)


def test_a_fault_of_the_server_says_nothing(stub, monkeypatch) -> None:
    from educe.serve.inference import Inference

    async def fail(self: Any, call: Any) -> Any:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Inference, "infer", fail)
    request, _ = features()
    assert "secret" not in refused(lambda: stub.ask("ModelInfer", request), "INTERNAL").details()


def test_models_are_managed_by_admins_alone(stub) -> None:
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        request = messages.inference(f"{name}Request")(model_name="breast_cancer")
        refused(lambda name=name, request=request: stub.ask(name, request), "NOT_FOUND")
    with serving("breast_cancer", grpc_port=0, admin=True) as client, connected(client) as own:
        name = {"model_name": "breast_cancer"}
        own.ask("RepositoryModelUnload", messages.inference("RepositoryModelUnloadRequest")(**name))
        (model,) = own.ask("RepositoryIndex").models
        assert (model.name, model.state) == ("breast_cancer", "UNAVAILABLE")
        assert own.ask("ServerReady").ready
        assert own.ask(
            "RepositoryModelLoad", messages.inference("RepositoryModelLoadRequest")(**name)
        ).isLoaded
        (model,) = own.ask("RepositoryIndex").models
        assert (model.version, model.state) == ("1", "READY")
        request = messages.inference("RepositoryModelLoadRequest")(**name)
        request.parameters["config"].string_param = "{}"
        refused(lambda: own.ask("RepositoryModelLoad", request), "INVALID_ARGUMENT")


def all_methods() -> list[tuple[str, Any]]:
    """Return the path and the description of each method, as reflection tells them."""
    names = (messages.INFERENCE, messages.HEALTH, *messages.REFLECTIONS)
    services = [messages.pool().FindServiceByName(name) for name in names]
    return [(f"{each.full_name}/{method.name}", method) for each in services for method in each.methods]


def test_every_method_but_health_demands_a_key() -> None:
    with serving("breast_cancer", grpc_port=0, api_keys=(KEY,), admin=True) as client:
        for headers in (
            (),
            (("authorization", KEY),),
            (("authorization", "Bearer"),),
            (("authorization", f"Bearer {KEY}x"),),
            (("authorization", f"Basic {KEY}"),),
            (("authorization", f"Bearer {KEY}"), ("authorization", "Bearer no")),
            (("x-api-key", KEY),),
        ):
            with connected(client, *headers) as stub:
                for path, method in all_methods():
                    if path.startswith(messages.HEALTH):
                        continue
                    request = messages.message(method.input_type.full_name)()
                    rpc = stub.rpc(path)

                    def call(rpc: Any = rpc, method: Any = method, request: Any = request) -> None:
                        sent = iter([request]) if method.client_streaming else request
                        answer = rpc(sent, metadata=headers, timeout=SECONDS)  # noqa: B023
                        if method.server_streaming:
                            list(answer)

                    refused(call, "UNAUTHENTICATED")
        with connected(client, ("authorization", f"bearer {KEY}")) as stub:
            assert stub.ask("ServerLive").live
            assert stub.ask("ModelInfer", features()[0]).outputs
        with connected(client) as stub:
            check = stub.rpc(f"{messages.HEALTH}/Check")
            assert check(messages.message("grpc.health.v1.HealthCheckRequest")(), timeout=SECONDS).status == 1


def test_health(stub) -> None:
    request = messages.message("grpc.health.v1.HealthCheckRequest")
    check, watch = (stub.rpc(f"{messages.HEALTH}/{name}") for name in ("Check", "Watch"))
    for service in ("", messages.INFERENCE):
        assert check(request(service=service), timeout=SECONDS).status == 1
    refused(lambda: check(request(service="nothing"), timeout=SECONDS), "NOT_FOUND")
    for service, status in (("", 1), ("nothing", 3)):
        stream = watch(request(service=service), timeout=SECONDS)
        assert next(stream).status == status
        stream.cancel()


def test_a_server_that_ends_says_so_to_who_watches() -> None:
    with serving("breast_cancer", grpc_port=0) as client:
        channel = grpc.insecure_channel(client.grpc_address)
        stream = Stub(channel).rpc(f"{messages.HEALTH}/Watch")(
            messages.message("grpc.health.v1.HealthCheckRequest")()
        )
        assert next(stream).status == 1
    assert [each.status for each in stream] == [2]
    channel.close()


def test_an_end_while_a_change_is_told_is_told_too() -> None:
    ends: list[bool] = []
    health = Health(lambda: True, lambda: bool(ends))

    async def told() -> list[int]:
        found = []
        async for each in health.watch(messages.message("grpc.health.v1.HealthCheckRequest")(), None):
            found.append(each.status)
            ends.append(True)
        return found

    assert asyncio.run(told()) == [1, 2]


@pytest.mark.parametrize("service", messages.REFLECTIONS)
def test_reflection(stub, service) -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    package = service.rpartition(".")[0]
    request = messages.message(f"{package}.ServerReflectionRequest")
    asked = [
        request(list_services=""),
        request(file_containing_symbol=messages.INFERENCE),
        request(file_containing_symbol="inference.ModelInferRequest.InferInputTensor"),
        request(file_by_filename="health.proto"),
        request(file_by_filename="nothing.proto"),
        request(file_containing_symbol="nothing"),
        request(all_extension_numbers_of_type="x"),
        request(),
    ]
    answers = list(stub.rpc(f"{service}/ServerReflectionInfo")(iter(asked), timeout=SECONDS))
    assert len(answers) == len(asked)
    names = [each.name for each in answers[0].list_services_response.service]
    assert sorted(names) == sorted({path.rpartition("/")[0] for path, _ in all_methods()})
    for answer in answers[1:4]:
        (content,) = answer.file_descriptor_response.file_descriptor_proto
        assert FileDescriptorProto.FromString(content).message_type
    assert [answer.error_response.error_code for answer in answers[4:]] == [5, 5, 12, 12]


def test_messages_have_bounds() -> None:
    limits = ServerLimits(body_bytes=100_000)
    with serving("breast_cancer", grpc_port=0, server_limits=limits) as client, connected(client) as stub:
        request, _ = features(900)
        refused(lambda: stub.ask("ModelInfer", request), "RESOURCE_EXHAUSTED")
        big = features()[0]
        big.raw_input_contents[0] = bytes(10_000_000)
        refused(lambda: stub.ask("ModelInfer", big, compression=grpc.Compression.Gzip), "RESOURCE_EXHAUSTED")
        assert stub.ask("ModelInfer", features()[0], compression=grpc.Compression.Gzip).outputs
        refused(lambda: stub.ask("ServerLive", metadata=(("x", "y" * 100_000),)), "RESOURCE_EXHAUSTED")


def test_calls_whose_message_does_not_come_give_their_places_back() -> None:
    limits = ServerLimits(num_connections=4, body_seconds=0.5, body_bytes=2**20)
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(SECONDS)
        yield from ()

    check = "/grpc.health.v1.Health/Check"
    with (
        serving("breast_cancer", grpc_port=0, api_keys=(KEY,), server_limits=limits) as client,
        connected(client) as stub,
    ):
        for kind in ("stream_unary", "stream_stream"):
            with pytest.raises(grpc.RpcError) as fault:
                list(getattr(stub.channel, kind)(check)(iter(()), timeout=SECONDS))
            assert fault.value.code().name == "INVALID_ARGUMENT"
        stuck = [stub.channel.stream_unary(check).future(nothing()) for _ in range(limits.num_connections)]
        assert {each.exception().code().name for each in stuck} == {"DEADLINE_EXCEEDED"}
        assert stub.channel.unary_unary(check)(b"", timeout=SECONDS)
        ended.set()


def test_a_deadline_ends_a_text(stub) -> None:
    long = text(PROMPT, max_tokens=400, min_tokens=400, ignore_eos=True)
    refused(lambda: stub.ask("ModelInfer", long, timeout=0.01), "DEADLINE_EXCEEDED")
    long = text(PROMPT, max_tokens=400, min_tokens=400, ignore_eos=True, timeout=2000)
    refused(lambda: stub.ask("ModelInfer", long), "DEADLINE_EXCEEDED")


def test_a_stream_answers_in_order_and_goes_on_after_errors(stub) -> None:
    wrong, _ = features(1)
    wrong.model_name = "nothing"
    asked = [features()[0], wrong, text(PROMPT, max_tokens=6, temperature=0.0), features(raw=False)[0]]
    stream = stub.rpc(f"{messages.INFERENCE}/ModelStreamInfer")
    answers = list(stream(iter(asked), timeout=SECONDS))
    assert "nothing" in answers[1].error_message
    assert answers[1].infer_response.id == "7"
    pieces = answers[2:-1]
    assert len(pieces) > 2
    final = [each.infer_response.parameters["triton_final_response"].bool_param for each in answers]
    assert final == [True, True, *[False] * (len(pieces) - 1), True, True]
    written = b"".join(each.infer_response.outputs[0].contents.bytes_contents[0] for each in pieces)
    whole = stub.ask("ModelInfer", asked[2])
    assert whole.outputs[0].contents.bytes_contents[0] == written
    assert answers[0].infer_response.outputs[0].name == answers[-1].infer_response.outputs[0].name


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_ends_its_text(is_stream, monkeypatch) -> None:
    from educe.generate.generator import Generator

    made = []
    initialize = Generator.__init__

    def remember(self: Any, *arguments: Any, **options: Any) -> None:
        initialize(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(Generator, "__init__", remember)
    with serving("stories260K", grpc_port=0) as client, connected(client) as stub:
        (writer,) = made
        request = text(PROMPT, max_tokens=480, min_tokens=480, ignore_eos=True)
        if is_stream:
            call = stub.rpc(f"{messages.INFERENCE}/ModelStreamInfer")(iter([request]), timeout=SECONDS)
            next(call)
        else:
            call = stub.rpc(f"{messages.INFERENCE}/ModelInfer").future(request, timeout=SECONDS)
        end = time.monotonic() + SECONDS
        while not writer.statistics().num_running and time.monotonic() < end:
            time.sleep(0.001)
        call.cancel()
        until(lambda: not writer.statistics().num_running)
        found = writer.statistics()
        assert found.num_tokens < 480
        assert found.num_used_blocks == 0
        time.sleep(0.05)
        assert writer.statistics().num_steps == found.num_steps, "no step is made for nobody"


def test_who_does_not_read_what_is_sent_does_not_hold_a_model(monkeypatch, caplog) -> None:
    from educe.serve.deployment import Deployment
    from educe.serve.grpc import server as module

    users = 0
    enter, leave = Deployment.__enter__, Deployment.__exit__

    def count_enter(self: Any) -> Any:
        nonlocal users
        users += 1
        return enter(self)

    def count_leave(self: Any, *fault: Any) -> Any:
        nonlocal users
        users -= 1
        return leave(self, *fault)

    monkeypatch.setattr(module, "READER_SECONDS", 2.0)
    monkeypatch.setattr(Deployment, "__enter__", count_enter)
    monkeypatch.setattr(Deployment, "__exit__", count_leave)
    with serving("stories260K", grpc_port=0) as client, connected(client) as own:
        request = text(PROMPT, max_tokens=480, min_tokens=480, ignore_eos=True)
        request.id = "x" * 200_000  # which each piece has, so that no client's system takes them all
        stream = own.rpc(f"{messages.INFERENCE}/ModelStreamInfer")
        stuck = stream(iter([request]), timeout=2 * SECONDS)
        next(stuck)
        assert users == 1
        until(lambda: not users)
        assert "is not read in time" in refused(lambda: list(stuck), "DEADLINE_EXCEEDED").details()
        slow = 0
        for _ in stream(iter([request]), timeout=2 * SECONDS):
            slow += 1
            time.sleep(0.01)  # so long for each, and all of them longer than for one
        assert slow > 200


@pytest.mark.parametrize("by", ["cancelling", "closing"])
def test_a_client_that_goes_while_it_is_sent_to_is_no_fault_of_the_server(caplog, by) -> None:
    with serving("stories260K", grpc_port=0) as client:
        with connected(client) as own:
            request = text(PROMPT, max_tokens=480, min_tokens=480, ignore_eos=True)
            request.id = "x" * 200_000
            stream = own.rpc(f"{messages.INFERENCE}/ModelStreamInfer")(iter([request]), timeout=SECONDS)
            next(stream)
            time.sleep(1.0)  # meanwhile the server waits for it
            if by == "cancelling":
                stream.cancel()
        until(lambda: b'status="CANCELLED"' in client.ask("GET", "/metrics")[2])
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []


def test_the_messages_that_are_there_have_a_bound_together_with_bodies(server) -> None:
    limits = ServerLimits(bodies_bytes=60_000)
    with serving("breast_cancer", grpc_port=0, server_limits=limits) as client, connected(client) as own:
        small, _ = features(200)
        large, _ = features(600)
        fault = refused(lambda: own.ask("ModelInfer", large), "UNAVAILABLE")
        assert ("grpc-retry-pushback-ms", "1000") in [tuple(each) for each in fault.trailing_metadata()]
        stream = own.rpc(f"{messages.INFERENCE}/ModelStreamInfer")
        refused(lambda: list(stream(iter([small, large]), timeout=SECONDS)), "UNAVAILABLE")
        for _ in range(5):  # what was answered or refused takes no room
            assert own.ask("ModelInfer", small).outputs
            assert len(list(stream(iter([small] * 5), timeout=SECONDS))) == 5
        with socket.create_connection(client.address.split(":"), SECONDS) as slow:
            head = f"POST /v2/models/breast_cancer/infer HTTP/1.1\r\nHost: {client.address}\r\n"
            slow.sendall(f"{head}Content-Length: 50000\r\n\r\n".encode() + b" " * 45_000)
            until(lambda: not has_room(own, small))
        until(lambda: has_room(own, small))


def varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def numbers_of_one_byte(count: int) -> bytes:
    entry = Request.InferInputTensor(name="features", datatype="INT64", shape=[count])
    contents = delimited(3, bytes(count))
    return delimited(5, entry.SerializeToString() + delimited(5, contents))


def test_of_a_message_it_is_known_what_it_takes_before_it_is_read() -> None:
    count = 200_000
    assert Request.FromString(numbers_of_one_byte(count)).inputs[0].contents.int64_contents == [0] * count
    raw = features(count // 30)[0].SerializeToString()
    floats = features(count // 30, raw=False)[0].SerializeToString()
    for content, least, most in (
        (raw, 1, 1.01),
        (floats, 2, 4),
        (numbers_of_one_byte(count), 16, 25),
        (delimited(5, b"") * count, 32, 60),
        (delimited(5, delimited(4, b"\x0a\x00") * count), 8, 60),
        (delimited(99, bytes(count)), 1, 4),
    ):
        times = memory_bytes(content, Request) / len(content)
        assert least <= times <= most, (times, least, most)


@given(st.binary(max_size=300))
def test_what_is_no_message_takes_some_memory_too(content: bytes) -> None:
    large = delimited(7, bytes(5000))
    assert memory_bytes(large + content, Request) >= 5000 + len(content)
    assert memory_bytes(content + large, Request) >= 5000


def test_what_messages_and_texts_become_has_a_bound(server) -> None:
    limits = ServerLimits(bodies_bytes=2_000_000)
    words = np.full(60_000, b"ab", object)
    texts = Request(model_name="breast_cancer")
    texts.inputs.add(name="features", datatype="BYTES", shape=words.shape)
    texts.raw_input_contents.append(bytes(tensors.to_bytes(words)))
    few = Request(model_name="breast_cancer")
    few.inputs.add(name="features", datatype="BYTES", shape=[1])
    few.raw_input_contents.append(bytes(tensors.to_bytes(np.array([b"a" * 360_000], object))))
    numbers = Request.FromString(numbers_of_one_byte(100_000))
    numbers.model_name = "breast_cancer"
    with serving("breast_cancer", grpc_port=0, server_limits=limits) as client, connected(client) as own:
        for request, code in ((numbers, "UNAVAILABLE"), (texts, "UNAVAILABLE"), (few, "INVALID_ARGUMENT")):
            refused(lambda request=request: own.ask("ModelInfer", request), code)
        for request, status in ((texts, 503), (few, 400)):
            (entry,), (raw,) = request.inputs, request.raw_input_contents
            size = {"binary_data_size": len(raw)}
            one = {"name": "features", "datatype": "BYTES", "shape": [*entry.shape], "parameters": size}
            head = json.dumps({"inputs": [one]}).encode()
            fields = {"inference-header-content-length": str(len(head))}
            found = client.ask("POST", "/v2/models/breast_cancer/infer", head + raw, fields)
            assert found[0] == status, found
        assert own.ask("ModelInfer", features(2000)[0]).outputs


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("by", ["the request", "the server"])
@pytest.mark.parametrize("what", ["reading", "run", "prompt", "step"])
def test_whatever_hangs_is_not_waited_for_longer_than_the_deadline(hang, is_stream, by, what) -> None:
    from educe.generate.engine import Engine
    from educe.generate.generator import Generator
    from educe.serve.grpc import service
    from educe.serve.served import PredictorModel

    owner, name = {
        "reading": (service, "read_inputs"),
        "run": (PredictorModel, "_infer"),
        "prompt": (Generator, "stream"),
        "step": (Engine, "_step"),
    }[what]
    parameters = {"timeout": 500_000} if by == "the request" else {}
    if what in ("prompt", "step"):
        request = text(PROMPT, max_tokens=4, **parameters)
    else:
        request, _ = features(40_000 if what == "reading" else 1000, raw=what == "run", **parameters)
    seconds = 0.5 if by == "the server" or what == "reading" else 600.0
    models = ("breast_cancer", "stories260K")
    with serving(*models, grpc_port=0, timeout_seconds=seconds) as client, connected(client) as own:
        hanging = hang(owner, name)
        if is_stream:
            (answer,) = own.rpc(f"{messages.INFERENCE}/ModelStreamInfer")(iter([request]), timeout=SECONDS)
            found = answer.error_message
        else:
            found = refused(lambda: own.ask("ModelInfer", request), "DEADLINE_EXCEEDED").details()
        assert "the request's time has passed" in found
        assert hanging.num_ended == 0 < hanging.num_begun
        hanging.end()


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("by_deadline", [True, False])
def test_a_request_that_nobody_waits_for_leaves_the_queue(monkeypatch, is_stream, by_deadline) -> None:
    from educe.serve.batcher import Batcher
    from educe.serve.served import PredictorModel

    may_run, batchers, run, offer = threading.Event(), [], PredictorModel.run, Batcher.offer

    def wait(self: Any, group: Any, contents: Any) -> Any:
        may_run.wait(SECONDS)
        return run(self, group, contents)

    def note(self: Any, *arguments: Any) -> None:
        batchers.append(self)
        offer(self, *arguments)

    monkeypatch.setattr(PredictorModel, "run", wait)
    monkeypatch.setattr(PredictorModel, "is_small", lambda self, content: False)
    monkeypatch.setattr(Batcher, "offer", note)
    with serving("breast_cancer", grpc_port=0) as client, connected(client) as own:
        try:
            running = own.rpc(f"{messages.INFERENCE}/ModelInfer").future(features()[0], timeout=SECONDS)
            until(lambda: len(batchers) == 1 and not batchers[0].waiting)
            seconds = 2.0 if by_deadline else SECONDS
            if is_stream:
                rpc = own.rpc(f"{messages.INFERENCE}/ModelStreamInfer")
                waiting = rpc(iter([features()[0]]), timeout=seconds)
            else:
                waiting = own.rpc(f"{messages.INFERENCE}/ModelInfer").future(features()[0], timeout=seconds)
            until(lambda: len(batchers) == 2)
            if not by_deadline:
                assert batchers[0].waiting
                waiting.cancel()
            until(lambda: not batchers[0].waiting)
        finally:
            may_run.set()
        assert running.result(SECONDS).outputs


def test_large_messages_are_read_and_written_beside_the_loop(server, monkeypatch) -> None:
    from educe.serve.grpc import service

    idents, read, write = [], service.read_inputs, service.write_outputs

    def note_read(*arguments: Any) -> Any:
        idents.append(threading.get_ident())
        return read(*arguments)

    def note_write(*arguments: Any) -> Any:
        idents.append(threading.get_ident())
        return write(*arguments)

    monkeypatch.setattr(service, "read_inputs", note_read)
    monkeypatch.setattr(service, "write_outputs", note_write)
    with connected(server) as own:
        own.ask("ModelInfer", features(raw=False)[0])
        (loop,) = set(idents)
        idents.clear()
        own.ask("ModelInfer", features(40_000, raw=False)[0])
        assert loop not in idents
        idents.clear()
        own.ask("ModelInfer", features(40_000)[0])  # which are taken as they lie
        assert idents == [loop, loop]


def test_calls_are_counted_and_logged(capfd) -> None:
    key = (("authorization", f"Bearer {KEY}"),)
    with serving("breast_cancer", "stories260K", grpc_port=0, api_keys=(KEY,), log_requests=True) as client:
        with connected(client, *key) as own:
            infer = own.rpc(f"{messages.INFERENCE}/ModelInfer")
            _, call = infer.with_call(features()[0], metadata=(*key, ("x-request-id", "mine")))
            assert ("x-request-id", "mine") in [tuple(each) for each in call.trailing_metadata()]
            wrong, _ = features()
            wrong.model_name = "nothing"
            fault = refused(lambda: own.ask("ModelInfer", wrong), "NOT_FOUND")
            (given,) = [value for name, value in fault.trailing_metadata() if name == "x-request-id"]
            refused(lambda: own.ask("ServerLive", metadata=()), "UNAUTHENTICATED")
            refused(lambda: own.channel.unary_unary("/a/B")(b"", metadata=key), "UNIMPLEMENTED")
            long = text(PROMPT, max_tokens=480, min_tokens=480, ignore_eos=True)
            stream = own.rpc(f"{messages.INFERENCE}/ModelStreamInfer")(iter([long]), metadata=key)
            next(stream)
            stream.cancel()
            refused(lambda: own.ask("ModelInfer", long, timeout=0.1), "DEADLINE_EXCEEDED")
        metrics = ""

        def are_counted() -> bool:
            nonlocal metrics
            headers = {"authorization": f"Bearer {KEY}"}
            metrics = client.ask("GET", "/metrics", None, headers)[2].decode()
            return all(f'status="{status}"' in metrics for status in ("CANCELLED", "DEADLINE_EXCEEDED"))

        until(are_counted)
    infer_path, stream_path = (f"/{messages.INFERENCE}/Model{name}" for name in ("Infer", "StreamInfer"))
    for route, status in (
        *((infer_path, each) for each in ("OK", "NOT_FOUND", "DEADLINE_EXCEEDED")),
        *((stream_path, "CANCELLED"), (f"/{LIVE[0]}", "UNAUTHENTICATED"), ("", "UNIMPLEMENTED")),
    ):
        assert f'educe_grpc_requests_total{{route="{route}",status="{status}"}} 1.0' in metrics
    assert f'educe_grpc_request_seconds_count{{route="{infer_path}"}} 3.0' in metrics
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    first, second, *_ = calls = [line for line in lines if line["method"] == "gRPC"]
    assert (first["id"], first["route"], first["status"]) == ("mine", infer_path, "OK")
    assert (first["model"], first["batch_rows"]) == ("breast_cancer", 2)
    assert (second["id"], second["status"]) == (given, "NOT_FOUND")
    assert all(line["id"] for line in calls)


def test_a_call_belongs_to_the_trace_of_its_metadata(monkeypatch) -> None:
    from educe.serve import core as module
    from educe.serve.observation import GRPC, Observed
    from educe.serve.tracing import _attributes, _name

    seen: list[Observed] = []

    class Recorder:
        def trace(self, observed: Observed, seconds: float) -> None:
            seen.append(observed)

        def close(self) -> None: ...

    monkeypatch.setattr(module, "tracer_from_environment", Recorder)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with serving("breast_cancer", grpc_port=0) as client, connected(client) as own:
        own.ask("ModelInfer", features()[0], metadata=(("traceparent", parent),))
    (observed,) = seen
    assert (observed.method, observed.traceparent) == (GRPC, parent)
    assert _name(observed) == f"{messages.INFERENCE}/ModelInfer"
    found = _attributes(observed)
    assert (found["rpc.service"], found["rpc.method"]) == (messages.INFERENCE, "ModelInfer")
    assert found["rpc.response.status_code"] == "OK"


def test_many_at_once(stub) -> None:
    request, _ = features(3)
    wanted = stub.ask("ModelInfer", request).raw_output_contents[0]
    found: list[bytes] = []

    def ask() -> None:
        for _ in range(20):
            found.append(stub.ask("ModelInfer", request).raw_output_contents[0])

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == [wanted] * 320


def test_calls_that_are_there_end_with_the_server() -> None:
    with serving("stories260K", grpc_port=0) as client:
        channel = grpc.insecure_channel(client.grpc_address)
        request = text(PROMPT, max_tokens=200, min_tokens=200, ignore_eos=True)
        call = Stub(channel).rpc(f"{messages.INFERENCE}/ModelStreamInfer")(iter([request]), timeout=SECONDS)
        next(call)
    pieces = list(call)
    assert pieces[-1].infer_response.parameters["triton_final_response"].bool_param
    assert not any(piece.error_message for piece in pieces)
    channel.close()


def test_an_address_that_is_taken_is_an_error(server) -> None:
    port = int(server.grpc_address.rpartition(":")[2])
    said = "cannot listen at .*: address already in use"
    with pytest.raises(OptionError, match=said), serving("breast_cancer", grpc_port=port):
        pass


def test_tls(tmp_path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "1", "-keyout", key, "-out", certificate, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True, timeout=SECONDS,
    )  # fmt: skip
    with serving("breast_cancer", grpc_port=0, certificate=certificate, private_key=key) as client:
        address = client.grpc_address.replace("127.0.0.1", "localhost")
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(address, credentials) as channel:
            assert Stub(channel).ask("ServerLive").live
        with grpc.insecure_channel(address) as channel:
            refused(lambda: Stub(channel).ask("ServerLive"), "UNAVAILABLE")
