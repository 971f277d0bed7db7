"""Fixtures of the compiler's tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs as they are without guard pages: called at once, in memory that runs lend each other."""
    monkeypatch.delenv("EDUCE_GUARD", raising=False)
