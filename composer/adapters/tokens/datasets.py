"""Sequences of tokens from a file of texts, for pretraining."""

from __future__ import annotations

import os
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from composer.adapters.tokens.vocabulary import UnknownTokenError, Vocabulary
from composer.errors import Position, Problem, SpecError
from composer.source.files import as_utf8, no_file
from perception_blocks.registry import missing_extra
from perception_blocks.words import describe

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["TokenDataset"]

MAX_LINE = 2**26  # bytes


class TokenDataset(Dataset[Tensor]):
    """The sequences of a text file, one a line, or of texts from Python, as numbers of ``vocabulary``.

    ``texts`` is a path, or an iterable of texts; ``dataset[i]`` is a tensor (L,) from the start token to the end token.
    Empty lines are left out, and so are sequences that a `TokenEnv` of ``max_length`` could not generate: those of more
    numbers, start and end included, with a warning that says how many. `collate` pads a batch:
    ``DataLoader(dataset, batch_size=64, shuffle=True, collate_fn=dataset.collate)``. Tokens are kept in one tensor.

    Raises SpecError with every text that has something that is no token, at its file, line and column.
    """

    def __init__(
        self,
        texts: str | os.PathLike[str] | Iterable[str],
        vocabulary: Vocabulary,
        *,
        max_length: int | None = None,
    ) -> None:
        self.vocabulary, self.max_length = vocabulary, max_length
        self.dropped = 0
        lengths: list[int] = []
        numbers = array("q")
        problems: list[Problem] = []
        for position, text in _lines(texts):
            try:
                encoded = vocabulary.encode(text)
            except UnknownTokenError as error:
                column = None if position.line is None else error.position + 1
                place = Position(position.file, position.line, column)
                problems.append(Problem(str(error), (), place))
                continue
            if max_length is not None and len(encoded) > max_length:
                self.dropped += 1
                continue
            numbers.extend(encoded)
            lengths.append(len(encoded))
        self._ready(lengths, numbers, problems)

    def _ready(self, lengths: list[int], numbers: array[int], problems: list[Problem]) -> None:
        if problems:
            raise SpecError(problems)
        longer = f"longer than 'max_length', which is {self.max_length}"
        if not lengths:
            why = f": all {self.dropped} are {longer}" if self.dropped else ""
            raise SpecError([Problem(f"the data set has no sequence{why}")])
        if self.dropped:
            left = "1 sequence is" if self.dropped == 1 else f"{self.dropped} sequences are"
            warnings.warn(f"{left} left out: {longer}", stacklevel=3)
        self._numbers = torch.frombuffer(numbers, dtype=torch.int64)
        self._ends = torch.tensor(lengths).cumsum(0).tolist()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"the data set has {len(self)} sequences, there is no {index}")
        index %= len(self)
        return self._numbers[self._ends[index - 1] if index else 0 : self._ends[index]]

    def collate(self, items: Sequence[Tensor]) -> TensorDict:
        """A batch of sequences as the modules of `token_modules` read it: a TensorDict (B, T), T steps in the longest.

        ``observation`` (B, T) is the token before each step, ``action`` (B, T) the token of the step, ``mask`` (B, T)
        true for steps; padding has the pad token. ``("collector", "mask")`` is the mask for TorchRL's losses. It needs
        the extra ``torchrl``; `padded` does without.
        """
        try:
            from tensordict import TensorDict

            from composer.adapters.torchrl.sequences import LOSS_MASK
        except ImportError as error:
            raise missing_extra("TokenDataset.collate", error, "torchrl") from error
        tokens, real = self.padded(items)
        mask = real[:, 1:]
        fields = {"observation": tokens[:, :-1], "action": tokens[:, 1:], "mask": mask}
        batch = TensorDict(fields, batch_size=mask.shape)
        return batch.set(LOSS_MASK, mask.unsqueeze(-1))

    def padded(self, items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Sequences as ``(tokens, mask)``, both (B, L), padded behind, as `composer.policy.token_views` read them."""
        tokens = pad_sequence(
            list(items), batch_first=True, padding_value=self.vocabulary.pad_token
        )
        lengths = torch.tensor([len(item) for item in items])
        return tokens, torch.arange(tokens.shape[1]) < lengths.unsqueeze(-1)


def _lines(texts: str | os.PathLike[str] | Iterable[str]) -> Iterator[tuple[Position, str]]:
    """Every text that is not empty, and where it stands."""
    if isinstance(texts, str | os.PathLike):
        yield from _lines_of_file(os.fspath(texts))
        return
    for number, text in enumerate(texts):
        where = f"text {number}"
        if not isinstance(text, str):
            raise SpecError(
                [Problem(f"it must be a text, got {describe(text)}", (), Position(where))]
            )
        if text:
            yield Position(where), text


def _lines_of_file(path: str) -> Iterator[tuple[Position, str]]:
    if problem := no_file(path):
        raise SpecError([Problem(problem)])
    with Path(path).open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            place = Position(path, number, 1)
            if len(line) > MAX_LINE:
                raise SpecError([Problem(f"the line is longer than {MAX_LINE:,} bytes", (), place)])
            if text := as_utf8(line, path, number).rstrip("\r\n"):
                yield place, text
