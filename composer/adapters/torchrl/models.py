"""Models in TorchRL: actors, critics and environment transforms over one set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perception_blocks.registry import missing_extra

try:
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModuleBase
    from torch import Tensor, nn
    from torchrl.data import Composite, LazyTensorStorage, ReplayBuffer, SliceSampler
    from torchrl.envs import Compose, EnvBase, InitTracker, TensorDictPrimer
    from torchrl.modules import ActorValueOperator, ProbabilisticActor, QValueActor, ValueOperator
    from torchrl.objectives import LossModule
except ImportError as error:
    raise missing_extra("composer.adapters.torchrl", error, "torchrl") from error

from composer.adapters.torchrl.checks import (
    encoding_of,
    refuse_loss,
    refuse_model,
    refuse_specs,
    refuse_taken_keys,
    refuse_temperature,
    serves_choices,
)
from composer.adapters.torchrl.copies import ensemble_of
from composer.adapters.torchrl.distribution import ComposedDistribution
from composer.adapters.torchrl.fields import Encoding, Key
from composer.adapters.torchrl.functions import critic_of, state_specs
from composer.adapters.torchrl.modules import ModulesBuilder
from composer.adapters.torchrl.sequences import STREAM_END, EpisodeSequences, refuse_lengths
from composer.critic.state_action import StateActionCritic
from composer.model import Model
from composer.policy.structured import one_policy

__all__ = ["ComposedDistribution", "TorchRLModules", "primers", "to_torchrl"]


@dataclass(frozen=True)
class TorchRLModules:
    """A model as TorchRL modules. All of them but ``critic_copies`` share the weights of ``model``.

    With memory, the modules for training read sequences (..., T), and those for inference single steps. The modules for
    training ignore the action mask by default; those for inference apply it. ``actor_critic`` exists if the critic
    reads shared values of the policy, ``q_actor`` if the critic (or, without a critic, the policy) returns Q values of
    one Discrete action. Give ``collecting`` to a collector: the actor for inference, followed by the memory of the
    critic if it has one.
    """

    model: Model
    actor_training: ProbabilisticActor
    actor_inference: ProbabilisticActor
    collecting: TensorDictModuleBase
    critic_training: TensorDictModuleBase | None = None
    critic_inference: TensorDictModuleBase | None = None
    actor_critic: ActorValueOperator | None = None
    q_actor: QValueActor | None = None
    q_actor_training: QValueActor | None = None
    critic_copies: tuple[ValueOperator, ...] = ()
    burn_in: int = 0

    def sequence_buffer(self, steps: int, *, sequence_length: int, batch_size: int) -> ReplayBuffer:
        """A replay buffer of sequences, on the device of a model with memory; ``burn_in`` steps only warm up the state.

        Extend it with the batches (environments, T) of a collector; ``steps`` counts the steps of all environments. A
        sample holds ``batch_size // sequence_length`` sequences, but at least one, which begin anywhere with the states
        that were stored there, and go on over the ends of episodes. TorchRL's losses learn from the steps after
        ``burn_in``. Raises ValueError unless ``burn_in`` is smaller than ``sequence_length``.
        """
        refuse_lengths(sequence_length, self.burn_in)
        sampler = SliceSampler(
            slice_len=sequence_length, end_key=STREAM_END, truncated_key=None, init_key=None,
            cache_values=True,
        )  # fmt: skip
        return ReplayBuffer(
            storage=LazyTensorStorage(steps, ndim=2, device=one_policy(self.model.policy).device),
            sampler=sampler,
            transform=EpisodeSequences(sequence_length, self.burn_in),
            batch_size=max(1, batch_size // sequence_length) * sequence_length,
        )

    def adopt(self, loss: LossModule) -> None:
        """Copy the weights of ``critic_copies`` that ``loss`` trains, and of their targets, into the model.

        ``SACLoss(actor, list(critic_copies))`` creates its own parameters from them, and so does
        ``SACLoss(actor, critic_training, num_qvalue_nets=1)`` for a critic without an ensemble. Raises ValueError for a
        loss of other modules.
        """
        critic = self.model.critic
        online = _weights(critic, getattr(loss, "qvalue_network_params", None))
        if online is None or not isinstance(critic, StateActionCritic):
            raise ValueError(
                "this loss was not created from the critic_copies of this model; give it "
                "qvalue_network=list(modules.critic_copies) and as many num_qvalue_nets"
            )
        target = _weights(critic.target, getattr(loss, "target_qvalue_network_params", None))
        _holder(critic).load_state_dict(online)
        if target is not None:
            _holder(critic.target).load_state_dict(target)


def to_torchrl(
    model: Model,
    env: EnvBase | None = None,
    *,
    encoding: Encoding | None = None,
    keys: Mapping[str, Key] | None = None,
    mask_training: bool = False,
    return_log_prob: bool = True,
    loss: type[LossModule] | None = None,
    burn_in: int = 0,
    temperature_key: Key | None = None,
) -> TorchRLModules:
    """Wrap ``model`` as TorchRL modules that share its weights.

    With ``env`` its specs are compared with the model's, and discrete actions have its encoding: ``one_hot``, as GymEnv
    has by default, or ``categorical`` (indices). Without ``env``, ``encoding`` (default ``categorical``) selects it.
    ``keys`` maps observations and actions to other keys of the TensorDict: ``{"legal": "action_mask"}``; a name that
    both have means the observation.
    ``mask_training`` applies the action mask in training too. With memory the first ``burn_in`` steps of a sequence
    only warm up the state of the modules for training, without gradients; see `TorchRLModules.sequence_buffer`.
    ``temperature_key`` is the key of temperatures (..., 1), by which the actors divide the logits, for training too.

    Raises ValueError for a model of several actors, for an environment with other specs, and if the critic or the
    distributions do not fit the class ``loss``.
    """
    refuse_model(model)
    if burn_in and not model.has_memory:
        raise ValueError(
            f"burn_in is for models with memory, got {burn_in} for one without; leave it out"
        )
    if loss is not None:
        refuse_loss(loss, model)
    chosen = encoding or ("categorical" if env is None else encoding_of(env))
    build = ModulesBuilder(
        model, chosen, keys or {},
        mask_training=mask_training, return_log_prob=return_log_prob, burn_in=burn_in,
        temperature_key=temperature_key,
    )  # fmt: skip
    if temperature_key is not None:
        refuse_temperature(temperature_key, build.actions, env)
    refuse_taken_keys(build.observations.values(), build.actions.values())
    if env is not None:
        refuse_specs(env, build.observations.values(), build.actions.values())
    actor_training, actor_inference = build.actor(training=True), build.actor(training=False)
    critic, is_of_choices = critic_of(model), serves_choices(model)
    is_shared = critic is not None and bool(critic.shared)
    return TorchRLModules(
        model,
        actor_training,
        actor_inference,
        collecting=build.collecting(actor_inference),
        critic_training=build.critic(training=True) if critic else None,
        critic_inference=build.critic(training=False) if critic else None,
        actor_critic=build.actor_critic(actor_training) if is_shared else None,
        q_actor=build.q_actor(training=False) if is_of_choices else None,
        q_actor_training=build.q_actor(training=True) if is_of_choices else None,
        critic_copies=build.copies() if critic else (),
        burn_in=burn_in,
    )


def primers(model: Model) -> Compose:
    """The environment transform that carries the memory of actor and critic; it is zero at the start of an episode.

    ``TransformedEnv(env, primers(model))`` adds the states, and ``is_init``, to the observations.
    """
    refuse_model(model)
    parts = [one_policy(model.policy), critic_of(model)]
    specs = {key: spec for part in parts if part for key, spec in state_specs(part).items()}
    transforms: list[Any] = [InitTracker()]
    if specs:
        transforms.append(TensorDictPrimer(Composite(specs), expand_specs=True))
    return Compose(*transforms)


def _weights(critic: nn.Module | None, params: Any) -> dict[str, Tensor] | None:
    """The stacked ``params`` of a loss by the names of ``critic``; None where they do not fit."""
    if params is None or not isinstance(critic, StateActionCritic):
        return None
    stacked = params.get(("module", "weights"), TensorDict()).data.flatten_keys(".")
    if any(len(copies) != critic.copies for copies in stacked.values()):
        return None
    state = {
        f"{index}.{name}" if critic.copies > 1 else name: copy
        for name, copies in stacked.items()
        for index, copy in enumerate(copies)
    }
    shapes = {name: tensor.shape for name, tensor in _holder(critic).state_dict().items()}
    return state if {name: tensor.shape for name, tensor in state.items()} == shapes else None


def _holder(critic: StateActionCritic) -> nn.Module:
    """The module whose weights a loss copies."""
    return ensemble_of(critic) or critic.online
