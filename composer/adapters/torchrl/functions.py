"""A policy or critic as a function of tensors, in the order of TensorDict keys; memory included.

The state of a memory is read from keys such as ``recurrent_state_actor_h`` and written to ``("next", ...)``, from where
TorchRL's environments carry it on. It goes one step at a time, or in TorchRL's recurrent mode over all steps of
(..., T).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.modules import recurrent_mode

from composer.adapters.torchrl.fields import Field, Key, shown
from composer.critic.base import SpaceCritic
from composer.model import Model
from composer.network.module import NetworkModule
from composer.network.network import Inputs, State, Tensors
from composer.network.registries import TENSORS, RegistryView
from composer.policy.policy import Policy
from perception_blocks.base_block import capturing, is_traced

__all__ = ["PARAMS", "TensorCritic", "TensorFunction", "TensorPolicy", "critic_of", "state_specs"]

IS_INIT = "is_init"
PARAMS = "params"  # of the distributions of several actions
NAMES = {"policy": "actor", "critic": "critic"}  # TorchRL's names of the parts of a model


def state_keys(part: NetworkModule) -> dict[str, str]:
    """The TensorDict key of each tensor of the state: ``memory/h`` of the actor is ``recurrent_state_actor_h``.

    A state that is one tensor is ``recurrent_state_actor``; several memories are told apart by their names:
    ``recurrent_state_actor_<node>_h``.
    """
    names = list(part.state_shapes)
    base = f"recurrent_state_{NAMES[part.part]}"
    if len(names) == 1:
        return {names[0]: base}
    nodes = {name.rpartition("/")[0] for name in names}
    ends = [n.rpartition("/")[2] if len(nodes) == 1 else n.replace("/", "_") for n in names]
    if len(set(ends)) < len(ends):
        ends = names
    return {name: f"{base}_{end}" for name, end in zip(names, ends)}


def critic_of(model: Model) -> SpaceCritic | None:
    """The critic of a model of one Space."""
    assert model.critic is None or isinstance(model.critic, SpaceCritic)
    return model.critic


def state_specs(part: NetworkModule) -> dict[str, Unbounded]:
    """The spec of each tensor of the state, by its key."""
    return {
        key: Unbounded(torch.Size(part.state_shapes[name]), dtype=part.dtype)  # type: ignore[arg-type]
        for name, key in state_keys(part).items()
    }


P = TypeVar("P", bound=Policy | SpaceCritic)


class TensorFunction(nn.Module, Generic[P]):
    """Base of policies and critics: their keys, and how memory goes from step to step.

    ``outputs`` maps the outputs of the network to keys, in the order in which they are returned. ``recurrent`` is the
    mode where TorchRL's `set_recurrent_mode` says nothing. As with TorchRL's own recurrent modules, ``("next", state)``
    holds in recurrent mode the state after the last step, and zeros before.
    """

    def __init__(
        self,
        part: P,
        fields: Mapping[str, Field],
        outputs: Mapping[str, Key],
        *,
        recurrent: bool,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "part", part)
        self.weights = Weights(part) if "target" in part._modules else part
        self.name = NAMES[part.part]
        self.recurrent = recurrent
        self.fields = dict(fields)  # observations
        self.states = state_keys(part)
        self.outputs = dict(outputs)
        self.other_keys: dict[str, Key] = {}  # what else it reads
        self.memory_keys: list[Key] = [*self.states.values(), IS_INIT] if self.states else []

    part: P

    @property
    def in_keys(self) -> list[Key]:
        observed = [field.key for field in self.fields.values()]
        return list(dict.fromkeys([*observed, *self.other_keys.values(), *self.memory_keys]))

    @property
    def out_keys(self) -> list[Key]:
        return [*self.outputs.values(), *(("next", key) for key in self.states.values())]

    def read(self, given: Mapping[Key, Tensor]) -> Inputs:
        """Everything that the network reads, from tensors by TensorDict key."""
        raise TypeError(f"{type(self).__name__} must define read(given)")

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        given = {key: tensor for key, tensor in zip(self.in_keys, tensors) if tensor is not None}
        self._refuse_missing(given)
        outputs, after = self._advance(self.read(given), given)
        return (*(outputs[name] for name in self.outputs), *(after[name] for name in self.states))

    def observations(self, given: Mapping[Key, Tensor]) -> Tensors:
        """Observations by flat key."""
        return {name: field.to_space(given[field.key]) for name, field in self.fields.items()}

    # --- memory ---

    def _advance(self, inputs: Inputs, given: Mapping[Key, Tensor]) -> tuple[Tensors, State]:
        """The outputs, and the state after one step, or in recurrent mode after all."""
        if not self.states:
            return self.part.run(inputs, None, None)
        leading = self.part.leading(inputs)
        state = {name: given[key] for name, key in self.states.items()}
        starts = given[IS_INIT].reshape(leading)
        mode = recurrent_mode()
        if not (self.recurrent if mode is None else mode):
            return self.part.run(inputs, state, starts, False)
        if not leading:
            raise ValueError(
                f"the {self.name} is in recurrent mode, where the last axis of the batch is time; this TensorDict has "
                "no batch"
            )
        return self._over_time(inputs, state, starts)

    def _over_time(self, inputs: Tensors, recorded: State, starts: Tensor) -> tuple[Tensors, State]:
        """All steps of (..., T), each episode from the state that is recorded where it starts."""
        axis = starts.dim() - 1
        self._refuse_forgotten(recorded, starts)
        state = {name: value.select(axis, 0) for name, value in recorded.items()}
        later = torch.cat([torch.zeros_like(starts[..., :1]), starts[..., 1:]], -1)
        if not _hidden() and _are_zero(recorded, later):
            outputs, after = self.part.run(inputs, state, later, True)
        else:
            outputs, after = self._step_by_step(inputs, recorded, later)
        return outputs, {name: _last_alone(after[name], recorded[name], axis) for name in after}

    def _step_by_step(
        self, inputs: Tensors, recorded: State, starts: Tensor
    ) -> tuple[Tensors, State]:
        """The same where an episode is cut out of the middle: its first recorded state is not zero."""
        axis = starts.dim() - 1
        state = {name: value.select(axis, 0) for name, value in recorded.items()}
        steps: list[Tensors] = []
        for t in range(starts.shape[-1]):
            begins = starts[..., t]
            for name, value in state.items():
                flags = begins.reshape(*begins.shape, *[1] * (value.dim() - begins.dim()))
                state[name] = torch.where(flags, recorded[name].select(axis, t), value)
            inputs_t = {name: value.select(axis, t) for name, value in inputs.items()}
            outputs, state = self.part.run(inputs_t, state, None, False)
            steps.append(outputs)
        return {name: torch.stack([step[name] for step in steps], axis) for name in steps[0]}, state

    def _refuse_forgotten(self, recorded: State, starts: Tensor) -> None:
        """Raise ValueError for data from within an episode all through which a critic's state is zero."""
        if self.part.part != "critic" or _hidden() or bool(starts[..., 0].all()):
            return
        if _are_zero(recorded, torch.ones_like(starts)):
            names = ", ".join(map(repr, self.states.values()))
            raise ValueError(
                f"{names} is zero at every step of data that begin within an episode: the critic's memory was not "
                "carried; collect with to_torchrl(model).collecting"
            )

    def _refuse_missing(self, given: Mapping[Key, Tensor]) -> None:
        """Raise ValueError for what the TensorDict lacks: without its state a memory would be forgotten every step."""
        missing = [key for key in self.in_keys if key not in given]
        names = ", ".join(map(shown, missing))
        if any(key in self.memory_keys for key in missing):
            raise ValueError(
                f"the TensorDict lacks {names}: the {self.name} has memory, which the environment must carry from step "
                "to step; use TransformedEnv(env, primers(model)), with primers of composer.adapters.torchrl"
            )
        if missing:
            raise ValueError(
                f"the TensorDict lacks {names}, which the {self.name} reads; if an observation has another key there, "
                "say so in to_torchrl(..., keys={name: key})"
            )


class TensorPolicy(TensorFunction[Policy]):
    """Observations to logits, to values that are shared, and to the masks of actions: ``outputs`` says which."""

    def __init__(
        self,
        policy: Policy,
        fields: Mapping[str, Field],
        outputs: Mapping[str, Key],
        *,
        recurrent: bool,
        masks: Mapping[str, Key] | None = None,
    ) -> None:
        super().__init__(policy, fields, outputs, recurrent=recurrent)
        self.masks = dict(masks or {})  # observation that is a mask -> where it goes as well
        self._reads = [name for name in policy.read_keys if name in self.fields]

    @property
    def out_keys(self) -> list[Key]:
        return list(dict.fromkeys(map(_written, self._all_keys())))

    def read(self, given: Mapping[Key, Tensor]) -> Inputs:
        return self.part.read(self.part.as_observed(self.observations(given)), self._reads)

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor | TensorDict, ...]:
        results = super().forward(*tensors)
        given = {key: tensor for key, tensor in zip(self.in_keys, tensors) if tensor is not None}
        masks = [given[self.fields[name].key] for name in self.masks]
        written: dict[Key, Tensor | TensorDict] = {}
        params = TensorDict(batch_size=results[0].shape[:-1])
        for key, value in zip(self._all_keys(), [*results, *masks]):
            if _written(key) == key:
                written[key] = value
            else:
                params[key[1:]] = value
                written[PARAMS] = params
        return tuple(written[key] for key in self.out_keys)

    def _all_keys(self) -> list[Key]:
        return [*super().out_keys, *self.masks.values()]


def _written(key: Key) -> Key:
    """The key under which a value is returned: TorchRL reads the values of a joint distribution as one TensorDict."""
    return PARAMS if isinstance(key, tuple) and key[0] == PARAMS else key


class TensorCritic(TensorFunction[SpaceCritic]):
    """Observations, values that the policy shares, and actions, to values."""

    def __init__(
        self,
        critic: SpaceCritic,
        fields: Mapping[str, Field],
        outputs: Mapping[str, Key],
        *,
        recurrent: bool,
        actions: Mapping[str, Field] | None = None,
    ) -> None:
        super().__init__(critic, fields, outputs, recurrent=recurrent)
        self.actions = dict(actions or {})
        self.other_keys = {name: name for name in critic.shared}
        self.other_keys |= {f"action/{name}": field.key for name, field in self.actions.items()}

    def read(self, given: Mapping[Key, Tensor]) -> Inputs:
        critic = self.part
        shared = {name: given[name] for name in critic.shared}
        inputs = critic.read(self.observations(given), shared)
        if not self.actions:
            return inputs
        action = {
            name: field.to_model(given[field.key], critic.dtype)
            for name, field in self.actions.items()
        }
        return Inputs(inputs | critic.vectors_of(action))  # type: ignore[attr-defined]


class Weights(RegistryView):
    """The weights of a critic of actions without its target: TorchRL's losses make targets themselves."""

    def __init__(self, part: NetworkModule) -> None:
        super().__init__()
        self.view(part, TENSORS)
        self._modules.update({n: m for n, m in part._modules.items() if n != "target"})


def _hidden() -> bool:
    """Whether values must not be looked at."""
    return is_traced() or capturing()


def _are_zero(recorded: State, where: Tensor) -> bool:
    return not any(bool(value[where].any()) for value in recorded.values())


def _last_alone(last: Tensor, like: Tensor, axis: int) -> Tensor:
    """``last`` as the last step of zeros of the shape of ``like``."""
    steps = like.shape[axis]
    zeros = torch.zeros_like(like.narrow(axis, 0, steps - 1)).to(last.dtype)
    return torch.cat([zeros, last.unsqueeze(axis)], axis)
