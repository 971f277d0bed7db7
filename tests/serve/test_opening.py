"""What `educe serve` makes of its arguments, before it listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from educe.cli.app import SUBCOMMANDS, subcommand
from educe.cli.serve import OpeningOptions
from educe.errors import ModelFileError, OptionError, UnsupportedFormatError
from educe.serve import ModelSource
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
    ],
)
def test_what_is_wrong_is_said_before_it_listens(line: tuple[str, ...], message: str) -> None:
    done = educe("serve", *line, "--port", "0")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
