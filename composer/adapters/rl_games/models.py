"""``network: {name: composer}`` and ``model: {name: composer}`` of rl_games' configs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from composer.adapters.host import are_read_as_stored, refuse_unrecalled
from composer.adapters.rl_games.checks import CENTRAL, CentralKind, refuse, refuse_no_spec
from composer.adapters.rl_games.environments import ENVIRONMENT, register_environment
from composer.adapters.rl_games.hosted import (
    OBSERVATION,
    STATES,
    Composed,
    Hosted,
    HostedActions,
    HostedObservations,
    as_space,
    builder_of,
    model_spaces,
    with_states,
)
from composer.critic.base import SpaceCritic
from composer.errors import SpecError
from composer.host.rows import pack_state, unpack_state, width_of
from composer.host.step import Step, step_of
from composer.lowered.network import WithTwin
from composer.model import Model, compose
from composer.network.network import Inputs, State
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.graph.wiring import module_name
from perception_blocks.registry import missing_extra

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rl_games.algos_torch.model_builder import register_model, register_network
        from rl_games.algos_torch.models import BaseModel, BaseModelNetwork
        from rl_games.algos_torch.network_builder import NetworkBuilder
except ImportError as error:
    raise missing_extra("composer.adapters.rl_games", error, "rl-games") from error

__all__ = ["ActorCritic", "CentralCritic", "register"]

NAME = "composer"
X = TypeVar("X")


def register() -> None:
    """Register the network, the model and the environment called ``composer`` with rl_games; once is enough.

    ``network: {name: composer, spec: agent.yaml}`` with ``model: {name: composer}`` trains the model of a spec. Beside
    ``spec`` stand ``allow``, ``seed`` and ``overrides`` as for `composer.compose`, and ``observation_space`` and
    ``action_space``, as JSON, where the environment does not say what they are. ``env_name: composer`` with
    ``env_config: {id: CartPole-v1}`` is an environment of gymnasium.
    """
    register_network(NAME, ComposerNetwork)
    register_model(NAME, ComposerModel)
    register_environment(ENVIRONMENT)


class ComposerNetwork(NetworkBuilder):
    """Reads ``network:`` of a config."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.given: dict[str, Any] = {}

    def load(self, params: Mapping[str, Any]) -> None:
        self.given = {name: value for name, value in params.items() if name != "name"}

    def build(self, name: str, **shapes: Any) -> NoReturn:
        """For models of rl_games itself, which would make distributions of their own."""
        raise ValueError(
            "network: {name: composer} gives distributions, not means or logits for another model; write beside it "
            "model: {name: composer}"
        )


class ComposerModel(BaseModel):
    """Makes the module that an agent, a player or a central critic of rl_games trains or runs."""

    def __init__(self, network: Any) -> None:
        super().__init__("a2c")
        if not isinstance(network, ComposerNetwork):
            raise ValueError(
                "model: {name: composer} takes its network from a spec; "
                "write network: {name: composer, spec: agent.yaml}"
            )
        self.network_builder = network

    def build(self, config: Mapping[str, Any]) -> BaseModelNetwork:
        hosted, given = builder_of(self), self.network_builder.given
        shared = {
            "obs_shape": config["input_shape"],
            "value_size": config.get("value_size", 1),
            "normalize_input": False,  # the statistics are the model's own
            "normalize_value": False,
        }
        if hosted is not None and hosted.is_central:
            return CentralCritic(hosted.agent.model.composed, **shared)
        refuse_no_spec(given)
        central = _central_kind(hosted)
        model = _composed(hosted, central, given)
        refuse(model, hosted, central, given, config)
        return ActorCritic(model, hosted, config.get("num_seqs", 1), **shared)


def _central_kind(hosted: Hosted | None) -> CentralKind:
    if hosted is None or hosted.central is None:
        return "none"
    # What was a mapping in the config is a model, once an agent has read it; a player leaves it as it is.
    network: Any = hosted.central.get("network")
    if isinstance(network, Mapping):
        return "composed" if network.get("name") == NAME else "foreign"
    if isinstance(network, ComposerModel):
        return "composed"
    is_ours = isinstance(getattr(network, "network_builder", None), ComposerNetwork)
    return "unfinished" if is_ours else "foreign"


def _composed(hosted: Hosted | None, central: CentralKind, given: Mapping[str, Any]) -> Model:
    """The model of what is ``given`` under ``network:``, for the observations of actor and central critic."""
    if isinstance(given["spec"], Composed):
        return given["spec"].model
    observation, action = model_spaces(hosted, given)
    overrides = list(given.get("overrides", ()))
    if hosted is not None and central in ("composed", "unfinished"):
        if hosted.is_player:  # which sees the actor alone
            overrides.append("critic=null")
        else:
            observation = with_states(observation, as_space(hosted.info["state_space"]))
    try:
        model = compose(
            given["spec"], observation_space=observation, action_space=action,
            allow=given.get("allow", ()), seed=given.get("seed"), overrides=overrides,
        )  # fmt: skip
    except SpecError as error:
        if central == "none" and hosted is not None and hosted.info.get("state_space") is not None:
            error.add_note(f"rl_games hands 'states' to a central critic alone: {CENTRAL}")
        raise
    refuse_unrecalled(model, observation)
    return model


class _Hosted(BaseModelNetwork):
    """What the actor and a central critic have in common: normalisers that count between two rollouts."""

    composed: Model

    def __init__(self, model: Model, keys: Iterable[str], **shared: Any) -> None:
        super().__init__(**shared)
        # Not as children: what is trained here is.
        object.__setattr__(self, "composed", model)
        object.__setattr__(self, "value_mean_std", ValueStatistics(model))
        observer = one_policy(model.policy).observer
        blocks = {key: observer.normalizers[module_name(key)] for key in observer.keys}
        object.__setattr__(self, "_normalizers", {k: b for k, b in blocks.items() if k in keys})
        self._seen: list[Mapping[str, Tensor]] = []
        self._has_counted = False
        self._modes: tuple[list[nn.Module], list[bool]] = ([], [])  # as `train` left them

    _normalizers: dict[str, NormalizeBlock]
    value_mean_std: ValueStatistics

    def train(self, mode: bool = True) -> Any:
        """As torch's; where a rollout begins, the observations of the one before are counted."""
        if self.training and not mode:
            self._count()
        modules, modes = self._modes
        # rl_games says it before each step, which takes as long as a layer.
        if self.training != mode or modes != [module.training for module in modules]:
            super().train(mode)
            modules = [*self.modules()]
            self._modes = modules, [module.training for module in modules]
        return self

    def _count(self) -> None:
        # The first batch was seen before, to bootstrap from.
        seen = self._seen[1:] if self._has_counted else self._seen
        for key, block in self._normalizers.items():
            if seen:
                shape = block.in_shapes[0]
                block.update(torch.cat([step[key].reshape(-1, *shape) for step in seen]))  # type: ignore[misc]
        self._has_counted = self._has_counted or bool(seen)
        self._seen = []

    def _keep(self, observations: Mapping[str, Tensor]) -> None:
        self._seen.append({key: observations[key].detach() for key in self._normalizers})

    def is_separate_critic(self) -> bool:
        return False

    def get_value_layer(self) -> None:
        return None

    def get_aux_loss(self) -> None:
        return None


class ActorCritic(_Hosted):
    """A composed model, called as rl_games calls its models. ``composed`` is the `Model`.

    With a central critic only the policy is trained here, and values are 0: rl_games replaces them by the critic's.
    """

    def __init__(self, model: Model, hosted: Hosted | None, num_seqs: int, **shared: Any) -> None:
        policy = one_policy(model.policy)
        is_player = hosted is not None and hosted.is_player
        super().__init__(model, () if is_player else policy.read_keys, **shared)
        has_own_critic = hosted is None or hosted.central is None
        parts: nn.Module = model if has_own_critic else nn.ModuleDict({"policy": model.policy})
        self.a2c_network = parts
        object.__setattr__(self, "_policy", policy)
        self._acting = WithTwin(policy)
        critic = model.critic if has_own_critic else None
        assert critic is None or isinstance(critic, SpaceCritic)  # as `refuse` says
        self._judging = None if critic is None else WithTwin(critic)
        reads = [*policy.read_keys, *(() if critic is None else critic.read_keys)]
        shares = critic is not None and bool(critic.shared)
        self._is_plain = not shares and are_read_as_stored(policy, reads)
        self._shapes = model.state_shapes
        self._num_seqs = num_seqs
        self._observations = HostedObservations(policy.observer.tree, OBSERVATION)
        self._actions = HostedActions(policy.action_tree)
        self._is_player = is_player
        self._is_box = hosted is not None and hosted.algorithm == "a2c_continuous"

    _policy: Policy
    _judging: WithTwin[SpaceCritic] | None

    def is_rnn(self) -> bool:
        return bool(self._shapes)

    def get_default_rnn_state(self) -> tuple[Tensor] | None:
        """The whole state as one row for each environment, (1, environments, width)."""
        if not self.is_rnn():
            return None
        device = self._policy.device
        return (torch.zeros(1, self._num_seqs, width_of(self._shapes), device=device),)

    def forward(self, input_dict: dict[str, Any]) -> dict[str, Any]:
        """A step of all environments to act, or of sequences to learn from with ``is_train``.

        Shapes are rl_games': observations (n, ...); with memory n is environments times ``seq_length``, in the
        order of time within an environment, ``rnn_states`` are before the first of these steps and ``dones`` is true
        where the step before ended an episode.
        """
        if self.is_rnn():  # a compiled loop over steps takes minutes to compile, and gains little
            return _uncompiled(self._outputs)(input_dict)
        return self._outputs(input_dict)

    def _outputs(self, given: dict[str, Any]) -> dict[str, Any]:
        is_train = given.get("is_train", True)
        length = given.get("seq_length", 1) if is_train and self.is_rnn() else None
        step = self._step(given, is_train, length)
        outputs = self._flat(step, is_train)
        outputs["rnn_states"] = None
        if step.state is not None:
            row = pack_state(step.state, self._shapes).float()
            outputs["rnn_states"] = (row.unsqueeze(0),)
        return outputs

    def kl(self, p_dict: Mapping[str, Any], q_dict: Mapping[str, Any]) -> Tensor:
        """The divergence of two distributions, of which rl_games has the logits or the means and deviations."""
        if "mus" in p_dict:
            pairs = [(each["mus"], each["sigmas"]) for each in (p_dict, q_dict)]
            first, second = (torch.distributions.Normal(*pair) for pair in pairs)
            return torch.distributions.kl_divergence(first, second).sum(-1)
        both = [each["logits"] for each in (p_dict, q_dict)]
        lists = [logits if isinstance(logits, list) else [logits] for logits in both]
        terms = [
            torch.distributions.kl_divergence(
                *(torch.distributions.Categorical(logits=logits) for logits in pair)
            )
            for pair in zip(*lists, strict=True)
        ]
        return torch.stack(terms).sum(0)

    def _step(self, given: Mapping[str, Any], is_train: bool, length: int | None) -> Step:
        observations = given["obs"]
        some = next(iter(observations.values())) if isinstance(observations, dict) else observations
        count = some.shape[0]
        leading = (count,) if length is None else (count // length, length)
        flat = self._observations.read(observations, leading)
        if self._normalizers and not is_train:
            _uncompiled(self._keep)(flat)
        state: State | None = None
        resets = given.get("dones") if length is not None else None
        if self.is_rnn():
            rows = given["rnn_states"][0][0]
            state = unpack_state(rows, self._shapes, self._policy.dtype)
        action, mask = given.get("prev_actions"), given.get("action_masks")
        return step_of(
            self._acting.now(), None if self._judging is None else self._judging.now(),
            self._seen_by_model(flat),
            None if action is None else self._actions.from_host(action, leading),
            state,
            None if resets is None else resets.reshape(leading) != 0,
            unroll=length is not None,
            mask=None if mask is None else self._actions.masks(mask, leading),
            deterministic=False,
            entropy=is_train,
            drawn=True,
        )  # fmt: skip

    def _seen_by_model(self, flat: Mapping[str, Tensor]) -> Any:
        """Observations by flat key as what the model is called with: `Inputs` where there is nothing to read."""
        policy = self._policy
        plain = self._is_plain and all(
            value.dtype == policy.dtype and value.device == policy.device for value in flat.values()
        )
        return Inputs(flat) if plain else policy.as_observed(dict(flat))

    def _flat(self, step: Step, is_train: bool) -> dict[str, Any]:
        """What rl_games reads, with one leading axis."""
        count = step.log_prob.numel()
        negative = -_on_one_axis(step.log_prob)
        value = step.value
        values = negative.new_zeros(count, 1) if value is None else value.reshape(count, 1).float()
        outputs: dict[str, Any] = {"values": values}
        if is_train:
            if self.value_mean_std.is_used:
                outputs["values"] = self.value_mean_std.normalized(values)
            outputs |= {"prev_neglogp": negative, "entropy": _on_one_axis(step.entropy)}
        else:
            outputs |= {"neglogpacs": negative, "actions": self._actions.to_host(step.action)}
        if self._is_box:
            if self._is_player:  # whose deterministic action is what it calls the mean
                outputs["mus"] = self._actions.to_host(step.distribution.mode())
                return outputs
            outputs["mus"], outputs["sigmas"] = self._actions.means(step.distribution, count)
        elif not is_train:
            outputs["logits"] = self._actions.logits(step.distribution)
        return outputs


class CentralCritic(_Hosted):
    """The critic of a composed model as rl_games' central critic, which reads ``states`` and is trained apart."""

    def __init__(self, model: Model, **shared: Any) -> None:
        critic = model.critic
        assert isinstance(critic, SpaceCritic)  # as the checks of the actor say
        keys = [source.key for source in critic.input_sources().values()]
        super().__init__(model, keys, **shared)
        self.a2c_network = critic
        tree = one_policy(model.policy).observer.tree
        self._observations = HostedObservations(tree, STATES, f"{STATES}/")

    def is_rnn(self) -> bool:
        return False

    def get_default_rnn_state(self) -> None:
        return None

    def forward(self, input_dict: dict[str, Any]) -> dict[str, Any]:
        """The values (n, 1) of the states: normalised ones to learn from."""
        states = input_dict["obs"]
        some = next(iter(states.values())) if isinstance(states, dict) else states
        flat = self._observations.read(states, (some.shape[0],))
        is_train = input_dict.get("is_train", True)
        if self._normalizers and not is_train:
            _uncompiled(self._keep)(flat)
        values = self.a2c_network(flat)["value"].float()
        if is_train and self.value_mean_std.is_used:
            values = self.value_mean_std.normalized(values)
        return {"values": values, "rnn_states": None}


def _on_one_axis(values: Tensor) -> Tensor:
    return (values if values.dim() == 1 else values.flatten()).float()


def _uncompiled(function: Callable[..., X]) -> Callable[..., X]:
    """``function``, which torch.compile leaves as it is."""
    return torch.compiler.disable(function)  # type: ignore[return-value]


class ValueStatistics(nn.Module):
    """The critic's ``normalize_value`` in the place of rl_games' own normaliser: statistics that the model saves."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)
        self.is_used = model.critic is not None and model.critic.value_normalizer is not None

    _model: Model

    def forward(self, values: Tensor, denorm: bool = False) -> Tensor:
        """Values on the other scale; in training mode they are counted first, as rl_games does."""
        if self.training and not denorm:
            self._model.update_normalizers(returns=values)
        return self._normalizer.denormalize(values) if denorm else self.normalized(values)

    def normalized(self, values: Tensor) -> Tensor:
        return self._normalizer(values)

    @property
    def _normalizer(self) -> NormalizeBlock:
        normalizer = self._model.critic.value_normalizer  # type: ignore[union-attr]
        assert normalizer is not None
        return normalizer
