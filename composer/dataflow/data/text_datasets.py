"""The built-in data sets: prompts, prompts with an answer, and with pairs of answers, from json or jsonl files."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from composer.dataflow.data.datasets import DatasetUtil
from composer.dataflow.data.rows import DataError, Row, RowProblems, read_rows, rows_from
from composer.dataflow.data.samples import Sample
from composer.dataflow.data.tokenizers import UnknownTokenError, encoded
from composer.errors import Position, Problem
from composer.source.files import display_name
from perception_blocks.settings import PositiveInt, SettingProblem, SettingsError
from perception_blocks.words import describe, is_writable, near_name, sparing

__all__ = ["Prompts", "PromptsAndAnswers", "RewardPairs", "TextDataset"]

CHUNK = 1000  # rows that are tokenized at once
Builder: TypeAlias = Callable[[], Iterable[Mapping[str, Any]]]
Values: TypeAlias = dict[str, tuple[list[list[int]], Tensor]]
"""The lengths and the tensor of each value of an item."""


@dataclass(frozen=True, slots=True)
class _Item:
    """The tokens of a prompt, or of it with each of its answers: the first ``prompt_length`` of each are the prompt."""

    name: Hashable
    sequences: Sequence[Sequence[int]]
    prompt_length: int
    more: Mapping[str, Any]

    def packed(self) -> tuple[list[list[int]], Tensor]:
        tokens = torch.cat([torch.tensor(each, dtype=torch.int64) for each in self.sequences])
        return [[len(each) for each in self.sequences]], tokens


class _Named(NamedTuple):
    """A row that is as it should be, and its id."""

    row: Row
    name: Hashable

    @property
    def prompt(self) -> str:
        return self.row.values["prompt"]


class TextDataset(Dataset[Sample], ABC):
    """The rows of a json or jsonl file, or of ``dataset_builder()``, tokenized.

    ``path`` and ``dataset_path`` are the same. A row has a text ``prompt``, the keys in `answers`, and perhaps an
    ``id``, which otherwise is its number from 0; its other keys are the metadata of its item. Each answer is followed
    by the tokenizer's end of text, and cut where the sequence has ``max_length`` tokens. Rows whose prompt leaves no
    room for an answer are dropped, with a warning that says how many. Items are in an order that follows from the seed,
    and dealt over the ranks.

    Raises DataError with every broken row, at its file, line and column.
    """

    gives: ClassVar[Sequence[str]] = ()
    answers: ClassVar[Sequence[str]] = ()

    def __init__(
        self,
        util: DatasetUtil,
        *,
        path: str | None = None,
        dataset_path: str | None = None,
        dataset_builder: Builder | None = None,
        max_length: PositiveInt | None = None,
    ) -> None:
        self.util = util
        self.max_length = max_length
        self.dropped = 0  # rows
        self._shortest: int | None = None  # which they need
        self._check_tokenizer()
        problems = RowProblems()
        self.name, rows = _source(path, dataset_path, dataset_builder, problems)
        items = self._items_of(rows, problems)
        problems.raise_if_any()
        self._columns = sorted({key for item in items for key in item.more})
        self._items = self._share(items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        item = self._items[index]
        values = self.values(item)
        return Sample.of(
            [item.name],
            {key: lengths for key, (lengths, _) in values.items()},
            {key: tensor for key, (_, tensor) in values.items()},
            {key: [item.more.get(key)] for key in self._columns},
        )

    @abstractmethod
    def values(self, item: _Item) -> Values:
        """The values of an item by name."""

    def answers_of(self, named: _Named) -> Sequence[str]:
        """The answers of a row that are used."""
        return []

    def wrong_answers(self, row: Row) -> Iterator[tuple[str, str]]:
        """The keys of answers that are not as they should be, and why."""
        for key in self.answers:
            if wrong := _wrong_text(key, row.values[key]):
                yield key, wrong

    def _check_tokenizer(self) -> None:
        if self.util.tokenizer is None:
            wrong = "a data set of texts needs a tokenizer: the one of a model with a 'vocabulary', or of a folder"
        elif self.answers and self.util.tokenizer.eos_token_id is None:
            wrong = "the tokenizer has no eos_token, which ends an answer"
        else:
            return
        raise DataError([Problem(wrong)])

    @sparing
    def _items_of(self, rows: Iterator[Row], problems: RowProblems) -> list[_Item]:
        lines: dict[Hashable, int | str] = {}  # of each id
        items: list[_Item] = []
        number = 0
        while chunk := list(islice(rows, CHUNK)):
            whole = []
            for row in chunk:
                named = _Named(row, row.values.get("id", number))
                number += 1
                if wrong := list(self._wrong(named, lines)):
                    for place, message in wrong:
                        problems.add(place, message)
                else:
                    whole.append(named)
            items += self._tokenized(whole, problems)
        if not number:
            problems.raise_if_any()
            raise DataError([Problem(f"{self.name!r} has no rows")])
        return items

    def _wrong(
        self, named: _Named, lines: dict[Hashable, int | str]
    ) -> Iterator[tuple[Position, str]]:
        """What is wrong with a row, and where; its id is noted."""
        row, name = named
        needed = ("prompt", *self.answers)
        for key in needed:
            if key not in row.values:
                near = near_name(key, [each for each in row.values if each not in (*needed, "id")])
                advice = f", but {near!r}; did you mean {key!r}?" if near else ""
                yield row.position(near), f"the row has no {key!r}{advice}"
        if all(key in row.values for key in needed):
            if wrong := _wrong_text("prompt", row.values["prompt"]):
                yield row.position("prompt"), wrong
            for key, wrong in self.wrong_answers(row):
                yield row.position(key), wrong
        if isinstance(name, bool) or not isinstance(name, str | int):
            yield row.position("id"), f"'id' is a text or a whole number, got {describe(name)}"
        elif name in lines:
            first = lines[name]
            where = f"line {first}" if isinstance(first, int) else first
            yield row.position("id"), f"the id {name!r} is that of {where} too"
        else:
            lines[name] = row.line or row.file

    def _tokenized(self, rows: Sequence[_Named], problems: RowProblems) -> Iterator[_Item]:
        """The items of rows that fit into ``max_length``; the others are counted."""
        answers = [self.answers_of(named) for named in rows]
        texts = [named.prompt + answer for named, each in zip(rows, answers) for answer in each]
        prompts = encoded(self.util.tokenizer, [named.prompt for named in rows])
        whole = iter(encoded(self.util.tokenizer, texts))
        for named, prompt, each in zip(rows, prompts, answers):
            parts = [prompt, *islice(whole, len(each))]
            tokens = [part for part in parts if not isinstance(part, UnknownTokenError)]
            if len(tokens) < len(parts):
                at = next(
                    at for at, part in enumerate(parts) if isinstance(part, UnknownTokenError)
                )
                key = self.answers[(at - 1) % len(self.answers)] if at else "prompt"
                problems.add(named.row.position(key), str(parts[at]))
            elif not tokens[0]:
                problems.add(named.row.position("prompt"), "'prompt' has no tokens")
            elif self._fits(len(tokens[0]) + bool(self.answers)):
                yield self._item(named, tokens[0], tokens[1:])

    def _fits(self, least: int) -> bool:
        fits = self.max_length is None or least <= self.max_length
        if not fits:
            self.dropped += 1
            self._shortest = min(least, self._shortest or least)
        return fits

    def _item(
        self, named: _Named, prompt: Sequence[int], sequences: Sequence[Sequence[int]]
    ) -> _Item:
        """An answer may merge with the end of the prompt to one token, which then counts to the answer."""
        end = self.util.tokenizer.eos_token_id
        whole = [tokens if tokens[-1:] == [end] else [*tokens, end] for tokens in sequences]
        cut = [tokens[: self.max_length] for tokens in whole]
        length = min((_common(prompt, tokens) for tokens in cut), default=len(prompt))
        known = {"id", "prompt", *self.answers}
        more = {key: value for key, value in named.row.values.items() if key not in known}
        return _Item(named.name, cut or [prompt], length, more)

    def _share(self, items: Sequence[_Item]) -> list[_Item]:
        """The items of this rank."""
        util, answer = self.util, " and the first token of an answer" if self.answers else ""
        if self.dropped:
            which = f"{self.dropped} of {self.dropped + len(items)} rows of {self.name!r}"
            longer = f"need more than the 'max_length' of {self.max_length} tokens for their prompt{answer}"
            if not items:
                raise DataError([Problem(f"{which} {longer}; the shortest needs {self._shortest}")])
            warnings.warn(f"{which} {longer}; they are left out", stacklevel=4)
        if len(items) < util.world_size:
            raise DataError(
                [Problem(f"{self.name!r} has {len(items)} items for {util.world_size} processes")]
            )
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(util.seed))
        return [items[place] for place in order[util.rank :: util.world_size].tolist()]


class Prompts(TextDataset):
    """``prompt``: texts to be continued. Rows such as ``{"prompt": "Once"}``.

    Gives ``prompts``, the tokens of one prompt an item. ``max_prompt_len`` is another name of ``max_length``.
    """

    gives = ("prompts",)

    def __init__(
        self,
        util: DatasetUtil,
        *,
        path: str | None = None,
        dataset_path: str | None = None,
        dataset_builder: Builder | None = None,
        max_length: PositiveInt | None = None,
        max_prompt_len: PositiveInt | None = None,
    ) -> None:
        if max_length is not None and max_prompt_len is not None:
            message = "'max_length' and 'max_prompt_len' are the same; give one of them"
            raise SettingsError([SettingProblem("max_prompt_len", message)])
        super().__init__(
            util,
            path=path,
            dataset_path=dataset_path,
            dataset_builder=dataset_builder,
            max_length=max_prompt_len if max_length is None else max_length,
        )

    def values(self, item: _Item) -> Values:
        return {"prompts": item.packed()}


class PromptsAndAnswers(TextDataset):
    """``prompt_answer``: what supervised learning imitates. Rows such as ``{"prompt": "Once", "answer": " upon"}``.

    Gives ``ids``, the tokens of prompt and answer, and ``prompt_mask``, which is true for tokens of the prompt.
    """

    gives = ("ids", "prompt_mask")
    answers = ("answer",)

    def values(self, item: _Item) -> Values:
        lengths, ids = item.packed()
        return {
            "ids": (lengths, ids),
            "prompt_mask": (lengths, torch.arange(len(ids)) < item.prompt_length),
        }

    def answers_of(self, named: _Named) -> Sequence[str]:
        return [named.row.values["answer"]]


class RewardPairs(TextDataset):
    """``rw_pair``: answers of which the first of each two is better.

    Rows such as ``{"prompt": "2+2=", "pos_answers": ["4"], "neg_answers": ["5"]}``, with as many of both. Of more than
    ``max_pairs_per_prompt`` pairs, those that follow from the seed and the row's id are taken.

    Gives ``ids``, for each item the sequences of a positive and a negative answer in turns, and ``prompt_lens``, one
    number an item.
    """

    gives = ("ids", "prompt_lens")
    answers = ("pos_answers", "neg_answers")

    def __init__(
        self,
        util: DatasetUtil,
        *,
        path: str | None = None,
        dataset_path: str | None = None,
        dataset_builder: Builder | None = None,
        max_length: PositiveInt | None = None,
        max_pairs_per_prompt: PositiveInt = 2,
    ) -> None:
        self.max_pairs_per_prompt = max_pairs_per_prompt
        super().__init__(
            util,
            path=path,
            dataset_path=dataset_path,
            dataset_builder=dataset_builder,
            max_length=max_length,
        )

    def values(self, item: _Item) -> Values:
        return {
            "ids": item.packed(),
            "prompt_lens": ([[1]], torch.tensor([item.prompt_length])),
        }

    def answers_of(self, named: _Named) -> Sequence[str]:
        pairs = list(zip(*(named.row.values[key] for key in self.answers), strict=True))
        most = min(len(pairs), self.max_pairs_per_prompt)
        drawn = random.Random(f"{self.util.seed}/{named.name}").sample(pairs, most)
        return [answer for pair in drawn for answer in pair]

    def wrong_answers(self, row: Row) -> Iterator[tuple[str, str]]:
        counts = []
        for key in self.answers:
            answers = row.values[key]
            if not isinstance(answers, list | tuple) or not answers:
                yield key, f"{key!r} is a list of texts, got {describe(answers)}"
                continue
            counts.append(len(answers))
            for number, answer in enumerate(answers, 1):
                if wrong := _wrong_text(f"{key} {number}", answer):
                    yield key, wrong
        if len(counts) == 2 and counts[0] != counts[1]:
            message = f"there are {counts[0]} 'pos_answers' and {counts[1]} 'neg_answers', but they are pairs"
            yield "neg_answers", message


def _source(
    path: str | None, dataset_path: str | None, builder: Builder | None, problems: RowProblems
) -> tuple[str, Iterator[Row]]:
    """What the rows come from, in words, and the rows."""
    if [path, dataset_path, builder].count(None) != 2:
        message = "a data set needs exactly one of 'path', 'dataset_path' and 'dataset_builder'"
        raise SettingsError([SettingProblem("path", message)])
    if builder is not None:
        return "dataset_builder", rows_from(builder, problems)
    file = path or dataset_path or ""
    return display_name(file), read_rows(file, problems)


def _wrong_text(name: str, text: object) -> str | None:
    """What is wrong with a text of a row."""
    if not isinstance(text, str):
        return f"{name!r} is a text, got {describe(text)}"
    if not text:
        return f"{name!r} is empty"
    return None if is_writable(text) else f"{name!r} has half of a surrogate pair, which is no text"


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
