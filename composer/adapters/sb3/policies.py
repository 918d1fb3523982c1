"""Composed models as policies of PPO and A2C, and what all policies for Stable-Baselines3 share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
from gymnasium import Space
from gymnasium import spaces as gymnasium_spaces
from torch import Tensor, nn

from composer.adapters.host import HostActions, HostObservations, refuse_other_spaces
from composer.adapters.needs import refuse
from composer.checkpoint.file import fill, foreign_modules
from composer.distributions.base import Distribution
from composer.distributions.discrete import NoLegalChoiceError
from composer.host.step import Step
from composer.limits import GivenLimits, Limits
from composer.model import Model, compose
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from composer.source.load import GivenSpec
from composer.spaces.json_form import Json, spaces_from_json
from composer.spaces.kinds import as_tensor
from composer.spaces.lookup import Spaces
from composer.spaces.values import as_flags
from perception_blocks.registry import missing_extra

try:
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
except ImportError as error:
    raise missing_extra("composer.adapters.sb3", error, "sb3") from error

__all__ = ["ActorCritic", "HostPolicy", "description", "stored_form"]

P = ParamSpec("P")
T = TypeVar("T")
HOST = "Stable-Baselines3"
WRAP = "\nWrap each environment in composer.adapters.sb3.agents.wrap(env, spec), or compose the model for this one"
NO_SDE = (
    "use_sde holds the noise of actions for several steps, which only the distribution gsde has; write "
    "distribution: gsde for a Box action under 'distributions', or leave use_sde out"
)


class HostPolicy(BasePolicy):
    """A composed model in the place of a policy: ``model`` is all that it has.

    ``spec`` is a `Model`, which is trained itself, or what one is composed of (a file, YAML text or mapping), with
    ``allow``, ``limits``, ``seed`` and ``dtype`` as for `composer.compose`; ``spaces`` are the environment's, as JSON,
    where they differ from what the host sees, and ``frozen`` names the weights that do not learn. Stable-Baselines3
    saves these arguments and makes the policy anew when it loads: `description` has them as plain data. Nothing here
    draws or changes a weight: they are what composing gave.
    """

    algorithm: ClassVar[str]  # its name in messages
    optimizer_defaults: ClassVar[dict[str, Any]] = {}  # of Adam

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        lr_schedule: Schedule,
        *,
        spec: GivenSpec | Model,
        allow: Sequence[str] = (),
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
        seen = (observation_space, action_space)
        if not isinstance(spec, Model):
            spec = _composed(spec, seen, allow, **arguments)
        self.model, self._allow = spec, allow
        refuse(self.model, self.algorithm, "sb3")
        if use_sde and not any(f.holds_noise for _, f in self.policy.distributions.items()):
            raise ValueError(NO_SDE)
        self.observations, self.actions = stored_form(self.model)
        needed = (self.observations.space, self.actions.space)
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

    def get_distribution(self, obs: PyTorchObs) -> Any:
        """The model's own distribution, with ``sample``, ``mode``, ``log_prob``, ``entropy`` and ``kl``."""
        return self.policy.distribution(self.read(obs))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False, **host: Any) -> Tensor:
        return self.draw(self.get_distribution(observation, **host), deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What `BasePolicy.save` keeps to make this policy anew."""
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **description(self.model, self._allow),
        }


def _names_masks(method: Callable[P, T]) -> Callable[P, T]:
    """``method``, with the name of what gives the host's masks where one leaves no legal choice."""

    @wraps(method)
    def named(*arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return method(*arguments, **keywords)
        except NoLegalChoiceError as error:
            raise error if error.source else error.of("action_masks() of the environment") from None

    return named


class ActorCritic(HostPolicy):
    """A composed model as the policy of PPO and A2C. Distributions, their densities and entropies are the model's.

    ``action_masks`` are the host's, which MaskablePPO gives; they add to the masks that the spec names.
    """

    algorithm = "PPO"
    optimizer_defaults: ClassVar[dict[str, Any]] = {"eps": 1e-5}

    def _build(self, lr_schedule: Schedule) -> None:
        self.optimizer = self.make_optimizer(self.model.parameters(), lr_schedule)
        self.lowered = self.model.lower()

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: object = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values (B, 1) and the actions' log-probabilities (B,)."""
        return self.acted(self.step(obs, None, action_masks, deterministic=deterministic))

    def evaluate_actions(
        self, obs: PyTorchObs, actions: Tensor, action_masks: object = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,)."""
        return self.judged(self.step(obs, actions, action_masks))

    @_names_masks
    def get_distribution(self, obs: PyTorchObs, action_masks: object = None) -> Any:
        """The model's own distribution over what is legal."""
        return self.policy.distribution(self.read(obs), mask=self._mask(action_masks))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values (B, 1)."""
        return self.lowered.value(self.read(obs)).float().unsqueeze(-1)

    @_names_masks
    def step(
        self,
        obs: PyTorchObs,
        actions: Tensor | None = None,
        action_masks: object = None,
        **keywords: Any,
    ) -> Step:
        """`Model.step`, of the host's ``actions`` or to draw some; ``keywords`` are the model's."""
        taken = None
        if actions is not None:
            taken = self.actions.from_host(actions, self.policy.dtype, (-1,))
        keywords |= {"entropy": actions is not None, "mask": self._mask(action_masks)}
        return self.lowered.step(self.read(obs), taken, **keywords)

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

    def _mask(self, action_masks: object) -> Tensor | None:
        """The host's masks (B, choices), of bits (B, 2 * bits), as the model's distributions take them.

        Raises ValueError for a bit that may not be 0, which no mask of the model's can say.
        """
        if action_masks is None:
            return None
        mask = as_flags("action_masks", as_tensor("action_masks", action_masks)).to(self.device)
        (width,) = next(iter(self.policy.logits_shapes.values()))
        if not isinstance(self.action_space, gymnasium_spaces.MultiBinary):
            return mask.reshape(-1, width)
        bits = mask.reshape(-1, width, 2)
        if not bool(bits[..., 0].all()):
            raise ValueError(
                "action_masks forbids the value 0 of a bit; a composed model can only forbid the value 1"
            )
        return bits[..., 1]


def stored_form(model: Model) -> tuple[HostObservations, HostActions]:
    """The observations and actions of ``model`` as the host stores them."""
    policy = one_policy(model.policy)
    return HostObservations(policy.observer.tree, HOST), HostActions(policy.action_tree)


def description(model: Model, allow: Iterable[str]) -> dict[str, Any]:
    """The arguments with which a policy composes ``model`` again, for the weights that are saved beside them."""
    about, limits = model.checkpoint_about(), asdict(model.size_limits).items()
    changed = {name: limit for name, limit in limits if limit != getattr(Limits, name)}
    return {
        "spec": about["spec"],
        # What a model is made of needs no more permission.
        "allow": list(dict.fromkeys([*allow, *foreign_modules(model), *model.source.folders])),
        "seed": about["seed"],
        "dtype": str(about["dtype"]).removeprefix("torch."),
        "spaces": [about["observation_space"], about["action_space"]],
        "frozen": (about["gradients"] or {"frozen": []})["frozen"],
        **({"limits": changed} if changed else {}),
    }


def _composed(
    spec: GivenSpec,
    seen: Spaces,
    allow: Sequence[str],
    *,
    seed: int | None = None,
    dtype: str = "float32",
    spaces: Sequence[Json] | None = None,
    frozen: Sequence[str] = (),
    limits: GivenLimits = None,
) -> Model:
    """The model of a `description`, for the spaces ``seen`` by the host where it gives no others."""
    needed = seen if spaces is None else [spaces_from_json(space, limits) for space in spaces]
    model = compose(
        spec, observation_space=needed[0], action_space=needed[1],
        allow=allow, limits=limits, seed=seed, dtype=getattr(torch, dtype),
    )  # fmt: skip
    parameters = dict(model.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    return model
