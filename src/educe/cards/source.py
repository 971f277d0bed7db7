"""`Found`: a card together with where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from educe.model import Card, CardOrigin


@dataclass(frozen=True)
class Found:
    """A card that a source gave for a model.

    Attributes:
        card: The card.
        origin: Where it came from.
        path: The file that an error in the card should name.
        note: What a user should know about how the card was made.
    """

    card: Card
    origin: CardOrigin
    path: Path | None = None
    note: str | None = None
