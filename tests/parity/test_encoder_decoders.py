"""Models of an encoder and a decoder answer as Hugging Face's library does: rows, logits, searches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.formats import checkpoint
from educe.generate.encoder_decoder import EncoderDecoder, Source, Target
from educe.generate.search import SearchOptions
from educe.generate.writer import Writer

torch = pytest.importorskip("torch", reason="PyTorch is installed by make test-parity")
transformers = pytest.importorskip("transformers", reason="transformers is installed by make test-parity")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_thread"),
]

WORDS, LONGEST = 60, 16
_SIZES = {
    "vocab_size": WORDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40,
    "max_position_embeddings": 128,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "init_std": 0.3,
}  # fmt: skip
_T5 = {
    "vocab_size": WORDS, "d_model": 32, "d_kv": 12, "num_heads": 3, "d_ff": 48, "num_layers": 2,
    "num_decoder_layers": 3, "relative_attention_max_distance": 20, "relative_attention_num_buckets": 8,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "initializer_factor": 1.0,
}  # fmt: skip
_AUDIO = {
    "max_source_positions": 40,
    "max_target_positions": 50,
    "num_mel_bins": 16,
    "activation_function": "gelu",
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", _T5),
    "t5-1.1": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", {**_SIZES, "forced_eos_token_id": 2}),
    "mbart": ("mbart", {**_SIZES, "scale_embedding": True}),
    "marian": ("marian", {**_SIZES, "activation_function": "swish", "scale_embedding": True}),
    "m2m_100": ("m2m_100", {**_SIZES, "activation_function": "relu", "scale_embedding": True}),
    "whisper": ("whisper", {**_SIZES, **_AUDIO, "suppress_tokens": None, "begin_suppress_tokens": None}),
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4},
    "early": {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0, "no_repeat_ngram_size": 2},
    "never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.6, "min_length": 9},
    "forced": {
        "num_beams": 2,
        "forced_bos_token_id": 9,
        "forced_eos_token_id": 2,
        "bad_words_ids": [[7], [4, 5]],
    },
    "penalised": {"num_beams": 1, "repetition_penalty": 1.7, "suppress_tokens": [11, 12]},
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory) -> tuple[Any, EncoderDecoder, Any]:
    kind, fields = CASES[request.param]
    torch.manual_seed(8)
    config = transformers.AutoConfig.for_model(kind, **fields)
    config._attn_implementation = "eager"
    maker = (
        transformers.AutoModelForSpeechSeq2Seq if kind == "whisper" else transformers.AutoModelForSeq2SeqLM
    )
    network = maker.from_config(config).eval()
    if hasattr(network, "final_logits_bias"):
        network.final_logits_bias.normal_()
    folder: Path = tmp_path_factory.mktemp(kind)
    network.save_pretrained(folder)
    loaded = checkpoint.load(folder)
    return network, EncoderDecoder(loaded, max_length=128, block_size=16, max_sequences=12), loaded


def sources(network: Any) -> list[Any]:
    rng = np.random.default_rng(4)
    if network.config.model_type == "whisper":
        return [rng.standard_normal((1, 16, 80)).astype(np.float32) for _ in range(3)]
    return [rng.integers(3, WORDS, count).tolist() for count in (5, 1, 33, 12, 50)]


def given(network: Any, source: Any) -> dict[str, Any]:
    if network.config.model_type == "whisper":
        return {"input_features": torch.from_numpy(source)}
    return {"input_ids": torch.tensor([source])}


def read(own: EncoderDecoder, source: list[Any], blocks: list[list[int]]) -> np.ndarray:
    if isinstance(source[0], np.ndarray):
        return own.hear(np.concatenate(source), blocks)
    return own.encode(source, blocks)


def lengths(own: EncoderDecoder, source: list[Any]) -> list[int]:
    return [own.max_source if isinstance(each, np.ndarray) else len(each) for each in source]


def test_rows_and_logits_are_those_of_transformers(pair) -> None:
    network, own, _ = pair
    given_sources = sources(network)
    counts = lengths(own, given_sources)
    own.allocate(64, 64)
    rng = np.random.default_rng(2)
    shuffled, blocks = rng.permutation(64).tolist(), []
    for count in counts:
        blocks.append([shuffled.pop() for _ in range(own.blocks_for(count))])
    states = np.split(read(own, given_sources, blocks), np.cumsum(counts)[:-1])
    texts = [rng.integers(3, WORDS, 20).tolist() for _ in counts]
    tables = [list(range(3 * number, 3 * number + 3)) for number in range(len(counts))]
    with torch.no_grad():
        expected = [
            network(**given(network, source), decoder_input_ids=torch.tensor([text]))
            for source, text in zip(given_sources, texts, strict=True)
        ]
    for each, found in zip(expected, states, strict=True):
        np.testing.assert_allclose(found, each.encoder_last_hidden_state[0].numpy(), atol=1e-3, rtol=1e-4)
    start = 0
    for stop in (3, 4, 11, 12, 20):
        targets = [
            Target(text[start:stop], start, table, source=Source(count, own_blocks))
            for text, table, count, own_blocks in zip(texts, tables, counts, blocks, strict=True)
        ]
        for each, found in zip(expected, own.decode(targets), strict=True):
            np.testing.assert_allclose(found, each.logits[0, stop - 1].numpy(), atol=1e-3, rtol=1e-4)
        start = stop


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_find_what_transformers_finds(pair, name: str) -> None:
    network, own, loaded = pair
    said = {**loaded.generation, **SEARCHES[name]}
    options = SearchOptions.of_model(dataclasses.replace(loaded, generation=said), LONGEST)
    options = dataclasses.replace(options, max_length=LONGEST)
    given_sources = sources(network)[:3]
    start = network.config.decoder_start_token_id
    writer = Writer(own, LONGEST)
    found = writer.write(
        lengths(own, given_sources),
        lambda numbers, blocks: read(own, [given_sources[number] for number in numbers], blocks),
        [[start]] * len(given_sources),
        options,
    )
    for source, text in zip(given_sources, found, strict=True):
        with torch.no_grad():
            answer = transformers.GenerationMixin.generate(
                network, **given(network, source), **SEARCHES[name], max_length=LONGEST, do_sample=False,
                use_cache=False, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
        assert list(text.tokens) == answer.sequences[0].tolist()
        if options.num_beams > 1:
            assert text.score == pytest.approx(float(answer.sequences_scores[0]), abs=1e-4)
