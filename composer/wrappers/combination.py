"""Wrappers that choose several different actions of one set: ``action`` (B, shots), the first choice first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer.wrappers.heads import Choices, choices_of, like_logit
from composer.wrappers.interface import IModelWrapper, Output, wrapper_label
from composer.wrappers.samples import Keywords, SampleWrapper
from perception_blocks.settings import PositiveInt

__all__ = ["CombinationArgmaxSampleWrapper", "CombinationMultinomialSampleWrapper"]


class CombinationArgmaxSampleWrapper(SampleWrapper):
    """The ``shot_number`` legal choices of the largest logits; given as a setting, or as a keyword of forward."""

    listens = ("shot_number",)

    def __init__(self, model: object, *, shot_number: PositiveInt | None = None) -> None:
        super().__init__(model)
        self.shot_number = shot_number

    def _checked(self, given: Keywords) -> Keywords:
        shots = given.get("shot_number")
        shots = self.shot_number if shots is None else shots
        if shots is None:
            raise ValueError(
                f"{wrapper_label(self)} needs 'shot_number', how many actions to choose: a setting or a keyword"
            )
        if not isinstance(shots, int) or isinstance(shots, bool) or shots < 1:
            raise ValueError(
                f"{wrapper_label(self)}: 'shot_number' must be a positive integer, got {shots!r}"
            )
        return super()._checked({**given, "shot_number": shots})

    def _action(self, output: Output, **given: Any) -> Any:
        heads = choices_of(output, self)
        chosen = [
            _first(head, self._scores(head, **given), given["shot_number"], self) for head in heads
        ]
        return like_logit(output["logit"], chosen)

    def _scores(self, head: Choices, **given: Any) -> Tensor:
        return head.scores()


class CombinationMultinomialSampleWrapper(CombinationArgmaxSampleWrapper):
    """``shot_number`` legal choices, drawn one after the other by ``softmax(logit / alpha)`` of those that are left."""

    listens = ("shot_number", "alpha", "generator")

    def _scores(self, head: Choices, **given: Any) -> Tensor:
        return _perturbed(head.scores(given["alpha"]), given.get("generator"))


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
