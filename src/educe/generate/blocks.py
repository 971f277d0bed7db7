"""`BlockManager`: which blocks of the KV cache are whose, and which still hold what a prompt begins with.

A block is in exactly one of three places: *used*, with a count of the tables that hold it; *cached*, held by
no table, but full and found by the digest of all tokens as far as its end; or *blank*. Cached blocks are free
blocks: the least recently used is taken when no blank one is left.

Only full blocks are cached, and what is cached or shared is never written again: who must write there gets a
copy, which the next step makes before anything else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from educe.errors import OptionError

_DIGEST_BYTES = 32
_TOKEN_BYTES = 4

Copy = tuple[int, int]
"""The block to copy, and the block that becomes like it."""


@dataclass(slots=True)
class BlockTable:
    """Where the keys and values of one sequence lie.

    Attributes:
        salt: What the digests begin with: tables of different salts share nothing.
        blocks: Block i holds the positions from i times the block size.
        digests: Of each full block, one for all tokens as far as its end.
        num_sealed: How many leading blocks are full, computed, and have been offered to the cache.
    """

    salt: bytes
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_sealed: int = 0


class BlockManager:
    """A fixed number of blocks of a fixed number of tokens; what it does not say it modifies, it does not.

    Raises:
        OptionError: no blocks, or blocks of no tokens.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            if value < 1:
                raise OptionError(f"expected 1 or more, found {value}", place=name)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no table holds."""
        return len(self._blank) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that tables hold; one that several hold counts once."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks so many tokens fill or begin."""
        return -(-num_tokens // self.block_size)

    def find(self, table: BlockTable, tokens: Sequence[int]) -> list[int]:
        """Return the blocks of the longest beginning of `tokens` that is cached.

        The table is given the digests of all full blocks of `tokens`.
        """
        self._extend_digests(table, tokens, len(tokens))
        found = []
        for digest in table.digests:
            if digest not in self._block_of:
                break
            found.append(self._block_of[digest])
        return found

    def start(
        self, table: BlockTable, found: Sequence[int], num_kept: int, num_tokens: int, spare: int
    ) -> list[Copy] | None:
        """Fill an empty table for `num_tokens`, the first `num_kept` of which are in the blocks `found`.

        Returns the copies to make; None, and nothing is modified, if fewer than `spare` blocks would be left.
        """
        whole, rest = divmod(num_kept, self.block_size)
        fresh = self.blocks_for(num_tokens) - whole
        if fresh + sum(block in self._cached for block in found[:whole]) + spare > self.num_free:
            return None
        for block in found[:whole]:
            self._hold(block)
        if rest and found[whole] in self._cached:
            self._cached.move_to_end(found[whole])
        table.blocks = [*found[:whole], *(self._take() for _ in range(fresh))]
        table.num_sealed = whole
        return [(found[whole], table.blocks[whole])] if rest and found[whole] != table.blocks[whole] else []

    def reserve(self, table: BlockTable, start: int, end: int) -> list[Copy] | None:
        """Make the positions from `start`, within the table or at its end, to `end` the table's own to write.

        Returns the copies to make; None, and nothing is modified, if too few blocks are free.
        """
        first = start // self.block_size
        shared = first < len(table.blocks) and self._references[table.blocks[first]] > 1
        fresh = max(0, self.blocks_for(end) - len(table.blocks))
        if fresh + shared > self.num_free:
            return None
        copies: list[Copy] = []
        if shared:
            source, table.blocks[first] = table.blocks[first], self._take()
            self._references[source] -= 1
            copies.append((source, table.blocks[first]))
        table.blocks += [self._take() for _ in range(fresh)]
        return copies

    def fork(self, table: BlockTable) -> BlockTable:
        """Return another table of the same blocks."""
        for block in table.blocks:
            self._hold(block)
        return BlockTable(table.salt, list(table.blocks), list(table.digests), table.num_sealed)

    def seal(self, table: BlockTable, tokens: Sequence[int], num_computed: int) -> None:
        """Offer the blocks that the first `num_computed` of `tokens` fill to the cache.

        Of two blocks with the same content the first is the one that is found.
        """
        self._extend_digests(table, tokens, num_computed)
        for index in range(table.num_sealed, num_computed // self.block_size):
            block, digest = table.blocks[index], table.digests[index]
            if digest not in self._block_of:
                self._block_of[digest] = block
                self._digest_of[block] = digest
            table.num_sealed = index + 1

    def truncate(self, table: BlockTable, num_tokens: int) -> None:
        """Return the blocks beyond the first `num_tokens`, which are all that are computed, or 0 for all.

        The last ones are returned, and so evicted, first.
        """
        while len(table.blocks) > self.blocks_for(num_tokens):
            self._release(table.blocks.pop())

    def _extend_digests(self, table: BlockTable, tokens: Sequence[int], num_tokens: int) -> None:
        size, digests = self.block_size, table.digests
        for start in range(len(digests) * size, num_tokens - size + 1, size):
            parent = digests[-1] if digests else _digest(table.salt)
            ids = b"".join(token.to_bytes(_TOKEN_BYTES, "little") for token in tokens[start : start + size])
            digests.append(_digest(parent + ids))

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._digest_of.pop(block)]
        self._references[block] = 1
        return block

    def _hold(self, block: int) -> None:
        self._cached.pop(block, None)
        self._references[block] += 1

    def _release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block] == 0:
            if block in self._digest_of:
                self._cached[block] = None
            else:
                self._blank.append(block)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST_BYTES).digest()
