"""Where a model's card comes from: the first of five sources that has one gives all of it.

1. What the caller names: a `Card`, the path of a TOML file, or the name of a preset.
2. ``<file's stem>.educe.toml``, then ``educe.toml``, beside the file.
3. Metadata in the file: Educe's own, then Ultralytics'.
4. Hugging Face's ``config.json``, beside the file or one folder above.
5. A guess from the signature, which is always called a guess.

A mistake in what was written for Educe is an error. What was written for others (Ultralytics, Hugging Face)
and cannot be used is left out, and a note on the model says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from educe.cards.check import check_card
from educe.cards.file import card_toml, read_card, with_labels
from educe.cards.guess import guess_card
from educe.cards.huggingface import huggingface_card
from educe.cards.metadata import ULTRALYTICS_SOURCE, educe_metadata, ultralytics_metadata
from educe.cards.presets import fit_preset, preset_names, read_preset
from educe.cards.source import Found
from educe.errors import UserError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model import Card, CardOrigin, Model

__all__ = ["card_toml", "preset_names", "resolve"]

_FOREIGN: tuple[tuple[str, Callable[[Model, Limits], Found | None]], ...] = (
    (ULTRALYTICS_SOURCE, ultralytics_metadata),
    ("config.json", huggingface_card),
)


def resolve(model: Model, card: str | Path | Card | None = None, limits: Limits = DEFAULT_LIMITS) -> Model:
    """Return `model` with its card, checked against its signature; `model` itself stays as it is.

    Args:
        card: A card; the path of a TOML file (a `Path`, or text with a separator or the suffix ``.toml``); or
            the name of a preset. If absent, the card is looked for, see the package's docstring.
        limits: The bounds on the files that are read.

    Raises:
        CardError: the card is wrong or does not fit the model.
        OptionError: there is no such preset.
        LimitError: a file is too large.
    """
    notes: list[str] = []
    found = _named(model, card, limits) if card is not None else _written(model, limits)
    if found is not None:
        check_card(found.card, model, limits, found.path)
    else:
        found = _foreign(model, limits, notes) or _guessed(model, limits)
    if found.note is not None:
        notes.append(found.note)
    return dataclasses.replace(model.with_card(found.card, found.origin), notes=(*model.notes, *notes))


def _named(model: Model, card: str | Path | Card, limits: Limits) -> Found:
    """Return the card that the caller names."""
    if isinstance(card, Card):
        folder = model.path.parent if model.path is not None else None
        card = with_labels(card, folder, limits, model.path)
        return Found(card, CardOrigin("given", folder=folder))
    if isinstance(card, Path) or card.endswith(".toml") or "/" in card or "\\" in card:
        return _from_file(Path(card), limits)
    return Found(fit_preset(read_preset(card, limits), model), CardOrigin(f"preset {card}"))


def _written(model: Model, limits: Limits) -> Found | None:
    """Return the card that was written for this model: beside the file, or inside it."""
    if model.path is not None:
        own = model.path.with_name(f"{model.path.stem}.educe.toml")
        shared = model.path.with_name("educe.toml")
        if own.is_file():
            return _from_file(own, limits)
        if shared.is_file():
            found = _from_file(shared, limits)
            if found.card.model in (None, model.path.name):
                return found
    return educe_metadata(model, limits)


def _from_file(path: Path, limits: Limits) -> Found:
    return Found(read_card(path, limits), CardOrigin(path.name, folder=path.parent), path=path)


def _foreign(model: Model, limits: Limits, notes: list[str]) -> Found | None:
    """Return the card of the first usable source that was not written for Educe; add to `notes` why not."""
    for source, read in _FOREIGN:
        try:
            found = read(model, limits)
            if found is not None:
                check_card(found.card, model, limits, found.path)
                return found
        except UserError as fault:
            notes.append(f"{source} was not used: {fault}")
    return None


def _guessed(model: Model, limits: Limits) -> Found:
    """Return the guess from the signature, or raw tensors where the guess does not hold."""
    card = guess_card(model, limits)
    folder = model.path.parent if model.path is not None and card.text is not None else None
    try:
        check_card(card, model, limits)
    except UserError:
        card, folder = Card(task="tensor"), None
    return Found(card, CardOrigin("signature", guessed=True, folder=folder))
