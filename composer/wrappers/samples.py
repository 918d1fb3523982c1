"""Wrappers that choose an action from the model's `logit` and put it beside, under `action`.

What is drawn comes from ``generator`` (a keyword of forward), or else from torch's global one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer.wrappers.composed import to_bounds
from composer.wrappers.heads import (
    check_eps,
    check_positive,
    choices_of,
    explored,
    like_logit,
    normal_of,
    sample_of,
    several,
)
from composer.wrappers.interface import IModelWrapper, Output, read_output, undone

__all__ = ["ArgmaxSampleWrapper", "DeterministicSampleWrapper", "EpsGreedyMultinomialSampleWrapper"]
__all__ += ["EpsGreedySampleWrapper", "MultinomialSampleWrapper", "ReparamSampleWrapper"]

Generator = torch.Generator | None


class ArgmaxSampleWrapper(IModelWrapper):
    """The legal choice of the largest logit."""

    chooses = "choice"

    def forward(self, *args: Any, **kwargs: Any) -> Output:
        output = self._run(*args, **kwargs)
        with undone(self):
            return _with(output, [head.greedy() for head in choices_of(output, self)])


class MultinomialSampleWrapper(IModelWrapper):
    """A legal choice, drawn by ``softmax(logit / alpha)``; ``alpha`` is a keyword of forward."""

    chooses = "choice"
    listens = ("alpha", "generator")

    def forward(
        self, *args: Any, alpha: float = 1.0, generator: Generator = None, **kwargs: Any
    ) -> Output:
        check_positive("alpha", alpha, self)
        output = self._run(*args, **kwargs)
        with undone(self):
            heads = choices_of(output, self)
            return _with(output, [head.sample(alpha, generator) for head in heads])


class EpsGreedySampleWrapper(IModelWrapper):
    """The best legal choice, or with probability ``eps`` any legal one, all alike.

    ``eps`` is a keyword of forward: a number throws one coin per action for the whole batch, a dict {row: eps} or a
    tensor (B,) one coin per row.
    """

    chooses = "choice"
    listens = ("eps", "generator")

    def forward(
        self,
        *args: Any,
        eps: float | Tensor | None = None,
        generator: Generator = None,
        **kwargs: Any,
    ) -> Output:
        rate = check_eps(eps, self)
        output = self._run(*args, **kwargs)
        with undone(self):
            heads = choices_of(output, self)
            greedy = [head.greedy() for head in heads]
            return _with(output, explored(heads, greedy, rate, self, generator))


class EpsGreedyMultinomialSampleWrapper(IModelWrapper):
    """As eps_greedy_sample, but what is not explored is drawn by ``softmax(logit / alpha)``."""

    chooses = "choice"
    listens = ("eps", "alpha", "generator")

    def forward(
        self,
        *args: Any,
        eps: float | Tensor | None = None,
        alpha: float = 1.0,
        generator: Generator = None,
        **kwargs: Any,
    ) -> Output:
        rate = check_eps(eps, self)
        check_positive("alpha", alpha, self)
        output = self._run(*args, **kwargs)
        with undone(self):
            heads = choices_of(output, self)
            drawn = [head.sample(alpha, generator) for head in heads]
            return _with(output, explored(heads, drawn, rate, self, generator))


class DeterministicSampleWrapper(IModelWrapper):
    """``mu`` of ``logit = {mu, sigma}``."""

    chooses = "normal"

    def forward(self, *args: Any, **kwargs: Any) -> Output:
        output = self._run(*args, **kwargs)
        with undone(self):
            logits = several(read_output(output, "logit", self))
            means = [normal_of(logit, self, "mu") for logit in logits]
            return _with(output, [to_bounds(self, i, mu) for i, mu in enumerate(means)])


class ReparamSampleWrapper(IModelWrapper):
    """``mu + sigma * noise`` of ``logit = {mu, sigma}``: independent normals, through which gradients flow."""

    chooses = "normal"
    listens = ("generator",)

    def forward(self, *args: Any, generator: Generator = None, **kwargs: Any) -> Output:
        output = self._run(*args, **kwargs)
        with undone(self):
            logits = several(read_output(output, "logit", self))
            drawn = [sample_of(logit, self, generator) for logit in logits]
            return _with(output, [to_bounds(self, i, value) for i, value in enumerate(drawn)])


def _with(output: Output, actions: list[Any]) -> Output:
    return {**output, "action": like_logit(output["logit"], actions)}
