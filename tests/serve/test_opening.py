"""What `educe serve` makes of its arguments, before it listens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from educe.cli.app import SUBCOMMANDS, subcommand
from educe.cli.serve import OpeningOptions
from educe.errors import ModelFileError, OptionError, UnsupportedFormatError
from educe.serve import ModelSource, ServerSettings
from educe.serve.opening import open_model, with_options
from tests.conftest import ROOT
from tests.serve.models import write_embedder
from tests.test_cli import educe

ZOO = ROOT / "zoo"
MLP = ZOO / "breast_cancer" / "model.onnx"


def repository(folder: Path) -> Path:
    """Return a folder of models: one in two versions, one without, and a folder that holds none."""
    for name in ("a/1", "a/2", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.onnx").write_bytes(MLP.read_bytes())
    (folder / "notes").mkdir()
    (folder / ".git").mkdir()
    return folder


@pytest.mark.parametrize(
    "text", ["zoo/mnist", "zoo/mnist/model.onnx", "x=zoo/mnist", "zoo/stories260K", "zoo/transliteration"]
)
def test_a_model_is_one_source(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert ModelSource.find(text) == [ModelSource.parse(text)]


def test_a_folder_of_models_is_each_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = ModelSource.find(str(repository(tmp_path)))
    assert [(each.name, each.newest()[0]) for each in found] == [("a", "2"), ("b", "1")]
    assert "these hold no model and are left out: notes" in caplog.text
    (only,) = ModelSource.find(f"own={tmp_path / 'a'}")
    assert (only.name, only.newest()[0]) == ("own", "2")
    with pytest.raises(OptionError, match="holds 2 models"):
        ModelSource.find(f"own={tmp_path}")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "versions" / "1").mkdir(parents=True)
    (tmp_path / "text.onnx").write_text("a text")
    (tmp_path / "nothing.onnx").write_bytes(b"")
    for name, message in (
        ("none", "no such file or folder"),
        ("empty", "holds no model"),
        ("versions", "holds no model"),
        ("text.onnx", "no model that Educe knows"),
        ("nothing.onnx", "empty"),
    ):
        with pytest.raises(ModelFileError, match=message):
            ModelSource.find(str(tmp_path / name))
    with pytest.raises(UnsupportedFormatError):
        ModelSource.find(str(ZOO / "images" / "zebra.jpeg"))


def test_options_are_for_the_models_that_take_them(tmp_path: Path) -> None:
    sources = [
        ModelSource("mlp", MLP),
        ModelSource("writer", ZOO / "stories260K"),
        ModelSource("vectors", write_embedder(tmp_path)),
    ]
    found = with_options(sources, {"context": 64, "precision": "f32", "threads": 1})
    assert [dict(each.options) for each in found] == [
        {"threads": 1},
        {"context": 64, "precision": "f32", "threads": 1},
        {"precision": "f32", "threads": 1},
    ]
    for each in found:
        open_model(each.path, each.options).close()
    with pytest.raises(OptionError, match="it is for models of the kind generator") as caught:
        with_options([sources[0], sources[2]], {"context": 64})
    assert caught.value.place == "context"


def test_a_model_is_one_whose_newest_version_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "writer"
    shutil.copytree(ZOO / "stories260K", folder / "1")
    (folder / "2").mkdir()
    for text in (folder, folder.parent):
        (source,) = ModelSource.find(str(text))
        assert source.versions() == [("2", folder / "2"), ("1", folder / "1")]
        (found,) = with_options([source], {"context": 64})
        assert found.options == {"context": 64}


def test_origins_and_host_names_that_requests_can_have_are_taken() -> None:
    origins = ("http://localhost:3000", "https://a-b.example.org", "http://[::1]:8080", "app://localhost")
    ServerSettings(origins=origins, host_names=("A.example.org", "models", "[fe80::1]"))


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_no_two_options_have_one_name(name: str) -> None:
    names = [option for each in subcommand(name).params for option in (*each.opts, *each.secondary_opts)]
    assert len(names) == len(set(names))


def test_options_go_to_the_doors_by_their_keywords() -> None:
    options = OpeningOptions(kv_memory=2**26, context=64, lookup=False, precision="f32")
    expected = {"memory_bytes": 2**26, "context": 64, "lookup": False, "precision": "f32"}
    assert options.keywords() == expected
    (source,) = options.apply([ModelSource("writer", ZOO / "stories260K")])
    assert source.options == expected
    open_model(source.path, source.options).close()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("zoo/none",), "zoo/none: there is no such file or folder"),
        (("zoo/mobilnet_v2",), "did you mean zoo/mobilenet_v2?"),
        (("zoo/LICENSES",), "the folder holds no model"),
        (("zoo/breast_cancer", "--context", "64"), "--context: no model that is served takes this option"),
        (("zoo/breast_cancer", "--kv-memory", "1GiB"), "--kv-memory: no model that is served takes this"),
        (("zoo/stories260K", "--chat-template", "none.jinja"), "--chat-template: there is no 'none.jinja'"),
        (("zoo/breast_cancer", "--target-latency-ms", "-1"), "--target-latency-ms: expected milliseconds"),
        (("zoo/breast_cancer", "--host", "0.0.0.0"), "--api-key-file, --tls-cert and --tls-key"),
        (("zoo/breast_cancer", "--api-key", "short"), "--api-key: a key has less than 16 characters"),
        (
            ("zoo/breast_cancer", "--tls-cert", "/nope", "--tls-key", "/nope"),
            "--tls-cert: there is no '/nope'",
        ),
        (("zoo/breast_cancer", "--timeout-s", "0"), "--timeout-s: expected more than 0"),
        (("zoo/breast_cancer", "--memory", "0"), "--memory: expected more than 0"),
        (("zoo/breast_cancer", "--memory", "1kB"), "needs 31.2 KiB, and --memory is 1000 bytes"),
        (
            ("zoo/breast_cancer", "--engine", "natve"),
            "--engine: the model 'breast_cancer': there is no engine",
        ),
        (("zoo/breast_cancer", "--threads", "100000"), "--threads=100000 is more than"),
        (
            ("zoo/stories260K", "--kv-cache", "fp8"),
            "--kv-cache: the model 'stories260K': unknown cache 'fp8'",
        ),
        (
            ("zoo/stories260K", "--precision", "fp8"),
            "--precision: the model 'stories260K': unknown precision",
        ),
        (
            ("zoo/stories260K", "--context", "99999999"),
            "--context: the model 'stories260K': expected 1 to 512",
        ),
        (
            ("zoo/stories260K", "--kv-memory", "1kB"),
            "--kv-memory: the model 'stories260K': 1000 bytes hold no",
        ),
        (("zoo/stories260K", "--draft", "zoo/mnist"), "--draft: 'zoo/mnist' is no language model"),
        (("zoo/mnist", "--origin", "foo"), "--origin: 'foo' is no origin"),
        (("zoo/mnist", "--origin", "https://a.org/"), "--origin: 'https://a.org/' is no origin"),
        (("zoo/mnist", "--origin", "https://a.org:443"), "--origin: 'https://a.org:443' is no origin"),
        (("zoo/mnist", "--host-name", "http://a"), "--host-name: 'http://a' is no name of a host"),
        (("zoo/mnist", "--host-name", "a:80"), "--host-name: 'a:80' is no name of a host"),
    ],
)
def test_what_is_wrong_is_said_before_it_listens(line: tuple[str, ...], message: str) -> None:
    done = educe("serve", *line, "--port", "0")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_a_key_of_the_environment_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDUCE_API_KEY", "short")
    done = educe("serve", "zoo/mnist", "--port", "0")
    assert done.returncode == 2
    assert "EDUCE_API_KEY: a key has less than 16 characters" in " ".join(done.stderr.split())
