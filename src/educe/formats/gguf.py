"""A GGUF file to a `Checkpoint`: its names become Hugging Face's, its data stays where it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from educe.errors import EduceError, UnsupportedFormatError
from educe.formats import gguf_file
from educe.formats.folder import shown
from educe.formats.gguf_config import config
from educe.formats.gguf_keys import Keys, wrong_value
from educe.formats.gguf_vocabulary import tokenizer
from educe.formats.gguf_weights import Weights
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Checkpoint, TokenizerFiles

_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_ENDS = ("eos", "eot", "eom")


def sniff(head: bytes) -> bool:
    """Say whether a file that begins with `head` is a GGUF file."""
    return head.startswith(gguf_file.MAGIC)


def load(path: Path, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Read the GGUF file at `path`; its weights are mapped.

    Raises:
        ModelFileError: the file is broken.
        UnsupportedFormatError: its version, architecture, tokenizer or an encoding is none that Educe reads.
        LimitError: the file is larger than `limits` allow.
    """
    file = gguf_file.read(path, limits)
    try:
        return _checkpoint(file, path)
    except EduceError as error:
        raise error.located(path) from None


def _checkpoint(file: gguf_file.GgufFile, path: Path) -> Checkpoint:
    metadata = file.metadata
    _refuse_part(metadata)
    files, keys = tokenizer(metadata), Keys(metadata)
    fields = config(keys, file.tensors, _vocabulary_size(files))
    special = _special(files)
    weights = Weights(file.tensors, fields)
    return Checkpoint(
        model_type=fields["model_type"],
        config={**fields, **special},
        weights=weights,
        tokenizer=files,
        generation={**special, **_sampling(metadata)},
        path=path,
        content=[file.content.data],
        stamps=(file.stamp,),
        notes=_notes(keys, weights),
    )


def _refuse_part(metadata: Mapping[str, Any]) -> None:
    kind, parts = metadata.get("general.type", "model"), metadata.get("split.count", 1)
    if kind != "model":
        raise UnsupportedFormatError(
            f"is a GGUF file of the type {shown(kind)}, not a whole model",
            remedy="give the file of the model itself",
        )
    if parts not in (0, 1):
        raise UnsupportedFormatError(
            f"is one of {shown(parts)} parts of a model",
            remedy="join them with llama-gguf-split --merge, of llama.cpp",
        )


def _vocabulary_size(files: TokenizerFiles | None) -> int:
    return len(files.source.tokens) if files is not None and files.source is not None else 0


def _special(files: TokenizerFiles | None) -> dict[str, Any]:
    known = files.source.special if files is not None and files.source is not None else {}
    found: dict[str, Any] = {f"{name}_token_id": known[name] for name in ("bos", "pad") if name in known}
    ends = list(dict.fromkeys(known[name] for name in _ENDS if name in known))
    if ends:
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return found


def _sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if value is not None:
            if type(value) not in (int, float):
                raise wrong_value(f"general.sampling.{key}", value, "a number")
            found[name] = value
    return {**found, "do_sample": True} if found else {}


def _notes(keys: Keys, weights: Weights) -> tuple[str, ...]:
    notes = []
    if unread := keys.unread():
        notes.append(f"metadata that has no meaning here: {', '.join(unread[:8])}")
    if decoded := weights.decoded:
        notes.append(
            f"{len(decoded):,} quantised weights become f32, for they are transposed: {decoded[0]}..."
        )
    return tuple(notes)
