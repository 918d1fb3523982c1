"""Composed models as policies of PPO and A2C, and what all policies for Stable-Baselines3 share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from gymnasium import Space
from torch import Tensor, nn

from composer.adapters.host import HostActions, HostObservations, refuse_other_spaces
from composer.adapters.needs import refuse
from composer.checkpoint.file import fill
from composer.checkpoint.plain_spec import saved_spec
from composer.distributions.base import Distribution
from composer.host.step import Step
from composer.limits import GivenLimits
from composer.model import Model, compose
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from composer.source.dump import dump_yaml
from composer.source.load import GivenSpec
from composer.spaces.json_form import Json, spaces_from_json
from composer.spaces.lookup import Spaces
from perception_blocks.registry import missing_extra

try:
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
except ImportError as error:
    raise missing_extra("composer.adapters.sb3", error, "sb3") from error

__all__ = ["ActorCritic", "HostPolicy"]

HOST = "Stable-Baselines3"
WRAP = "\nWrap each environment in composer.adapters.sb3.agents.wrap(env, spec), or compose the model for this one"
NO_SDE = (
    "use_sde holds the noise of actions for several steps, which only the distribution gsde has; write "
    "distribution: gsde for a Box action under 'distributions', or leave use_sde out"
)


class HostPolicy(BasePolicy):
    """A composed model in the place of a policy: ``model`` is all that it has.

    Its arguments are plain data, so that Stable-Baselines3 saves them and makes the policy anew when it loads: ``spec``
    (a file, YAML text or mapping), ``allow``, ``limits``, ``seed`` and ``dtype`` as for `composer.compose`. ``spaces``
    are the environment's, as JSON, where they differ from what the host sees; ``frozen`` names the weights that do not
    learn. Nothing here draws or changes a weight: they are what composing gave.
    """

    algorithm: ClassVar[str]  # its name in messages
    optimizer_defaults: ClassVar[dict[str, Any]] = {}  # of Adam

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        lr_schedule: Schedule,
        *,
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = dict(self.optimizer_defaults)
        # Not super(): policies of sb3-contrib, which some of ours must be, build networks of their own.
        BasePolicy.__init__(
            self, observation_space, action_space,
            optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs,
        )  # fmt: skip
        self._arguments = arguments
        self.model = _composed((observation_space, action_space), **arguments)
        refuse(self.model, self.algorithm, "sb3")
        if use_sde and not any(f.holds_noise for _, f in self.policy.distributions.items()):
            raise ValueError(NO_SDE)
        self.observations = HostObservations(self.policy.observer.tree, HOST)
        self.actions = HostActions(self.policy.action_tree)
        needed = (self.observations.space, self.actions.space)
        seen = (observation_space, action_space)
        refuse_other_spaces(needed, seen, advice=WRAP, bounds=False)
        self._build(lr_schedule)

    model: Model

    @property
    def policy(self) -> Policy:
        """The model's policy."""
        return one_policy(self.model.policy)

    @abstractmethod
    def _build(self, lr_schedule: Schedule) -> None:
        """Make the optimisers, and what else the algorithm looks for."""

    def use_weights(self, model: Model) -> None:
        """Copy the weights of ``model``, one of the same spec, and make targets equal to what they follow."""
        self.model.load_state_dict(model.state_dict())
        target = getattr(self, "policy_target", None)
        if target is not None:
            target.load_state_dict(self.policy.state_dict())

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's; with ``strict``, CheckpointError names every difference before anything is written."""
        if strict:
            # Torch's own writes what fits, and then raises.
            fill(self, state_dict, strict=True, source="the state_dict")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def set_training_mode(self, mode: bool) -> None:
        if self.model.training != mode:  # the host says it at every step
            self.model.train(mode)
        self.training = mode

    def reset_noise(self, n_envs: int = 1) -> None:
        """What the host calls with ``use_sde``: new noise, held until it is called again."""
        self.policy.resample_exploration(n_envs)

    def saved_spec(self) -> str:
        """The spec of what is saved with its weights, as `Model.save` writes it."""
        return dump_yaml(saved_spec(self.model.source.data, self.model))

    def make_optimizer(
        self, parameters: Iterable[nn.Parameter], lr_schedule: Schedule
    ) -> torch.optim.Optimizer:
        """An optimiser of the parameters that learn, by the spec's `learning_rate_scale`."""
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        if not learning:
            raise ValueError(
                f"{self.algorithm} has an optimiser of parameters that are all frozen; take a part of them out of "
                "'freeze'"
            )
        optimizer = self.optimizer_class(learning, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self.model.prepare_optimizer(optimizer)
        return optimizer

    def read(self, observations: PyTorchObs, leading: tuple[int, ...] = (-1,)) -> Any:
        """The host's observations as the model takes them, with the axes ``leading``."""
        flat = self.observations.read(observations, self.observation_space, leading)
        return self.policy.as_observed(flat)

    def draw(self, distribution: Distribution, deterministic: bool) -> Tensor:
        """An action of the host's space, without gradient."""
        with torch.no_grad():
            action = distribution.mode() if deterministic else distribution.sample()
            return self.actions.to_host(action)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Any:
        return self._predict(obs, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What `BasePolicy.save` keeps to make this policy anew."""
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self._arguments,
            "spec": self.saved_spec(),
        }


class ActorCritic(HostPolicy):
    """A composed model as the policy of PPO and A2C. Distributions, their densities and entropies are the model's."""

    algorithm = "PPO"
    optimizer_defaults: ClassVar[dict[str, Any]] = {"eps": 1e-5}

    def _build(self, lr_schedule: Schedule) -> None:
        self.optimizer = self.make_optimizer(self.model.parameters(), lr_schedule)
        self.lowered = self.model.lower()

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values (B, 1) and the actions' log-probabilities (B,)."""
        return self.acted(self.step(obs, deterministic=deterministic))

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,)."""
        return self.judged(self.step(obs, actions))

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The model's own distribution, with ``sample``, ``mode``, ``log_prob``, ``entropy`` and ``kl``."""
        return self.policy.distribution(self.read(obs))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values (B, 1)."""
        return self.lowered.value(self.read(obs)).float().unsqueeze(-1)

    def step(self, obs: PyTorchObs, actions: Tensor | None = None, **keywords: Any) -> Step:
        """`Model.step`, of the host's ``actions`` or to draw some; ``keywords`` are the model's."""
        taken = None
        if actions is not None:
            taken = self.actions.from_host(actions, self.policy.dtype, (-1,))
        return self.lowered.step(self.read(obs), taken, entropy=actions is not None, **keywords)

    def acted(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """What the host stores of a ``step`` that has drawn its actions."""
        actions, log_prob = self.actions.to_host(step.action), step.log_prob
        if not self.actions.keeps_draws:
            stored = self.actions.from_host(actions, self.policy.dtype, (len(actions),))
            log_prob = step.distribution.log_prob(stored)
        return actions, step.value.float().unsqueeze(-1), log_prob.float()

    def judged(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """What the host learns from, of a ``step`` with the actions that it has stored."""
        value, log_prob, entropy = (
            each.float().reshape(-1) for each in (step.value, step.log_prob, step.entropy)
        )
        return value.unsqueeze(-1), log_prob, entropy

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.draw(self.get_distribution(observation), deterministic)


def _composed(
    seen: Spaces,
    *,
    spec: GivenSpec,
    allow: Sequence[str] = (),
    seed: int | None = None,
    dtype: str = "float32",
    spaces: Sequence[Json] | None = None,
    frozen: Sequence[str] = (),
    limits: GivenLimits = None,
) -> Model:
    """The model of a policy's arguments, for the spaces ``seen`` by the host where no others are given."""
    needed = seen if spaces is None else [spaces_from_json(space, limits) for space in spaces]
    model = compose(
        spec, observation_space=needed[0], action_space=needed[1],
        allow=allow, limits=limits, seed=seed, dtype=getattr(torch, dtype),
    )  # fmt: skip
    parameters = dict(model.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    return model
