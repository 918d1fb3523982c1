"""Spaces, observations and actions as rl_games has them, and the agent that builds a model.

rl_games stores a Box or a Discrete, or a Dict of such, and acts by one Discrete, a Tuple of them, or a Box of one axis.
Choices are counted from 0. It divides images by 255, which is undone here.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.distributions.base import Distribution, is_bounded
from composer.distributions.discrete import BitDistribution, ChoiceDistribution
from composer.model import Model
from composer.spaces.json_form import space_from_json
from composer.spaces.kinds import Leaf, look_at
from composer.spaces.lookup import Spaces
from composer.spaces.tree import SpaceTree
from perception_blocks.registry import missing_extra

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, which it compiles with when it is imported
        from rl_games.algos_torch.players import PpoPlayerContinuous, PpoPlayerDiscrete
        from rl_games.common.a2c_common import A2CBase, ContinuousA2CBase
        from rl_games.common.player import BasePlayer
        from rl_games.interfaces.base_algorithm import BaseAlgorithm
except ImportError as error:
    raise missing_extra("composer.adapters.rl_games", error, "rl-games") from error

__all__ = [
    "STATES",
    "Composed",
    "Hosted",
    "HostedActions",
    "HostedObservations",
    "builder_of",
    "model_spaces",
]
__all__ += ["with_states"]

STATES = "states"  # what rl_games calls the observations of a central critic, beside the actor's
OBSERVATION = "observation"


@dataclass(frozen=True)
class Composed:
    """In the place of a spec, a model that is trained itself; only for configs that nobody copies."""

    model: Model


class Hosted:
    """The agent or player of rl_games that builds a model, and what it knows beyond shapes.

    ``algorithm`` is its name in rl_games' configs; ``is_central`` where its central critic is built.
    """

    def __init__(self, agent: Any, is_central: bool) -> None:
        self.agent = agent
        self.is_central = is_central
        self.is_player = isinstance(agent, BasePlayer)
        is_continuous = isinstance(agent, ContinuousA2CBase | PpoPlayerContinuous)
        self.algorithm = "a2c_continuous" if is_continuous else "a2c_discrete"

    @property
    def config(self) -> Mapping[str, Any]:
        """The section ``config`` of rl_games' config."""
        return self.agent.config

    @property
    def info(self) -> Mapping[str, Any]:
        """What the environment says of itself; of a player's rl_games reads less than there is."""
        env: Any = getattr(self.agent, "env", None)
        return env.get_env_info() if hasattr(env, "model_spaces") else self.agent.env_info

    @property
    def central(self) -> Mapping[str, Any] | None:
        """The settings of a central critic, which is trained apart from the actor."""
        return self.config.get("central_value_config")


def builder_of(model: object) -> Hosted | None:
    """The agent or player of rl_games that builds with ``model``, what a config's ``model:`` became; None without one.

    rl_games hands its builders shapes alone, while spaces, settings and the algorithm are with the agent, and nothing
    that can be registered with it sees the agent before its constructor has returned: the Runner's own builders make
    agents, and a Runner of our own would not be the one of Isaac Lab's scripts. So the agent is looked up among the
    callers, and known by holding this very ``model`` as its network.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, BaseAlgorithm | BasePlayer):
            config = getattr(caller, "config", None) or {}
            central = config.get("central_value_config") or {}
            is_central = central.get("network") is model
            if is_central or config.get("network") is model:
                _refuse_other_algorithms(caller)
                return Hosted(caller, is_central)
        frame = frame.f_back
    return None


def _refuse_other_algorithms(agent: object) -> None:
    if not isinstance(agent, A2CBase | PpoPlayerContinuous | PpoPlayerDiscrete):
        raise ValueError(
            f"a composed model is trained by a2c_discrete and a2c_continuous of rl_games, not by its "
            f"{type(agent).__name__}; write algo: {{name: a2c_continuous}}"
        )


# --- spaces ---


def model_spaces(hosted: Hosted | None, given: Mapping[str, Any]) -> Spaces:
    """The spaces to compose for: those ``given`` beside the spec, else the environment's.

    Raises ValueError where neither says what they are.
    """
    info: Mapping[str, Any] = {} if hosted is None else hosted.info
    said = info.get("model_spaces", (info.get("observation_space"), info.get("action_space")))
    names = ("observation_space", "action_space")
    both = [given.get(name) or space for name, space in zip(names, said, strict=True)]
    missing = [name for name, space in zip(names, both, strict=True) if space is None]
    if missing:
        why = (
            "no agent of rl_games builds this model, which would know the spaces"
            if hosted is None
            else "the environment says nothing of the spaces"
        )
        raise ValueError(
            f"{why}; write {' and '.join(missing)} beside 'spec', as "
            "{type: Box, shape: [4], dtype: float32, low: -inf, high: inf}"
        )
    return as_space(both[0]), as_space(both[1])


def as_space(space: Any) -> Space:
    """A space of gymnasium: from JSON, or from the older gym, which some environments of rl_games still have."""
    if isinstance(space, Space):
        return space
    if isinstance(space, Mapping) and "type" in space:
        return space_from_json(space)
    return _of_gym(space)


def _of_gym(space: Any) -> Space:
    kind = type(space).__name__
    if kind == "Box":
        return spaces.Box(space.low, space.high, space.shape, space.dtype)
    if kind == "Discrete":
        return spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0)))
    if kind == "Tuple":
        return spaces.Tuple([as_space(part) for part in space.spaces])
    if kind == "Dict":
        return spaces.Dict({key: as_space(part) for key, part in space.spaces.items()})
    raise ValueError(f"a space of gymnasium is needed, got {space!r} of the class {kind}")


def with_states(space: Space, states: Space) -> spaces.Dict:
    """What an asymmetric spec reads: the actor's observations under their own keys, and the critic's ``states``."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {OBSERVATION: space}
    if STATES in parts:
        raise ValueError(
            "the actor has an observation 'states', which is the name of the central critic's; rename it in the "
            "environment"
        )
    return spaces.Dict({**parts, STATES: states})


# --- observations ---


class HostedObservations:
    """The way from the host's tensors to a model's observations ``tree``.

    A lone tensor is the observation called ``lone``; the parts of a dict have flat keys, after ``prefix``.
    """

    def __init__(self, tree: SpaceTree, lone: str, prefix: str = "") -> None:
        self.tree, self._lone, self._prefix = tree, lone, prefix
        self._images = {
            key
            for key, leaf in tree.leaves.items()
            if leaf.kind == "box" and leaf.space.dtype == np.uint8  # type: ignore[union-attr]
        }
        self._is_first = True

    def read(
        self, observations: Tensor | Mapping[str, Tensor], leading: Sequence[int]
    ) -> dict[str, Tensor]:
        """The host's tensors (n, ...) by flat key, with the axes ``leading`` in place of the first.

        Raises ValueError for numbers in the first batch that are no choice of their space, wherever the tensors are.
        """
        tensors = {}
        for key, value in self._by_key(observations).items():
            if key in self._images and value.is_floating_point():
                value = (value * 255).round().to(torch.uint8)
            many = len(leading) != 1  # else it has the shape already
            tensors[key] = value.reshape(*leading, *value.shape[1:]) if many else value
        if self._is_first and not torch.compiler.is_compiling():
            self._is_first = False
            for key, value in tensors.items():
                if not value.is_cpu:  # a model looks at values on the CPU itself, each time
                    look_at(self.tree.leaves[key], value.detach().cpu())
        return tensors

    def _by_key(self, observations: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(observations, Mapping):
            by_key = {f"{self._prefix}{key}": value for key, value in observations.items()}
            return {
                key: by_key[key] for key in by_key if key in self.tree.leaves
            }  # some are ignored
        return {self._lone: observations}


# --- actions ---


class HostedActions:
    """Actions as rl_games has them, which is how distributions have them: choices from 0, numbers as drawn.

    One Discrete is (n,); several choices are (n, k), numbers (n, d), side by side.
    """

    def __init__(self, tree: SpaceTree) -> None:
        self._leaves: dict[str, Leaf] = dict(tree.leaves)
        self._sizes = [prod(leaf.shape) for leaf in self._leaves.values()]
        self._single = next(iter(self._leaves)) if tree.is_single else None
        kinds = [leaf.kind for leaf in self._leaves.values()]
        self._is_one_choice = kinds == ["discrete"]
        self._is_box = set(kinds) == {"box"}

    @property
    def space(self) -> Space:
        """The space that rl_games acts in."""
        if self._is_box:
            bounds = [(leaf.space.low.ravel(), leaf.space.high.ravel()) for leaf in self._boxes]
            low, high = (np.concatenate(side) for side in zip(*bounds, strict=True))
            return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        choices = [spaces.Discrete(n) for leaf in self._leaves.values() for n in counts_of(leaf)]
        return choices[0] if self._is_one_choice else spaces.Tuple(choices)

    @property
    def _boxes(self) -> list[Any]:
        return list(self._leaves.values())

    def to_host(self, action: Tensor | Mapping[str, Tensor]) -> Tensor:
        """An action of the model's distribution with one leading axis, as rl_games has it."""
        if self._is_one_choice:
            return self._by_key(action)[self._single]  # type: ignore[index]
        rows = [part.reshape(part.shape[0], -1) for part in self._by_key(action).values()]
        row = rows[0] if len(rows) == 1 else torch.cat(rows, -1)
        return row.float() if self._is_box else row.long()

    def from_host(self, action: Tensor, leading: Sequence[int]) -> Any:
        """The host's actions (n, ...) as the model's distribution has them, with the axes ``leading``."""
        parts: Sequence[Tensor] = (action,)
        if len(self._sizes) > 1:
            parts = action.reshape((*leading, sum(self._sizes))).split(self._sizes, -1)
        by_key = {
            key: part.reshape((*leading, *leaf.shape))
            for part, (key, leaf) in zip(parts, self._leaves.items(), strict=True)
        }
        for key, leaf in self._leaves.items():
            if leaf.kind == "multi_binary":
                by_key[key] = by_key[key].float()
        return by_key if self._single is None else by_key[self._single]

    def masks(self, flat: Tensor, leading: Sequence[int]) -> Any:
        """The host's masks (n, choices) as the model's distribution takes them, with the axes ``leading``.

        Of a bit that is the mask of 1: 0 is always legal.
        """
        counts = {key: sum(counts_of(leaf)) for key, leaf in self._leaves.items()}
        parts = dict(zip(counts, flat.split(list(counts.values()), -1), strict=True))
        for key, leaf in self._leaves.items():
            if leaf.kind == "multi_binary":
                parts[key] = parts[key][:, 1::2].reshape(len(flat), *leaf.shape)
        masks = {key: part.reshape(*leading, *part.shape[1:]) for key, part in parts.items()}
        return masks if self._single is None else masks[self._single]

    def logits(self, distribution: Distribution) -> Any:
        """The log-probabilities of the choices, (n, k); a list of them for several choices."""
        by_choice = [logits for part in parts_of(distribution) for logits in _by_choice(part)]
        return by_choice[0] if self._is_one_choice else by_choice

    def means(self, distribution: Distribution, count: int) -> tuple[Tensor, Tensor]:
        """The means and standard deviations (count, d) of normals, on the scale where finite bounds are -1 and 1.

        rl_games' KL does not depend on the scale, and its loss of bounds expects this one. Of actions that are
        squashed into their bounds it is the normal that is squashed.
        """
        means, deviations = [], []
        for part, leaf in zip(parts_of(distribution), self._boxes, strict=True):
            normal: Any = getattr(part, "base", part)
            mean, deviation = normal.mean, normal.stddev
            if normal is part and is_bounded(leaf):
                half = mean.new_tensor((leaf.space.high - leaf.space.low) / 2)
                mean = (mean - mean.new_tensor(leaf.space.low)) / half - 1
                deviation = deviation / half
            means.append(mean.reshape(count, -1))
            deviations.append(deviation.reshape(count, -1))
        return torch.cat(means, -1), torch.cat(deviations, -1)

    def _by_key(self, action: Tensor | Mapping[str, Tensor]) -> Mapping[Any, Tensor]:
        return action if isinstance(action, Mapping) else {self._single: action}


def parts_of(distribution: Any) -> list[Distribution]:
    """The distributions of each action."""
    return list(getattr(distribution, "parts", {"": distribution}).values())


def counts_of(leaf: Leaf) -> list[int]:
    """The numbers of choices of an action, one for each of its elements."""
    space: Any = leaf.space
    if leaf.kind == "discrete":
        return [int(space.n)]
    if leaf.kind == "multi_binary":
        return [2] * prod(leaf.shape)
    return [int(n) for n in space.nvec.ravel()]


def _by_choice(distribution: Distribution) -> list[Tensor]:
    """Log-probabilities of each choice that a distribution makes, (n, k) each."""
    if isinstance(distribution, BitDistribution):
        bits = distribution.logits.reshape(len(distribution.logits), -1)
        return [torch.stack([torch.zeros_like(bit), bit], -1) for bit in bits.unbind(-1)]
    assert isinstance(distribution, ChoiceDistribution)  # as the checks say
    log_probs = distribution.log_probs
    choices = log_probs.reshape(len(log_probs), -1, log_probs.shape[-1])
    return list(choices.unbind(1))
