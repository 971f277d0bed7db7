"""The contract of a format: recognise a file by its content, read it to a `Model` within limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO, ClassVar

from educe.limits import Limits
from educe.model import Model


class Format(ABC):
    """One kind of model file."""

    name: ClassVar[str]

    @abstractmethod
    def sniff(self, head: bytes) -> bool:
        """Say whether a file that begins with `head` is of this kind; the file's name plays no part."""

    @abstractmethod
    def load(self, file: BinaryIO, path: Path | None, limits: Limits) -> Model:
        """Read and verify a model.

        Args:
            file: The file, at its beginning.
            path: Where it came from; other files that it names are looked for beside it.

        Raises:
            ModelFileError: the file is broken.
            LimitError: the file is larger than `limits` allow.
        """
