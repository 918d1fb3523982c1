"""Wrappers that choose several different actions of one set: ``action`` (B, shots), the first choice first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer.wrappers.heads import Choices, check_positive, choices_of, like_logit
from composer.wrappers.interface import IModelWrapper, Output, undone, wrapper_label
from perception_blocks.settings import PositiveInt

__all__ = ["CombinationArgmaxSampleWrapper", "CombinationMultinomialSampleWrapper"]


class CombinationArgmaxSampleWrapper(IModelWrapper):
    """The ``shot_number`` legal choices of the largest logits; given as a setting, or as a keyword of forward."""

    chooses = "choice"
    listens = ("shot_number",)

    def __init__(self, model: Any, *, shot_number: PositiveInt | None = None) -> None:
        super().__init__(model)
        self.shot_number = shot_number

    def forward(self, *args: Any, shot_number: int | None = None, **kwargs: Any) -> Output:
        shots = _shots(self, shot_number, self.shot_number)
        output = self._run(*args, **kwargs)
        with undone(self):
            heads = choices_of(output, self)
            actions = [_first(head, head.scores(), shots, self) for head in heads]
            return {**output, "action": like_logit(output["logit"], actions)}


class CombinationMultinomialSampleWrapper(IModelWrapper):
    """``shot_number`` legal choices, drawn one after the other by ``softmax(logit / alpha)`` of those that are left."""

    chooses = "choice"
    listens = ("shot_number", "alpha", "generator")

    def __init__(self, model: Any, *, shot_number: PositiveInt | None = None) -> None:
        super().__init__(model)
        self.shot_number = shot_number

    def forward(
        self,
        *args: Any,
        shot_number: int | None = None,
        alpha: float = 1.0,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Output:
        shots = _shots(self, shot_number, self.shot_number)
        check_positive("alpha", alpha, self)
        output = self._run(*args, **kwargs)
        with undone(self):
            heads = choices_of(output, self)
            actions = [
                _first(head, _perturbed(head.scores(alpha), generator), shots, self)
                for head in heads
            ]
            return {**output, "action": like_logit(output["logit"], actions)}


def _shots(wrapper: IModelWrapper, given: int | None, setting: int | None) -> int:
    shots = setting if given is None else given
    if shots is None:
        raise ValueError(
            f"{wrapper_label(wrapper)} needs 'shot_number', how many actions to choose: a setting or a keyword"
        )
    if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
        raise ValueError(
            f"{wrapper_label(wrapper)}: 'shot_number' must be a positive integer, got {shots!r}"
        )
    return shots


def _perturbed(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """Scores whose order is that of draws without repeats: each with a Gumbel variable added."""
    clocks = torch.empty_like(scores).exponential_(generator=generator)
    return scores.detach() - clocks.clamp_min(torch.finfo(scores.dtype).tiny).log()


def _first(head: Choices, scores: Tensor, shots: int, wrapper: IModelWrapper) -> Tensor:
    """The places of the ``shots`` highest scores, which must all be legal."""
    legal = torch.ones_like(scores, dtype=torch.bool) if head.legal is None else head.legal
    fewest = scores.shape[-1] if legal.numel() == 0 else int(legal.sum(-1).min())
    if shots > fewest:
        raise ValueError(
            f"{wrapper_label(wrapper)} cannot choose {shots} different actions: a row has only {fewest} legal"
        )
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :shots]
