"""Tokens one after the other: how each is chosen, and the loop that generates a batch from prompts of any lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from composer.network.module import NetworkModule
from composer.policy.sequence_view import SequenceView, writing_states
from perception_blocks.settings import (
    NonNegativeInt,
    PositiveInt,
    Range,
    SettingProblem,
    SettingsError,
    check_settings,
)

__all__ = [
    "Generated",
    "GenerationSettings",
    "TokenReader",
    "continued",
    "packed_rows",
    "reader_of",
]
__all__ += ["Share", "Temperature", "token_logp"]

MOST_LOGITS = 2**26  # at once, while prompts are read
Share = Annotated[float, Range(1e-6, 1.0)]
Temperature = Annotated[float, Range(1e-6, 1e6)]  # by which logits are divided, in float32


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are chosen, and how many.

    A sequence ends with the end token of the model's tokenizer, which is not chosen among the first ``min_new_tokens``,
    or after ``max_new_tokens``. ``greedy`` chooses the most probable token; otherwise one is drawn from the softmax of
    ``logits / temperature``, among the ``top_k`` most probable ones, and of these among the fewest that have ``top_p``
    of the probability together. Raises SettingsError with all that is wrong.
    """

    max_new_tokens: PositiveInt = 256
    min_new_tokens: NonNegativeInt = 0
    greedy: bool = False
    top_p: Share = 1.0
    top_k: PositiveInt | None = None
    temperature: Temperature = 1.0

    def __post_init__(self) -> None:
        problems = check_settings(GenerationSettings, vars(self), "generation", skip=0)
        if not problems and self.min_new_tokens > self.max_new_tokens:
            most = self.max_new_tokens
            message = (
                f"'min_new_tokens' must be at most max_new_tokens={most}, got {self.min_new_tokens}"
            )
            problems.append(SettingProblem("min_new_tokens", message))
        if not problems and self.greedy and self.temperature != 1.0:
            message = "'greedy' chooses the same token at any temperature; leave out 'temperature' or 'greedy'"
            problems.append(SettingProblem("temperature", message))
        if problems:
            raise SettingsError(problems)

    def draw(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """A number for each of so many rows, (rows,), which `choose` compares to cumulative probabilities.

        They are drawn where the generator is, so that models on all devices get the same.
        """
        device = None if generator is None else generator.device
        return torch.rand(rows, generator=generator, dtype=torch.float64, device=device)

    def choose(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """A token for each row of ``logits`` (B, V), (B,), by the numbers that `draw` gave."""
        if self.greedy:
            return logits.argmax(-1)
        probs = (logits.double() / self.temperature).softmax(-1)
        order = None
        if self.top_k is not None or self.top_p < 1.0:
            probs, order = probs.sort(-1, descending=True)
            probs = probs[:, : self.top_k]
            before = probs.cumsum(-1) - probs
            probs = torch.where(before < self.top_p, probs, 0.0)
        total = probs.cumsum(-1)
        reached = drawn.to(probs).unsqueeze(-1) * total[:, -1:]
        place = torch.searchsorted(total, reached, right=True).clamp(max=probs.shape[-1] - 1)
        return (place if order is None else order.gather(-1, place)).squeeze(-1)


@dataclass(frozen=True)
class Generated:
    """Sequences (S of them, N tokens) that begin with their prompts, one after the other.

    ``logp`` (N - S,) has the log-probability of every token but the first, under the softmax of ``logits /
    temperature``; ``prompt_mask`` (N,) is true for tokens of prompts; ``seqlens`` are the tokens of each sequence,
    ``lengths`` (S,) how many were generated; ``no_eos`` (S,) is true where the end token was not.
    """

    ids: Tensor
    logp: Tensor
    prompt_mask: Tensor
    seqlens: list[int]
    lengths: Tensor
    no_eos: Tensor


class TokenReader(Protocol):
    """A network that reads tokens one after the other, for a batch of sequences."""

    def start(self, prompts: Sequence[Tensor]) -> Tensor:
        """Logits (B, V) of the token after each of the prompts."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of the token after ``tokens`` (B,), which come after all before."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with those sequences alone for which ``rows`` (B,) is true."""
        ...


class CarriedState:
    """A policy with memory: its state, such as the key-value cache of a decoder, is carried from token to token.

    Prompts are padded in front, and each begins with a reset: one pass reads prompts of all lengths.
    """

    def __init__(self, policy: NetworkModule, reads: Sequence[str], action: str) -> None:
        self.policy, self.reads, self.action = writing_states(policy), reads, action

    def start(self, prompts: Sequence[Tensor]) -> Tensor:
        tokens = pad_sequence(list(prompts), batch_first=True, padding_side="left")
        rows, longest = tokens.shape
        begins = longest - torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)
        resets = torch.arange(longest, device=tokens.device) == begins.unsqueeze(-1)
        columns = max(1, MOST_LOGITS // (rows * self._width()))
        self.state = self.policy.initial_state(rows)
        logits = tokens.new_empty(0)
        for part, starts in zip(tokens.split(columns, 1), resets.split(columns, 1)):
            given = starts if bool(begins.any()) else None
            inputs = dict.fromkeys(self.reads, part)
            outputs, self.state = self.policy.run(inputs, self.state, given, unroll=True)
            logits = outputs[self.action][:, -1]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        outputs, self.state = self.policy.run(dict.fromkeys(self.reads, tokens), self.state, None)
        return outputs[self.action]

    def keep(self, rows: Tensor) -> None:
        self.state = {name: part[rows] for name, part in self.state.items()}

    def _width(self) -> int:
        size = self.policy.network.out_ports[self.action].shape[-1]
        assert size is not None
        return size


class Rereading:
    """A policy without memory, which reads each sequence again from its first token."""

    def __init__(self, view: SequenceView, action: str) -> None:
        self.view, self.action = view, action

    def start(self, prompts: Sequence[Tensor]) -> Tensor:
        self.tokens = pad_sequence(list(prompts), batch_first=True)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.tokens.device)
        return self._logits()

    def step(self, tokens: Tensor) -> Tensor:
        self.tokens = functional.pad(self.tokens, (0, 1))
        self.tokens.scatter_(1, self.lengths.unsqueeze(-1), tokens.unsqueeze(-1))
        self.lengths = self.lengths + 1
        return self._logits()

    def keep(self, rows: Tensor) -> None:
        self.tokens, self.lengths = self.tokens[rows], self.lengths[rows]

    def _logits(self) -> Tensor:
        tokens = self.tokens[:, : int(self.lengths.max())]
        ends = self.lengths.unsqueeze(-1)
        mask = torch.arange(tokens.shape[1], device=tokens.device) < ends
        logits = self.view(tokens, mask)[self.action]
        return logits.take_along_dim(ends.unsqueeze(-1) - 1, 1).squeeze(1)


def reader_of(view: SequenceView, action: str) -> TokenReader:
    """What reads tokens for the policy of a view."""
    if view.network.has_memory:
        return CarriedState(view.network, list(view.reads), action)
    return Rereading(view, action)


def continued(
    reader: TokenReader,
    prompts: Sequence[Tensor],
    settings: GenerationSettings,
    end_token: int | None,
    generator: torch.Generator | None,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The tokens after each of the prompts, their log-probabilities, and whether the end token is missing (B,)."""
    rows, most = len(prompts), settings.max_new_tokens
    logits = reader.start(prompts).float()
    tokens = torch.zeros(rows, most, dtype=torch.int64, device=logits.device)
    logp = torch.zeros(rows, most, device=logits.device)
    counts = torch.zeros(rows, dtype=torch.int64, device=logits.device)
    no_eos = torch.ones_like(counts, dtype=torch.bool)
    active = torch.arange(rows, device=logits.device)  # of those that have not ended
    for step in range(most):
        allowed = logits
        if end_token is not None and step < settings.min_new_tokens:
            allowed = logits.clone()
            allowed[:, end_token] = -torch.inf
        drawn = settings.draw(rows, generator).to(active.device)
        chosen = settings.choose(allowed, drawn[active])
        tokens[active, step] = chosen
        logp[active, step] = token_logp(logits, chosen, settings.temperature)
        counts[active] = step + 1
        goes_on = torch.ones_like(active, dtype=torch.bool)
        if end_token is not None:
            goes_on = chosen != end_token
            no_eos[active] = goes_on
        if step + 1 == most or not bool(goes_on.any()):
            break
        if not bool(goes_on.all()):
            reader.keep(goes_on)
            active, chosen = active[goes_on], chosen[goes_on]
        logits = reader.step(chosen).float()
    ends = counts.tolist()
    return (
        [row[:end] for row, end in zip(tokens, ends)],
        [row[:end] for row, end in zip(logp, ends)],
        no_eos,
    )


def token_logp(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """The log-probability of ``tokens`` (N,) under the softmax of ``logits / temperature``, (N, V)."""
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    return -functional.cross_entropy(scaled, tokens, reduction="none")


def packed_rows(*parts: Sequence[Tensor]) -> Tensor:
    """The rows of all ``parts`` side by side, and these one after the other: first of each, second of each, ..."""
    return torch.cat([row for rows in zip(*parts, strict=True) for row in rows])
