"""The block manager: sharing by content, salts, copies before writes, eviction, exact accounts."""

from __future__ import annotations

import pytest

from educe.errors import OptionError
from educe.generate.blocks import BlockManager, BlockTable

TOKENS = list(range(100, 120))


def cached(blocks: BlockManager, tokens: list[int], salt: bytes = b"") -> list[int]:
    """Compute tokens and let go of them; return the blocks that they were in."""
    table = BlockTable(salt)
    assert blocks.start(table, [], 0, len(tokens), 0) == []
    blocks.seal(table, tokens, len(tokens))
    held = list(table.blocks)
    blocks.truncate(table, 0)
    return held


def found(blocks: BlockManager, tokens: list[int], salt: bytes = b"") -> list[int]:
    return blocks.find(BlockTable(salt), tokens)


def test_only_full_blocks_are_found_again() -> None:
    blocks = BlockManager(8, 4)
    held = cached(blocks, TOKENS[:10])
    assert len(held) == 3
    assert found(blocks, TOKENS) == held[:2]
    assert found(blocks, TOKENS[:7]) == held[:1]
    assert found(blocks, [0, *TOKENS]) == []
    assert found(blocks, [*TOKENS[:4], 0, *TOKENS[5:]]) == held[:1]
    assert (blocks.num_free, blocks.num_used) == (8, 0)


def test_a_block_is_found_only_after_the_same_beginning() -> None:
    blocks = BlockManager(8, 2)
    cached(blocks, [1, 2, 3, 4])
    assert found(blocks, [3, 4]) == []
    assert found(blocks, [5, 6, 3, 4]) == []


def test_salts_share_nothing() -> None:
    blocks = BlockManager(8, 4)
    held = cached(blocks, TOKENS[:8], b"one")
    assert found(blocks, TOKENS, b"two") == []
    assert found(blocks, TOKENS, b"one") == held


def test_what_is_not_computed_is_not_cached() -> None:
    blocks = BlockManager(8, 4)
    table = BlockTable(b"")
    blocks.start(table, [], 0, 12, 0)
    blocks.seal(table, TOKENS[:12], 7)
    assert found(blocks, TOKENS) == table.blocks[:1]
    assert table.num_sealed == 1


def test_shared_blocks_count_once() -> None:
    blocks = BlockManager(8, 4)
    held = cached(blocks, TOKENS[:8])
    one, two = BlockTable(b""), BlockTable(b"")
    assert blocks.start(one, held, 8, 12, 0) == []
    assert blocks.start(two, held, 8, 12, 0) == []
    assert one.blocks[:2] == two.blocks[:2] == held
    assert one.blocks[2] != two.blocks[2]
    assert (blocks.num_free, blocks.num_used) == (4, 4)
    blocks.truncate(one, 0)
    assert blocks.num_used == 3
    blocks.truncate(two, 0)
    assert blocks.num_used == 0


def test_a_whole_prompt_that_is_cached_gets_a_copy_of_its_last_block() -> None:
    blocks = BlockManager(8, 4)
    held = cached(blocks, TOKENS[:8])
    table = BlockTable(b"")
    assert blocks.start(table, held, 7, 8, 0) == [(held[1], table.blocks[1])]
    assert table.blocks[0] == held[0]
    assert table.blocks[1] not in held


def test_the_copy_may_be_the_block_itself_where_no_other_is_free() -> None:
    blocks = BlockManager(2, 4)
    held = cached(blocks, TOKENS[:8])
    table = BlockTable(b"")
    assert blocks.start(table, held, 7, 8, 0) == []
    assert table.blocks == held
    assert blocks.num_free == 0


def test_the_last_writer_of_a_shared_block_needs_no_copy() -> None:
    blocks = BlockManager(8, 4)
    one = BlockTable(b"")
    blocks.start(one, [], 0, 6, 0)
    two = blocks.fork(one)
    shared = one.blocks[1]
    assert blocks.reserve(one, 6, 7) == [(shared, one.blocks[1])]
    assert blocks.reserve(two, 6, 7) == []
    assert two.blocks[1] == shared != one.blocks[1]
    assert blocks.num_used == 3


def test_nothing_changes_where_too_few_blocks_are_free() -> None:
    blocks = BlockManager(3, 4)
    table, other = BlockTable(b""), BlockTable(b"")
    blocks.start(table, [], 0, 8, 0)
    assert blocks.start(other, [], 0, 8, 0) is None
    assert blocks.start(other, [], 0, 4, 1) is None
    assert blocks.reserve(table, 8, 17) is None
    assert (other.blocks, len(table.blocks), blocks.num_free) == ([], 2, 1)
    assert blocks.reserve(table, 8, 12) == []


def test_the_least_recently_used_end_is_evicted_first() -> None:
    blocks = BlockManager(4, 2)
    old = cached(blocks, [1, 2, 3, 4])
    new = cached(blocks, [5, 6, 7, 8])
    table = BlockTable(b"")
    blocks.start(table, [], 0, 2, 0)
    assert table.blocks == [old[1]]
    assert found(blocks, [1, 2, 3, 4]) == old[:1]
    assert found(blocks, [5, 6, 7, 8]) == new
    used = BlockTable(b"")
    blocks.start(used, old[:1], 2, 2, 0)
    blocks.truncate(used, 0)
    blocks.reserve(table, 2, 6)
    assert found(blocks, [1, 2, 3, 4]) == old[:1]
    assert found(blocks, [5, 6, 7, 8]) == []


def test_of_equal_blocks_the_first_is_found() -> None:
    blocks = BlockManager(8, 4)
    one, two = BlockTable(b""), BlockTable(b"")
    for table in (one, two):
        blocks.start(table, [], 0, 4, 0)
        blocks.seal(table, TOKENS[:4], 4)
    assert found(blocks, TOKENS[:4]) == one.blocks
    blocks.truncate(two, 0)
    assert found(blocks, TOKENS[:4]) == one.blocks


@pytest.mark.parametrize("numbers", [(0, 4), (4, 0), (-1, 4)])
def test_nothing_is_managed_without_blocks(numbers: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="expected 1 or more"):
        BlockManager(*numbers)
