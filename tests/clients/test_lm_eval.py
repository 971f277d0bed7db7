"""`lm-eval` through the server: what it measures is what Educe itself says of the same tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import educe
from educe.generate.generator import Generator
from tests.clients.conftest import STORIES
from tests.clients.test_clients import PYTHON, run
from tests.serve.conftest import Client

QUESTIONS = [
    {"question": "Once upon a", "choices": [" time", " stone"], "answer": 0},
    {"question": "She was very", "choices": [" happy", " seven"], "answer": 0},
    {"question": "Tom went to the", "choices": [" park", " and"], "answer": 0},
]
HEAD = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{question}}}}"
num_fewshot: 0
"""
CHOICES = """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
TEXTS = """output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 12
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def writer() -> Any:
    with educe.generator(STORIES) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, writer: Generator) -> Path:
    """Tasks, their questions, and the model's tokenizer as transformers reads it."""
    folder = tmp_path_factory.mktemp("lm-eval")
    data = folder / "questions.jsonl"
    data.write_text("".join(f"{json.dumps(each)}\n" for each in QUESTIONS))
    for name, rest in (("choices", CHOICES), ("texts", TEXTS)):
        (folder / f"{name}.yaml").write_text(HEAD.format(name=name, data=data) + rest)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    writer.tokenizer._core.save(str(tokenizer / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def evaluate(client: Client, folder: Path, model: str, task: str, arguments: str, *more: str) -> list[Any]:
    """Return what lm-eval says of each question."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    output = folder / f"{model}-{task}"
    command = [
        PYTHON,
        "-W",
        "ignore",
        "-m",
        "lm_eval",
        "run",
        "--model",
        model,
        "--tasks",
        folder / f"{task}.yaml",
    ]
    command += ["--model_args", arguments, "--output_path", output, "--log_samples", *more]
    run(command, {**os.environ, **offline, "HF_HOME": str(folder / "cache")})
    (samples,) = output.rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(found, key=lambda each: each["doc_id"])


def test_log_likelihoods_are_those_of_the_model(client: Client, folder: Path, writer: Generator) -> None:
    arguments = f"model=stories260K,base_url={client.url}/v1/completions,tokenizer={folder / 'tokenizer'}"
    arguments += ",max_length=512"
    found = evaluate(client, folder, "local-completions", "choices", arguments, "--batch_size", "4")
    encode = writer.tokenizer.encode
    for sample, question in zip(found, QUESTIONS, strict=True):
        before = encode(question["question"], add_special=False)
        for response, choice in zip(sample["resps"], question["choices"], strict=True):
            ids = encode(question["question"] + choice, add_special=False)
            scored = writer.score(ids).choices[len(before) - 1 :]
            assert float(response[0][0]) == pytest.approx(sum(each.logprob for each in scored), abs=1e-4)
            is_best = all(each.token == each.top[0][0] for each in scored)
            assert str(response[0][1]) == str(is_best)


def test_texts_are_those_of_the_model(client: Client, folder: Path, writer: Generator) -> None:
    arguments = f"model=stories260K,base_url={client.url}/v1/completions,tokenizer_backend=None"
    found = evaluate(client, folder, "local-completions", "texts", arguments)
    for sample, question in zip(found, QUESTIONS, strict=True):
        text = writer.generate(question["question"], max_tokens=12, temperature=0, stop=["."]).text
        assert sample["resps"][0][0] == text


def test_chats_are_evaluated(client: Client, folder: Path) -> None:
    arguments = f"model=writer,base_url={client.url}/v1/chat/completions"
    found = evaluate(client, folder, "local-chat-completions", "texts", arguments, "--apply_chat_template")
    assert len(found) == len(QUESTIONS)
    assert all(sample["resps"][0][0] for sample in found)
