# ruff: noqa: PT017
"""KServe's own clients, unmodified, over HTTP and gRPC."""

import asyncio
import os

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

URL, ADDRESS = os.environ["EDUCE_URL"], os.environ["EDUCE_GRPC"]
MODEL = "breast_cancer"
ROWS = np.linspace(0, 1, 60, dtype=np.float32).reshape(2, 30)


def table(binary: bool, model: str = MODEL) -> InferRequest:
    given = InferInput("features", [*ROWS.shape], "FP32")
    given.set_data_from_numpy(ROWS, binary_data=binary)
    return InferRequest(model, [given], request_id="one", parameters={"priority": 1})


def texts() -> InferRequest:
    given = InferInput("text_input", [1], "BYTES")
    given.set_data_from_numpy(np.array(["Once upon a time"], object), binary_data=False)
    parameters = {"max_tokens": 4}  # this client's gRPC has no floating-point ones
    return InferRequest("stories260K", [given], parameters=parameters)


def arrays(answer) -> dict[str, np.ndarray]:
    return {output.name: output.as_numpy() for output in answer.outputs}


async def rest() -> dict[str, np.ndarray]:
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        assert await client.is_server_live(URL)
        assert await client.is_server_ready(URL)
        assert await client.is_model_ready(URL, MODEL)
        assert not await client.is_model_ready(URL, "nothing")
        found = [await client.infer(URL, table(binary), MODEL) for binary in (False, True)]
        assert all(each.id == "one" and each.model_name == MODEL for each in found)
        one, two = map(arrays, found)
        for name, values in one.items():
            np.testing.assert_array_equal(values, two[name], name)
        told = await client.infer(URL, texts(), "stories260K")
        assert told.outputs[0].datatype == "BYTES", told
        plain, _ = table(False).to_rest()
        again = await client.infer(URL, plain, MODEL)
        np.testing.assert_array_equal(arrays(again)["probabilities"], one["probabilities"])
        for name, status in (("nothing", 404), ("mobilenet_v2", 400)):
            try:
                await client.infer(URL, table(True, name), name)
            except httpx.HTTPStatusError as fault:
                assert fault.response.status_code == status, fault
            else:
                raise AssertionError(name)
        return one


async def rpc() -> dict[str, np.ndarray]:
    async with InferenceGRPCClient(ADDRESS, retries=0) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL)
        found = [await client.infer(table(binary)) for binary in (False, True)]
        one, two = map(arrays, found)
        for name, values in one.items():
            np.testing.assert_array_equal(values, two[name], name)
        told = await client.infer(texts())
        assert told.outputs[0].datatype == "BYTES", told
        for name, code in (("nothing", "NOT_FOUND"), ("mobilenet_v2", "INVALID_ARGUMENT")):
            try:
                await client.infer(table(True, name))
            except grpc.RpcError as fault:
                assert fault.code().name == code, fault
            else:
                raise AssertionError(name)
        return one


one, two = asyncio.run(rest()), asyncio.run(rpc())
assert one.keys() == two.keys()
for name, values in one.items():
    np.testing.assert_array_equal(values, two[name], name)
