"""A composed policy as wrappers see it: a dict in, a dict with `logit` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from composer.distributions.base import ActionDistribution
from composer.distributions.continuous import NormalFamily
from composer.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from composer.distributions.joint import ActionDistributions
from composer.network.network import Tensors
from composer.policy.policy import Policy
from composer.spaces.tree import to_environment
from composer.spaces.values import as_flags
from composer.wrappers.interface import Head, IModelWrapper, Offer, Output, chain
from composer.wrappers.slots import stacked_rows, unstacked_rows
from perception_blocks.port import format_shape
from perception_blocks.words import listing

__all__ = [
    "OBSERVATION",
    "ComposedPolicy",
    "composed_policy",
    "drawn_later",
    "offer_of",
    "to_bounds",
]

OBSERVATION, PREV_STATE = "observation", "prev_state"


class ComposedPolicy(IModelWrapper):
    """A policy as a model of dicts.

    It reads an observation as the environment gives it, with `prev_state` beside it where the policy has memory; an
    observation that is no dict stands under `observation`, or alone. It returns

    - `logit`: of one action a value, of several a list in the order of the action space. That of choices is a tensor
      (..., n), with the axes of a MultiDiscrete or MultiBinary before the last; that of normals is {mu, sigma}, of a
      squashed gaussian those before squashing; that of other distributions what the network gives;
    - `action_mask`: likewise, true where legal and None without a mask; only if something is masked;
    - `next_state`: with memory; a dict of tensors, or one such dict a row if `prev_state` is given so;
    - `shared`: the values that the critic reads, if there are any.
    """

    _model: Policy

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        for head, actions in policy.network.after.items():
            raise ValueError(drawn_later(head, actions))
        if policy.has_memory and PREV_STATE in policy.observer.tree.ports:
            raise ValueError(
                f"this policy observes {PREV_STATE!r}, under which a wrapper puts the state of its memory"
            )
        self._families = dict(policy.distributions.items())

    def forward(self, data: Any, *, resets: object = None) -> Output:
        policy = self._model
        inputs = policy.read(self._observation(data))
        state = self._state(data, policy.leading(inputs)) if policy.has_memory else None
        outputs, after = policy.run(inputs, state, resets)
        result: Output = {"logit": self._one_or_list(self._logits(outputs))}
        legal = self._legal(inputs, outputs)
        if any(mask is not None for mask in legal):
            result["action_mask"] = self._one_or_list(legal)
        if policy.has_memory:
            given_rows = isinstance(data[PREV_STATE], list | tuple)
            result["next_state"] = unstacked_rows(after) if given_rows else after
        if policy.shares:
            result["shared"] = {name: outputs[name] for name in policy.shares}
        return result

    def reset(self, data_id: object = None, **settings: object) -> None:
        """Nothing: a policy keeps no state of its own."""
        if settings:
            raise ValueError(
                f"reset got {listing(settings)}, which no wrapper around this policy takes"
            )

    def offer(self) -> Offer:
        """What the policy gives, known before any forward."""
        return offer_of(self._model.distributions, self._model.has_memory)

    def environment_action(self, action: Any, *, as_numpy: bool = True) -> Any:
        """An `action` that a wrapper has chosen, as the environment takes it: start, dtype, bounds, structure."""
        families = self._families
        if isinstance(action, Mapping):  # of a hybrid wrapper
            kinds = {_head(family): name for name, family in families.items()}
            flat = {kinds["choice"]: action["action_type"], kinds["normal"]: action["action_args"]}
        else:
            parts = action if isinstance(action, list | tuple) else [action]
            flat = dict(zip(families, parts, strict=True))
        return to_environment(self._model.action_tree, flat, as_numpy=as_numpy)

    def _observation(self, data: object) -> Any:
        """What the policy reads of ``data``."""
        if not isinstance(data, Mapping):
            return data
        rest = dict(data)
        if self._model.has_memory:
            rest.pop(PREV_STATE, None)
        if rest.keys() == {OBSERVATION} and OBSERVATION not in self._model.observer.tree.ports:
            return rest[OBSERVATION]  # a tuple, which stands alone
        return rest

    def _state(self, data: object, leading: tuple[int, ...]) -> Tensors:
        policy = self._model
        if not isinstance(data, Mapping) or PREV_STATE not in data:
            raise ValueError(
                "this policy has memory: wrap it in 'hidden_state', or put 'prev_state' beside the observation"
            )
        state = data[PREV_STATE]
        if state is None:
            return policy.initial_state(leading)
        if isinstance(state, Mapping):
            self._refuse_other_batch(state, leading)
            return dict(state)
        if not isinstance(state, Sequence):
            raise ValueError(
                f"'prev_state' must be a dict of tensors, or a list of one a row, got a {type(state).__name__}"
            )
        return stacked_rows(state, policy.initial_state())

    def _refuse_other_batch(self, state: Mapping[str, Any], leading: tuple[int, ...]) -> None:
        """Raise ValueError if there is not one state for each observation; all else the policy itself looks at."""
        name, shape = next(iter(self._model.state_shapes.items()))
        value = state.get(name)
        if isinstance(value, Tensor) and tuple(value.shape[value.dim() - len(shape) :]) == shape:
            axes = tuple(value.shape[: value.dim() - len(shape)])
            if axes != leading:
                raise ValueError(
                    f"there are states for {format_shape(axes)}, but observations for {format_shape(leading)}; "
                    "data_id=[...] says which of the environments of 'hidden_state' these are"
                )

    def _logits(self, outputs: Mapping[str, Tensor]) -> list[Any]:
        for key, family in self._families.items():
            family.refuse_no_numbers(outputs[key])
        return [_logit(family, outputs[key]) for key, family in self._families.items()]

    def _legal(self, inputs: Tensors, outputs: Tensors) -> list[Tensor | None]:
        legal: list[Tensor | None] = []
        for key, family in self._families.items():
            mask = None
            if key in self._model.masks:
                given = inputs[self._model.masks[key]]
                mask = as_flags(f"the mask of action {key!r}", given)
            if mask is None and isinstance(family, MultiCategorical) and family.padded:
                mask = torch.ones_like(outputs[key], dtype=torch.bool)
            legal.append(None if mask is None else _by_choice(family, mask, False, True))
        return legal

    def _one_or_list(self, values: list[Any]) -> Any:
        return values[0] if self._model.action_tree.is_single else values


def drawn_later(head: str, actions: Sequence[str]) -> str:
    """Why wrappers cannot stand around a policy whose ``head`` reads ``actions``."""
    return (
        f"a wrapper takes the logits of all heads at once, but the head {head!r} reads the action of "
        f"{listing(actions)}; act with policy.act, or let the head read no action"
    )


def offer_of(families: ActionDistributions, memory: bool) -> Offer:
    """What a policy with these distributions gives."""
    return Offer({key: _head(family) for key, family in families.items()}, memory)


def composed_policy(model: object) -> ComposedPolicy | None:
    """The composed policy inside of a chain of wrappers, if there is one."""
    return next((w for w in chain(model) if isinstance(w, ComposedPolicy)), None)


def to_bounds(wrapper: IModelWrapper, index: int, value: Tensor) -> Tensor:
    """What was drawn for action ``index``, on the scale of the action: squashed if its distribution is."""
    policy = composed_policy(wrapper)
    family = None if policy is None else list(policy._families.values())[index]
    return family.squash(value) if isinstance(family, NormalFamily) else value


def _head(family: ActionDistribution) -> Head:
    if isinstance(family, Categorical | MultiCategorical | Bernoulli):
        return "choice"
    return "normal" if isinstance(family, NormalFamily) else "other"


def _logit(family: ActionDistribution, logit: Tensor) -> Any:
    if isinstance(family, NormalFamily):
        normals = family.normals(logit, 1.0)
        return {"mu": normals.mean, "sigma": normals.stddev}
    return _by_choice(family, logit, torch.finfo(logit.dtype).min, 0)


def _by_choice(
    family: ActionDistribution, values: Tensor, padding: float, of_zero: float
) -> Tensor:
    """Logits or masks (..., n) of choices: ``padding`` fills up a MultiDiscrete, ``of_zero`` is for a bit of 0."""
    if isinstance(family, MultiCategorical):
        return family.choices(values, padding)
    if isinstance(family, Bernoulli):
        bits = values.reshape(*values.shape[:-1], *family.action_shape)
        return torch.stack([torch.full_like(bits, of_zero), bits], -1)
    return values
