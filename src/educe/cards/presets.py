"""Named cards that come with Educe: one TOML file each, in the folder `presets`."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from educe.cards import shapes
from educe.cards.file import read_card
from educe.errors import OptionError, nearest
from educe.limits import Limits
from educe.model import Card, Model

FOLDER = Path(__file__).parent / "presets"


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_preset(name: str, limits: Limits) -> Card:
    """Return the preset called `name`, its labels read.

    Raises:
        OptionError: there is no such preset.
    """
    names = preset_names()
    if name not in names:
        raise OptionError(
            f"there is no preset {name!r}, and it does not look like a file's path",
            remedy=nearest(name, names),
        )
    return read_card(FOLDER / f"{name}.toml", limits)


def fit_preset(card: Card, model: Model) -> Card:
    """Return a preset with what the graph itself says better.

    - The picture's layout, and its size where the signature fixes it; `shorter_side` grows in proportion.
    - No activation where the graph already ends in a Softmax or Sigmoid.
    - No labels where the model tells another number of classes apart.
    """
    count = shapes.num_classes(model, card)
    if count is not None and count != len(card.labels):
        card = replace(card, labels=())
    if card.scores.activation != "none":
        scores = replace(card.scores, activation=shapes.activation(model, card.scores.output))
        card = replace(card, scores=scores)
    tensor = shapes.image_tensor(model, card.image.input) if card.image is not None else None
    if card.image is None or tensor is None:
        return card
    size = tensor.size(default=card.image.size)
    shorter = card.image.shorter_side
    if shorter is not None and size != card.image.size:
        shorter = round(max(size) * shorter / max(card.image.size))
    image = replace(card.image, size=size, layout=tensor.layout, shorter_side=shorter)
    return replace(card, image=image)
