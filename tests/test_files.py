"""Opening a stranger's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from educe.errors import InputError
from educe.files import open_regular


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("model/weights.bim", "model/weights.bin"),
        ("model/Weights.BIN", None),
        ("modle/weights.bin", "model"),
        ("modle/deep/weights.bin", "model"),
        ("model/weights.bin.old.old.old", None),
        ("photographs", None),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_one_beside_it(
    tmp_path: Path, given: str, meant: str | None
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").touch()
    with pytest.raises(InputError, match="cannot be opened") as caught:
        open_regular(tmp_path / given)
    expected = "check the name" if meant is None else f"did you mean {str(tmp_path / meant)!r}?"
    assert caught.value.remedy == expected


def test_a_name_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").touch()
    with pytest.raises(InputError, match=r"did you mean 'weights\.bin'\?"):
        open_regular("weight.bin")
