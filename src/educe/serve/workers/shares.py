"""What each worker has of what is bounded for a whole server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from educe.serve.opening import ModelSource
from educe.serve.settings import ServerSettings


def share_of(
    sources: Sequence[ModelSource], settings: ServerSettings
) -> tuple[tuple[ModelSource, ...], ServerSettings]:
    """Return what one of the workers is to serve, and its share of what is bounded in all."""

    def share(whole: int) -> int:
        return max(1, whole // settings.workers)

    def with_share(source: ModelSource) -> ModelSource:
        whole = source.options.get("memory_bytes")
        if whole is None:
            return source
        return replace(source, options={**source.options, "memory_bytes": share(whole)})

    bounds = settings.server_limits
    return tuple(map(with_share, sources)), replace(
        settings,
        max_waiting=share(settings.max_waiting),
        memory_bytes=None if settings.memory_bytes is None else share(settings.memory_bytes),
        cache_bytes=None if settings.cache_bytes is None else share(settings.cache_bytes),
        server_limits=replace(
            bounds,
            bodies_bytes=max(bounds.body_bytes, share(bounds.bodies_bytes)),
            num_connections=share(bounds.num_connections),
        ),
    )
