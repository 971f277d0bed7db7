"""How long texts may be, and how much memory their keys and values get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from educe.errors import OptionError
from educe.generate.configuration import Configuration
from educe.limits import format_bytes
from educe.machine import memory_bytes as machine_memory_bytes

# The largest part of the machine's memory that a cache takes if nothing is said.
_MEMORY_SHARE = 0.25
# What a text may have if the model does not say: if nothing is asked for, and at most.
_MOST_ASSUMED = 2048
_MOST_WITHOUT = 1 << 20
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")

MOST_SEQUENCES = 1024
"""The most texts that may be written at once."""
MOST_DRAFT_TOKENS = 64
"""The most tokens that a draft model may guess in a step."""


def context_length(config: Mapping[str, Any], wanted: int | None) -> int:
    """Return the most tokens of a text: those asked for, or those that the model was made for.

    Raises:
        ModelFileError: a field of the configuration cannot be.
        OptionError: so many are not what the model was made for.
    """
    known = known_context_length(config)
    most = known or _MOST_WITHOUT
    if wanted is not None and not 1 <= wanted <= most:
        raise OptionError(
            f"expected 1 to {most:,} tokens, found {wanted:,}",
            place="context",
            remedy="the model's configuration says how many positions it knows" if known else None,
        )
    return wanted or known or _MOST_ASSUMED


def known_context_length(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens of a text that a configuration of Hugging Face speaks of, None if of none.

    YaRN's configurations may have the length of the training, which its factor extends; those of other
    scalings have the whole.

    Raises:
        ModelFileError: a field of the configuration cannot be.
    """
    fields, original = Configuration(config), "original_max_position_embeddings"
    found = next((count for name in _POSITIONS if (count := fields.integer(name, 0, least=0))), None)
    scaling = fields.section("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if found is None or kind != "yarn" or original not in scaling or "factor" not in scaling:
        return found
    factor = min(scaling.number("factor", above=0), _MOST_WITHOUT)
    return max(found, int(scaling.integer(original) * factor))


def cache_bytes(needed: int, memory_bytes: int | None) -> int:
    """Return the memory of a cache: what is given, or what is needed, up to a part of the machine's."""
    if memory_bytes is not None:
        return memory_bytes
    machine = machine_memory_bytes()
    return needed if machine is None else min(needed, int(machine * _MEMORY_SHARE))


def num_blocks(
    block_bytes: int, block_size: int, context: int, max_sequences: int, memory_bytes: int | None
) -> int:
    """Return how many blocks a cache has, as many as texts that run at once can need if they fit.

    Args:
        block_bytes: Memory of a block.
        block_size: Tokens of a block.
        context: Most tokens of a text.
        max_sequences: Most texts that run at once.
        memory_bytes: Memory of the cache; a part of the machine's if absent.

    Raises:
        OptionError: the memory is too small for any.
    """
    # One more for each text: the scheduler keeps one for the next token of each that runs.
    needed = max_sequences * (-(-context // block_size) + 1)
    memory_bytes = cache_bytes(needed * block_bytes, memory_bytes)
    found = min(needed, memory_bytes // block_bytes)
    if found < 1:
        raise OptionError(
            f"{format_bytes(memory_bytes)} hold no block of {block_size:,} tokens",
            place="memory_bytes",
            remedy=f"give at least {block_bytes}",
        )
    return found
