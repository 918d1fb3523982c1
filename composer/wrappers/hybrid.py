"""Wrappers that choose a discrete type and its continuous arguments: ``action = {action_type, action_args}``.

A model gives the two as ``logit = {action_type, action_args}``, or as `logit` and `action_args`; a composed policy as
the logits of two actions. Arguments are a tensor, or ``{mu, sigma}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer.wrappers.composed import to_bounds
from composer.wrappers.heads import (
    Choices,
    check_eps,
    check_positive,
    explored,
    like_logit,
    normal_of,
    read_choices,
    sample_of,
)
from composer.wrappers.interface import IModelWrapper, Output, read_output, undone, wrapper_label

__all__ = ["HybridArgmaxSampleWrapper", "HybridDeterministicArgmaxSampleWrapper"]
__all__ += ["HybridEpsGreedyMultinomialSampleWrapper", "HybridEpsGreedySampleWrapper"]
__all__ += ["HybridReparamMultinomialSampleWrapper"]

Generator = torch.Generator | None


class HybridArgmaxSampleWrapper(IModelWrapper):
    """The legal type of the largest logit, and the arguments as they are (`mu` of normals)."""

    chooses = "hybrid"

    def forward(self, *args: Any, **kwargs: Any) -> Output:
        output = self._run(*args, **kwargs)
        with undone(self):
            parts = _parts(output, self)
            return parts.chosen([head.greedy() for head in parts.types], parts.given(self))


class HybridEpsGreedySampleWrapper(IModelWrapper):
    """As hybrid_argmax_sample, but with probability ``eps`` any legal type; ``eps`` as for eps_greedy_sample."""

    chooses = "hybrid"
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
            parts = _parts(output, self)
            greedy = [head.greedy() for head in parts.types]
            types = explored(parts.types, greedy, rate, self, generator)
            return parts.chosen(types, parts.given(self))


class HybridEpsGreedyMultinomialSampleWrapper(IModelWrapper):
    """As hybrid_eps_greedy_sample, but what is not explored is drawn by ``softmax(logit / alpha)``."""

    chooses = "hybrid"
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
            parts = _parts(output, self)
            drawn = [head.sample(alpha, generator) for head in parts.types]
            types = explored(parts.types, drawn, rate, self, generator)
            return parts.chosen(types, parts.given(self))


class HybridReparamMultinomialSampleWrapper(IModelWrapper):
    """A legal type drawn by its logits, and arguments drawn from their normals, through which gradients flow."""

    chooses = "hybrid"
    listens = ("alpha", "generator")

    def forward(
        self, *args: Any, alpha: float = 1.0, generator: Generator = None, **kwargs: Any
    ) -> Output:
        check_positive("alpha", alpha, self)
        output = self._run(*args, **kwargs)
        with undone(self):
            parts = _parts(output, self)
            types = [head.sample(alpha, generator) for head in parts.types]
            value = sample_of(parts.arguments, self, generator)
            return parts.chosen(types, to_bounds(self, parts.place, value))


class HybridDeterministicArgmaxSampleWrapper(IModelWrapper):
    """The legal type of the largest logit, and `mu` of the arguments."""

    chooses = "hybrid"

    def forward(self, *args: Any, **kwargs: Any) -> Output:
        output = self._run(*args, **kwargs)
        with undone(self):
            parts = _parts(output, self)
            value = normal_of(parts.arguments, self, "mu")
            types = [head.greedy() for head in parts.types]
            return parts.chosen(types, to_bounds(self, parts.place, value))


class _Parts(NamedTuple):
    """Types and arguments of a model's output; ``place`` is that of the arguments among the actions of a policy."""

    output: Mapping[str, Any]
    type_logit: Any
    types: list[Choices]
    arguments: Any
    place: int

    def given(self, wrapper: IModelWrapper) -> Tensor:
        """The arguments without anything drawn."""
        if isinstance(self.arguments, Tensor):
            return self.arguments
        return to_bounds(wrapper, self.place, normal_of(self.arguments, wrapper, "mu"))

    def chosen(self, types: list[Tensor], arguments: Tensor) -> Output:
        action_type = like_logit(self.type_logit, types)
        action = {"action_type": action_type, "action_args": arguments}
        return {**self.output, "action": action}


def _parts(output: Output, wrapper: IModelWrapper) -> _Parts:
    logit, mask = read_output(output, "logit", wrapper), output.get("action_mask")
    place = 0
    if isinstance(logit, Mapping):
        missing = [name for name in ("action_type", "action_args") if name not in logit]
        if missing:
            raise ValueError(
                f"{wrapper_label(wrapper)} needs a logit {{action_type, action_args}}, got "
                f"{{{', '.join(map(str, logit))}}}"
            )
        type_logit, arguments = logit["action_type"], logit["action_args"]
        mask = mask.get("action_type") if isinstance(mask, Mapping) else mask
    elif isinstance(logit, list | tuple) and any(isinstance(part, Mapping) for part in logit):
        place = next(i for i, part in enumerate(logit) if isinstance(part, Mapping))
        arguments, rest = logit[place], [i for i in range(len(logit)) if i != place]
        if len(rest) != 1:
            raise ValueError(
                f"{wrapper_label(wrapper)} needs the logits of a type and of its arguments, got {len(logit)} logits"
            )
        type_logit = logit[rest[0]]
        mask = mask[rest[0]] if isinstance(mask, list | tuple) else mask
    else:
        type_logit, arguments = logit, read_output(output, "action_args", wrapper)
    return _Parts(output, type_logit, read_choices(type_logit, mask, wrapper), arguments, place)
