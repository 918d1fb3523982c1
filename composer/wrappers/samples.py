"""Wrappers that choose an action from the model's `logit` and put it beside, under `action`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from composer.wrappers.composed import to_bounds
from composer.wrappers.heads import (
    Choices,
    check_eps,
    check_positive,
    choices_of,
    explored,
    like_logit,
    normal_of,
    sample_of,
    several,
)
from composer.wrappers.interface import Chosen, IModelWrapper, Output, read_output, undone

__all__ = ["ArgmaxSampleWrapper", "DeterministicSampleWrapper", "EpsGreedyMultinomialSampleWrapper"]
__all__ += ["EpsGreedySampleWrapper", "MultinomialSampleWrapper", "ReparamSampleWrapper"]
__all__ += ["Keywords", "SampleWrapper"]

Keywords = dict[str, Any]  # of forward, by name


class SampleWrapper(IModelWrapper):
    """Base of wrappers that choose an action, by the keywords of forward to which the class ``listens``.

    With ``alpha`` a choice is drawn by ``softmax(logit / alpha)``, without it is the best one; with ``eps`` it is any
    legal one with that probability. Random numbers come from ``generator``, or else from torch's global one.
    """

    chooses: ClassVar[Chosen | None] = "choice"

    def forward(self, *args: object, **kwargs: object) -> Output:
        given = self._checked({name: kwargs.pop(name) for name in self.listens if name in kwargs})
        output = self._run(*args, **kwargs)
        with undone(self):
            action = self._action(output, **given)
            return {**output, "action": action}

    def _checked(self, given: Keywords) -> Keywords:
        """The keywords that were ``given``, with defaults. Raises ValueError for wrong ones, before the model runs."""
        if "eps" in self.listens:
            given["eps"] = check_eps(given.get("eps"), self)
        if "alpha" in self.listens:
            check_positive("alpha", given.setdefault("alpha", 1.0), self)
        return given

    def _action(self, output: Output, **given: Any) -> Any:
        """The action for what the model returned."""
        heads = choices_of(output, self)
        return like_logit(output["logit"], self._chosen(heads, **given))

    def _chosen(
        self,
        heads: list[Choices],
        eps: float | Tensor | None = None,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """A choice of each action."""
        chosen = [h.greedy() if alpha is None else h.sample(alpha, generator) for h in heads]
        return chosen if eps is None else explored(heads, chosen, eps, self, generator)


class ArgmaxSampleWrapper(SampleWrapper):
    """The legal choice of the largest logit."""


class MultinomialSampleWrapper(SampleWrapper):
    """A legal choice, drawn by ``softmax(logit / alpha)``; ``alpha`` is a keyword of forward."""

    listens = ("alpha", "generator")


class EpsGreedySampleWrapper(SampleWrapper):
    """The best legal choice, or with probability ``eps`` any legal one, all alike.

    ``eps`` is a keyword of forward: a number throws one coin per action for the whole batch, a dict {row: eps} or a
    tensor (B,) one coin per row.
    """

    listens = ("eps", "generator")


class EpsGreedyMultinomialSampleWrapper(SampleWrapper):
    """As eps_greedy_sample, but what is not explored is drawn by ``softmax(logit / alpha)``."""

    listens = ("eps", "alpha", "generator")


class DeterministicSampleWrapper(SampleWrapper):
    """``mu`` of ``logit = {mu, sigma}``."""

    chooses = "normal"

    def _action(self, output: Output, **given: Any) -> Any:
        logits = several(read_output(output, "logit", self))
        values = [self._value(logit, **given) for logit in logits]
        return like_logit(output["logit"], [to_bounds(self, i, v) for i, v in enumerate(values)])

    def _value(self, logit: object, generator: torch.Generator | None = None) -> Tensor:
        return normal_of(logit, self, "mu")


class ReparamSampleWrapper(DeterministicSampleWrapper):
    """``mu + sigma * noise`` of ``logit = {mu, sigma}``: independent normals, through which gradients flow."""

    listens = ("generator",)

    def _value(self, logit: object, generator: torch.Generator | None = None) -> Tensor:
        return sample_of(logit, self, generator)
