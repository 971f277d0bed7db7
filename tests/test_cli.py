"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.conftest import ROOT, tiny_model

USER, UNSUPPORTED = 2, 3


def educe(
    *arguments: object, stdin: bytes | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "educe", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, cwd=cwd, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def lines(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


class TestPredict:
    def test_json_is_one_object_a_line_with_the_documented_fields(self, zoo: Path) -> None:
        done = educe("predict", "zoo/mobilenet_v2", "zoo/images/zebra.jpeg", "zoo/images/bee.jpeg", "--json")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        zebra, bee = lines(done)
        assert zebra["input"] == "zoo/images/zebra.jpeg"
        assert zebra["task"] == "image-classification"
        assert zebra["predictions"][0]["label"] == "zebra"
        assert zebra["predictions"][0]["index"] == 341
        assert 0.9 < zebra["predictions"][0]["score"] <= 1
        assert len(zebra["predictions"]) == 5
        assert len(zebra["model"]["sha256"]) == 64
        assert zebra["engine"] == "native"
        assert zebra["card"] == {"source": "educe.toml", "guessed": False}
        assert set(zebra["seconds"]) == {"preprocess", "run", "postprocess", "compile"}
        assert set(zebra) == {"input", "task", "predictions", "model", "engine", "card", "seconds"}
        assert bee["predictions"][0]["label"] == "bee"

    def test_compiling_is_told_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EDUCE_CACHE", "off")
        arguments = ("predict", "zoo/mnist", "zoo/mnist/inputs/7.png")
        (answer,) = lines(educe(*arguments, "--json"))
        assert answer["seconds"]["run"] < answer["seconds"]["compile"]
        assert ", after compiling for " in educe(*arguments).stdout
        both = educe(*arguments, "zoo/mnist/inputs/1.png")
        assert "by native, after compiling for " in both.stderr
        assert "compiling" not in both.stdout
        assert "compiling" not in educe(*arguments, "--engine", "onnxruntime").stdout

    @pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no pipes that break")
    def test_a_reader_that_goes_away_ends_it_quietly(self) -> None:
        command = (
            f"{sys.executable} -m educe predict zoo/mobilenet_v2 zoo/images --json | head -c 1 >/dev/null"
        )
        done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=ROOT, check=False)
        assert done.stderr == b""

    def test_words_for_people(self) -> None:
        done = educe("predict", "zoo/mobilenet_v2", "zoo/images/zebra.jpeg", "--top", 1)
        assert done.returncode == 0
        assert "zebra" in done.stdout
        assert "%" in done.stdout

    def test_folders_patterns_and_standard_input(self, zoo: Path) -> None:
        photo = (zoo / "images" / "zebra.jpeg").read_bytes()
        done = educe(
            "predict", "zoo/mobilenet_v2", "zoo/images/be*.jpeg", "-", "zoo/detection", "--json", stdin=photo
        )
        answers = lines(done)
        assert done.returncode == 0, done.stderr
        assert [answer["input"] for answer in answers[:2]] == ["zoo/images/bee.jpeg", "-"]
        assert answers[1]["predictions"][0]["label"] == "zebra"
        assert len(answers) == 8

    def test_video_is_answered_frame_by_frame_and_saved(self, tmp_path: Path) -> None:
        done = educe(
            "predict", "zoo/yolox_nano", "zoo/video/traffic_frames.mp4", "--json", "--save", tmp_path / "new"
        )
        answers = lines(done)
        assert done.returncode == 0, done.stderr
        assert [answer["frame"] for answer in answers] == list(range(20))
        assert answers[3]["time_seconds"] == pytest.approx(0.1, abs=0.01)
        assert answers[0]["predictions"][0]["label"] == "car"
        assert (tmp_path / "new" / "traffic_frames.mp4").stat().st_size > 10_000

    def test_pictures_are_saved_with_their_boxes(self, tmp_path: Path) -> None:
        photo = "zoo/detection/000000160012.jpg"
        done = educe("predict", "zoo/yolox_nano", photo, photo, "--save", tmp_path)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "000000160012.jpg") as saved:
            assert saved.size == (640, 461)
        assert (tmp_path / "000000160012-2.jpg").is_file()

    def test_inputs_are_never_overwritten(self, tmp_path: Path, zoo: Path) -> None:
        shutil.copy(zoo / "images" / "zebra.jpeg", tmp_path / "z.jpg")
        before = (tmp_path / "z.jpg").read_bytes()
        done = educe("predict", "zoo/mobilenet_v2", tmp_path, "--save", tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "z.jpg").read_bytes() == before
        assert (tmp_path / "z-2.jpg").is_file()

    def test_no_saved_file_replaces_another(self, tmp_path: Path, zoo: Path) -> None:
        for name in ("a/a.png", "b/a.png", "b/a-2.png"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            shutil.copy(zoo / "mnist" / "inputs" / "1.png", path)
        out = tmp_path / "out"
        inputs = (tmp_path / "a" / "a.png", tmp_path / "b" / "a.png", tmp_path / "b" / "a-2.png")
        assert educe("predict", "zoo/mnist", *inputs, "--save", out).returncode == 0
        assert len(list(out.iterdir())) == 3

    def test_a_name_that_is_not_utf8(self, tmp_path: Path, zoo: Path) -> None:
        path = os.fsencode(tmp_path) + b"/\xff.png"
        shutil.copy(zoo / "mnist" / "inputs" / "1.png", path)
        for more in ([], ["--json"]):
            done = educe("predict", "zoo/mnist", os.fsdecode(path), "zoo/mnist/inputs/7.png", *more)
            assert done.returncode == 0, done.stderr
            assert "\ufffd.png" in done.stdout
            assert "7.png" in done.stdout

    def test_a_hugging_face_folder_is_found(self, tmp_path: Path, zoo: Path) -> None:
        (tmp_path / "onnx").mkdir()
        shutil.copy(zoo / "mnist" / "model.onnx", tmp_path / "onnx" / "model.onnx")
        shutil.copy(zoo / "mnist" / "model.onnx", tmp_path / "onnx" / "model_other.onnx")
        assert educe("inspect", tmp_path, "--json").returncode == 0

    def test_tables(self) -> None:
        done = educe("predict", "zoo/breast_cancer", "zoo/breast_cancer/inputs/patients.csv", "--json")
        answers = lines(done)
        assert [answer["row"] for answer in answers] == list(range(57))
        assert answers[0]["predictions"][0]["label"] == "malignant"

    def test_tensors(self, tmp_path: Path) -> None:
        onnx.save(tiny_model(), tmp_path / "tiny.onnx")
        np.savez(tmp_path / "x.npz", x=np.ones((2, 3), np.float32))
        done = educe(
            "predict", tmp_path / "tiny.onnx", tmp_path / "x.npz", "--json", "--save", tmp_path / "out"
        )
        assert done.returncode == 0, done.stderr
        (answer,) = lines(done)
        assert answer["task"] == "tensor"
        assert answer["card"] == {"source": "signature", "guessed": True}
        assert answer["outputs"]["y"]["shape"] == [2, 2]
        assert answer["outputs"]["y"]["values"] == [[0, 3], [0, 3]]
        assert np.load(answer["outputs"]["y"]["file"])["y"].tolist() == [[0, 3], [0, 3]]
        assert "predictions" not in answer
        assert "guess" in done.stderr

    def test_a_guess_is_called_a_guess(self, tmp_path: Path, zoo: Path) -> None:
        shutil.copy(zoo / "mobilenet_v2" / "model.onnx", tmp_path / "alone.onnx")
        done = educe("predict", tmp_path / "alone.onnx", "zoo/images/zebra.jpeg", "--json")
        assert lines(done)[0]["card"] == {"source": "signature", "guessed": True}
        assert "warning the preprocessing is a guess" in " ".join(done.stderr.split())

    def test_a_preset_and_a_card_are_taken(self, tmp_path: Path, zoo: Path) -> None:
        shutil.copy(zoo / "yolox_nano" / "model.onnx", tmp_path / "alone.onnx")
        photo = "zoo/detection/000000160012.jpg"
        preset = educe("predict", tmp_path / "alone.onnx", photo, "--card", "yolox", "--json")
        card = educe(
            "predict", tmp_path / "alone.onnx", photo, "--card", zoo / "yolox_nano/educe.toml", "--json"
        )
        assert lines(preset)[0]["card"] == {"source": "preset yolox", "guessed": False}
        assert lines(preset)[0]["predictions"][0]["label"] == "pizza"
        assert lines(card)[0]["predictions"][0]["label"] == "pizza"

    def test_another_engine_answers_the_same(self) -> None:
        arguments = ("predict", "zoo/mnist", "zoo/mnist/inputs/7.png", "--json", "--engine")
        (one,), (other,) = lines(educe(*arguments, "onnxruntime")), lines(educe(*arguments, "reference"))
        assert other["engine"] == "reference"
        assert one["predictions"] == other["predictions"]


class TestBadInput:
    """Each fault: a typed error with path, cause and remedy; the others are answered; the summary counts."""

    def check(self, done: subprocess.CompletedProcess[str], kind: str, status: int, *texts: str) -> None:
        assert done.returncode == status, done.stderr
        assert kind in done.stderr
        assert "Traceback" not in done.stderr
        for text in texts:
            assert text in " ".join(done.stderr.split())

    def test_others_are_still_answered(self, tmp_path: Path, zoo: Path) -> None:
        broken = tmp_path / "broken.jpg"
        broken.write_bytes((zoo / "images" / "zebra.jpeg").read_bytes()[:9000])
        done = educe("predict", "zoo/mobilenet_v2", broken, "zoo/images/zebra.jpeg", "absent.jpg", "--top", 1)
        self.check(done, "InputError", USER, str(broken), "broken picture", "→", "1 answered, 2 failed")
        assert "zebra" in done.stdout

    def test_failures_as_json(self, tmp_path: Path) -> None:
        done = educe("predict", "zoo/mnist", "absent.png", "zoo/mnist/inputs/1.png", "--json")
        assert done.returncode == USER
        assert [answer["input"] for answer in lines(done)] == ["zoo/mnist/inputs/1.png"]
        failure = json.loads(done.stderr)
        assert failure["input"] == "absent.png"
        assert failure["error"]["kind"] == "InputError"
        assert failure["error"]["remedy"]

    @pytest.mark.parametrize(
        ("content", "kind", "status"),
        [
            (b"", "ModelFileError", USER),
            (b"<html><body>Not found</body></html>", "ModelFileError", USER),
            (bytes(range(256)) * 9, "ModelFileError", USER),
            (b"GGUF\x03\0\0\0", "UnsupportedFormatError", UNSUPPORTED),
        ],
    )
    def test_models(self, tmp_path: Path, content: bytes, kind: str, status: int) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        self.check(educe("predict", path, "zoo/images/zebra.jpeg"), kind, status, str(path))

    def test_an_operator_that_no_engine_has(self, tmp_path: Path) -> None:
        model = tiny_model()
        model.graph.node[1].op_type = "Mystery"
        onnx.save(model, tmp_path / "model.onnx")
        done = educe("predict", tmp_path / "model.onnx", "x.npy")
        self.check(done, "UnsupportedModelError", UNSUPPORTED, "node 'relu' (Mystery")

    def test_wrong_dtype_and_shape(self, tmp_path: Path) -> None:
        onnx.save(tiny_model(), tmp_path / "model.onnx")
        np.save(tmp_path / "type.npy", np.ones((2, 3), np.int64))
        np.save(tmp_path / "shape.npy", np.ones((2, 4), np.float32))
        done = educe("predict", tmp_path / "model.onnx", tmp_path / "type.npy", tmp_path / "shape.npy")
        self.check(done, "InputError", USER, "i64", "expected 3 in dimension 1 of f32[N,3], found [2, 4]")

    def test_a_bomb(self, tmp_path: Path) -> None:
        side = 30_000

        def chunk(kind: bytes, content: bytes) -> bytes:
            return (
                struct.pack(">I", len(content))
                + kind
                + content
                + struct.pack(">I", zlib.crc32(kind + content))
            )

        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        rows = zlib.compress(b"\0" * ((side // 8 + 1) * side), 9)
        path = tmp_path / "bomb.png"
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        )
        start = time.perf_counter()
        done = educe("predict", "zoo/mnist", path)
        self.check(done, "LimitError", USER, str(path), "pixels")
        assert time.perf_counter() - start < 10

    def test_a_table_without_a_column(self, tmp_path: Path) -> None:
        table = (
            (ROOT / "zoo/breast_cancer/inputs/patients.csv").read_text().replace("mean radius", "mean radio")
        )
        path = tmp_path / "rows.csv"
        path.write_text(table)
        done = educe("predict", "zoo/breast_cancer", path)
        self.check(done, "InputError", USER, str(path), "'mean radius'", "'mean radio'")

    def test_an_input_that_cannot_be_read_to_its_end(self) -> None:
        # Reading this file fails with an input/output error, as a bad disk does.
        done = educe("predict", "zoo/mnist", "/proc/self/mem", "zoo/mnist/inputs/7.png", "--top", 1)
        self.check(done, "InputError", USER, "/proc/self/mem", "cannot be read", "1 answered, 1 failed")

    def test_a_wrong_card_is_refused(self, zoo: Path) -> None:
        photo = "zoo/images/zebra.jpeg"
        self.check(educe("predict", "zoo/face_detection", photo, "--card", "imagenet"), "CardError", USER)
        self.check(educe("predict", "zoo/yolox_nano", photo, "--card", "imagenet"), "CardError", USER)
        self.check(educe("predict", "zoo/yolox_nano", photo, "--card", "yolov8"), "CardError", USER)

    def test_errors_of_the_whole_command_are_json_too(self) -> None:
        done = educe("predict", "absent.onnx", "x.png", "--json")
        assert done.returncode == USER
        assert json.loads(done.stderr)["error"]["kind"] == "ModelFileError"

    def test_what_was_typed_wrong_is_said_as_all_else_is(self) -> None:
        done = educe("predict", "zoo/mnist", "--bogus", "--json")
        assert done.returncode == USER
        assert json.loads(done.stderr)["error"]["cause"] == "no such option: --bogus"
        for arguments in ((), ("cache",)):
            done = educe(*arguments)
            assert (done.returncode, done.stderr) == (USER, "")
            assert "Usage: educe" in done.stdout

    def test_options(self) -> None:
        photo = "zoo/mnist/inputs/1.png"
        self.check(
            educe("predict", "zoo/mnist", photo, "--engine", "onnxruntim"),
            "OptionError",
            USER,
            "'onnxruntime'?",
        )
        self.check(
            educe("predict", "zoo/mnist", photo, "--task", "classify"), "OptionError", USER, "unknown task"
        )
        self.check(educe("predict", "zoo/mnist", photo, "--card", "yolo"), "OptionError", USER, "yolox")
        self.check(
            educe("predict", "zoo/mnist", photo, "--batch", 3), "OptionError", USER, "exactly 1 at once"
        )
        self.check(
            educe("predict", "zoo/mnist", photo, "--threads", 10**6), "OptionError", USER, "--threads=10"
        )
        self.check(educe("bench", "zoo/mnist", "--batch", 4), "OptionError", USER, "exactly 1 at once")
        self.check(educe("verify", "zoo/mnist", "--against", "native"), "OptionError", USER, "itself")
        assert educe("predict", "zoo/mnist", photo, "--top", 0).returncode == USER
        assert educe("predict").returncode == USER

    def test_names_that_no_file_has(self) -> None:
        long = "x" * 400
        for model in ("zoo/mnist", "zoo/comment_spam"):
            self.check(educe("predict", model, long), "InputError", USER, long)
            self.check(educe("predict", model, ""), "InputError", USER, "is empty")
        self.check(educe("predict", "zoo/comment_spam", "you won"), "InputError", USER, "from standard input")
        self.check(educe("inspect", long), "ModelFileError", USER, long)
        self.check(educe("inspect", ""), "", USER, "name is empty")
        self.check(educe("predict", "zoo/mnist", "x.png", "--save", ""), "", USER, "name is empty")
        self.check(
            educe("predict", "zoo/mnist", "x.png", "--save", long), "OptionError", USER, "cannot be made"
        )

    def test_data_that_cannot_be_read(self, tmp_path: Path) -> None:
        for data, text in (("/proc/self/mem", "cannot be read"), ("absent.png", "cannot be opened")):
            done = educe("verify", "zoo/mnist", "--against", "reference", "--data", data)
            self.check(done, "InputError", USER, data, text)
        done = educe("verify", "zoo/mnist", "--against", "reference", "--data", "-", stdin=b"")
        self.check(done, "InputError", USER, "-: the file is empty")

    def test_usage_names_the_command(self) -> None:
        assert "the form is educe predict [OPTIONS] {MODEL} {INPUT}...; -h" in educe("predict").stderr

    def test_an_empty_folder_and_an_unmatched_pattern(self, tmp_path: Path) -> None:
        done = educe("predict", "zoo/mnist", tmp_path, "zoo/none*.png", "zoo/mnist/inputs/1.png", "--top", 1)
        self.check(done, "InputError", USER, "holds no file", "no file matches", "1 answered, 2 failed")

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        done = educe("predict", "zoo/mnist", "zoo/mnist/inputs/1.png", "--save", tmp_path / "file")
        self.check(done, "OptionError", USER, "cannot be made")


class TestOtherCommands:
    def test_inspect(self) -> None:
        done = educe("inspect", "zoo/silero_vad", "--json")
        (facts,) = lines(done)
        assert done.returncode == 0, done.stderr
        assert facts["signature"]["inputs"]["sr"] == "i64[]"
        assert facts["card"]["source"] == "educe.toml"
        assert facts["card"]["content"]["state"] == {"state": "stateN"}
        assert facts["opsets"] == {"file": {"ai.onnx": 15}, "internal": {"ai.onnx": 21}}
        assert set(facts["unsupported"]) == {"native", "onnxruntime", "reference", "openvino"}
        assert facts["unsupported"]["onnxruntime"] == []
        text = educe("inspect", "zoo/yolox_nano").stdout
        assert "695e750a5d57" in text
        assert "letterbox" in text

    def test_verify(self) -> None:
        done = educe("verify", "zoo/mnist", "--against", "reference", "--json")
        (found,) = lines(done)
        assert done.returncode == 0, done.stderr
        assert found["agree"]
        assert "┃ relative ┃\n" in educe("verify", "zoo/mnist", "--against", "reference").stdout
        assert found["differences"][0]["max_relative"] < 1e-4
        strict = educe("verify", "zoo/kws", "--against", "reference", "--tolerance", "1e-15", "--json",
                       "--data", "zoo/kws/inputs/yes.wav")  # fmt: skip
        assert strict.returncode == 1
        assert lines(strict)[0]["first_difference"]["node"]

    def test_verify_in_words_names_the_first_node(self) -> None:
        done = educe("verify", "zoo/kws", "--against", "reference", "--tolerance", "1e-12")
        assert done.returncode == 1
        assert "differ" in done.stdout
        assert "they part first at node" in done.stderr

    def test_verify_with_a_stream(self) -> None:
        done = educe(
            "verify", "zoo/silero_vad", "--against", "reference", "--data", "zoo/silero_vad/inputs/jfk.wav"
        )
        assert done.returncode == 0, done.stderr
        assert "stateN" in done.stdout

    def test_bench(self) -> None:
        done = educe(
            "bench",
            "zoo/mnist",
            "absent.onnx",
            "--engine",
            "onnxruntime",
            "--against",
            "reference",
            "--seconds",
            0.05,
            "--json",
        )
        first, second = lines(done)
        assert done.returncode == USER
        assert "absent.onnx" in done.stderr
        assert first["ratio"] == 1
        assert second["ratio"] > 1
        assert first["min_seconds"] <= first["median_seconds"] <= first["p99_seconds"]
        assert first["peak_memory_bytes"] > 0
        assert first["start_seconds"] > first["min_seconds"]
        table = educe("bench", "zoo/mnist", "--against", "reference", "--seconds", 0.05, "--no-memory").stdout
        assert "items/s" in table
        assert "times as fast as reference" in table

    def test_bench_refuses_an_engine_named_twice(self) -> None:
        assert educe("bench", "zoo/mnist", "--engine", "reference,reference").returncode == USER

    def test_engines_and_doctor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = [row["name"] for row in lines(educe("engines", "--json"))]
        assert names == ["native", "onnxruntime", "reference", "openvino"]
        assert "onnxruntime" in educe("engines").stdout
        monkeypatch.setenv("EDUCE_ENGINE", "naive")
        assert "EDUCE_ENGINE=naive is none of them" in educe("engines").stderr
        monkeypatch.delenv("EDUCE_ENGINE")
        (facts,) = lines(educe("doctor", "--json"))
        assert all(peaks["fma_gflops"] > 0 for peaks in facts["peaks"])
        assert facts["machine"]["cores"] >= 1
        assert facts["limits"]["image_pixels"] == 100_000_000
        assert "GFLOP/s" in educe("doctor").stdout

    def test_doctor_shows_wrong_settings_with_their_remedies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = {
            "EDUCE_TARGET": ("sse9", "is no target", "known: "),
            "EDUCE_CACHE_BYTES": ("abc", "is not a number of bytes", "set it to a number"),
            "EDUCE_THREADS": ("0", "is not a number of threads", "set it to a number"),
            "EDUCE_ENGINE": ("naive", "there is no engine", "did you mean 'native'?"),
            "EDUCE_CACHE": ("/dev/null/educe", "cannot be written", "or off"),
        }
        for variable, (value, _, _) in wrong.items():
            monkeypatch.setenv(variable, value)
        done = educe("doctor")
        assert done.returncode == USER, done.stderr
        text = " ".join(done.stdout.split())
        for variable, (value, cause, remedy) in wrong.items():
            _, _, shown = text.partition(f"{variable}={value} wrong: ")
            assert cause in shown
            assert remedy in shown
        assert "not measured: EDUCE_TARGET='sse9' is no target" in text
        assert "image_pixels" in text
        (facts,) = lines(educe("doctor", "--json"))
        assert facts["wrong_settings"].keys() == wrong.keys()
        assert "is no target" in facts["peaks"][0]["error"]["cause"]

    def test_demo(self, tmp_path: Path, zoo: Path) -> None:
        done = educe("demo", "--zoo", zoo, "--save", tmp_path / "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for text in (
            "zebra",
            "Stop 100%",
            "bus 90%",
            "face",
            "speech 0.3-2.3 s",
            "python",
            "spam",
            "malignant",
            "Où êtes-vous ?",
            "Once upon a time, there was a little girl",
        ):
            assert text in done.stdout
        assert (tmp_path / "out" / "yolox_nano" / "traffic_frames.mp4").is_file()
        assert len(list((tmp_path / "out" / "mobilenet_v2").iterdir())) == 16

    def test_demo_without_the_zoo(self, tmp_path: Path) -> None:
        done = educe("demo", "--zoo", tmp_path, cwd=tmp_path)
        assert done.returncode == USER
        assert "Traceback" not in done.stderr

    def test_help_and_version(self) -> None:
        assert educe("--version").stdout.startswith("educe 0.")
        overview = educe("--help").stdout
        for command in ("predict", "generate", "chat", "inspect", "verify", "bench", "doctor", "demo"):
            assert command in overview
            assert "Example" in educe(command, "--help").stdout

    @pytest.mark.parametrize(
        ("typed", "expected"),
        [("educe pe", "perplexity"), ("educe score x --af", "--after"), ("educe cache cl", "clear")],
    )
    def test_a_shell_completes_commands_and_their_options(
        self, monkeypatch: pytest.MonkeyPatch, typed: str, expected: str
    ) -> None:
        monkeypatch.setenv("_EDUCE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
        assert educe().stdout.split() == [expected]

    def test_a_misspelt_command_is_answered_with_the_one_that_was_meant(self) -> None:
        done = educe("generat")
        assert done.returncode == USER
        assert "Did you mean 'generate'?" in done.stderr

    @pytest.mark.parametrize("module", ["typer", "numpy", "educe.bench.measure"])
    def test_an_interrupt_ends_it_with_one_line(self, module: str) -> None:
        code = f"""
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["educe", "bench", "zoo/mnist"]
from educe.cli.main import run
run()
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert (done.returncode, done.stderr) == (130, "interrupted\n")

    @pytest.mark.parametrize(
        "more", [["engines"], ["engines", "--json"], ["compile", "zoo/mnist", "--show", "asm"]]
    )
    def test_an_output_that_is_full(self, more: list[str]) -> None:
        command = f"{sys.executable} -m educe {' '.join(more)} > /dev/full"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == USER
        assert "the output cannot be written: No space left on device" in done.stderr
        assert "OptionError" in done.stderr
        assert "Exception ignored" not in done.stderr

    @pytest.mark.parametrize(
        ("closed", "more", "status", "text"),
        [
            (">&-", "engines", 0, ""),
            (">&-", "predict zoo/mnist zoo/mnist/inputs/7.png --json", 0, ""),
            ("2>&-", "inspect absent", USER, ""),
            ("<&-", "predict zoo/mnist -", USER, "the file is empty"),
        ],
    )
    def test_a_stream_that_is_closed(self, closed: str, more: str, status: int, text: str) -> None:
        command = f"{sys.executable} -m educe {more} {closed}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == status, done.stderr
        assert text in done.stderr

    def test_an_encoding_that_lacks_characters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        for arguments in (["inspect", "absent.onnx"], ["engines"], ["predict", "zoo/mnist", "é.png"]):
            done = educe(*arguments)
            assert done.returncode in (0, USER), done.stderr
            assert "Unicode" not in done.stderr

    def test_an_internal_fault_has_a_status_of_its_own(self, tmp_path: Path) -> None:
        code = (
            "import sys; from educe.cli import main, engines\n"
            "engines.engines = lambda: 1 / 0\n"
            "sys.argv = ['educe', 'engines']; main.run()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 4
        assert "ZeroDivisionError" in done.stderr
        assert "Traceback" not in done.stderr
