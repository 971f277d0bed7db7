"""Text classification: text to token ids by the model's own tokenizer, its scores to classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from educe.errors import CardError, InputError
from educe.files import open_beneath
from educe.limits import Limits
from educe.media.text import read_lines, read_text
from educe.model import Model, TensorType
from educe.model.card import TextInput
from educe.tasks.base import Feeds, Findings, Item, Outputs, Task, TaskOptions
from educe.tasks.scores import both_classes, class_scores, ranked_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# Names of files are shorter; longer texts are not looked up.
_LONGEST_NAME = 1024

PAD_TOKENS = ("[PAD]", "<pad>", "<PAD>", "<|pad|>")
"""Names of the padding token in a tokenizer that does not say how it pads."""


class TextClassification(Task[str]):
    """Gives the classes of a text."""

    name = "text-classification"
    default_batch: ClassVar[int] = 32
    suffixes = frozenset({".txt"})
    takes_text = True

    def __init__(self, model: Model, options: TaskOptions) -> None:
        """Settle inputs and output, and read the tokenizer.

        Raises:
            CardError: the card has no ``[text]``, does not fit the model, or its tokenizer is broken.
            MissingLibraryError: the tokenizers library is not installed.
        """
        super().__init__(model, options)
        if self.card.text is None:
            raise self.card_error("the card has no section [text]", "say how a text becomes the input")
        self.text: TextInput = self.card.text
        self.output_name = self.tensor_output(self.card.scores.output)
        self._ids_name, self._ids_type = self.tensor_input(self.text.ids)
        fixed = self._fixed_length()
        self.max_length = min(self.text.max_length, fixed or self.text.max_length)
        self._padded_length = fixed or (self.max_length if self.text.pad == "max_length" else None)
        if self.text.mask is None and self._padded_length is None:
            # Without a mask the model takes padding for text, and the longest neighbour decides how much.
            self.largest_batch = 1
        self._tokenizer = self._load_tokenizer()

    def open(self, source: Any) -> Iterator[Item[str]]:
        """Yield the texts of `source`.

        Args:
            source: A path, or a file's content as bytes, read as the card's `unit` says: one text, or one in
                each line that is not empty; the text itself as a str; or a list of texts.
        """
        if isinstance(source, str):
            if len(source) < _LONGEST_NAME and Path(source).is_file():
                raise InputError(
                    "is the name of a file, where a str is taken for the text itself",
                    path=source,
                    remedy="give pathlib.Path(...) for what stands in the file",
                )
            yield Item(source)
        elif isinstance(source, list) and all(isinstance(text, str) for text in source):
            for row, text in enumerate(source):
                yield Item(text, row=row)
        elif not isinstance(source, (Path, bytes)):
            raise InputError(
                f"expected a text, found {type(source).__name__}",
                remedy="give a str, a list of them, or a pathlib.Path to a file",
            )
        elif self.text.unit == "line":
            for row, line in read_lines(source, self.options.limits):
                yield Item(line, row=row)
        else:
            yield Item(read_text(source, self.options.limits))

    def preprocess(self, items: Sequence[Item[str]]) -> Feeds:
        """Return token ids [texts, tokens], and the mask and segment ids if the model takes them.

        Raises:
            InputError: a text has no token, or more than the model takes.
        """
        for item in items:
            self.options.limits.check("text_bytes", _utf8_size(item))
        try:
            encodings = self._tokenizer.encode_batch([item.content for item in items])
        except (KeyboardInterrupt, SystemExit):
            raise
        # A panic inside the library is no Exception.
        except BaseException as fault:
            raise self.card_error(
                f"the tokenizer failed: {fault}", "check that it is the model's own"
            ) from None
        for item, encoding in zip(items, encodings, strict=True):
            self._refuse(item, sum(encoding.attention_mask))
        feeds = {self._ids_name: _stacked([encoding.ids for encoding in encodings], self._ids_type)}
        if self.text.mask is not None:
            name, value = self.tensor_input(self.text.mask)
            feeds[name] = _stacked([encoding.attention_mask for encoding in encodings], value)
        if self.text.types is not None:
            name, value = self.tensor_input(self.text.types)
            feeds[name] = _stacked([encoding.type_ids for encoding in encodings], value)
        return feeds

    def postprocess(self, outputs: Outputs, items: Sequence[Item[str]]) -> list[Findings]:
        """Return the classes of each text, best first."""
        scores = class_scores(outputs[self.output_name], self.card.scores.activation)
        if len(scores) != len(items):
            raise self.card_error(
                f"the output {self.output_name!r} has {len(scores)} rows for {len(items)} texts",
                "name another",
            )
        rows = ranked_rows(
            self.card, both_classes(scores, self.card), self.top_classes, self.options.threshold
        )
        return [Findings(classes) for classes in rows]

    def _fixed_length(self) -> int | None:
        """Return how many tokens the graph takes, if it takes no other number."""
        shape = self._ids_type.shape
        if self._ids_type.dtype == "str" or (shape is not None and len(shape) != 2):
            raise self.card_error(
                f"the input {self._ids_name!r} is {self._ids_type}, not token ids [texts, tokens]",
                'name the input of token ids with ids = "..."',
            )
        length = None if shape is None else shape[1]
        return length if isinstance(length, int) else None

    def _refuse(self, item: Item[str], num_tokens: int) -> None:
        place = _place(item)
        if num_tokens == 0:
            raise InputError("the text has no tokens", place=place, remedy="leave empty texts out")
        if num_tokens > self.max_length:
            raise InputError(
                f"the text has {num_tokens} tokens, the model takes {self.max_length}",
                place=place,
                remedy='shorten or split it, or say too_long = "truncate" in the card',
            )

    def _load_tokenizer(self) -> Tokenizer:
        """Return the card's tokenizer, set to pad, and to cut or not, as the card says."""
        tokenizer = _read_tokenizer(self.model, self.text.tokenizer, self.options.limits)
        own = tokenizer.padding or {}
        tokenizer.enable_padding(
            direction=own.get("direction", "right"),
            pad_id=own.get("pad_id", _pad_id(tokenizer)),
            pad_type_id=own.get("pad_type_id", 0),
            pad_token=own.get("pad_token", PAD_TOKENS[0]),
            length=self._padded_length,
        )
        cut = tokenizer.truncation or {}
        tokenizer.no_truncation()
        if self.text.too_long == "truncate":
            try:
                tokenizer.enable_truncation(self.max_length, direction=cut.get("direction", "right"))
            except Exception as fault:
                raise self.card_error(
                    f"max_length = {self.max_length} is too short: {fault}", "raise it"
                ) from None
        return tokenizer


def _read_tokenizer(model: Model, name: str, limits: Limits) -> Tokenizer:
    from tokenizers import Tokenizer

    folder = model.card_origin.folder
    if folder is None:
        raise CardError(
            f"the card names the tokenizer {name!r}, but comes from no folder",
            path=model.path,
            remedy="put the tokenizer and an educe.toml beside the model",
        )
    path = folder / name
    with open_beneath(folder, name) as file:
        content = file.read(limits.tokenizer_bytes + 1)
    limits.check("tokenizer_bytes", len(content), path=path)
    try:
        return Tokenizer.from_str(content.decode("utf-8"))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as fault:  # a panic of the Rust library is no Exception
        raise CardError(
            f"is no tokenizer: {str(fault)[:200]}",
            path=path,
            remedy="save it as a Hugging Face tokenizer.json",
        ) from None


def _pad_id(tokenizer: Tokenizer) -> int:
    found = (tokenizer.token_to_id(token) for token in PAD_TOKENS)
    return next((token_id for token_id in found if token_id is not None), 0)


def _place(item: Item[str]) -> str | None:
    return None if item.row is None else f"line {item.row + 1}"


def _utf8_size(item: Item[str]) -> int:
    try:
        return len(item.content.encode("utf-8"))
    except UnicodeEncodeError as fault:
        raise InputError(
            f"the character {fault.start} of the text is half of a surrogate pair, and no character",
            place=_place(item),
            remedy="decode the text as UTF-8",
        ) from None


def _stacked(rows: list[list[int]], value: TensorType) -> np.ndarray:
    return np.array(rows, np.int64).astype(value.numpy_dtype)
