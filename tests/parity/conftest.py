"""What comparisons with PyTorch share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep PyTorch from waiting for threads, which costs more than networks so small."""
    torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
