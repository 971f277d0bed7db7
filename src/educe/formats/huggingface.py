"""A folder as Hugging Face lays it out: config.json, safetensors, the tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from educe.errors import ModelFileError
from educe.formats import meta_llama, safetensors
from educe.formats.folder import Folder, shown
from educe.limits import Limits
from educe.model.checkpoint import Checkpoint, TokenizerFiles, Weight

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "target_vocab.json", "tekken.json",
)  # fmt: skip
_TOKENIZER_SETTINGS = (_TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")


def load(path: Path, limits: Limits) -> Checkpoint:
    """Read a folder with a config.json and safetensors.

    Raises:
        ModelFileError: a file is missing or broken; the error says how to get it.
        LimitError: a file is larger than `limits` allow.
    """
    folder = Folder(path, limits)
    if not folder.has(CONFIG):
        raise ModelFileError(
            f"the folder has no {CONFIG}, which says what the weights are of",
            path=path,
            remedy=f"download {CONFIG} from where the model came from into this folder",
        )
    config = folder.read_object(CONFIG)
    weights = _weights(folder, limits)
    if meta_llama.describes(config):
        config, weights = meta_llama.converted(config, weights, path / CONFIG)
    tokenizer = _tokenizer(folder)
    return Checkpoint(
        model_type=_model_type(config, path / CONFIG),
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        generation=folder.read_object("generation_config.json"),
        path=path,
        content=folder.ordered_content(),
        stamps=folder.ordered_stamps(),
        notes=() if tokenizer else (f"there is no tokenizer in the folder: none of {_TOKENIZER_FILES[0]}, "
                                    f"{', '.join(_TOKENIZER_FILES[1:5])}; download it to use text",),
    )  # fmt: skip


def _model_type(config: Mapping[str, Any], path: Path) -> str:
    found = config.get("model_type")
    if isinstance(found, str) and found:
        return found
    raise ModelFileError(
        f"has the model_type {shown(found)}, where the name of an architecture is expected",
        path=path,
        remedy="use the config.json that came with the weights",
    )


def _weights(folder: Folder, limits: Limits) -> dict[str, Weight]:
    if folder.has(INDEX) and not folder.has(WEIGHTS):
        return _sharded(folder, limits)
    name = WEIGHTS if folder.has(WEIGHTS) else _only_safetensors(folder)
    return safetensors.read(folder.map(name), folder.path / name, limits)


def _only_safetensors(folder: Folder) -> str:
    found = sorted(path.name for path in folder.path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.path.glob(pattern))
    if pickles and not found:
        raise ModelFileError(
            f"the folder has its weights only in {shown(pickles[0])}, a pickle, which can run code and is "
            "never opened",
            path=folder.path,
            remedy=f"download the model's {WEIGHTS}, or save the model again with safe_serialization=True",
        )
    raise ModelFileError(
        f"the folder has {len(found)} .safetensors files and neither {WEIGHTS} nor {INDEX}",
        path=folder.path,
        remedy=f"download {INDEX} too" if found else f"download {WEIGHTS}, or {INDEX} and all that it names",
    )


def _sharded(folder: Folder, limits: Limits) -> dict[str, Weight]:
    path = folder.path / INDEX
    shards = _shards(folder.read_object(INDEX, "header_bytes").get("weight_map"), path)
    weights: dict[str, Weight] = {}
    for shard, names in shards.items():
        try:
            found = safetensors.read(folder.map(shard), folder.path / shard, limits)
        except ModelFileError as error:
            error.place = error.place or f"named by {INDEX}"
            raise error.located(path) from None
        if missing := names - found.keys():
            raise _index_error(f"says that {shown(shard)} holds {shown(min(missing))}, and it does not", path)
        if twice := weights.keys() & found.keys():
            raise _index_error(f"names two files that hold {shown(min(twice))}", path)
        weights |= found
    return weights


def _shards(weight_map: Any, path: Path) -> dict[str, set[str]]:
    """Return the names of the weights that each shard should hold."""
    if not isinstance(weight_map, dict) or not weight_map:
        raise _index_error("has no weight_map from weights to files", path)
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise _index_error(f"names the file {shown(shard)} for {shown(name)}", path)
        shards.setdefault(shard, set()).add(name)
    return shards


def _index_error(cause: str, path: Path) -> ModelFileError:
    return ModelFileError(cause, path=path, remedy="download the index and all weight files again")


def _tokenizer(folder: Folder) -> TokenizerFiles | None:
    names = [name for name in _TOKENIZER_FILES if folder.has(name)]
    if not names:
        return None
    names += [name for name in _TOKENIZER_SETTINGS if folder.has(name)]
    files = {name: folder.read(name, "tokenizer_bytes") for name in names}
    return TokenizerFiles(files=files, chat_template=_chat_template(folder))


def _chat_template(folder: Folder) -> str | None:
    """Return the template of a conversation: of its own file, else of the tokenizer's configuration."""
    name = "chat_template.jinja"
    if folder.has(name):
        try:
            return folder.read(name, "card_bytes").decode()
        except UnicodeDecodeError as fault:
            raise ModelFileError(
                f"is no UTF-8 text at byte {fault.start:,}",
                path=folder.path / name,
                remedy="download it again",
            ) from None
    for name in ("chat_template.json", _TOKENIZER_CONFIG):
        template = folder.read_object(name).get("chat_template")
        if isinstance(template, list):
            named = {
                entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)
            }
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None
