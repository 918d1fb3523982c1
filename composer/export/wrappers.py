"""Wrappers in a file: they act without randomness, and store nothing between calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from composer.network.network import Tensors
from composer.policy.policy import Policy
from composer.spec.wrapper_names import WRAPPERS
from composer.wrappers.composed import ComposedPolicy, offer_of
from composer.wrappers.interface import IModelWrapper, chain, innermost, wrapper_label
from composer.wrappers.noise import ActionNoiseWrapper, OuNoise

__all__ = ["MeanNoise", "mean_noises", "wrapped_policy"]

# Without randomness these act by the mode of the policy's distributions; `hidden_state` is the inputs of the state.
AS_THE_POLICY = {
    "base",
    "hidden_state",
    "argmax_sample",
    "multinomial_sample",
    "eps_greedy_sample",
    "eps_greedy_multinomial_sample",
    "deterministic_sample",
    "reparam_sample",
    "hybrid_argmax_sample",
    "hybrid_eps_greedy_sample",
    "hybrid_eps_greedy_multinomial_sample",
    "hybrid_reparam_multinomial_sample",
    "hybrid_deterministic_argmax_sample",
}
SEVERAL = "picks several choices at once, but an action is one of them; take them from the logits"
SECOND_MODEL = "holds a second model, for training; export the policy that it is around"
HISTORY = "gathers sequences in Python between calls, which no file holds"
REFUSED = {
    "combination_argmax_sample": SEVERAL,
    "combination_multinomial_sample": SEVERAL,
    "target": SECOND_MODEL,
    "teacher": SECOND_MODEL,
    "transformer_input": HISTORY,
    "transformer_segment": HISTORY,
    "transformer_memory": HISTORY,
}


@dataclass(frozen=True)
class MeanNoise:
    """The effect of `action_noise` on the actions ``keys`` without randomness.

    It adds ``offset``, the mean of the noise, and clips the sum to ``limits``.
    """

    keys: tuple[str, ...]
    offset: float
    limits: tuple[float, float] | None

    def __call__(self, actions: Tensors) -> Tensors:
        moved = {key: actions[key] + self.offset for key in self.keys}
        if self.limits is not None:
            moved = {key: action.clamp(*self.limits) for key, action in moved.items()}
        return {**actions, **moved}


def wrapped_policy(wrapped: object) -> Policy | None:
    """The policy inside of wrappers; None for anything else."""
    inner = innermost(wrapped) if isinstance(wrapped, IModelWrapper) else None
    return inner if isinstance(inner, Policy) else None


def mean_noises(wrapped: IModelWrapper, problems: list[str]) -> list[MeanNoise]:
    """The wrappers around a composed policy that change actions, the innermost first.

    Adds to ``problems`` the wrappers that cannot be in a file.
    """
    noises: list[MeanNoise] = []
    for wrapper in reversed(list(chain(wrapped))):
        name = WRAPPERS.name_of(type(wrapper))
        if type(wrapper) is ActionNoiseWrapper:
            problems += _moving(wrapper)
            noises.append(_mean_noise(wrapper, wrapped))
        elif type(wrapper) is not ComposedPolicy and name not in AS_THE_POLICY:
            reason = REFUSED.get(str(name), "is Python that no file holds")
            problems.append(f"the wrapper {wrapper_label(wrapper)} {reason}")
    return noises


def _mean_noise(wrapper: ActionNoiseWrapper, wrapped: IModelWrapper) -> MeanNoise:
    policy = innermost(wrapped)
    heads = offer_of(policy.distributions, policy.has_memory).heads
    normals = tuple(key for key, head in heads.items() if head == "normal")
    low, high = wrapper.noise_range or (-float("inf"), float("inf"))
    return MeanNoise(normals, min(max(wrapper.noise.mu, low), high), wrapper.action_range)


def _moving(wrapper: ActionNoiseWrapper) -> Iterable[str]:
    """Why noise whose mean moves cannot be in a file: it has a memory."""
    noise = wrapper.noise
    if isinstance(noise, OuNoise) and noise.x0 != noise.mu:
        yield (
            f"the wrapper {wrapper_label(wrapper)} adds noise whose mean moves from x0 {noise.x0:g} to mu "
            f"{noise.mu:g}; give both the same number"
        )
