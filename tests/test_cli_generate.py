"""The commands of language models, through the entry that a user's shell calls."""

from __future__ import annotations

import io
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import educe
from educe import api
from educe.cli import main
from educe.cli.app import subcommand
from educe.cli.completions import follow, summary
from educe.cli.loading import CachingOptions, EmbeddingOptions, WritingOptions, size_bytes
from educe.cli.message_input import messages
from educe.cli.sampling import TextOptions
from educe.errors import OptionError
from educe.generate.order import OPTIONS
from educe.generate.stream import Completion, Output, Piece, Seconds
from tests.conftest import ROOT
from tests.stories import STORIES, write_chat_model

USER, UNSUPPORTED, INTERRUPTED = 2, 3, 130
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the command line in this process; it gives status, standard output and standard error."""
    log, pipe = logging.getLogger("educe"), signal.getsignal(signal.SIGPIPE)
    before = list(log.handlers)

    def educe(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["educe", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            main.run()
        return int(end.value.code or 0), *capsys.readouterr()

    yield educe
    log.handlers[:] = before
    signal.signal(signal.SIGPIPE, pipe)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def story() -> str:
    with educe.generator(STORIES) as writer:
        return writer.generate("Once upon a time", max_tokens=30).text


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class TestGenerate:
    def test_a_text_goes_to_standard_output_and_the_summary_beside_it(self, run: Run, story: str) -> None:
        status, out, err = run("generate", STORIES, "Once upon a time", "--max-tokens", 30)
        assert (status, out) == (0, story + "\n")
        assert err.startswith("prompt 5 tokens, ")
        assert "; text 30 tokens, " in err
        assert err.endswith("; length\n")

    def test_json_has_the_documented_fields(self, run: Run, tmp_path: Path, story: str) -> None:
        path = tmp_path / "prompt.txt"
        path.write_text("Once upon a time\n")
        options = ("--max-tokens", 30, "--stop", "Lily", "--stop", "xyz", "--n", 2, "--logprobs", 1)
        status, out, err = run("generate", STORIES, "--file", path, *options, "--json")
        assert (status, err) == (0, "")
        (answer,) = lines(out)
        assert set(answer) == {
            "prompt", "outputs", "num_prompt_tokens", "num_cached_tokens", "model", "seconds",
        }  # fmt: skip
        assert answer["prompt"] == "Once upon a time"
        first, second = answer["outputs"]
        assert first == second
        assert (first["text"], first["stop"]) == (story.partition("Lily")[0], "Lily")
        assert first["finish_reason"] == "stop"
        assert len(first["logprobs"]) == first["num_tokens"]
        assert first["logprobs"][0]["top"][0]["token"] == first["logprobs"][0]["token"]
        assert len(answer["model"]["sha256"]) == 64
        assert answer["seconds"]["first_token"] <= answer["seconds"]["total"]
        assert all(seconds == round(seconds, 6) for seconds in answer["seconds"].values())

    def test_many_prompts_are_answered_in_order_and_a_bad_line_costs_no_other(self, run: Run) -> None:
        content = (
            b'Tom\n{"prompt": "Lily", "max_tokens": 1}\n\xff\n\n{"messages": []}\n{bad\n{"prompt": 3}\nBen'
        )
        status, out, err = run(
            "generate", STORIES, "--prompts", "-", "--max-tokens", 2, "--seed", 1, stdin=content
        )
        assert status == USER
        answers, errors = lines(out), lines(err)
        assert [answer["row"] for answer in answers] == [0, 1, 7]
        assert [answer["outputs"][0]["num_tokens"] for answer in answers] == [2, 1, 2]
        assert [error["row"] for error in errors] == [2, 4, 5, 6]
        assert {error["error"]["kind"] for error in errors} == {"InputError"}
        assert "0xff" in errors[0]["error"]["cause"]

    @pytest.mark.parametrize(
        ("option", "place"), [(("--temperature", -1), "--temperature"), (("--regex", "("), "--regex")]
    )
    def test_a_wrong_option_is_told_once_and_not_of_each_prompt(
        self, run: Run, option: tuple[Any, ...], place: str
    ) -> None:
        status, out, err = run("generate", STORIES, "--prompts", "-", *option, "--json", stdin=b"Tom\nBen\n")
        assert (status, out) == (USER, "")
        (error,) = lines(err)
        assert error["error"]["place"] == place

    def test_several_texts_are_shown_whole(self, run: Run) -> None:
        options = ("--n", 2, "--temperature", 1, "--seed", 3, "--max-tokens", 8)
        first, second = (run("generate", STORIES, "Tom", *options) for _ in range(2))
        assert first[1] == second[1]
        assert first[1].startswith("--- 1 of 2\n")
        assert "\n--- 2 of 2\n" in first[1]

    def test_a_text_follows_what_it_is_held_to(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "g.lark").write_text('start: "Lily" | "Ben"')
        (tmp_path / "s.json").write_text('{"type": "integer", "minimum": 7, "maximum": 7}')
        for options, texts in (
            (("--regex", "[ab]{3}"), {a + b + c for a in "ab" for b in "ab" for c in "ab"}),
            (("--choice", "one", "--choice", "two"), {"one", "two"}),
            (("--grammar", tmp_path / "g.lark"), {"Lily", "Ben"}),
            (("--json-schema", tmp_path / "s.json"), {"7"}),
            (("--json-schema", '{"enum": ["x"]}'), {'"x"'}),
        ):
            status, out, err = run("generate", STORIES, "Tom", *options, "--max-tokens", 20)
            assert status == 0, err
            assert out.removesuffix("\n") in texts

    def test_every_option_reaches_the_text(self, run: Run, story: str) -> None:
        first = educe.generator(STORIES).encode(story)[1]
        options = ("--logit-bias", f"{first}=-100", "--no-lookup", "--ignore-eos", "--min-tokens", 30)
        status, out, err = run("generate", STORIES, "Once upon a time", "--max-tokens", 30, *options)
        assert status == 0, err
        assert out.strip()
        assert out != story + "\n"

    def test_control_characters_of_a_model_do_nothing(self, run: Run) -> None:
        options = ("--choice", "a\x1b[2Jb\x07", "--max-tokens", 20)
        assert run("generate", STORIES, "Tom", *options)[1] == "a\ufffd[2Jb\ufffd\n"
        (answer,) = lines(run("generate", STORIES, "Tom", *options, "--json")[1])
        assert answer["outputs"][0]["text"] == "a\x1b[2Jb\x07"

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            ((STORIES,), USER, "a prompt is expected"),
            ((STORIES, "x", "--prompts", "y"), USER, "a prompt is expected"),
            ((STORIES, "x", "--logprobs", 1), USER, "add --json"),
            ((STORIES, "x", "--temperature", -1), USER, "OptionError --temperature: is -1"),
            ((STORIES, "x", "--memory", "1kB"), USER, "--memory: 1000 bytes hold no block"),
            ((STORIES, "x", "--memory", "much"), USER, "--memory: 'much' is no amount of memory"),
            ((STORIES, "x", "--precision", "int3"), USER, "unknown precision"),
            ((STORIES, "x", "--regex", "("), USER, "--regex: "),
            ((STORIES, "x", "--context", 500, "--memory", "70kB"), USER, "; or give more --memory"),
            (
                (STORIES, "x", "--bogus"),
                USER,
                "OptionError no such option: --bogus → the form is educe generate",
            ),
            ((STORIES, "x", "--file"), USER, "OptionError option '--file' requires an argument"),
            ((STORIES, "x", "--threads", "many"), USER, "OptionError --threads: input should be"),
            ((), USER, "OptionError missing argument 'MODEL' → the form is educe generate"),
            (
                (STORIES, "x", "--logit-bias", "7"),
                USER,
                "--logit-bias: '7' is no token and its bias → such as 7=-100",
            ),
            (
                (STORIES, "x", "--min-tokens", 3, "--max-tokens", 2),
                USER,
                "--min-tokens: is 3; it has to be at most --max-tokens=2",
            ),
            (
                (STORIES, "x", "--max-sequences", 0),
                USER,
                "--max-sequences: is 0; it has to be a whole number",
            ),
            (
                (STORIES, "x", "--num-draft-tokens", 0),
                USER,
                "--num-draft-tokens: is 0; it has to be a whole number",
            ),
            ((ROOT / "zoo" / "mnist", "x"), UNSUPPORTED, "educe predict runs it"),
            ((ROOT / "zoo" / "images" / "zebra.jpeg", "x"), UNSUPPORTED, "is a JPEG picture"),
            ((ROOT / "docs", "x"), USER, "download config.json"),
        ],
    )
    def test_mistakes_are_named(self, run: Run, arguments: Any, status: int, message: str) -> None:
        found, out, err = run("generate", *arguments)
        assert found == status
        assert message in " ".join(err.split()), err
        assert out == ""

    def test_what_a_folder_lacks_is_named(self, run: Run, tmp_path: Path) -> None:
        folder = write_chat_model(tmp_path / "bare", tokenizer=False)
        assert "put tokenizer.json beside" in run("generate", folder, "x")[2]
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
        status, _, err = run("generate", folder, "x")
        assert status == UNSUPPORTED
        assert "type 'vit' are not run" in err
        assert "bare" in err

    def test_predict_says_what_runs_a_language_model(self, run: Run) -> None:
        for path in (STORIES, STORIES / "stories260K.bin"):
            status, _, err = run("predict", path, "x")
            assert status == UNSUPPORTED
            assert "educe generate and educe chat" in err

    def test_an_interrupt_ends_the_text_and_keeps_what_is_written(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[str] = []

        def write(text: str) -> None:
            shown.append(text)
            if len(shown) == 3:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr("educe.cli.generate.write_text", write)
        for _ in range(20):  # a text may end before the third piece is shown
            shown.clear()
            status, _, err = run("generate", STORIES, "Once upon a time", "--ignore-eos", "--no-lookup")
            if status:
                break
        assert status == INTERRUPTED
        assert "; cancelled\ninterrupted\n" in err
        assert "".join(shown).startswith(", there")

    def test_a_reader_that_goes_away_ends_it_quietly(self) -> None:
        command = f"{sys.executable} -m educe generate {STORIES} Once | head -c 1 >/dev/null"
        done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=ROOT, check=False)
        assert done.stderr == b""


def test_an_interrupt_cancels_what_is_followed() -> None:
    with educe.generator(STORIES) as writer:
        pieces: list[Piece] = []

        def take(piece: Piece) -> None:
            pieces.append(piece)
            if len(pieces) == 2:
                raise KeyboardInterrupt

        completion = follow(writer.stream("Once upon a time"), take)
    assert completion.finish_reason == "cancelled"
    assert completion.text == "".join(piece.text for piece in pieces)


def test_a_summary_tells_rates_apart() -> None:
    outputs = (Output("a", (1, 2, 3), "stop"), Output("b", (1, 2), "length"))
    completion = Completion(outputs, 1200, 200, Seconds(0.5, 1.0, 2.5))
    assert summary(completion) == (
        "prompt 1,200 tokens, 200 cached, 2,000.0/s; text 5 tokens, 2.0/s; first after 1.00 s; stop, length"
    )


def test_one_token_is_one() -> None:
    completion = Completion((), 1, 0, Seconds(0.0, 0.5, 0.5))
    assert summary(completion).startswith("prompt 1 token, ")


def test_keys_and_values_are_held_as_asked(run: Run) -> None:
    exact, rounded = (
        lines(run("score", STORIES, "a little girl", "--cache", name, "--json")[1])[0]["logprob"]
        for name in ("f32", "int8")
    )
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.5)
    status, _, err = run("generate", STORIES, "Tom", "--cache", "bf61")
    assert status == USER
    assert "did you mean 'bf16'?" in err


def test_amounts_of_memory() -> None:
    assert [size_bytes(text) for text in ("5", "2 kB", "1.5KiB", "3MiB", "2GiB")] == [
        5, 2000, 1536, 3 << 20, 2 << 30,
    ]  # fmt: skip


class TestChat:
    def test_a_pipe_is_a_conversation(self, run: Run, talker: Path, tmp_path: Path) -> None:
        path = tmp_path / "talk.json"
        said = f"Once upon a time\n/system Tom\nLily \\\nsaw\n/save {path}\n/undo\n/tokens\n/exit\nnever\n"
        status, out, err = run("chat", talker, "--max-tokens", 6, stdin=said.encode())
        assert status == 0, err
        assert len(out.splitlines()) == 2
        saved = json.loads(path.read_text())
        assert [message["role"] for message in saved] == ["system", *["user", "assistant"] * 2]
        assert saved[3]["content"] == "Lily \nsaw"
        assert saved[2]["content"] == out.splitlines()[0]
        assert err.count("prompt ") == 2
        assert "taken back: Lily" in err
        assert "of 512 are left" in err
        again = run("chat", talker, "--max-tokens", 6, stdin=f"/load {path}\n/retry".encode())
        assert again[1] == out.splitlines()[1] + "\n"

    def test_json_and_the_options_of_answers(self, run: Run, talker: Path) -> None:
        said = "/set max_tokens 3\nTom\n/set top_q 1\n/set temperature x\n/bogus\n/clear\nLily\n"
        status, out, err = run("chat", talker, "--json", stdin=said.encode())
        assert status == USER
        answers = lines(out)
        assert [answer["input"] for answer in answers] == ["Tom", "Lily"]
        assert [answer["outputs"][0]["num_tokens"] for answer in answers] == [3, 3]
        assert answers[1]["num_prompt_tokens"] < 8
        errors = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
        assert [error["error"]["kind"] for error in errors] == ["OptionError"] * 3
        assert "top_p" in errors[0]["error"]["remedy"]

    def test_what_is_asked_again_is_cached_and_what_fails_is_not_kept(self, run: Run, talker: Path) -> None:
        long = "Once upon a time there was a girl named Lily. " * 8
        said = f"{long}\nTom\n{'x ' * 600}\nBen\n"
        status, out, err = run("chat", talker, "--max-tokens", 4, "--json", stdin=said.encode())
        assert status == USER
        first, second, third = lines(out)
        assert first["num_cached_tokens"] == 0
        assert second["num_cached_tokens"] >= 64
        assert third["num_prompt_tokens"] < second["num_prompt_tokens"] + 20
        assert "and the context 512" in err

    @pytest.mark.parametrize(
        ("content", "cause"),
        [
            ("nothing", "cannot be opened"),
            ("{", "holds no conversation"),
            ('[{"role": "user"}]', "holds no conversation"),
            ('[{"role": "user", "content": "x"}]', "in turn"),
            ('[{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]', "in turn"),
        ],
    )
    def test_a_file_that_is_no_conversation(
        self, run: Run, talker: Path, tmp_path: Path, content: str, cause: str
    ) -> None:
        path = tmp_path / "talk.json"
        if content != "nothing":
            path.write_text(content)
        status, _, err = run("chat", talker, stdin=f"/load {path}\n".encode())
        assert status == USER
        assert cause in " ".join(err.split())

    def test_a_template_of_the_users_own(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "own.jinja"
        path.write_text("Once upon a time{% for message in messages %} {{ message.content }}{% endfor %}")
        options = ("--chat-template", path, "--max-tokens", 4, "--json")
        status, out, err = run("chat", STORIES, *options, stdin=b"Tom\n")
        assert (status, err) == (0, "")
        with educe.generator(STORIES, chat_template=path) as writer:
            expected = writer.chat([{"role": "user", "content": "Tom"}], max_tokens=4)
        assert lines(out)[0]["outputs"][0]["text"] == expected.text
        assert expected.num_prompt_tokens > 4
        path.write_text("{% for")
        status, _, err = run("chat", STORIES, *options, stdin=b"Tom\n")
        assert status == USER
        assert lines(err)[0]["error"]["place"] == "chat template, line 1"

    def test_options_of_answers_are_checked_before_any_question(self, run: Run, talker: Path) -> None:
        status, out, err = run("chat", talker, "--min-tokens", 3, "--max-tokens", 2, stdin=b"Tom\nLily\n")
        assert (status, out) == (USER, "")
        assert err.count("OptionError --min-tokens: is 3; it has to be at most --max-tokens=2") == 1

    def test_a_model_without_a_template_is_refused_at_once(self, run: Run) -> None:
        status, _, err = run("chat", STORIES, stdin=b"Hello\n")
        assert status == UNSUPPORTED
        assert "no chat template" in err


def test_messages_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'one\n\n  \ntwo \\\nthree\n"""four\n\nfive"""\n"""six"""\n  """seven\neight\\'
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert list(messages(is_terminal=False)) == [
        "one",
        "two \nthree",
        "four\n\nfive",
        "six",
        "seven\neight\\",
    ]


class TestScores:
    def test_texts_files_and_what_stands_before(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a little girl")
        options = ("--after", "Once upon a time there was ", "--json", "--tokens")
        status, out, err = run("score", STORIES, "a little girl", tmp_path / "a.txt", "", *options)
        assert status == USER
        text, file = lines(out)
        assert text["logprob"] == file["logprob"] == pytest.approx(-1.244, abs=0.05)
        assert text["perplexity"] == pytest.approx(1.28, abs=0.02)
        assert "".join(token["text"] for token in text["tokens"]).strip() == "a little girl"
        assert lines(err)[0]["error"]["cause"] == "there is nothing to weigh"

    def test_words_for_people(self, run: Run) -> None:
        status, out, _ = run("score", STORIES, "Lily \x1b[2J", "--tokens")
        assert status == 0
        assert "' Lily'" in out
        assert "likeliest" in out
        assert "\x1b" not in out

    def test_several_likeliest_are_shown(self, run: Run) -> None:
        _, out, _ = run("score", STORIES, "Lily went", "--tokens", "--top", 3, "--json")
        assert [len(token["top"]) for token in lines(out)[0]["tokens"]] == [3, 3, 3]
        _, out, _ = run("score", STORIES, "Lily went", "--tokens", "--top", 3)
        (row,) = (line for line in out.splitlines() if "│ ' Lily' │" in line)
        assert row.split("│")[3].strip().startswith("' Once', ")
        assert row.split("│")[3].count(", ") == 2
        status, _, err = run("score", STORIES, "Lily went", "--top", 3)
        assert status == USER
        assert "add --tokens" in err

    def test_a_window_that_does_not_fit_is_a_fault_of_the_command(self, run: Run) -> None:
        status, out, err = run("perplexity", STORIES, *[ROOT / "LICENSE"] * 2, "--window", 10**6)
        assert (status, out) == (USER, "")
        assert err == "OptionError --window: expected 1 to 512 tokens, found 1,000,000\n"

    def test_perplexity_of_long_texts(self, run: Run, tmp_path: Path, story: str) -> None:
        path = tmp_path / "a.txt"
        path.write_text(story * 10)
        options = (path, tmp_path / "none", "--window", 64, "--stride", 32)
        status, out, err = run("perplexity", STORIES, *options, "--json")
        assert status == USER
        (answer,) = lines(out)
        assert answer["num_bytes"] == path.stat().st_size
        assert 1 < answer["perplexity"]["per_byte"] < answer["perplexity"]["per_token"] < 10
        assert 0 < answer["perplexity"]["standard_error"] < 1
        assert lines(err)[0]["input"] == str(tmp_path / "none")
        shown = run("perplexity", STORIES, *options)[1]
        assert f"{answer['perplexity']['per_token']:.4f}" in shown
        assert f"{answer['bits_per_byte']:.4f}" in shown


def test_options_have_the_names_of_keywords() -> None:
    """The names that differ are those that `docs/cli.md` explains."""
    generator = {*api.GeneratorOptions.__optional_keys__, "chat_template", "draft"}
    for group, keywords in (
        (WritingOptions, generator),
        (CachingOptions, api.ReaderOptions.__optional_keys__),
        (EmbeddingOptions, api.EmbedderOptions.__optional_keys__),
    ):
        assert {field.name for field in fields(group)} == keywords - {"progress"}
    by_line = {"tools", "tool_choice", "tool_format", "parallel_tool_calls"}
    by_line |= {"template_options", "priority", "salt"}
    assert {field.name for field in fields(TextOptions)} == set(OPTIONS) - by_line
    for group, command in (
        (WritingOptions, "generate"),
        (EmbeddingOptions, "embed"),
        (TextOptions, "generate"),
    ):
        flags = {parameter.name: parameter.opts[0] for parameter in subcommand(command).params}
        for name in (field.name for field in fields(group)):
            expected = {"memory_bytes": "--memory"}.get(name, "--" + name.replace("_", "-"))
            assert flags[name] == expected


@pytest.mark.parametrize("door", ["generator", "translator", "transcriber", "embedder"])
def test_a_keyword_that_no_door_has_is_named(door: str) -> None:
    with pytest.raises(OptionError, match="precision"):
        getattr(educe, door)("nothing", precison="f32")
