"""What a model is and has done in the words of the Open Inference Protocol, the same over HTTP and gRPC.

Source: the protocol, and its extensions of model configuration and statistics, as Triton has them.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from educe.model import ValueType
from educe.serve import tensors
from educe.serve.description import Description
from educe.serve.snapshot import ModelSnapshot
from educe.serve.statistics import Histogram, ModelStatistics


class TensorMetadata(Struct):
    """An input or output of a model; -1 is a size that varies."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct):
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(Struct):
    """An input or output of a model, as Triton's configuration has it."""

    name: str
    data_type: str
    dims: list[int]


class TransactionPolicy(Struct):
    """Whether a request can have several answers."""

    decoupled: bool


class ModelConfig(Struct):
    """What Triton's clients ask of a model beyond its metadata.

    The largest batch is given as 0: the sizes of inputs and outputs have the axis of the batch.
    """

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    model_transaction_policy: TransactionPolicy


class Duration(Struct):
    """How often something was, and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0


class InferenceStatistics(Struct):
    """Where the time of requests went; reading and writing tensors is part of their runs here."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_infer: Duration
    compute_input: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)


class BatchStatistics(Struct):
    """The runs of a number of rows."""

    batch_size: int
    compute_infer: Duration
    compute_input: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


class MemoryUsage(Struct):
    """Memory that a model takes."""

    byte_size: int
    type: Literal["CPU"] = "CPU"
    id: int = 0


class ModelStats(Struct):
    """What a model has done."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]
    memory_usage: list[MemoryUsage]


class StatisticsAnswer(Struct):
    """What models have done."""

    model_stats: list[ModelStats]


def metadata_of(model: Description) -> ModelMetadata:
    """Return what a model takes and gives.

    Raises:
        Unprocessable: an input or output is of a type that the protocol lacks.
    """
    given, found = (
        [TensorMetadata(name, *tensors.describe(kind)) for name, kind in kinds.items()]
        for kinds in (model.inputs, model.outputs)
    )
    return ModelMetadata(model.name, [model.version], f"educe_{model.kind}", given, found)


def config_of(model: Description) -> ModelConfig:
    """Return a model's configuration as Triton has it."""
    given, found = (
        [TensorConfig(name, _config_type(kind), tensors.describe(kind)[1]) for name, kind in kinds.items()]
        for kinds in (model.inputs, model.outputs)
    )
    policy = TransactionPolicy(model.kind == "generator")
    return ModelConfig(model.name, f"educe_{model.kind}", "educe", 0, given, found, policy)


def _config_type(kind: ValueType) -> str:
    datatype, _ = tensors.describe(kind)
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def stats_of(name: str, model: ModelSnapshot) -> ModelStats:
    """Return what a model has done, as the protocol says it."""
    found = model.statistics
    return ModelStats(
        name,
        model.version,
        round(found.last_answer * 1000),
        found.num_rows,
        found.batch_rows.count,
        _inference(found),
        [
            BatchStatistics(rows, Duration(count, round(seconds * 1e9)))
            for rows, (count, seconds) in sorted(found.batches.items())
        ],
        [MemoryUsage(model.memory_bytes)] if model.memory_bytes else [],
    )


def _inference(found: ModelStatistics) -> InferenceStatistics:
    def duration(histogram: Histogram) -> Duration:
        return Duration(histogram.count, round(histogram.sum * 1e9))

    fail = Duration(sum(found.failures.values()))
    return InferenceStatistics(
        success=duration(found.whole),
        fail=fail,
        queue=duration(found.queue),
        compute_infer=duration(found.run),
        cache_hit=duration(found.cache_hits),
        cache_miss=Duration(found.num_cache_misses),
    )
