"""Logits as a model gives them, one or those of several actions: choices with masks, or normals; drawing from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer.distributions.base import all_finite, index_text, wide
from composer.distributions.discrete import ChoiceDistribution
from composer.spaces.kinds import as_tensor
from composer.spaces.values import as_flags, on_host
from composer.wrappers.interface import IModelWrapper, Output, read_output, wrapper_label
from perception_blocks.port import format_shape
from perception_blocks.words import listing

__all__ = ["Choices", "check_eps", "check_positive", "choices_of", "explored"]
__all__ += ["like_logit", "normal_of", "noise_like", "read_choices", "sample_of", "several"]


class Choices(NamedTuple):
    """The logits (..., n) of one action, and what is legal of them; None if everything is."""

    logit: Tensor
    legal: Tensor | None

    def scores(self, alpha: float = 1.0) -> Tensor:
        """The logits divided by ``alpha``; what is illegal is -inf, and below all that is legal."""
        logit = self.logit
        if alpha != 1:  # only differences count, and the largest is never infinite
            logit = (logit - logit.detach().amax(-1, keepdim=True)) / alpha
        if self.legal is None:
            return logit
        lowest = torch.finfo(logit.dtype).min  # so that a legal -inf is still above what is illegal
        return logit.clamp_min(lowest).masked_fill(~self.legal, -math.inf)

    def greedy(self) -> Tensor:
        return self.scores().argmax(-1)

    def sample(self, alpha: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        return ChoiceDistribution(self.scores(alpha)).sample(generator)

    def uniform(self, generator: torch.Generator | None = None) -> Tensor:
        """Any legal choice, all with the same probability."""
        return self._replace(logit=torch.zeros_like(self.logit)).sample(1.0, generator)


def several(value: object) -> list[Any]:
    """One value, or those of several actions, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def like_logit(logit: object, actions: list[Any]) -> Any:
    """A list if ``logit`` is that of several actions, else the only action."""
    return actions if isinstance(logit, list | tuple) else actions[0]


def choices_of(output: Output, wrapper: IModelWrapper) -> list[Choices]:
    """The choices in the `logit` of a model's output, and what its `action_mask` leaves of them."""
    return read_choices(read_output(output, "logit", wrapper), output.get("action_mask"), wrapper)


def read_choices(logit: object, mask: object, wrapper: IModelWrapper) -> list[Choices]:
    """The choices of each action. Raises ValueError for logits that are none, and masks that do not fit them."""
    label, logits = wrapper_label(wrapper), several(logit)
    masks = [None] * len(logits) if mask is None else several(mask)
    if len(masks) != len(logits):
        raise ValueError(f"{label} got {len(masks)} masks for the logits of {len(logits)} actions")
    return [_choices(*pair, label) for pair in zip(logits, masks, strict=True)]


def _choices(logit: object, mask: object, label: str) -> Choices:
    if not isinstance(logit, Tensor) or logit.dim() == 0 or logit.shape[-1] == 0:
        raise ValueError(
            f"{label} needs choices, a tensor of logits (..., n), got {_described(logit)}"
        )
    logit = wide(logit) if logit.is_floating_point() else logit.to(torch.get_default_dtype())
    if on_host(logit) and not all_finite(logit):
        wrong = logit.isnan() | (logit == math.inf)
        if bool(wrong.any()):
            raise ValueError(f"{label} got logits that are NaN or infinite{index_text(wrong)}")
    return Choices(logit, None if mask is None else _legal(mask, logit, label))


def _legal(mask: object, logit: Tensor, label: str) -> Tensor:
    mask = as_flags(f"{label}: 'action_mask'", as_tensor("action_mask", mask)).to(logit.device)
    try:
        legal = mask.expand(logit.shape)
    except RuntimeError:
        got, expected = format_shape(mask.shape), format_shape(logit.shape)
        raise ValueError(
            f"{label} got a mask of the shape {got} for logits of the shape {expected}"
        ) from None
    if on_host(legal) and not bool(legal.any(-1).all()):
        row = (~legal.any(-1)).nonzero()[0].tolist()
        where = f" in row {', '.join(map(str, row))}" if row else ""
        raise ValueError(f"{label} got a mask without a legal action{where}")
    return legal


def check_positive(name: str, value: object, wrapper: IModelWrapper) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(
            f"{wrapper_label(wrapper)} needs a positive number as {name!r}, got {value!r}"
        )


def normal_of(logit: object, wrapper: IModelWrapper, key: str) -> Tensor:
    """`mu` or `sigma` of ``logit = {mu, sigma}``. Raises ValueError where it is missing or does not fit."""
    label = wrapper_label(wrapper)
    value = logit.get(key) if isinstance(logit, Mapping) else None
    if not isinstance(value, Tensor):
        got = _described(logit)
        raise ValueError(f"{label} needs a logit {{mu, sigma}} with a tensor {key!r}, got {got}")
    return value


def sample_of(logit: object, wrapper: IModelWrapper, generator: torch.Generator | None) -> Tensor:
    """A sample of the independent normals ``{mu, sigma}``, through which gradients flow."""
    mu, sigma = normal_of(logit, wrapper, "mu"), normal_of(logit, wrapper, "sigma")
    try:
        sigma = sigma.expand(mu.shape)
    except RuntimeError:
        got, expected = format_shape(sigma.shape), format_shape(mu.shape)
        raise ValueError(
            f"{wrapper_label(wrapper)} got a 'sigma' of the shape {got} for a 'mu' of the shape {expected}"
        ) from None
    if on_host(mu) and on_host(sigma) and not (all_finite(mu) and all_finite(sigma)):
        raise ValueError(f"{wrapper_label(wrapper)} got a 'mu' or 'sigma' that is NaN or infinite")
    if on_host(sigma) and bool((sigma < 0).any()):
        raise ValueError(f"{wrapper_label(wrapper)} got a 'sigma' below 0; a log needs its exp()")
    return mu + sigma * noise_like(mu, generator)


def noise_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of ``like``."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


# --- epsilon greedy: when to explore ----------------------------------------------------------------------------------


def check_eps(eps: object, wrapper: IModelWrapper) -> float | Tensor:
    """``eps`` as one probability, or as one for each row. Raises ValueError for anything else."""
    label = wrapper_label(wrapper)
    if eps is None:
        raise ValueError(
            f"{label} needs the keyword 'eps': a probability, or one for each row as a dict or a tensor"
        )
    if isinstance(eps, Mapping):
        rows = list(range(len(eps)))
        if sorted(eps, key=repr) != sorted(rows, key=repr):
            named = listing(eps) or "nothing"
            raise ValueError(f"{label}: 'eps' must name every row from 0 on, got {named}")
        eps = [eps[row] for row in rows]
    try:
        rates = torch.as_tensor(eps, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{label}: 'eps' must be numbers, got {eps!r}") from None
    if rates.dim() > 1 or not bool(((rates >= 0) & (rates <= 1)).all()):
        raise ValueError(f"{label}: 'eps' must be between 0 and 1, got {eps!r}")
    return rates if rates.dim() else float(rates)


def explored(
    heads: list[Choices],
    actions: list[Tensor],
    eps: float | Tensor,
    wrapper: IModelWrapper,
    generator: torch.Generator | None,
) -> list[Tensor]:
    """``actions``, or with probability ``eps`` any legal ones: one coin for a whole batch, or one for each row."""
    device = heads[0].logit.device
    if isinstance(eps, Tensor):
        rows = {head.logit.shape[0] if head.logit.dim() > 1 else None for head in heads}
        if rows != {len(eps)}:
            got = " and ".join("no" if n is None else str(n) for n in rows)
            label = wrapper_label(wrapper)
            raise ValueError(f"{label}: 'eps' has {len(eps)} rows, the logits {got}")
        coin = torch.rand(len(eps), generator=generator, device=device) < eps.to(device)
        coins = [coin.reshape(-1, *[1] * (head.logit.dim() - 2)) for head in heads]
    else:
        coins = [torch.rand((), generator=generator, device=device) < eps for _ in heads]
    drawn = [head.uniform(generator) for head in heads]
    return [torch.where(*triple) for triple in zip(coins, drawn, actions, strict=True)]


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(map(str, value)) + "}"
    if isinstance(value, Tensor):
        return f"a tensor of the shape {format_shape(value.shape)}"
    return f"a {type(value).__name__}"
