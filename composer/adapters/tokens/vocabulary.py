"""Tokens and their numbers: texts to numbers and back, from a file, texts, or a tokenizer of transformers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from composer.atomic import WriteError, replace_with
from composer.errors import Problem, RefusedError, SpecError
from composer.source.files import as_utf8, near_file, no_file
from perception_blocks.registry import missing_extra
from perception_blocks.words import describe, did_you_mean, hint, listing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["UnknownTokenError", "Vocabulary", "text_of_tokens"]

MOST_BYTES = 2**25  # of a file: some millions of tokens
START = ("<start>", "<bos>", "<s>", "[BOS]", "GO")
END = ("<end>", "<eos>", "</s>", "[EOS]", "EOS", "<|endoftext|>")
PAD = ("<pad>", "[PAD]")
SHORT = 60  # characters of a text that a message shows
FIELDS = ("tokens", "start", "end", "pad", "separator")


class UnknownTokenError(ValueError):
    """A text has something that is no token of the vocabulary, at character ``position``, counted from 0."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


class Vocabulary:
    """The tokens of a `TokenEnv`: the number of a token is its place in ``tokens``.

    ``start``, ``end`` and ``pad`` are those of the tokens that begin and end a sequence and fill it up; unless they are
    given, the usual spellings are looked for (``<start>``, ``<bos>``, ``<end>``, ``<eos>``, ``<pad>``, ...). Without a
    pad token, padding has the number 0. A text is read as the longest token that the rest of it begins with; with a
    ``separator``, such as a space, its tokens stand between separators.

    Raises ValueError for tokens that are empty, no texts or there twice, and for special tokens that are missing.

    >>> vocabulary = Vocabulary(["<start>", "<end>", "C", "Cl", "N"])
    >>> vocabulary.encode("CClN")
    [0, 2, 3, 4, 1]
    >>> vocabulary.decode([0, 2, 3, 4, 1])
    'CClN'
    """

    def __init__(
        self,
        tokens: Iterable[str],
        *,
        start: str | None = None,
        end: str | None = None,
        pad: str | None = None,
        separator: str = "",
    ) -> None:
        self.tokens = tuple(tokens)
        if wrong := _wrong_tokens(self.tokens):
            raise ValueError(wrong)
        self.separator = separator
        self._numbers = {token: number for number, token in enumerate(self.tokens)}
        self.start = self._special("start", start, START)
        self.end = self._special("end", end, END)
        self.pad = self._special("pad", pad, PAD) if pad or _spelled(PAD, self._numbers) else None
        if self.start == self.end:
            raise ValueError(
                f"'start' and 'end' must differ, both are {self.end!r}; give another token as start="
            )
        self._ordinary = {
            token: number
            for token, number in self._numbers.items()
            if token not in (self.start, self.end, self.pad)
        }
        lengths = sorted(map(len, self._ordinary), reverse=True)
        self._longest = lengths[0] if lengths else 1

    # --- numbers of the special tokens ---

    @property
    def start_token(self) -> int:
        """The number of the token that begins a sequence."""
        return self._numbers[self.start]

    @property
    def end_token(self) -> int:
        """The number of the token that ends a sequence."""
        return self._numbers[self.end]

    @property
    def pad_token(self) -> int:
        """The number that fills a sequence up; 0 without a pad token."""
        return 0 if self.pad is None else self._numbers[self.pad]

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens, start={self.start!r}, end={self.end!r}, pad={self.pad!r})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((self.tokens, self.start, self.end, self.pad, self.separator))

    # --- texts ---

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The numbers of the tokens of ``text``, between the start and the end token unless ``special`` is false.

        Raises UnknownTokenError for the first part that is no token, with its position.
        """
        if not isinstance(text, str):
            raise ValueError(f"encode takes a text, got {describe(text)}")
        numbers = self._split(text)
        return [self.start_token, *numbers, self.end_token] if special else numbers

    def decode(self, numbers: Sequence[int] | Tensor) -> str:
        """The text of the numbers (n,), up to the first end token; start and pad tokens are left out.

        Raises ValueError for numbers that are no tokens.
        """
        if isinstance(numbers, Tensor):
            if numbers.dim() != 1 or numbers.is_floating_point():
                shape = tuple(numbers.shape)
                raise ValueError(
                    f"decode takes whole numbers (n,), got {numbers.dtype} {shape}; decode the rows one by one"
                )
            numbers = numbers.tolist()
        kept: list[int] = []
        for place, number in enumerate(numbers):
            if not 0 <= number < len(self):
                raise ValueError(
                    f"{number} at place {place} is no token: the vocabulary has {len(self)} tokens"
                )
            if number == self.end_token:
                break
            if number != self.start_token and (self.pad is None or number != self.pad_token):
                kept.append(number)
        return self._joined(kept)

    def _split(self, text: str) -> list[int]:
        if self.separator:
            return self._split_at_separators(text)
        numbers, place = [], 0
        while place < len(text):
            for size in range(min(self._longest, len(text) - place), 0, -1):
                number = self._ordinary.get(text[place : place + size])
                if number is not None:
                    numbers.append(number)
                    place += size
                    break
            else:
                raise self._unknown(text[place], place, text)
        return numbers

    def _split_at_separators(self, text: str) -> list[int]:
        numbers, place = [], 0
        for part in text.split(self.separator) if text else []:
            if part not in self._ordinary:
                raise self._unknown(part, place, text)
            numbers.append(self._ordinary[part])
            place += len(part) + len(self.separator)
        return numbers

    def _unknown(self, part: str, place: int, text: str) -> UnknownTokenError:
        near = did_you_mean(part, self._ordinary)
        whole = f" of {text!r}" if len(text) <= SHORT else ""
        where = f"{part[:SHORT]!r} at character {place}{whole}"
        return UnknownTokenError(f"{where} is no token of the vocabulary{near}", place)

    def _joined(self, numbers: Sequence[int]) -> str:
        return self.separator.join(self.tokens[number] for number in numbers)

    def _special(self, what: str, given: str | None, spelled: Sequence[str]) -> str:
        token = _spelled(spelled, self._numbers) if given is None else given
        if token is None:
            raise ValueError(
                f"the vocabulary has no {what} token: none of {listing(spelled)}; name one of its tokens as "
                f"{what}=, or add one"
            )
        if token not in self._numbers:
            raise ValueError(
                f"{what!r} is {token!r}, which is no token of the vocabulary{hint(token, self._numbers)}"
            )
        return token

    # --- where they come from ---

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        separator: str = "",
        start: str = START[0],
        end: str = END[0],
        pad: str | None = None,
    ) -> Vocabulary:
        """The tokens of ``texts``: their characters, or what stands between separators, in alphabetical order.

        The special tokens come first: start is 0, end is 1, as in a `TokenEnv`.

        >>> Vocabulary.from_texts(["CNC", "CO"]).tokens
        ('<start>', '<end>', 'C', 'N', 'O')
        """
        parts = {part for text in texts for part in (text.split(separator) if separator else text)}
        special = [start, end, *([] if pad is None else [pad])]
        ordinary = sorted(parts - {"", *special})
        return cls([*special, *ordinary], start=start, end=end, pad=pad, separator=separator)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        start: str | None = None,
        end: str | None = None,
        pad: str | None = None,
        separator: str | None = None,
    ) -> Vocabulary:
        """The vocabulary of a file: a text in UTF-8 with a token a line, or what `to_file` has written as ``.json``.

        Arguments that are given hold instead of what the file says. Raises ValueError, with the file, for one that is
        no vocabulary.
        """
        name = os.fspath(path)
        text = text_of_tokens(name, name)
        given: dict[str, Any] = {"start": start, "end": end, "pad": pad, "separator": separator}
        given = {key: value for key, value in given.items() if value is not None}
        try:
            if name.endswith(".json"):
                fields = _json_fields(text) | given
                return cls(fields.pop("tokens"), **fields)
            # Not splitlines(): a token may hold what that takes for the end of a line, such as U+2028.
            lines = re.split(r"\r?\n", text.removesuffix("\n").removesuffix("\r"))
            return cls(lines if text else [], **given)
        except ValueError as error:
            raise RefusedError(f"{name!r} is no vocabulary: {error}") from error

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary: as ``.json`` with its special tokens and separator, else one token a line.

        The file appears whole. Raises ValueError for tokens with an end of line in a file of lines, and where the file
        cannot be written.
        """
        name = os.fspath(path)
        if name.endswith(".json"):
            text = json.dumps(self._fields(), ensure_ascii=False, indent=1) + "\n"
        else:
            broken = [token for token in self.tokens if "\n" in token or token.endswith("\r")]
            if broken:
                raise ValueError(
                    f"the token {broken[0]!r} has an end of line, which a file of lines cannot hold; write a .json file"
                )
            text = "".join(f"{token}\n" for token in self.tokens)
        try:
            replace_with(Path(name), lambda place: Path(place).write_bytes(text.encode()))
        except (WriteError, OSError) as error:
            raise RefusedError(f"{name!r} cannot be written: {error}") from error

    def _fields(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in FIELDS}

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str],
        *,
        start: str | None = None,
        end: str | None = None,
        pad: str | None = None,
    ) -> Vocabulary:
        """A vocabulary that splits and joins texts by a tokenizer of transformers (extra ``llm``).

        ``tokenizer`` is one, or a local ``tokenizer.json``, or a folder that ``save_pretrained`` has written; nothing
        is downloaded and no code of a folder runs. Start, end and pad are its ``bos_token`` (or ``cls_token``),
        ``eos_token`` (or ``sep_token``) and ``pad_token`` unless given. Raises ValueError for one that lacks them.
        """
        read = _read_tokenizer(tokenizer)
        tokens = read.convert_ids_to_tokens(list(range(len(read))))
        vocabulary = _OfTokenizer(
            [token if token is not None else f"<unused {n}>" for n, token in enumerate(tokens)],
            start=start or read.bos_token or read.cls_token,
            end=end or read.eos_token or read.sep_token,
            pad=pad or read.pad_token,
        )
        vocabulary.tokenizer = read
        return vocabulary


class _OfTokenizer(Vocabulary):
    """A vocabulary whose texts a tokenizer splits and joins."""

    tokenizer: Any

    def _split(self, text: str) -> list[int]:
        numbers = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False)
        numbers = list(numbers["input_ids"])
        unknown = self._unknown_number()
        if unknown is not None and unknown in numbers:
            at = numbers.index(unknown)
            place = self._place(text, at)
            raise self._unknown(text[place : place + 1], place, text)
        return numbers

    def _unknown_number(self) -> int | None:
        """The number for what is no token; a file alone does not tell transformers of it."""
        number = self.tokenizer.unk_token_id
        model = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "model", None)
        token = getattr(model, "unk_token", None)
        return self._numbers.get(token) if number is None and isinstance(token, str) else number

    def _place(self, text: str, at: int) -> int:
        """The character at which token ``at`` of a text begins; 0 where the tokenizer does not say so."""
        if not self.tokenizer.is_fast:
            return 0
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return offsets["offset_mapping"][at][0]

    def _joined(self, numbers: Sequence[int]) -> str:
        return self.tokenizer.decode(list(numbers), clean_up_tokenization_spaces=False)

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Raises ValueError: a tokenizer is more than its tokens."""
        raise ValueError(
            "a vocabulary of a tokenizer is saved by its tokenizer: "
            "vocabulary.tokenizer.save_pretrained(folder)"
        )


def _spelled(spelled: Sequence[str], known: Iterable[str]) -> str | None:
    return next((token for token in spelled if token in known), None)


def _wrong_tokens(tokens: Sequence[object]) -> str | None:
    """What is wrong with the tokens, or None."""
    if not tokens:
        return "there is no token"
    seen: dict[object, int] = {}
    for number, token in enumerate(tokens):
        if not isinstance(token, str):
            return f"token {number} must be a text, got {describe(token)}"
        if not token:
            return f"token {number} is empty"
        if token in seen:
            return f"token {number} is {token!r}, which is token {seen[token]} too"
        seen[token] = number
    return None


def text_of_tokens(path: str, name: str) -> str:
    """The text of the file at ``path``, ``name`` in messages. Raises SpecError for anything but a text file."""
    if problem := no_file(path):
        raise SpecError([Problem(problem)])
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SpecError([Problem(f"{name!r} cannot be read: {error.strerror}")]) from error
    if len(data) > MOST_BYTES:
        raise SpecError([Problem(f"{name!r} has more than {MOST_BYTES:,} bytes, too many tokens")])
    return as_utf8(data, name)


def _json_fields(text: str) -> dict[str, Any]:
    """The fields of a file of `Vocabulary.to_file`. Raises ValueError for anything else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("tokens"), list):
        raise ValueError("it must be a mapping with a list of 'tokens', as to_file writes it")
    for key, value in data.items():
        if key not in FIELDS:
            raise ValueError(f"it has the key {key!r}{hint(key, FIELDS, 'known are')}")
        may_be_none = key in ("start", "end", "pad") and value is None
        if key != "tokens" and not isinstance(value, str) and not may_be_none:
            raise ValueError(f"its {key!r} must be a text, got {describe(value)}")
    return data


def _read_tokenizer(given: Any) -> Any:
    """The tokenizer, read from a local file or folder where it is a path."""
    if not isinstance(given, str | os.PathLike):
        if not callable(getattr(given, "convert_ids_to_tokens", None)):
            raise ValueError(
                f"from_tokenizer takes a tokenizer of transformers or its local folder, got {describe(given)}"
            )
        return given
    path = os.fspath(given)
    try:
        from transformers import PreTrainedTokenizerFast

        from composer.language.processors import tokenizer_of_folder
    except ImportError as error:
        raise missing_extra("a tokenizer", error, "llm") from error
    if not path.endswith(".json"):
        if not os.path.isdir(path):
            raise RefusedError(f"there is no folder {path!r}{near_file(path)}")
        return tokenizer_of_folder(path, Path(path))
    if problem := no_file(path):
        raise RefusedError(problem)
    try:
        return PreTrainedTokenizerFast(tokenizer_file=path)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RefusedError(f"the tokenizer in {path!r} cannot be made: {reason}") from error
