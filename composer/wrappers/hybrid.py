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
from composer.wrappers.heads import Choices, like_logit, normal_of, read_choices, sample_of
from composer.wrappers.interface import IModelWrapper, Output, read_output, wrapper_label
from composer.wrappers.samples import SampleWrapper

__all__ = ["HybridArgmaxSampleWrapper", "HybridDeterministicArgmaxSampleWrapper"]
__all__ += ["HybridEpsGreedyMultinomialSampleWrapper", "HybridEpsGreedySampleWrapper"]
__all__ += ["HybridReparamMultinomialSampleWrapper"]


class _Parts(NamedTuple):
    """Types and arguments of a model's output; ``place`` is that of the arguments among the actions of a policy."""

    type_logit: Any
    types: list[Choices]
    arguments: Any
    place: int


class HybridArgmaxSampleWrapper(SampleWrapper):
    """The legal type of the largest logit, and the arguments as they are (`mu` of normals)."""

    chooses = "hybrid"

    def _action(self, output: Output, **given: Any) -> dict[str, Any]:
        parts = _parts(output, self)
        types = like_logit(parts.type_logit, self._chosen(parts.types, **given))
        return {"action_type": types, "action_args": self._arguments(parts, given.get("generator"))}

    def _arguments(self, parts: _Parts, generator: torch.Generator | None) -> Tensor:
        if isinstance(parts.arguments, Tensor):
            return parts.arguments
        return to_bounds(self, parts.place, normal_of(parts.arguments, self, "mu"))


class HybridEpsGreedySampleWrapper(HybridArgmaxSampleWrapper):
    """As hybrid_argmax_sample, but with probability ``eps`` any legal type; ``eps`` as for eps_greedy_sample."""

    listens = ("eps", "generator")


class HybridEpsGreedyMultinomialSampleWrapper(HybridArgmaxSampleWrapper):
    """As hybrid_eps_greedy_sample, but what is not explored is drawn by ``softmax(logit / alpha)``."""

    listens = ("eps", "alpha", "generator")


class HybridReparamMultinomialSampleWrapper(HybridArgmaxSampleWrapper):
    """A legal type drawn by its logits, and arguments drawn from their normals, through which gradients flow."""

    listens = ("alpha", "generator")

    def _arguments(self, parts: _Parts, generator: torch.Generator | None) -> Tensor:
        return to_bounds(self, parts.place, sample_of(parts.arguments, self, generator))


class HybridDeterministicArgmaxSampleWrapper(HybridArgmaxSampleWrapper):
    """The legal type of the largest logit, and `mu` of the arguments."""

    def _arguments(self, parts: _Parts, generator: torch.Generator | None) -> Tensor:
        return to_bounds(self, parts.place, normal_of(parts.arguments, self, "mu"))


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
    return _Parts(type_logit, read_choices(type_logit, mask, wrapper), arguments, place)
