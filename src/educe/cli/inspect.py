"""``educe inspect``: what a model is."""

from __future__ import annotations

from typing import Any

import msgspec

from educe import api
from educe.cli import options
from educe.cli.checkpoint_facts import checkpoint_facts, checkpoint_rows
from educe.cli.screen import format_count, print_facts, print_json, print_warning
from educe.engines import engines
from educe.formats import checkpoint
from educe.limits import format_bytes
from educe.model import Model, Signature
from educe.model.card import Card

EXAMPLES = """
[bold]Examples[/]\n
educe inspect zoo/yolox_nano/model.onnx\n
educe inspect zoo/silero_vad/model.onnx --json\n
educe inspect zoo/stories260K
"""


def command(
    model: options.ModelArgument,
    card: options.CardOption = None,
    json: options.JsonOption = False,
) -> None:
    """Show MODEL's signature, task, preprocessing and where it comes from, size, operations and hash.

    Of a language model's own files: its architecture, sizes, encodings of weights, and tokenizer.
    """
    if card is None and checkpoint.recognises(model):
        facts = checkpoint_facts(checkpoint.load(model))
        if json:
            print_json(facts)
        else:
            print_facts(checkpoint_rows(facts))
        return
    loaded = api.load(model, card=card)
    facts = _facts(loaded)
    if json:
        print_json(facts)
        return
    print_facts(_rows(loaded, facts))
    if loaded.card_origin.guessed:
        print_warning(
            "the card is a guess from the signature; write an educe.toml beside the model: docs/cards.md"
        )


def _facts(model: Model) -> dict[str, Any]:
    support = {}
    for engine in engines():
        if engine.version() is not None:
            support[engine.name] = [vars(problem) for problem in engine.supports(model).problems]
    return {
        "name": model.name,
        "path": None if model.path is None else str(model.path),
        "sha256": model.sha256,
        "size_bytes": model.size_bytes,
        "signature": _signature(model.signature),
        "task": model.card.task,
        "card": {
            "source": model.card_origin.source,
            "guessed": model.card_origin.guessed,
            "content": _card_content(model.card),
        },
        "num_parameters": model.num_parameters,
        "flops": model.flops,
        "operators": dict(model.operators.most_common()),
        "opsets": {"file": model.file_opsets, "internal": model.opsets},
        "unsupported": support,
        "notes": list(model.notes),
    }


def _signature(signature: Signature) -> dict[str, dict[str, str]]:
    return {
        "inputs": {name: str(value) for name, value in signature.inputs.items()},
        "outputs": {name: str(value) for name, value in signature.outputs.items()},
    }


def _card_content(card: Card) -> dict[str, Any]:
    content: dict[str, Any] = msgspec.to_builtins(card)
    return content


def _rows(model: Model, facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("model", model.name), ("file", str(model.path)), ("sha256", model.sha256)]
    rows += [("size", format_bytes(model.size_bytes))]
    rows += [("input", f"{name}: {value}") for name, value in model.signature.inputs.items()]
    rows += [("output", f"{name}: {value}") for name, value in model.signature.outputs.items()]
    rows += [("task", model.card.task)]
    guessed = " (a guess)" if model.card_origin.guessed else ""
    rows += [("card", f"{model.card_origin.source}{guessed}")]
    rows += [("", line) for line in _card_lines(model.card)]
    rows += [("parameters", format_count(model.num_parameters))]
    rows += [("operations", _operations(model.flops))]
    opsets = ", ".join(f"{domain} {version}" for domain, version in model.file_opsets.items())
    rows += [("operator set", f"{opsets} in the file, {model.opsets.get('ai.onnx', '?')} internally")]
    rows += [("operators", ", ".join(f"{name} {count}" for name, count in model.operators.most_common()))]
    for engine, problems in facts["unsupported"].items():
        reasons = "; ".join(f"{p['node']} ({p['operator']}): {p['reason']}" for p in problems[:5])
        rows += [("engine", f"{engine}: {reasons or 'runs it'}")]
    return rows + [("note", note) for note in model.notes]


def _operations(flops: int | None) -> str:
    return "unknown" if flops is None else f"{format_count(flops, 'FLOP')} for one item (estimate)"


def _card_lines(card: Card) -> list[str]:
    """Return the card's sections, one a line, with the labels cut short."""
    lines = []
    for name, value in _card_content(card).items():
        if name in ("task", "name"):
            continue
        if name == "labels" and not isinstance(value, str):
            shown = ", ".join(value[:5])
            lines.append(f"labels: {shown}{', ...' if len(value) > 5 else ''} ({len(value)})")
        elif isinstance(value, dict):
            fields = ", ".join(f"{key}={_short(inner)}" for key, inner in value.items())
            lines.append(f"[{name}] {fields}")
        else:
            lines.append(f"{name}: {value}")
    return lines


def _short(value: Any) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:77] + "..."
