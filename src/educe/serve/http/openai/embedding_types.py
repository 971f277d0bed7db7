"""The bodies of embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from educe.serve.http.openai.types import Natural, Positive, Priority, Usage


class EmbeddingRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Texts to make vectors of.

    Attributes:
        input: A text, its tokens, or many of one of these.
        dimensions: Taken if the model's vectors have so many elements.
        truncate: Whether texts that are too long for the model are cut; else they are refused.
    """

    model: str
    input: str | Annotated[list[str | Natural | list[Natural]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None
    truncate: bool = False
    priority: Priority = 0
    user: str | None = None


class Embedding(Struct):
    """A vector: its elements, or these as the base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingAnswer(Struct):
    """The vectors of texts, in their order."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: Literal["list"] = "list"
