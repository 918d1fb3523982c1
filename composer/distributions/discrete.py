"""Distributions of choices: categorical, several categoricals, independent bits.

An illegal choice, and one whose probability is too small for a number, has probability zero and a log-probability of
`floor_of` (about -3e32 in float32) instead of -inf, so that sums, entropies and gradients stay finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from composer.distributions.base import (
    AS_SAMPLED,
    ENVIRONMENTS_ACTION,
    ActionDistribution,
    Distribution,
    check_action,
    check_family,
    check_temperature,
    event_sum,
    floor_of,
    index_text,
    limits_text,
    misfit,
    refuse_actions,
    wide,
)
from composer.distributions.candidates import Candidates, best, merged, refuse_no_count
from composer.spaces.kinds import Leaf
from composer.spaces.values import as_flags, on_host
from perception_blocks.port import format_shape

__all__ = ["Bernoulli", "BitDistribution", "Categorical", "ChoiceDistribution", "MultiCategorical"]
__all__ += ["NoLegalChoiceError", "require_choice"]


MOST_PADDED = 2**25  # choices of one action


class NoLegalChoiceError(ValueError):
    """The mask of ``action`` leaves nothing to choose in the row that ``row`` names."""

    def __init__(self, action: str, row: str, source: str = "") -> None:
        self.action = action
        self.row = row
        self.source = source
        mask = f"the mask of action {action!r}" + (f" ({source})" if source else "")
        super().__init__(f"{mask} leaves no legal choice{row}; each row needs a nonzero element")

    def of(self, source: str) -> NoLegalChoiceError:
        """The same error with the mask's origin in its message: ``"observation 'legal'"``."""
        return NoLegalChoiceError(self.action, self.row, source)

    def __reduce__(self) -> tuple:
        return (type(self), (self.action, self.row, self.source))


class ChoiceDistribution(Distribution):
    """One choice of n for each element of the action: ``logits`` (..., *action shape, n).

    ``sizes`` (*action shape) says how many of the n there really are where that differs; ``key`` and ``start``, what
    the environment counts from, are for messages.
    """

    def __init__(
        self,
        logits: Tensor,
        event_dims: int = 0,
        *,
        sizes: Tensor | None = None,
        key: str = "action",
        start: int | Tensor = 0,
    ) -> None:
        floor = floor_of(logits.dtype)
        # clamp_min, with one operation backward
        self.log_probs = functional.threshold(functional.log_softmax(logits, -1), floor, floor)
        self._event_dims = event_dims
        self._sizes = sizes
        self._key = key
        self._start = start

    @property
    def probs(self) -> Tensor:
        return self.log_probs.exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        # The first of n exponential clocks of rates p is n with probability p; nothing leaves the device.
        probs = self.log_probs.detach().exp()
        clocks = torch.empty_like(probs).exponential_(generator=generator)
        return (probs / clocks.clamp_min(torch.finfo(probs.dtype).tiny)).argmax(-1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        check_action(action, self.log_probs.shape[:-1], self._event_dims)
        if on_host(action):
            self._refuse_no_choice(action)
        if action.shape == self.log_probs.shape[:-1]:
            return self.log_prob_of_draw(action.to(torch.int64))
        chosen = action.to(torch.int64).unsqueeze(-1)
        log_probs, chosen = torch.broadcast_tensors(self.log_probs, chosen)
        return event_sum(log_probs.gather(-1, chosen[..., :1]).squeeze(-1), self._event_dims)

    def log_prob_of_draw(self, action: Tensor) -> Tensor:
        return event_sum(
            self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1), self._event_dims
        )

    def _refuse_no_choice(self, action: Tensor) -> None:
        sizes = self.log_probs.shape[-1] if self._sizes is None else self._sizes
        if isinstance(sizes, int) and action.dtype == torch.int64 and action.numel():
            low, high = action.aminmax()  # a third of the time of what follows
            if low.item() >= 0 and high.item() < sizes:
                return
        whole = action == action.round() if action.is_floating_point() else True
        right = (action >= 0) & (action < sizes) & whole  # False for NaN
        if bool(right.all()):
            return

        counted = (action >= self._start) & (action < self._start + sizes) & whole
        way_out = ENVIRONMENTS_ACTION if bool(counted.all()) else AS_SAMPLED

        def expected(index: tuple[int, ...]) -> str:
            return f"an integer from {limits_text(0, sizes - 1, action.shape, index)}"

        refuse_actions(action, ~right, expected, self._key, way_out)

    def top_k(self, k: int) -> Candidates:
        refuse_no_count(k)
        log_probs = self.log_probs.unsqueeze(-2) if not self._event_dims else self.log_probs
        if self._event_dims > 1:
            log_probs = log_probs.flatten(-1 - self._event_dims, -2)
        actions, scores = _best_choices(log_probs, k)
        return Candidates(actions.reshape(k, *self.log_probs.shape[:-1]), scores)

    def entropy(self) -> Tensor:
        return event_sum(-(self.log_probs.exp() * self.log_probs).sum(-1), self._event_dims)

    def kl(self, other: ChoiceDistribution) -> Tensor:
        """Very large (infinite in truth) where ``other`` forbids what this one allows."""
        check_family(self, other)
        difference = self.log_probs.exp() * (self.log_probs - other.log_probs)
        return event_sum(difference.sum(-1), self._event_dims)

    def row(self) -> Tensor:
        """Log-probabilities; of what is illegal they are finite."""
        return self.log_probs.flatten(-1 - self._event_dims)


class BitDistribution(Distribution):
    """Independent bits, as 0.0 and 1.0: ``logits`` (..., *action shape); ``key`` is for messages."""

    def __init__(self, logits: Tensor, event_dims: int, *, key: str = "action") -> None:
        lowest = floor_of(logits.dtype)
        self.logits = logits.clamp(lowest, -lowest)
        self._event_dims = event_dims
        self._key = key

    @property
    def probs(self) -> Tensor:
        return self.logits.sigmoid()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        probs = self.logits.detach().sigmoid()
        empty = torch.empty_like(probs, memory_format=torch.contiguous_format)
        uniform = empty.uniform_(generator=generator)  # see continuous._normal_like
        return (uniform < probs).to(probs.dtype)

    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    def log_prob(self, action: Tensor) -> Tensor:
        check_action(action, self.logits.shape, self._event_dims)
        if on_host(action):
            wrong = (action != 0) & (action != 1)  # True for NaN
            refuse_actions(action, wrong, lambda _: "0 or 1", self._key)
        signed = torch.where(action != 0, self.logits, -self.logits)
        return event_sum(functional.logsigmoid(signed), self._event_dims)

    def top_k(self, k: int) -> Candidates:
        refuse_no_count(k)
        logits = self.logits.unsqueeze(-1) if not self._event_dims else self.logits
        if self._event_dims > 1:
            logits = logits.flatten(-self._event_dims)
        log_probs = functional.logsigmoid(torch.stack([-logits, logits], -1))
        actions, scores = _best_choices(log_probs, k)
        return Candidates(actions.to(self.logits.dtype).reshape(k, *self.logits.shape), scores)

    def entropy(self) -> Tensor:
        return event_sum(-self._expected(self.logits), self._event_dims)

    def kl(self, other: BitDistribution) -> Tensor:
        """Very large (infinite in truth) where ``other`` forbids what this one allows."""
        check_family(self, other)
        difference = self._expected(self.logits) - self._expected(other.logits)
        return event_sum(difference, self._event_dims)

    def row(self) -> Tensor:
        """Logits; of what is illegal they are finite."""
        return (
            self.logits.flatten(-self._event_dims)
            if self._event_dims
            else self.logits.unsqueeze(-1)
        )

    def _expected(self, logits: Tensor) -> Tensor:
        """The expectation under this distribution of the log-probabilities that ``logits`` give."""
        of_one = self.logits.sigmoid() * functional.logsigmoid(logits)
        return of_one + (-self.logits).sigmoid() * functional.logsigmoid(-logits)


class Categorical(ActionDistribution):
    """One of n choices; logits (..., n). ``temperature`` divides the logits."""

    def __init__(self, leaf: Leaf) -> None:
        if leaf.kind != "discrete":
            raise misfit("categorical", leaf, "a Discrete action")
        super().__init__(leaf, leaf.port.cardinality)  # type: ignore[arg-type]
        self._start = leaf.start

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> ChoiceDistribution:
        check_temperature(temperature)
        logits = wide(logits)
        legal = None
        if mask is not None:
            legal = _legal(mask, logits, self.key)
            require_choice(legal, self.key)
        return self.of_row(_scores(logits, legal, temperature))

    def of_row(self, row: Tensor) -> ChoiceDistribution:
        return ChoiceDistribution(row, key=self.key, start=self._start)

    def wrong_logits(self, logits: Tensor) -> Tensor:
        no_choice = (logits == -math.inf).all(-1, keepdim=True)
        return no_choice.expand_as(logits) | super().wrong_logits(logits)


class MultiCategorical(ActionDistribution):
    """A choice for each element of a MultiDiscrete; logits and mask are concatenated in the elements' order.

    ``temperature`` divides the logits.
    """

    index: Tensor
    sizes: Tensor

    def __init__(self, leaf: Leaf) -> None:
        if leaf.kind != "multi_discrete":
            raise misfit("multi_categorical", leaf, "a MultiDiscrete action")
        sizes = leaf.port.cardinality
        assert isinstance(sizes, tuple)
        super().__init__(leaf, sum(sizes))
        self._start = leaf.start
        self._widest = max(sizes)
        self.padded = len(set(sizes)) > 1
        if self.padded:
            _refuse_wide(leaf, len(sizes) * max(sizes))
            self.constant("index", _padded_index(sizes), torch.int64)
            self.constant("sizes", sizes, torch.int64)

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> ChoiceDistribution:
        check_temperature(temperature)
        logits = wide(logits)
        legal = None
        if mask is not None:
            legal = self.choices(_legal(mask, logits, self.key).expand_as(logits), False)
            require_choice(legal, self.key)
        heat: float | Tensor = temperature
        if isinstance(heat, Tensor) and heat.dim():
            heat = self.choices(heat.expand_as(logits), 1.0)
        scores = _scores(self.choices(logits, -math.inf), legal, heat)
        if self.padded and legal is not None:
            # Else a row without a legal choice would not be uniform over the real ones.
            padding = (self.index == logits.shape[-1]).reshape(*self.action_shape, self._widest)
            scores = scores.masked_fill(padding, -math.inf)
        return self._of(scores)

    @property
    def row_width(self) -> int:
        return math.prod(self.action_shape) * self._widest

    def of_row(self, row: Tensor) -> ChoiceDistribution:
        return self._of(row.reshape((*row.shape[:-1], *self.action_shape, self._widest)))

    def _of(self, scores: Tensor) -> ChoiceDistribution:
        sizes = self.sizes.reshape(self.action_shape) if self.padded else None
        return ChoiceDistribution(
            scores, len(self.action_shape), sizes=sizes, key=self.key, start=self._start
        )

    def wrong_logits(self, logits: Tensor) -> Tensor:
        rows = self.choices(logits, -math.inf)
        no_choice = (rows == -math.inf).all(-1).flatten(logits.dim() - 1).any(-1, keepdim=True)
        return no_choice.expand_as(logits) | super().wrong_logits(logits)

    def choices(self, values: Tensor, fill: float | bool) -> Tensor:
        """Logits or a mask (..., sum of sizes) as (..., *action shape, widest), filled up with ``fill``."""
        leading = values.shape[:-1]
        if self.padded:
            padding = values.new_full((*leading, 1), fill)
            values = torch.cat([values, padding], -1).index_select(-1, self.index)
        return values.reshape(*leading, *self.action_shape, self._widest)


def _refuse_wide(leaf: Leaf, count: int) -> None:
    """Raise ValueError for choices that are too many to be padded to the widest."""
    if count > MOST_PADDED:
        raise ValueError(
            f"distribution 'multi_categorical' pads all choices of {leaf.key!r} to the widest, which makes {count:,}, "
            f"more than {MOST_PADDED:,}; give the wide choice a Discrete of its own"
        )


def _padded_index(sizes: tuple[int, ...]) -> list[int]:
    """The index of each element's choices, padded to the widest element with the index after the last choice."""
    index, first, last = [], 0, sum(sizes)
    for size in sizes:
        index += [*range(first, first + size), *[last] * (max(sizes) - size)]
        first += size
    return index


class Bernoulli(ActionDistribution):
    """Independent bits of a MultiBinary; logits (..., bits). A masked bit is 0. ``temperature`` divides the logits."""

    def __init__(self, leaf: Leaf) -> None:
        if leaf.kind != "multi_binary":
            raise misfit("bernoulli", leaf, "a MultiBinary action")
        super().__init__(leaf, math.prod(leaf.shape))

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> BitDistribution:
        check_temperature(temperature)
        logits = wide(logits)
        if isinstance(temperature, Tensor) or temperature != 1:
            logits = logits / temperature
        if mask is not None:
            logits = logits.masked_fill(~_legal(mask, logits, self.key), floor_of(logits.dtype))
        return self.of_row(logits)

    def of_row(self, row: Tensor) -> BitDistribution:
        logits = row.reshape((*row.shape[:-1], *self.action_shape))
        return BitDistribution(logits, len(self.action_shape), key=self.key)


def _best_choices(log_probs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` most likely joint choices (k, ..., D) of D independent ones (..., D, n), and their log-probabilities.

    What has no probability is none of them: its log-probability is `floor_of` the dtype.
    """
    impossible = log_probs <= floor_of(log_probs.dtype)
    scores, choices = best(log_probs.masked_fill(impossible, -math.inf), k)
    total, ranks = merged(scores.unbind(-2), k)
    chosen = choices.gather(-1, ranks.transpose(-1, -2))
    return chosen.movedim(-1, 0), total.movedim(-1, 0)


def _legal(mask: Tensor, logits: Tensor, key: str) -> Tensor:
    width = mask.shape[-1] if mask.dim() else 1
    if width != logits.shape[-1]:
        raise ValueError(
            f"the mask of action {key!r} has width {width}, its logits have {logits.shape[-1]}"
        )
    if mask.shape != logits.shape and not _broadcasts(mask.shape, logits.shape):
        got, needed = format_shape(mask.shape), format_shape(logits.shape)
        raise ValueError(
            f"the mask of action {key!r} has the shape {got}, its logits have {needed}"
        )
    return as_flags(f"the mask of action {key!r}", mask)


def _broadcasts(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a tensor of ``shape`` fits one of ``other`` without widening it."""
    pairs = zip(reversed(shape), reversed(other), strict=False)
    return len(shape) <= len(other) and all(size in (1, wanted) for size, wanted in pairs)


def _scores(logits: Tensor, legal: Tensor | None, temperature: float | Tensor) -> Tensor:
    """Logits (..., n) over the temperature, with every illegal choice below all legal ones.

    Only the differences to the largest legal one count; taken first, they overflow to what is impossible anyway.
    """
    plain = not isinstance(temperature, Tensor) and temperature == 1
    if legal is None and plain:
        return logits
    lowest = torch.finfo(logits.dtype).min
    allowed = logits if legal is None else torch.where(legal, logits, lowest)
    scores = logits - allowed.detach().amax(-1, keepdim=True).clamp_min(lowest)
    if not plain:
        scores = scores / temperature
    if legal is None:
        return scores
    floor = floor_of(logits.dtype)
    return torch.where(legal, scores.clamp_min(floor / 2), floor)


def require_choice(legal: Tensor, key: str) -> None:
    """Raise NoLegalChoiceError if a row has no legal choice; where `on_host` allows no check, the row is uniform."""
    if not on_host(legal):
        return
    some = legal.any(-1)
    if not bool(some.all()):
        raise NoLegalChoiceError(key, index_text(~some))
