"""The zoo's writer of stories, as the folder of a model that was made for conversations."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import save_file
from tokenizers import decoders

from educe.formats import checkpoint
from educe.text import tokenizer_files
from tests.conftest import ROOT

STORIES = ROOT / "zoo" / "stories260K"
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content }} {% endfor %}"


def write_chat_model(folder: Path, *, template: str | None = TEMPLATE, tokenizer: bool = True) -> Path:
    """Write the model as Hugging Face lays it out, with a template that joins what was said."""
    model = checkpoint.load(STORIES)
    assert model.tokenizer is not None
    assert model.tokenizer.source is not None
    folder.mkdir(parents=True, exist_ok=True)
    config = {**model.config, "model_type": model.model_type, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: weight.array() for name, weight in model.weights.items()}, folder / "model.safetensors")
    if tokenizer:
        core = tokenizer_files.of_tables(model.tokenizer.source).core
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        (folder / "tokenizer.json").write_text(core.to_str())
        settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
