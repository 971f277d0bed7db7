"""The messages of the server's gRPC, from what `make proto` makes of the ``.proto`` files.

They live in a pool of their own, so that a process can hold them beside the code that others have generated
for the same protocols, such as Triton's client; and they fit every version of protobuf.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


@cache
def pool() -> DescriptorPool:
    """Return the descriptions of all services and messages."""
    found = DescriptorPool()
    content = Path(__file__).with_name("messages.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(content).file:
        found.Add(file)
    return found


@cache
def message(name: str) -> Any:
    """Return the class of a message, by its full name."""
    return GetMessageClass(pool().FindMessageTypeByName(name))


def inference(name: str) -> Any:
    """Return the class of a message of the Open Inference Protocol."""
    return message(f"inference.{name}")
