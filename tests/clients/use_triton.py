"""Triton's own clients, unmodified: every method that speaks of what this server has."""

import asyncio
import os
import queue

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

HTTP, GRPC = os.environ["EDUCE_URL"].removeprefix("http://"), os.environ["EDUCE_GRPC"]
MODEL = "breast_cancer"
ROWS = np.linspace(0, 1, 60, dtype=np.float32).reshape(2, 30)


def given(module):
    tensor = module.InferInput("features", [*ROWS.shape], "FP32")
    tensor.set_data_from_numpy(ROWS)
    return [tensor], [module.InferRequestedOutput("probabilities")]


def use(module, address):
    """Ask all that the client can, one after the other."""
    with module.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.get_server_metadata()
        assert client.get_model_metadata(MODEL)
        assert client.get_model_config(MODEL)
        assert client.get_inference_statistics()
        assert client.get_inference_statistics(MODEL)
        assert client.get_model_repository_index()
        client.unload_model(MODEL)
        assert not client.is_model_ready(MODEL)
        client.load_model(MODEL)
        assert client.is_model_ready(MODEL)
        inputs, outputs = given(module)
        options = {"request_id": "one", "priority": 1, "timeout": 20_000_000}
        answer = client.infer(MODEL, inputs, outputs=outputs, **options)
        assert answer.get_response()
        if module is tritonclient.http:
            later = client.async_infer(MODEL, inputs, outputs=outputs).get_result()
        else:
            answers = queue.Queue()

            def keep(result, error):
                answers.put(error or result)

            client.async_infer(MODEL, inputs, keep, outputs=outputs)
            later = answers.get(timeout=60)
            client.start_stream(keep)
            client.async_stream_infer(MODEL, inputs, outputs=outputs)
            streamed = answers.get(timeout=60)
            client.stop_stream()
            np.testing.assert_array_equal(streamed.as_numpy("probabilities"), later.as_numpy("probabilities"))
        np.testing.assert_array_equal(answer.as_numpy("probabilities"), later.as_numpy("probabilities"))
        return later.as_numpy("probabilities")


async def use_later(module, address):
    """Ask all that the client of an event loop can."""
    async with module.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL)
        assert await client.get_server_metadata()
        assert await client.get_model_metadata(MODEL)
        assert await client.get_model_config(MODEL)
        assert await client.get_inference_statistics(MODEL)
        assert await client.get_model_repository_index()
        inputs, outputs = given(module)
        answers = await asyncio.gather(*(client.infer(MODEL, inputs, outputs=outputs) for _ in range(16)))
        return answers[-1].as_numpy("probabilities")


async def stream():
    """Read a text while it is written."""
    text = tritonclient.grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"Once upon a time"], object))

    async def requests():
        yield {
            "model_name": "stories260K",
            "inputs": [text],
            "enable_empty_final_response": True,
            "parameters": {"max_tokens": 6, "temperature": 0.0},
        }

    async with tritonclient.grpc.aio.InferenceServerClient(GRPC) as client:
        pieces = []
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            pieces.append(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
        assert len(pieces) > 1


found = [use(tritonclient.http, HTTP), use(tritonclient.grpc, GRPC)]
found.append(asyncio.run(use_later(tritonclient.http.aio, HTTP)))
found.append(asyncio.run(use_later(tritonclient.grpc.aio, GRPC)))
for each in found[1:]:
    np.testing.assert_allclose(each, found[0], rtol=1e-6)
asyncio.run(stream())
