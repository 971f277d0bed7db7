"""The commands of models that translate, hear, and make vectors, through the entry that a shell calls."""

from __future__ import annotations

import json
import os
import wave
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import educe
from educe.errors import UnsupportedModelError
from educe.model.checkpoint import Checkpoint
from tests.conftest import ROOT
from tests.generate.test_embedding import bert, random_arrays
from tests.generate.test_transcription import whisper
from tests.test_chat_terminal import PATIENCE_SECONDS, Screen
from tests.test_cli_generate import UNSUPPORTED, USER, Run, lines, run

__all__ = ["run"]

LETTERS = ROOT / "zoo" / "transliteration"


def write(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a model as Hugging Face lays it out."""
    config = {**checkpoint.config, "model_type": checkpoint.model_type}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(dict(checkpoint.generation)))
    save_file({name: each.array() for name, each in checkpoint.weights.items()}, folder / "model.safetensors")
    assert checkpoint.tokenizer is not None
    for name, content in checkpoint.tokenizer.files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listener")
    return write(whisper(folder), folder)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    return write(bert(random_arrays(np.random.default_rng(3)), folder), folder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "talk.wav"
    samples = np.random.default_rng(4).integers(-9000, 9000, 12_000, np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return path


class TestTranslate:
    def test_lines_stay_in_their_places_and_a_bad_one_costs_no_other(self, run: Run, tmp_path: Path) -> None:
        source = tmp_path / "names.txt"
        source.write_text(f"محمد\n\n{'ا' * 1100}\nلندن\n", encoding="utf-8")
        status, out, err = run("translate", LETTERS, source, "محمد", "--save", tmp_path)
        assert status == USER
        assert out == "mahmad\n\n\nlenden\nmahmad\n"
        assert "row 2: expected 1 to 1,024 tokens" in " ".join(err.split())
        assert (tmp_path / "names-2.txt").read_text() == "mahmad\n\n\nlenden\n"
        assert (tmp_path / "input.txt").read_text() == "mahmad\n"
        assert source.read_text(encoding="utf-8").startswith("محمد")

    def test_json_has_the_documented_fields(self, run: Run) -> None:
        stdin = f"محمد\n\n{'ا' * 1100}\nلندن\n".encode()
        status, out, err = run("translate", LETTERS, "-", "--json", "--num-beams", 2, stdin=stdin)
        assert status == USER
        first, last = lines(out)
        assert set(first) == {"input", "row", "text", "model"}
        assert (first["input"], first["row"], first["text"]) == ("-", 0, "mahmad")
        assert (last["row"], last["text"]) == (3, "lenden")
        (failure,) = lines(err)
        assert (failure["row"], failure["error"]["kind"]) == (2, "InputError")

    def test_many_lines_run_together_as_they_run_alone(self, run: Run, tmp_path: Path) -> None:
        source = tmp_path / "names.txt"
        source.write_text("محمد\nلندن\n" * 40, encoding="utf-8")
        assert run("translate", LETTERS, source)[1] == "mahmad\nlenden\n" * 40

    def test_mistakes_are_those_of_the_command(self, run: Run) -> None:
        status, out, err = run("translate", LETTERS, "محمد", "--to", "fr")
        assert (status, out) == (USER, "")
        assert "the model knows one direction" in err


class TestTranscribe:
    def test_every_form_is_that_of_the_transcript(
        self, run: Run, listener: Path, sound: Path, tmp_path: Path
    ) -> None:
        said = educe.transcriber(listener).transcribe(sound)
        assert said.segments
        options = ("--save", tmp_path)
        assert run("transcribe", listener, sound, *options) == (0, said.text + "\n", "")
        assert run("transcribe", listener, sound, "--srt", *options)[1] == said.srt()
        assert run("transcribe", listener, sound, "--vtt", *options)[1] == said.vtt()
        shown = run("transcribe", listener, sound, "--timestamps")[1].splitlines()
        first = said.segments[0]
        assert shown[0].split(maxsplit=2) == [
            f"{first.start_seconds:.2f}", f"{first.end_seconds:.2f}", first.text,
        ]  # fmt: skip
        assert (tmp_path / "talk.srt").read_text() == said.srt()
        assert (tmp_path / "talk.vtt").read_text() == said.vtt()
        assert (tmp_path / "talk.txt").read_text() == said.text + "\n"

    def test_json_a_broken_file_and_standard_input(self, run: Run, listener: Path, sound: Path) -> None:
        arguments = ("transcribe", listener, "absent.wav", "-", "--language", "de", "--json")
        status, out, err = run(*arguments, stdin=sound.read_bytes())
        assert status == USER
        (answer,) = lines(out)
        assert set(answer) == {"input", "language", "text", "segments", "model"}
        assert (answer["input"], answer["language"]) == ("-", "de")
        assert set(answer["segments"][0]) == {"start_seconds", "end_seconds", "text"}
        assert [each["input"] for each in lines(err)] == ["absent.wav"]

    def test_mistakes_are_those_of_the_command(self, run: Run, listener: Path, sound: Path) -> None:
        status, _, err = run("transcribe", listener, sound, "--srt", "--json")
        assert (status, lines(err)[0]["error"]["cause"]) == (USER, "a transcript has one form")
        status, out, err = run("transcribe", listener, sound, sound, "--task", "sing")
        assert (status, out) == (USER, "")
        assert err.count("'sing' is not known") == 1


class TestEmbed:
    def test_vectors_of_texts_and_lines(self, run: Run, reader: Path, tmp_path: Path) -> None:
        source = tmp_path / "texts.txt"
        source.write_text("a b\n\nc\n")
        vectors = educe.embedder(reader).embed(["q r s", "a b", "c"])
        status, out, err = run("embed", reader, "q r s", source, "--json")
        assert (status, err) == (0, "")
        found = lines(out)
        assert [each.get("row") for each in found] == [None, 0, 2]
        np.testing.assert_allclose([each["vector"] for each in found], vectors, atol=1e-6)
        assert set(found[0]) == {"input", "vector", "model"}
        plain = run("embed", reader, "q r s")[1].split()
        np.testing.assert_allclose(np.array(plain, np.float32), vectors[0], rtol=1e-4)
        path = tmp_path / "vectors.npy"
        assert run("embed", reader, "q r s", source, "--save", path) == (0, "", "")
        np.testing.assert_array_equal(np.load(path), vectors)

    def test_how_alike_texts_are(self, run: Run, reader: Path) -> None:
        status, out, _ = run("embed", reader, "a b", "c", "a b", "--similar", "--json")
        assert status == 0
        cosines = np.array([each["similarities"] for each in lines(out)])
        one, other = educe.embedder(reader).embed(["a b", "c"])
        expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert expected < 0.9999
        np.testing.assert_allclose(
            cosines, [[1, expected, 1], [expected, 1, expected], [1, expected, 1]], atol=1e-6
        )
        table = run("embed", reader, "a b", "c", "--similar")[1]
        assert f"{cosines[0, 1]:.2f}" in table
        status, _, err = run("embed", reader, *["a"] * 31, "--similar")
        assert status == USER
        assert "31 texts is too wide" in err

    @pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of our own")
    def test_a_terminal_shows_how_far_it_is(self, reader: Path, tmp_path: Path) -> None:
        source, path = tmp_path / "texts.txt", tmp_path / "vectors.npy"
        source.write_text("a b\n" * 300)
        screen = Screen("embed", str(reader), str(source), "--save", str(path), environment={})
        try:
            screen.until("embedding")
            screen.until("/300")
            assert screen.process.wait(PATIENCE_SECONDS) == 0
        finally:
            screen.close()
        assert len(np.load(path)) == 300

    def test_a_text_that_is_too_long_costs_no_other(self, run: Run, reader: Path) -> None:
        status, out, err = run("embed", reader, "x " * 60, "a", "--json")
        assert (status, len(lines(out))) == (USER, 1)
        assert "has 62 tokens" in lines(err)[0]["error"]["cause"]
        status, out, _ = run("embed", reader, "x " * 60, "a", "--json", "--truncate")
        assert (status, len(lines(out))) == (0, 2)


def test_the_right_door_is_named(run: Run, reader: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'bert' are not .*educe\.embedder"):
        educe.generator(reader)
    for door in (educe.transcriber, educe.embedder):
        with pytest.raises(UnsupportedModelError, match=r"educe\.translator.* educe translate"):
            door(LETTERS)
    status, _, err = run("translate", reader, "a")
    assert status == UNSUPPORTED
    assert "educe embed" in err


@pytest.mark.parametrize(("name", "command"), [("reader", "embed"), ("listener", "transcribe")])
def test_what_runs_a_model_is_said(run: Run, request: pytest.FixtureRequest, name: str, command: str) -> None:
    status, out, _ = run("inspect", request.getfixturevalue(name), "--json")
    assert status == 0
    (facts,) = lines(out)
    assert (facts["run_by"], facts["unsupported"]) == ([command], {})
