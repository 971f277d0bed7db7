"""MLServer, without its workers, which is faster for a small model: ``python mlserver_server.py PORT``."""

from __future__ import annotations

import asyncio
import sys

import model
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Model(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        found = model.run(NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output(model.OUTPUT, found)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main(port: int) -> None:
    settings = Settings(
        http_port=port,
        grpc_port=port + 1000,
        metrics_port=port + 2000,
        host="127.0.0.1",
        parallel_workers=0,
        debug=False,
    )
    await MLServer(settings).start([ModelSettings(name="model", implementation=Model)])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
