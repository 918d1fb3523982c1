"""The joint distribution of a policy whose heads read what other heads have drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from composer.distributions.base import Distribution, check_family, sum_of
from composer.distributions.candidates import Candidates
from composer.distributions.joint import CompositeDistribution, check_joint
from composer.spaces.action_inputs import ActionInputs
from perception_blocks.words import listing

__all__ = ["AutoregressiveDistribution", "HeadStages", "MOST_COMBINATIONS"]

MOST_COMBINATIONS = 64
"""Of the actions that heads read, up to which expectations are exact: each takes a pass of the later heads."""

Tensors = dict[str, Tensor]
Choose = Callable[[str, Distribution], Tensor]


class HeadStages(Protocol):
    """What runs the later heads: an `AutoregressiveNetwork`."""

    heads: tuple[tuple[str, ...], ...]
    read: dict[str, str]  # head -> the input that its action is

    def advanced(self, stage: int, values: Tensors) -> Tensors: ...

    def logits(self, head: str, values: Mapping[str, Tensor]) -> Tensor: ...

    def expanded(self, values: Mapping[str, Tensor], leading: tuple[int, ...]) -> Tensors: ...


class Draw(NamedTuple):
    """Actions by head, and of each head its logits and its distribution given the actions before it."""

    actions: Tensors
    logits: Tensors
    parts: dict[str, Distribution]
    with_gradients: bool
    is_sampled: bool


class AutoregressiveDistribution(Distribution):
    """Several actions, drawn head after head: p(a) = p(a1) p(a2 | a1) ..., as in AlphaStar and OpenAI Five.

    Actions are dicts by flat key. `sample` and `mode` draw each head given the actions before it, so that `mode` is
    greedy, not the most likely joint action. `log_prob` computes all heads at the given action, in one pass; gradients
    reach all of them, and none flows through a sampled action, but through those of `rsample`.

    `entropy` and `kl` are expectations over the actions that heads read. They are exact where these are choices with at
    most `MOST_COMBINATIONS` joint ones. Else they are estimates without bias from one sample for each row: the sum over
    the heads of what each has given the actions sampled before it. Of an estimate the gradient leaves out that the
    sample itself depends on the weights.
    """

    def __init__(
        self,
        stages: HeadStages,
        values: Tensors,
        part: Callable[[str, Tensor], Distribution],
        inputs: ActionInputs,
        joint: Tensors | None,
        order: tuple[str, ...],
        dtype: torch.dtype,
        has_density: bool = True,
    ) -> None:
        """``values`` are those of the first stage; ``part`` makes a head's distribution of its logits.

        ``joint`` has the combinations of the actions that heads read; without it expectations are estimates.
        """
        self._joint = joint
        self.has_density = has_density
        self.heads = stages.heads
        self.order = order
        self._stages = stages
        self._values = values
        self._part = part
        self._inputs = inputs
        self._dtype = dtype
        self._first = {head: self._of(head, values) for head in stages.heads[0]}
        self._last: Draw | None = None

    def sample(self, generator: torch.Generator | None = None) -> Tensors:  # type: ignore[override]
        return self._kept(lambda _, part: part.sample(generator))

    def rsample(self, generator: torch.Generator | None = None) -> Tensors:  # type: ignore[override]
        return self._kept(lambda _, part: part.rsample(generator))

    def mode(self) -> Tensors:  # type: ignore[override]
        """The mode of each head, given the modes before it."""
        return self._kept(lambda _, part: part.mode(), is_sampled=False)

    def log_prob(self, action: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self._log_prob(action)[1]

    def log_prob_of_draw(self, action: Mapping[str, Tensor]) -> Tensor:
        last = self._last
        if last is None or last.actions is not action or not _is_of_now(last):
            return self.log_prob(action)
        return sum_of(last.parts[head].log_prob_of_draw(action[head]) for head in self.order)

    def top_k(self, k: int) -> Candidates:
        raise ValueError(
            "top_k of heads that read actions would need a pass of the network for every joint action; draw candidates "
            "by sample() and compare them by log_prob(action)"
        )

    def given(self, action: Mapping[str, Tensor]) -> CompositeDistribution:
        """The distribution of each head, in ``parts``, given the actions before it in ``action``."""
        draw, _ = self._log_prob(action)
        return CompositeDistribution({head: draw.parts[head] for head in self.order})

    def logits(self, action: Mapping[str, Tensor]) -> Tensors:
        """The logits of each head given ``action``, shapes (..., k)."""
        last = self._last
        if last is None or last.actions is not action or not _is_of_now(last):
            last, _ = self._log_prob(action)
        return {head: last.logits[head] for head in self.order}

    def entropy(self) -> Tensor:
        """In nats, by the chain rule: exact, or an estimate from one sample, as the class says."""
        return self._expected(lambda head, part, _: part.entropy(), None)

    def kl(self, other: AutoregressiveDistribution) -> Tensor:
        """To ``other``, whose heads are drawn in the same order: exact or an estimate, as `entropy`."""
        check_family(self, other)
        if other.heads != self.heads:
            ours, theirs = (" then ".join(map(listing, d.heads)) for d in (self, other))
            raise ValueError(
                f"this distribution draws {ours}, the other one {theirs}; kl needs one order of heads"
            )
        return self._expected(lambda head, part, others: part.kl(others[head]), other)

    def row(self) -> Tensor:
        raise ValueError(
            "no row of numbers stands for a distribution whose heads read actions, for it needs the weights of the "
            "later heads; keep observations and actions, and evaluate them by "
            "policy.distribution(observations).log_prob(action)"
        )

    # --- inside ---

    def _of(self, head: str, values: Tensors) -> Distribution:
        return self._part(head, self._stages.logits(head, values))

    def _walk(
        self, choose: Choose, leading: tuple[int, ...] | None = None, *, is_sampled: bool = False
    ) -> Draw:
        """Each head given what ``choose`` returns for those before it; with ``leading`` for these axes."""
        values, first = self._values, self._first
        if leading is not None:
            values = self._stages.expanded(values, leading)
            first = {head: self._of(head, values) for head in first}
        actions: Tensors = {}
        logits: Tensors = {}
        parts: dict[str, Distribution] = {}
        for stage, heads in enumerate(self.heads):
            if stage:
                values = self._stages.advanced(stage, values)
            for head in heads:
                logits[head] = self._stages.logits(head, values)
                parts[head] = self._of(head, values) if stage else first[head]
                actions[head] = choose(head, parts[head])
                if head in self._stages.read:
                    vector = self._inputs.vector(head, actions[head], self._dtype)
                    values = {**values, self._stages.read[head]: vector}
        ordered = {head: actions[head] for head in self.order}
        return Draw(ordered, logits, parts, torch.is_grad_enabled(), is_sampled)

    def _kept(self, choose: Choose, *, is_sampled: bool = True) -> Tensors:
        self._last = self._walk(choose, is_sampled=is_sampled)
        return self._last.actions

    def _log_prob(self, action: Mapping[str, Tensor]) -> tuple[Draw, Tensor]:
        check_joint(action, self.order)
        leading = self._leading_of(action)
        log_probs: Tensors = {}

        def look(head: str, part: Distribution) -> Tensor:
            log_probs[head] = part.log_prob(action[head])  # which refuses what is no action
            shape = self._inputs.shapes[head]
            return action[head] if leading is None else action[head].expand(*leading, *shape)

        draw = self._walk(look, leading)
        return draw, sum_of(log_probs[head] for head in self.order)

    def _leading_of(self, action: Mapping[str, Tensor]) -> tuple[int, ...] | None:
        """The axes that actions and observations broadcast to; None where they are alike, and where they do not fit.

        Then the head whose action does not fit says so.
        """
        batch = self._batch()
        axes = []
        for head in self.order:
            value, shape = action[head], self._inputs.shapes[head]
            if not isinstance(value, Tensor) or value.dim() < len(shape):
                return None
            if not shape and batch and value.shape == (*batch, 1):
                return None
            axes.append(tuple(value.shape[: value.dim() - len(shape)]))
        if all(leading == batch for leading in axes):
            return None
        try:
            return tuple(torch.broadcast_shapes(batch, *axes))
        except RuntimeError:
            return None

    def _batch(self) -> tuple[int, ...]:
        head = self.heads[0][0]
        return tuple(self._stages.logits(head, self._values).shape[:-1])

    def _expected(
        self,
        measure: Callable[[str, Distribution, Mapping[str, Distribution]], Tensor],
        other: AutoregressiveDistribution | None,
    ) -> Tensor:
        """The sum of ``measure`` over the heads, in expectation over the actions that heads read.

        ``measure`` gets a head, its distribution, and the distributions of ``other`` given the same actions.
        """

        def total(draw: Draw, others: Mapping[str, Distribution]) -> Tensor:
            return sum_of(measure(head, draw.parts[head], others) for head in self.order)

        joint = self._joint
        if joint is None:
            draw = self._last
            if draw is None or not _is_of_now(draw) or not draw.is_sampled:
                draw = self._walk(lambda _, part: part.sample())
            return total(draw, {} if other is None else other._log_prob(draw.actions)[0].parts)
        batch = self._batch()
        count = len(next(iter(joint.values())))
        device = self._stages.logits(self.heads[0][0], self._values).device
        given = {
            head: value.to(device)
            .reshape(count, *[1] * len(batch), *value.shape[1:])
            .expand(count, *batch, *value.shape[1:])
            for head, value in joint.items()
        }

        def choose(head: str, part: Distribution) -> Any:
            return given.get(head)

        leading = (count, *batch)
        draw = self._walk(choose, leading)
        others = {} if other is None else other._walk(choose, leading).parts
        weights = sum_of(draw.parts[head].log_prob_of_draw(given[head]) for head in given).exp()
        return (weights * total(draw, others)).sum(0)


def _is_of_now(draw: Draw) -> bool:
    """Whether gradients flow in it if they would in a new one."""
    return draw.with_gradients == torch.is_grad_enabled()
