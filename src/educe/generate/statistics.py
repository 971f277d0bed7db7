"""`Statistics`: what a generator does, and has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a generator does at a moment, and has done since it was made.

    Attributes:
        num_running: Texts that run: their prompts are read, or they are written.
        num_waiting: Texts that wait.
        num_blocks: Blocks of the cache.
        num_used_blocks: Blocks that hold what running texts need; what others may share stays in the rest.
        block_size: Tokens of a block.
        num_requests: Requests so far.
        num_completed: Those of them whose texts have all ended by themselves.
        num_cancelled: Those that were cancelled before.
        num_failed: Those that have failed.
        num_prompt_tokens: Tokens of the prompts that have begun to be read.
        num_cached_tokens: Those of them that were found in the cache.
        num_tokens: Tokens written.
        num_draft_tokens: Tokens guessed, and read by the model.
        num_accepted_tokens: Those of them that were right.
        num_steps: Steps of the model.
        num_preemptions: How often a text lost its blocks to others, and had to be read again.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    block_size: int
    num_requests: int = 0
    num_completed: int = 0
    num_cancelled: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
