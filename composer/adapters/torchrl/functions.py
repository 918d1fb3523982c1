"""A policy or critic as a function of the tensors in a TensorDict, memory included.

The state of a memory is read from keys such as ``recurrent_state_actor_h`` and written to ``("next", ...)``, from where
TorchRL's environments carry it on. It goes one step at a time, or in TorchRL's recurrent mode over all steps of
(..., T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from tensordict import TensorDictBase
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
from composer.spaces.values import flags_for
from perception_blocks.base_block import capturing, is_traced

__all__ = ["PARAMS", "MemoryUse", "TensorCritic", "TensorFunction", "TensorPolicy", "critic_of"]
__all__ += ["state_specs"]

IS_INIT = "is_init"
PARAMS = "params"  # of the distributions of several actions
NAMES = {"policy": "actor", "critic": "critic"}  # TorchRL's names of the parts of a model


@dataclass(frozen=True)
class MemoryUse:
    """How a module goes through time.

    ``recurrent`` is the mode where TorchRL's `set_recurrent_mode` says nothing. In recurrent mode the first ``burn_in``
    steps only warm up the state: no gradient flows through them. Without ``writes`` the states of the data stay.
    """

    recurrent: bool = False
    burn_in: int = 0
    writes: bool = True


def state_keys(part: NetworkModule) -> dict[str, str]:
    """The TensorDict key of each tensor of the state: ``memory/h`` of the actor is ``recurrent_state_actor_h``.

    A state that is one tensor is ``recurrent_state_actor``; several memories are told apart by their names:
    ``recurrent_state_actor_<node>_h``. A spec may name them otherwise, by ``state_names``.
    """
    return default_state_keys(part) | dict(part.state_names)


def default_state_keys(part: NetworkModule) -> dict[str, str]:
    """The keys that states have unless the spec names them."""
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

    ``outputs`` maps the outputs of the network to keys; ``others`` are the keys of what it reads beside observations.
    As with TorchRL's own recurrent modules, ``("next", state)`` holds in recurrent mode the state after the last step,
    and zeros before.
    """

    def __init__(
        self,
        part: P,
        fields: Mapping[str, Field],
        outputs: Mapping[str, Key],
        use: MemoryUse,
        others: Mapping[str, Key] | None = None,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "part", part)
        self.weights = Weights(part) if "target" in part._modules else part
        self.name = NAMES[part.part]
        self.use = use
        self.fields = dict(fields)  # observations
        self.states = state_keys(part)
        self.outputs = dict(outputs)
        read = [*(field.key for field in fields.values()), *(others or {}).values()]
        self._memory_keys: list[Key] = [*self.states.values(), IS_INIT] if self.states else []
        self.in_keys: list[Key] = list(dict.fromkeys([*read, *self._memory_keys]))

    part: P

    @property
    def out_keys(self) -> list[Key]:
        written = self.states.values() if self.use.writes else ()
        return [*self.outputs.values(), *(("next", key) for key in written)]

    def read(self, given: Mapping[Key, Tensor]) -> Inputs:
        """Everything that the network reads, from tensors by TensorDict key."""
        raise TypeError(f"{type(self).__name__} must define read(given)")

    def forward(self, data: TensorDictBase) -> dict[Key, Tensor]:
        """What it writes into ``data``, by key."""
        given = {key: data.get(key, None) for key in self.in_keys}
        if any(value is None for value in given.values()):
            self._refuse_missing(given)
        outputs, after = self._advance(self.read(given), given)
        written: dict[Key, Tensor] = {key: outputs[name] for name, key in self.outputs.items()}
        if self.use.writes:
            written |= {("next", key): after[name] for name, key in self.states.items()}
        return written

    def observations(self, given: Mapping[Key, Tensor]) -> Tensors:
        """Observations by flat key."""
        return {name: field.to_space(given[field.key]) for name, field in self.fields.items()}

    # --- memory ---

    def recorded(self, given: Mapping[Key, Tensor]) -> State:
        """The states before each step."""
        return {name: given[key] for name, key in self.states.items()}

    def _advance(self, inputs: Inputs, given: Mapping[Key, Tensor]) -> tuple[Tensors, State]:
        """The outputs, and the state after one step, or in recurrent mode after all."""
        if not self.states:
            return self.part.run(inputs, None, None)
        leading = self.part.leading(inputs)
        state, starts = self.recorded(given), given[IS_INIT].reshape(leading)
        mode = recurrent_mode()
        if not (self.use.recurrent if mode is None else mode):
            return self.part.run(inputs, state, starts, False)
        if not leading:
            raise ValueError(
                f"the {self.name} is in recurrent mode, where the last axis of the batch is time; this TensorDict has "
                "no batch"
            )
        return self._over_time(inputs, state, starts)

    def _over_time(self, inputs: Tensors, recorded: State, starts: Tensor) -> tuple[Tensors, State]:
        """All steps of (..., T), each episode from the state that is recorded where it starts.

        Sequences are cut after `burn_in` steps, and where an episode begins in its middle: its recorded state is not
        zero. A reset within a piece is to zero.
        """
        axis, steps = starts.dim() - 1, starts.shape[-1]
        self._refuse_forgotten(recorded, starts)
        later = torch.cat([torch.zeros_like(starts[..., :1]), starts[..., 1:]], -1)
        state = {name: value.select(axis, 0) for name, value in recorded.items()}
        pieces: list[Tensors] = []
        for begin, end in pairwise([0, *self._cuts(recorded, later), steps]):
            begun = {name: value.select(axis, begin) for name, value in recorded.items()}
            state = _where(later[..., begin], begun, state) if begin else state
            resets = torch.cat([torch.zeros_like(starts[..., :1]), later[..., begin + 1 : end]], -1)
            piece = {name: value.narrow(axis, begin, end - begin) for name, value in inputs.items()}
            with torch.set_grad_enabled(torch.is_grad_enabled() and begin >= self.use.burn_in):
                outputs, state = self.part.run(piece, state, resets, True)
            pieces.append(outputs)
        joined = {name: torch.cat([piece[name] for piece in pieces], axis) for name in pieces[0]}
        after = {name: _last_alone(state[name], recorded[name], axis) for name in state}
        return joined, after

    def _cuts(self, recorded: State, later: Tensor) -> list[int]:
        """The steps at which a sequence is cut, in order; where values must not be looked at, all of them."""
        steps = range(1, later.shape[-1])
        if _hidden():
            return list(steps)
        nonzero = [value.reshape(*later.shape, -1).any(-1) for value in recorded.values()]
        begins = (later & torch.stack(nonzero).any(0)).reshape(-1, later.shape[-1]).any(0).tolist()
        return [step for step in steps if begins[step] or step == self.use.burn_in]

    def _refuse_forgotten(self, recorded: State, starts: Tensor) -> None:
        """Raise ValueError for data from within an episode all through which a critic's state is zero."""
        if self.part.part != "critic" or _hidden() or bool(starts[..., 0].all()):
            return
        if not any(bool(value.any()) for value in recorded.values()):
            names = ", ".join(map(repr, self.states.values()))
            raise ValueError(
                f"{names} is zero at every step of data that begin within an episode: the critic's memory was not "
                "carried; collect with to_torchrl(model).collecting"
            )

    def _refuse_missing(self, given: Mapping[Key, Tensor | None]) -> None:
        """Raise ValueError for what the TensorDict lacks: without its state a memory would be forgotten every step."""
        missing = [key for key, value in given.items() if value is None]
        names = ", ".join(map(shown, missing))
        if any(key in self._memory_keys for key in missing):
            raise ValueError(
                f"the TensorDict lacks {names}: the {self.name} has memory, which the environment must carry from step "
                "to step; use TransformedEnv(env, primers(model)), with primers of composer.adapters.torchrl"
            )
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
        use: MemoryUse,
        masks: Mapping[str, Key],
    ) -> None:
        super().__init__(policy, fields, outputs, use)
        self.masks = dict(masks)  # observation that is a mask -> where it goes as well
        self._reads = [name for name in policy.read_keys if name in self.fields]

    @property
    def out_keys(self) -> list[Key]:
        keys = [*super().out_keys, *self.masks.values()]
        # TorchRL reads the values of a joint distribution as one TensorDict.
        return list(dict.fromkeys(PARAMS if key[0] == PARAMS else key for key in keys))

    def read(self, given: Mapping[Key, Tensor]) -> Inputs:
        return self.part.read(self.part.as_observed(self.observations(given)), self._reads)

    def forward(self, data: TensorDictBase) -> dict[Key, Tensor]:
        written = super().forward(data)
        for name, key in self.masks.items():
            written[key] = data.get(self.fields[name].key)
        return written


class TensorCritic(TensorFunction[SpaceCritic]):
    """Observations, values that the policy shares, and actions, to values.

    ``copy`` is the number of the critic among the copies of an ensemble, whose states the data hold together. It is a
    buffer: TorchRL's losses call one module with the weights and buffers of each copy.
    """

    copy: Tensor | None

    def __init__(
        self,
        critic: SpaceCritic,
        fields: Mapping[str, Field],
        outputs: Mapping[str, Key],
        use: MemoryUse,
        actions: Mapping[str, Field],
        copy: int | None = None,
    ) -> None:
        self.actions = dict(actions)
        others: dict[str, Key] = {name: name for name in critic.shared}
        others |= {f"action/{name}": field.key for name, field in actions.items()}
        super().__init__(critic, fields, outputs, use, others)
        number = None if copy is None or not self.states else torch.tensor(copy)
        self.register_buffer("copy", number)

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

    def recorded(self, given: Mapping[Key, Tensor]) -> State:
        states = super().recorded(given)
        if self.copy is None:
            return states
        ranks = {n: len(s) for n, s in self.part.state_shapes.items()}
        try:
            copy = int(self.copy)
        except RuntimeError as error:  # under vmap
            raise ValueError(
                "the loss calls the copies of a critic with memory all at once, by vmap, where a state cannot be "
                "selected; create it with deactivate_vmap=True"
            ) from error
        return {name: value.select(-1 - ranks[name], copy) for name, value in states.items()}


class Weights(RegistryView):
    """The weights of a critic of actions without its target: TorchRL's losses make targets themselves."""

    def __init__(self, part: NetworkModule) -> None:
        super().__init__()
        self.view(part, TENSORS)
        self._modules.update({n: m for n, m in part._modules.items() if n != "target"})


def _hidden() -> bool:
    """Whether values must not be looked at."""
    return is_traced() or capturing()


def _where(flags: Tensor, chosen: State, other: State) -> State:
    """By name, ``chosen`` where ``flags`` (...) are true, else ``other``, both (..., *shape)."""
    return {
        name: torch.where(flags_for(value, flags), chosen[name], value)
        for name, value in other.items()
    }


def _last_alone(last: Tensor, like: Tensor, axis: int) -> Tensor:
    """``last`` as the last step of zeros of the shape of ``like``."""
    steps = like.shape[axis]
    zeros = torch.zeros_like(like.narrow(axis, 0, steps - 1)).to(last.dtype)
    return torch.cat([zeros, last.unsqueeze(axis)], axis)
