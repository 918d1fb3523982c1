"""Sequences of tokens that grow by one at each step: the core of both token environments, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from perception_blocks.port import format_shape

__all__ = ["Judge", "TokenRules", "TokenSequences", "wrong_sizes"]

# (sequence (n, max_length), sequence_mask (n, max_length)) -> scores (n,), or legal tokens (n, vocabulary_size)
Judge = Callable[[Tensor, Tensor], Tensor]


def wrong_sizes(vocabulary_size: int, max_length: int) -> list[str]:
    """The errors in the sizes of sequences: both are at least 2."""
    sizes = {"vocabulary_size": vocabulary_size, "max_length": max_length}
    return [
        f"{name!r} must be a whole number of at least 2, got {size!r}"
        for name, size in sizes.items()
        if not isinstance(size, Integral) or size < 2
    ]


@dataclass(frozen=True)
class TokenRules:
    """The rules of a sequence. Raises ValueError with all errors.

    ``score`` judges finished sequences, ``legal`` says which tokens may come next (all where it is None).
    """

    vocabulary_size: int
    max_length: int
    start_token: int = 0
    end_token: int = 1
    score: Judge | None = None
    legal: Judge | None = None

    def __post_init__(self) -> None:
        wrong = wrong_sizes(self.vocabulary_size, self.max_length)
        if not wrong:
            tokens = {"start_token": self.start_token, "end_token": self.end_token}
            wrong = [
                f"{name!r} must be a token below the vocabulary's size {self.vocabulary_size}, got {token!r}"
                for name, token in tokens.items()
                if not isinstance(token, Integral) or not 0 <= token < self.vocabulary_size
            ]
        if self.start_token == self.end_token:
            wrong.append(f"'start_token' and 'end_token' must differ, both are {self.end_token!r}")
        wrong += [
            f"{name!r} must be a function of sequence and sequence_mask, got {judge!r}"
            for name, judge in {"score": self.score, "legal": self.legal}.items()
            if not (judge is None or callable(judge))
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


class TokenSequences:
    """As many sequences as there are ``rows``, each of them a start token at first.

    ``sequence`` (rows, max_length), zeros where ``sequence_mask`` is false; ``last`` (rows,), the token of the step
    before; ``finished`` (rows,). No tensor is changed in place: what was handed out stays as it was.
    """

    def __init__(self, rules: TokenRules, rows: int, device: torch.device | str = "cpu") -> None:
        self.rules = rules
        self._places = torch.arange(rules.max_length, device=device)
        self._begun = torch.where(self._places == 0, rules.start_token, 0)
        self.sequence = self._begun.expand(rows, -1)
        self.sequence_mask = (self._places == 0).expand(rows, -1)
        self.last = self.sequence[:, 0]
        self.steps = torch.zeros_like(self.last)
        self.finished = torch.zeros_like(self.last, dtype=torch.bool)
        self._legal: Tensor | None = None  # what `action_mask` said last, until it no longer holds

    def reset(self, rows: Tensor) -> None:
        """Begin anew where ``rows`` is true."""
        self.sequence = torch.where(rows[:, None], self._begun, self.sequence)
        self.sequence_mask = torch.where(rows[:, None], self._places == 0, self.sequence_mask)
        self.last = torch.where(rows, self.rules.start_token, self.last)
        self.steps = torch.where(rows, 0, self.steps)
        self.finished = self.finished & ~rows
        self._legal = None

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add a token (rows,) to each row: reward, terminated and truncated, each (rows,).

        The end token is not written, nor is what comes with the last step; finished rows do not grow.
        Raises ValueError for an action that is no token or that `action_mask` forbids, and where there is not one for
        each row.
        """
        if action.shape != self.last.shape or action.is_floating_point():
            needed, got = format_shape(self.last.shape), format_shape(action.shape)
            raise ValueError(
                f"'action' must hold one token for each row, whole numbers {needed}, got {action.dtype} {got}"
            )
        self._refuse_wrong(action)
        self._legal = None
        self.steps = self.steps + 1
        terminated = action == self.rules.end_token
        truncated = self.steps >= self.rules.max_length - 1
        grows = ~(terminated | truncated | self.finished)
        written = grows[:, None] & (self._places == self.steps[:, None])
        self.sequence = torch.where(written, action[:, None].long(), self.sequence)
        self.sequence_mask = self.sequence_mask | written
        self.last = action.long()
        over = (terminated | truncated) & ~self.finished
        self.finished = self.finished | over
        return self._reward(over), terminated, truncated

    def action_mask(self) -> Tensor:
        """The tokens that may come next (rows, vocabulary_size); all of them in finished rows.

        Raises ValueError where no token is legal.
        """
        size = (self.sequence.shape[0], self.rules.vocabulary_size)
        if self.rules.legal is None:
            return torch.ones(size, dtype=torch.bool, device=self.sequence.device)
        if self._legal is not None:
            return self._legal
        answer = self.rules.legal(self.sequence, self.sequence_mask)
        what = "'legal' must give an action_mask of shape"
        legal = (_tensor_of(answer, size, what) != 0) | self.finished[:, None]
        stuck = (~legal.any(-1)).nonzero().flatten().tolist()
        if stuck:
            raise ValueError(
                f"'action_mask' is all false in row {stuck[0]}: 'legal' allows no token after {self._said(stuck[0])}"
            )
        self._legal = legal
        return legal

    def _refuse_wrong(self, action: Tensor) -> None:
        """Raise ValueError for the first action that is no token, or one that may not come next."""
        size = self.rules.vocabulary_size
        wrong = ((action < 0) | (action >= size)).nonzero().flatten().tolist()
        why = f"but the vocabulary has {size} tokens"
        if not wrong and self.rules.legal is not None:
            legal = self.action_mask().gather(-1, action[:, None].long()).squeeze(-1)
            wrong = (~legal).nonzero().flatten().tolist()
            why = "which 'action_mask' forbids after {}"
        if wrong:
            row = wrong[0]
            place = f"in row {row} at step {int(self.steps[row]) + 1}"
            raise ValueError(
                f"'action' is {int(action[row])} {place}, {why.format(self._said(row))}"
            )

    def _said(self, row: int) -> list[int]:
        """The tokens of a row."""
        return self.sequence[row][self.sequence_mask[row]].tolist()

    def _reward(self, over: Tensor) -> Tensor:
        """The scores of the rows that are ``over`` now, zeros for the others."""
        reward = torch.zeros(over.shape, device=over.device)
        if self.rules.score is not None and over.any():
            rows = over.nonzero().flatten().tolist()
            answer = self.rules.score(self.sequence[over], self.sequence_mask[over])
            shown = f"row {rows[0]}" if len(rows) == 1 else f"rows {', '.join(map(str, rows))}"
            what = f"'score' must give one number for each sequence ({shown}), the shape"
            scores = _tensor_of(answer, (len(rows),), what).to(reward)
            wrong = (~scores.isfinite()).nonzero().flatten().tolist()
            if wrong:
                row, score = rows[wrong[0]], float(scores[wrong[0]])
                raise ValueError(
                    f"'score' gives {score} for row {row}, {self._said(row)}; it must be a finite number"
                )
            reward[over] = scores
        return reward


def _tensor_of(answer: object, shape: tuple[int, ...], what: str) -> Tensor:
    """The answer of a user's function as a tensor. Raises ValueError that begins with ``what`` for another shape."""
    try:
        tensor = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{what} {format_shape(shape)}, got a {type(answer).__name__}") from None
    if tensor.shape != shape:
        raise ValueError(f"{what} {format_shape(shape)}, got {format_shape(tensor.shape)}")
    return tensor
