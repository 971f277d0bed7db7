"""Tokenizers in files of SentencePiece alone number texts as Hugging Face's library does."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from educe.model.checkpoint import TokenizerFiles
from educe.text.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece", reason="it is installed by make test-parity")
transformers = pytest.importorskip("transformers", reason="transformers is installed by make test-parity")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

WORDS = ["hello", "the", "cat", "sat", "where", "été", "garçon", "straße", "日本"]


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("NllbTokenizer", "bpe"), ("MBart50Tokenizer", "unigram"), ("XLMRobertaTokenizer", "unigram")],
)
def test_texts_have_the_numbers_of_transformers(tmp_path: Path, kind: str, model_type: str) -> None:
    rng = random.Random(4)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(" ".join(rng.choices(WORDS[:-1], k=8)) for _ in range(500)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "sentencepiece.bpe"), model_type=model_type,
        vocab_size=60, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    fields = {"tokenizer_class": kind, "additional_special_tokens": ["en_XX", "fr_XX"], **named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    names = ("sentencepiece.bpe.model", "tokenizer_config.json")
    own = Tokenizer.from_files(TokenizerFiles(files={name: (tmp_path / name).read_bytes() for name in names}))
    is_encoder = kind == "XLMRobertaTokenizer"
    for _ in range(100):
        text = " ".join(rng.choices([*WORDS, "x,", ""], k=rng.randrange(1, 9))).strip()
        expected = theirs(text, add_special_tokens=is_encoder)["input_ids"]
        assert own.encode(text, add_special=is_encoder) == expected, text
