"""``educe inspect`` of a language model's own files."""

from __future__ import annotations

from pathlib import Path

from tests.test_checkpoint_folders import single
from tests.test_cli import educe, lines


def test_the_facts_of_a_language_model() -> None:
    (facts,) = lines(educe("inspect", "zoo/transliteration_int8", "--json"))
    assert facts["model_type"] == "m2m_100"
    assert facts["encodings"]["I8"] > facts["encodings"]["F32"]
    assert facts["tokenizer"] == ["source: words, 51 tokens", "target: words, 43 tokens"]
    assert facts["chat_template"] is None
    text = educe("inspect", "zoo/stories260K").stdout
    for part in ("llama", "260 k in 47 weights", "F32 260 k", "512 tokens"):
        assert part in text


def test_what_runs_a_language_model_is_said(tmp_path: Path) -> None:
    (facts,) = lines(educe("inspect", "zoo/stories260K", "--json"))
    assert facts["run_by"] == ["generate", "score", "perplexity"]
    assert facts["unsupported"] == {"chat": "it has no chat template"}
    text = educe("inspect", "zoo/transliteration_int8").stdout
    assert "run by         translate\n" in text
    assert "not run by" not in text
    text = educe("inspect", str(single(tmp_path))).stdout
    assert "generate, chat, score, perplexity: it has no tokenizer" in text


def test_what_lacks_is_said(tmp_path: Path) -> None:
    text = educe("inspect", str(single(tmp_path))).stdout
    assert "no tokenizer in the folder" in text
    (tmp_path / "config.json").unlink()
    done = educe("inspect", str(tmp_path))
    assert done.returncode == 2
    assert "download config.json" in done.stderr
