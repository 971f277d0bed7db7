"""What ``educe inspect`` shows of a language model's own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from educe.cli.screen import format_count
from educe.generate.capacity import known_context_length
from educe.generate.doors import DOORS, door_of
from educe.limits import format_bytes
from educe.model.checkpoint import Checkpoint, TokenizerFiles


def checkpoint_facts(model: Checkpoint) -> dict[str, Any]:
    """Return the facts of a checkpoint, as JSON shows them."""
    encodings = Counter[str]()
    for weight in model.weights.values():
        encodings[weight.encoding] += weight.num_elements
    door = door_of(model)
    commands = [name for each in DOORS if door in (None, each) for name in each.commands]
    unsupported = _unsupported(model, commands)
    return {
        "path": str(model.path),
        "sha256": model.digest.hexdigest(),
        "size_bytes": model.size_bytes,
        "model_type": model.model_type,
        "num_parameters": model.num_parameters,
        "num_weights": len(model.weights),
        "encodings": dict(encodings.most_common()),
        "context_length": known_context_length(model.config),
        "tokenizer": _tokenizer(model.tokenizer),
        "chat_template": None if model.tokenizer is None else model.tokenizer.chat_template,
        "config": dict(model.config),
        "generation": dict(model.generation),
        "run_by": [name for name in commands if name not in unsupported],
        "unsupported": unsupported,
        "notes": list(model.notes),
    }


def checkpoint_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts as lines for people."""
    encodings = ", ".join(f"{name} {format_count(count)}" for name, count in facts["encodings"].items())
    context, template = facts["context_length"], facts["chat_template"]
    return [
        ("model", facts["path"]),
        ("sha256", facts["sha256"]),
        ("size", format_bytes(facts["size_bytes"])),
        ("architecture", facts["model_type"]),
        ("parameters", f"{format_count(facts['num_parameters'])} in {facts['num_weights']:,} weights"),
        ("encodings", encodings),
        ("context", "unknown" if context is None else f"{context} tokens"),
        ("tokenizer", ", ".join(facts["tokenizer"]) or "none"),
        ("chat template", "none" if template is None else f"{len(template):,} characters"),
        *_support_rows(facts["run_by"], facts["unsupported"]),
        *(("note", note) for note in facts["notes"]),
    ]


def _unsupported(model: Checkpoint, commands: Sequence[str]) -> dict[str, str]:
    """Return which commands do not run the model, and why."""
    if door_of(model) is None:
        return dict.fromkeys(commands, f"models of the type {model.model_type!r} are not run yet")
    if model.tokenizer is None:
        return dict.fromkeys(commands, "it has no tokenizer")
    if "chat" in commands and not model.tokenizer.chat_template:
        return {"chat": "it has no chat template"}
    return {}


def _support_rows(run_by: Sequence[str], unsupported: dict[str, str]) -> list[tuple[str, str]]:
    rows = [("run by", ", ".join(run_by))] if run_by else []
    for reason in dict.fromkeys(unsupported.values()):
        names = [name for name in unsupported if unsupported[name] == reason]
        rows.append(("not run by", f"{', '.join(names)}: {reason}"))
    return rows


def _tokenizer(tokenizer: TokenizerFiles | None) -> list[str]:
    """Return the files, and the tables with their sizes."""
    if tokenizer is None:
        return []
    tables = {"source": tokenizer.source, "target": tokenizer.target}
    sizes = [
        f"{name}: {table.model}, {len(table.tokens):,} tokens" for name, table in tables.items() if table
    ]
    return [*tokenizer.files, *sizes]
