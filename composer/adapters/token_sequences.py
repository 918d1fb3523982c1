"""Sequences of tokens that grow by one at each step: what both token environments do, as tensors."""

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
    """What is wrong with the sizes of sequences: there are two tokens at least, and room for two."""
    sizes = {"vocabulary_size": vocabulary_size, "max_length": max_length}
    return [
        f"{name!r} must be a whole number of at least 2, got {size!r}"
        for name, size in sizes.items()
        if not isinstance(size, Integral) or size < 2
    ]


@dataclass(frozen=True)
class TokenRules:
    """What a sequence is. Raises ValueError with all that is wrong.

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

    def reset(self, rows: Tensor) -> None:
        """Begin anew where ``rows`` is true."""
        self.sequence = torch.where(rows[:, None], self._begun, self.sequence)
        self.sequence_mask = torch.where(rows[:, None], self._places == 0, self.sequence_mask)
        self.last = torch.where(rows, self.rules.start_token, self.last)
        self.steps = torch.where(rows, 0, self.steps)
        self.finished = self.finished & ~rows

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add a token (rows,) to each row: reward, terminated and truncated, each (rows,).

        The end token is not written, nor is what comes with the last step; finished rows do not grow.
        Raises ValueError for an action that is no token, and where there is not one for each row.
        """
        if action.shape != self.last.shape or action.is_floating_point():
            needed, got = format_shape(self.last.shape), format_shape(action.shape)
            raise ValueError(
                f"'action' must hold one token for each row, whole numbers {needed}, got {action.dtype} {got}"
            )
        wrong = action[(action < 0) | (action >= self.rules.vocabulary_size)]
        if wrong.numel():
            size, token = self.rules.vocabulary_size, int(wrong[0])
            raise ValueError(f"'action' holds {token}, but the vocabulary has {size} tokens")
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
        everything = torch.ones(size, dtype=torch.bool, device=self.sequence.device)
        if self.rules.legal is None:
            return everything
        legal = self.rules.legal(self.sequence, self.sequence_mask) != 0
        if legal.shape != everything.shape:
            needed, got = format_shape(everything.shape), format_shape(legal.shape)
            raise ValueError(f"'legal' must give an action_mask of shape {needed}, got {got}")
        legal = legal | self.finished[:, None]
        stuck = (~legal.any(-1)).nonzero().flatten().tolist()
        if stuck:
            sequence = self.sequence[stuck[0]][self.sequence_mask[stuck[0]]].tolist()
            raise ValueError(
                f"'action_mask' is all false in row {stuck[0]}: 'legal' allows no token after {sequence}"
            )
        return legal

    def _reward(self, over: Tensor) -> Tensor:
        """The scores of the rows that are ``over`` now, zeros for the others."""
        reward = torch.zeros(over.shape, device=over.device)
        if self.rules.score is not None and over.any():
            count = int(over.sum())
            scores = torch.as_tensor(
                self.rules.score(self.sequence[over], self.sequence_mask[over])
            )
            if tuple(scores.shape) != (count,):
                needed, got = format_shape((count,)), format_shape(scores.shape)
                raise ValueError(
                    f"'score' must give one number for each sequence, {needed}, got {got}"
                )
            reward[over] = scores.to(reward)
        return reward
