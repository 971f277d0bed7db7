"""Sounds to text by a small Whisper of random weights: windows, timestamps, languages, subtitles."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from educe.errors import InputError, LimitError, ModelFileError, OptionError, UnsupportedModelError
from educe.generate.timestamps import Piece, TimestampRules, divided
from educe.generate.transcript import Segment, Transcript
from educe.generate.transcription import Transcriber
from educe.model.checkpoint import Checkpoint, TokenizerFiles, Weight

HIDDEN, INNER, BINS, ROWS, MOST = 16, 24, 8, 20, 40
LETTERS = [*"abcdefghijkl"]
SPECIAL = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
    *(f"<|{step * 0.02:.2f}|>" for step in range(ROWS + 1)),
]  # fmt: skip
WORDS = LETTERS + SPECIAL
ID = {word: number for number, word in enumerate(WORDS)}
FIRST = ID["<|0.00|>"]


def test_timestamps_stand_in_pairs_and_never_go_back() -> None:
    rules = TimestampRules(first=5, end=3, none=4, most_initial=2)

    def possible(*written: int, likely: int = 0) -> set[int]:
        scores = np.zeros(10, np.float32)
        scores[likely] = 9
        rules.apply(scores, written)
        return set(np.flatnonzero(scores > -math.inf))

    assert possible() == {5, 6, 7}
    assert possible(6) == {0, 1, 2, 3}
    assert possible(6, 0) == {0, 1, 2, 3, 7, 8, 9}
    assert possible(6, 0, 8) == {8, 9}
    assert possible(6, 0, 8, likely=3) == {3, 8, 9}
    assert possible(6, 0, 8, 8) == {0, 1, 2, 3}
    assert possible(6, 0, likely=9) == {7, 8, 9}


@pytest.mark.parametrize(
    ("tokens", "pieces", "resume"),
    [
        ([], [Piece(0, None, [])], None),
        ([1, 2], [Piece(0, None, [1, 2])], None),
        ([10, 1, 2, 14], [Piece(0, 4, [10, 1, 2, 14])], None),
        ([12, 1], [Piece(2, None, [12, 1])], None),
        ([10, 1, 13, 13, 2, 17], [Piece(0, 3, [10, 1, 13]), Piece(3, 7, [13, 2, 17])], None),
        ([10, 1, 13, 14, 2], [Piece(0, 3, [10, 1, 13])], 3),
        ([10, 1, 13, 13], [Piece(0, 3, [10, 1, 13])], 3),
        ([10, 10, 1], [Piece(0, 0, [10])], None),
    ],
)
def test_a_window_is_divided_where_timestamps_meet(tokens, pieces, resume) -> None:
    assert divided(tokens, 10) == (pieces, resume)


def test_subtitles() -> None:
    given = Transcript("en", (Segment(0.0, 1.5, "a < b\n\n--> c"), Segment(3661.04, 3662.9996, "d")))
    assert given.text == "a < b\n\n--> c d"
    assert given.srt() == (
        "1\n00:00:00,000 --> 00:00:01,500\na < b\n→ c\n\n2\n01:01:01,040 --> 01:01:03,000\nd\n"
    )
    assert given.vtt() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na &lt; b\n→ c\n\n01:01:01.040 --> 01:01:03.000\nd\n"
    )


def shapes() -> dict[str, tuple[int, ...]]:
    square, found = (HIDDEN, HIDDEN), {}

    def both(name: str, *shape: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    both("model.encoder.conv1", HIDDEN, BINS, 3)
    both("model.encoder.conv2", HIDDEN, HIDDEN, 3)
    found["model.encoder.embed_positions.weight"] = (ROWS, HIDDEN)
    found["model.decoder.embed_positions.weight"] = (MOST, HIDDEN)
    found["model.decoder.embed_tokens.weight"] = (len(WORDS), HIDDEN)
    for side, parts in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        at = f"model.{side}.layers.0"
        for part in parts:
            for name in ("q_proj", "v_proj", "out_proj"):
                both(f"{at}.{part}.{name}", *square)
            found[f"{at}.{part}.k_proj.weight"] = square
            both(f"{at}.{part}_layer_norm", HIDDEN)
        both(f"{at}.fc1", INNER, HIDDEN)
        both(f"{at}.fc2", HIDDEN, INNER)
        both(f"{at}.final_layer_norm", HIDDEN)
        both(f"model.{side}.layer_norm", HIDDEN)
    return found


def whisper(path: Path, **more: object) -> Checkpoint:
    rng = np.random.default_rng(6)
    weights = {}
    for name, shape in shapes().items():
        array = rng.standard_normal(shape).astype(np.float32)
        weights[name] = Weight(name, shape, "F32", array.view(np.uint8).reshape(-1))
    spelling = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": ID[word], "content": word, "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}
            for word in SPECIAL
        ],
        "pre_tokenizer": {**spelling, "add_prefix_space": False},
        "decoder": {**spelling, "add_prefix_space": True},
        "model": {"type": "BPE", "vocab": {letter: ID[letter] for letter in LETTERS}, "merges": []},
    }  # fmt: skip
    return Checkpoint(
        model_type="whisper",
        config={
            "d_model": HIDDEN, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER,
            "vocab_size": len(WORDS), "num_mel_bins": BINS, "max_source_positions": ROWS,
            "max_target_positions": MOST, "eos_token_id": ID["<|endoftext|>"],
        },
        weights=weights,
        tokenizer=TokenizerFiles(files={"tokenizer.json": json.dumps(tokenizer).encode()}),
        generation={
            "lang_to_id": {"<|en|>": ID["<|en|>"], "<|de|>": ID["<|de|>"]}, "max_length": MOST,
            "max_initial_timestamp_index": 3, **more,
        },
        path=path,
        content=[b"whisper"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Transcriber:
    return Transcriber(whisper(tmp_path_factory.mktemp("whisper")))


def test_all_of_a_long_sound_is_heard_in_order(own, rng) -> None:
    sound = (rng.standard_normal(16_000 * 2) * 0.1).astype(np.float32)
    found = own.transcribe(sound, language="en")
    assert found.language == "en"
    assert found.segments
    for before, after in zip(found.segments, found.segments[1:], strict=False):
        assert before.start_seconds <= before.end_seconds <= after.start_seconds + 1e-9
    assert found.segments[-1].end_seconds <= 2.0
    assert set(found.text) <= {*LETTERS, " "}
    assert own.transcribe(sound, language="en") == found
    assert own.transcribe(sound, language="en", num_beams=3).segments


def words_of(found: Transcript) -> list[str]:
    return [segment.text for segment in found.segments]


def test_a_text_that_is_not_believed_is_written_at_the_next_temperature(own, rng) -> None:
    sound = (rng.standard_normal(16_000) * 0.1).astype(np.float32)

    def at(*temperature: float, ratio: float | None = None, logprob: float | None = None) -> list[str]:
        found = own.transcribe(
            sound, language="en", temperature=temperature, compression_ratio_threshold=ratio,
            logprob_threshold=logprob, no_speech_threshold=None,
        )  # fmt: skip
        return words_of(found)

    assert at(0.0, 1.0) == at(0.0) != at(1.0)
    assert at(0.0, 1.0, ratio=0.0) == at(0.0, 1.0, logprob=100.0) == at(1.0)
    assert at(1.0) == at(1.0)
    assert own.transcribe(sound, language="en", temperature=0.0) == own.transcribe(
        sound, language="en", temperature=(0.0,)
    )
    assert own.transcribe(sound, language="en", temperature=1.0, num_beams=3).segments


def test_a_window_in_which_silence_is_likely_has_no_text(own, rng) -> None:
    sound = (rng.standard_normal(16_000) * 0.1).astype(np.float32)
    silent = own.transcribe(sound, language="en", no_speech_threshold=0.0, logprob_threshold=100.0)
    assert silent == Transcript("en", ())
    assert own.transcribe(sound, language="en", no_speech_threshold=0.0, logprob_threshold=-100.0).segments


def test_a_window_continues_those_before_it_if_it_is_told_to(own, rng) -> None:
    sound = (rng.standard_normal(16_000) * 0.1).astype(np.float32)

    def of(conditioned: bool, temperature: float = 0.0) -> list[str]:
        found = own.transcribe(
            sound, language="en", temperature=temperature, condition_on_previous_text=conditioned
        )
        return words_of(found)

    assert of(True) != of(False)
    assert of(True)[0] == of(False)[0]
    assert of(True, 0.6) == of(False, 0.6)


def test_a_window_that_fails_leaves_nothing_behind(own, rng) -> None:
    sound = (rng.standard_normal(6000) * 0.1).astype(np.float32)
    expected = own.transcribe(sound, language="en", temperature=0.0)
    for _ in range(20):
        with pytest.raises(LimitError, match="9 beams"):
            own.transcribe(sound, language="en", num_beams=9)
    assert own.transcribe(sound, language="en", temperature=0.0) == expected


def test_the_language_is_found_where_none_is_said(own, rng) -> None:
    sound = (rng.standard_normal(8000) * 0.1).astype(np.float32)
    found = own.transcribe(sound)
    assert own.languages == ["de", "en"]
    assert found.language in own.languages
    assert found == own.transcribe(sound, language=found.language)


def test_what_cannot_be_heard_is_an_error(own, tmp_path) -> None:
    sound = np.zeros(100, np.float32)
    with pytest.raises(OptionError, match="language 'ed' is not known"):
        own.transcribe(sound, language="ed")
    with pytest.raises(OptionError, match="task 'sing' is not known"):
        own.transcribe(sound, task="sing")
    with pytest.raises(OptionError, match="task None is not known"):
        own.transcribe(sound, task=None)
    for given in (5, ["en"]):
        with pytest.raises(OptionError, match=r"known: de, en"):
            own.transcribe(sound, language=given)
    with pytest.raises(InputError):
        own.transcribe(b"no sound")
    given = whisper(tmp_path)
    for changed, kind in (
        ({"model_type": "bart"}, UnsupportedModelError),
        ({"tokenizer": None}, ModelFileError),
        ({"config": {**given.config, "num_mel_bins": 0}}, ModelFileError),
    ):
        with pytest.raises(kind):
            Transcriber(Checkpoint(**{**vars(given), **changed}))


def test_a_model_that_is_told_no_language_neither_takes_one_nor_translates(tmp_path) -> None:
    deaf = Transcriber(whisper(tmp_path, lang_to_id=None))
    assert deaf.languages == []
    with pytest.raises(OptionError, match="leave the language out"):
        deaf.transcribe(np.zeros(800, np.float32), language="en")
    with pytest.raises(OptionError, match="does not translate"):
        deaf.transcribe(np.zeros(800, np.float32), task="translate")


@pytest.mark.parametrize(
    "given", [{"<|en|>": len(WORDS)}, {"<|en|>": -1}, {"<|en|>": "13"}, ["<|en|>"]], ids=str
)
def test_languages_are_tokens_of_the_model(tmp_path, given) -> None:
    with pytest.raises(ModelFileError, match=r"field .* of generation_config.json"):
        Transcriber(whisper(tmp_path, lang_to_id=given))


@pytest.mark.parametrize("more", [len(WORDS) - FIRST, len(WORDS) - FIRST + 1, 90])
@pytest.mark.parametrize(
    "before", ["<|nospeech|>", "<|notimestamps|>", "<|startofprev|>", "<|startoftranscript|>"]
)
def test_the_tokenizer_has_no_token_that_the_model_lacks(tmp_path, before, more) -> None:
    made = whisper(tmp_path)
    content = json.loads(made.tokenizer.files["tokenizer.json"])
    tokens = content["added_tokens"]
    others = [{**tokens[0], "content": f"<|other{number}|>"} for number in range(more)]
    at = next(number for number, token in enumerate(tokens) if token["content"] == before)
    tokens[at:at] = others
    for number, token in enumerate(tokens):
        token["id"] = len(LETTERS) + number
    made.tokenizer.files["tokenizer.json"] = json.dumps(content).encode()
    with pytest.raises(ModelFileError, match="tokenizer: has"):
        Transcriber(made)


def test_mel_bins_are_those_of_the_weights(own, tmp_path, rng) -> None:
    sound = (rng.standard_normal(4000) * 0.1).astype(np.float32)
    other = Transcriber(whisper(tmp_path, num_mel_bins=BINS + 1))
    assert other.transcribe(sound) == own.transcribe(sound)
