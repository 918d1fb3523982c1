"""The wrapper that adds noise to continuous actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from composer.wrappers.heads import noise_like
from composer.wrappers.interface import IModelWrapper, Offer, Output, undone, wrapper_label
from composer.wrappers.slots import slot_ids
from perception_blocks.settings import Range, SettingsError, check_settings
from perception_blocks.words import listing

__all__ = ["ActionNoiseWrapper", "GaussNoise", "OuNoise"]

Generator = torch.Generator | None
Sigma = float | Tensor | None
Limits = Sequence[float] | Mapping | None
NonNegativeFloat = Annotated[float, Range(low=0.0)]


class GaussNoise:
    """Independent normal noise."""

    values: dict[str, Tensor] = {}  # what it keeps from call to call: nothing

    def __init__(self, *, mu: float = 0.0, sigma: NonNegativeFloat = 1.0) -> None:
        self.mu = mu
        self.sigma = sigma

    def draw(self, name: str, like: Tensor, sigma: Sigma, generator: Generator) -> Tensor:
        """Noise for the action called ``name``; ``sigma`` takes the place of this object's own for once."""
        sigma = self.sigma if sigma is None else sigma
        return self.mu + sigma * noise_like(like, generator)

    def reset(self, rows: object = None) -> GaussNoise:
        return self


class OuNoise:
    """An Ornstein-Uhlenbeck process: ``x += theta * (mu - x) * dt + sigma * sqrt(dt) * normal``, from ``x0`` on.

    It begins anew with `reset`, and where an action comes in another shape than before. Nothing changes in place.
    """

    def __init__(
        self,
        *,
        mu: float = 0.0,
        sigma: NonNegativeFloat = 0.3,
        theta: float = 0.15,
        dt: float = 0.01,
        x0: float = 0.0,
    ) -> None:
        self.mu, self.sigma, self.theta, self.dt, self.x0 = mu, sigma, theta, dt, x0
        self.values: dict[str, Tensor] = {}  # by action

    def draw(self, name: str, like: Tensor, sigma: Sigma, generator: Generator) -> Tensor:
        sigma = self.sigma if sigma is None else sigma
        x = self.values.get(name)
        if x is None or x.shape != like.shape:
            x = torch.full_like(like, self.x0)
        x = x.to(like)
        drift = self.theta * (self.mu - x) * self.dt
        x = x + drift + sigma * math.sqrt(self.dt) * noise_like(like, generator)
        self.values = {**self.values, name: x}
        return x

    def reset(self, rows: object = None) -> OuNoise:
        """Begin anew, in all rows or in some. Raises UnknownSlotError for a row that is not there."""
        kept = {} if rows is None else self.values
        new = {}
        for name, x in kept.items():
            places = torch.tensor(slot_ids(rows, len(x)), dtype=torch.int64, device=x.device)
            new[name] = x.index_fill(0, places, self.x0)
        self.values = new
        return self


NOISES: dict[str, type[GaussNoise] | type[OuNoise]] = {"gauss": GaussNoise, "ou": OuNoise}


class ActionNoiseWrapper(IModelWrapper):
    """Adds noise to `action`, to `action_args`, or to both.

    ``noise_kwargs`` are the settings of the noise: mu and sigma of ``gauss``; mu, sigma, theta, dt and x0 of ``ou``.
    First the noise is clipped to ``noise_range``, then the sum to ``action_range``: [low, high], {min: low, max: high},
    or None for no limits. Keywords of forward: ``sigma``, for this call, and ``generator``.
    """

    listens = ("sigma", "generator")

    def __init__(
        self,
        model: object,
        *,
        noise_type: Literal["gauss", "ou"] = "gauss",
        noise_kwargs: Mapping | None = None,
        noise_range: Limits = None,
        action_range: Limits = (-1.0, 1.0),
    ) -> None:
        super().__init__(model)
        settings = dict(noise_kwargs or {})
        noise = NOISES[noise_type]
        problems = check_settings(noise, settings, f"noise {noise_type!r}", skip=0)
        if problems:
            raise SettingsError(problems)
        self.noise = noise(**settings)
        self.noise_range = _limits("noise_range", noise_range)
        self.action_range = _limits("action_range", action_range)
        self._before: dict[str, Tensor] = {}

    @classmethod
    def fit(cls, offer: Offer) -> Offer:
        if offer.action not in ("normal", "hybrid"):
            advice = "put a wrapper such as 'deterministic_sample' before it"
            what = "choices" if offer.action == "choice" else "no action yet"
            raise ValueError(
                f"{wrapper_label(cls)} adds to continuous actions, but there is {what}"
                + (f"; {advice}" if offer.action is None else "")
            )
        return offer

    def forward(
        self, *args: object, sigma: Sigma = None, generator: Generator = None, **kwargs: object
    ) -> Output:
        _check_sigma(sigma, self)
        output = self._run(*args, **self._for_inner(generator=generator), **kwargs)
        self._before = self.noise.values
        with undone(self):
            return {**output, **self._noisy(output, sigma, generator)}

    def reset(self, data_id: object = None, **settings: object) -> Any:
        self.noise.reset(data_id)
        return super().reset(data_id=data_id, **settings)

    def _undo(self) -> None:
        super()._undo()
        self.noise.values = self._before

    def _noisy(self, output: Output, sigma: Sigma, generator: Generator) -> Output:
        """The actions of an output with noise, under their names."""
        values = output if isinstance(output, Mapping) else {}
        noisy: Output = {}
        action = values.get("action")
        if isinstance(action, Mapping) and "action_args" in action:  # of a hybrid wrapper
            arguments = self._add("action_args", action["action_args"], sigma, generator)
            noisy["action"] = {**action, "action_args": arguments}
        else:
            names = [name for name in ("action", "action_args") if name in values]
            noisy = {name: self._add(name, values[name], sigma, generator) for name in names}
        if not noisy:
            got = listing(values) or "nothing"
            raise ValueError(
                f"{wrapper_label(self)} adds to 'action' or 'action_args', but the model's output has {got}"
            )
        return noisy

    def _add(self, name: str, action: Any, sigma: Sigma, generator: Generator) -> Any:
        if isinstance(action, list | tuple):
            return [
                self._add(f"{name}/{i}", part, sigma, generator) for i, part in enumerate(action)
            ]
        if not isinstance(action, Tensor) or not action.is_floating_point():
            got = action.dtype if isinstance(action, Tensor) else type(action).__name__
            raise ValueError(
                f"{wrapper_label(self)} adds to continuous actions, but {name!r} is of {got}"
            )
        noise = _clipped(self.noise.draw(name, action, sigma, generator), self.noise_range)
        return _clipped(action + noise, self.action_range)


def _limits(name: str, given: Limits) -> tuple[float, float] | None:
    """[low, high] or {min: low, max: high} as a pair."""
    if given is None:
        return None
    values = [given.get("min"), given.get("max")] if isinstance(given, Mapping) else list(given)
    known = not isinstance(given, Mapping) or set(given) == {"min", "max"}
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if not known or len(numbers) != 2 or len(values) != 2 or not numbers[0] <= numbers[1]:
        raise ValueError(f"{name!r} must be [low, high] or {{min: low, max: high}}, got {given!r}")
    return (float(numbers[0]), float(numbers[1]))


def _check_sigma(sigma: Sigma, wrapper: IModelWrapper) -> None:
    if sigma is None or isinstance(sigma, Tensor):
        return
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not sigma >= 0:
        raise ValueError(
            f"{wrapper_label(wrapper)}: 'sigma' must be a number of 0 or more, got {sigma!r}"
        )


def _clipped(value: Tensor, limits: tuple[float, float] | None) -> Tensor:
    return value if limits is None else value.clamp(*limits)
