"""The typed form of a spec, with the path of every part for messages.

It knows no spaces and no shapes. `composer.spec.read.read_spec` makes these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from composer.errors import Path
from composer.source.load import Source
from composer.spec.action_model import ActionModelSpec
from composer.spec.parallel import ParallelSpec
from perception_blocks.registry import Registry

__all__ = ["CRITICS", "CriticSpec", "DistributionRule", "HeadsSpec", "ModelSpec"]
__all__ += ["NetworkSpec", "NodeSpec", "PolicySpec", "TemplateSpec", "of_one_actor"]

CRITICS = Registry("critic kind")
"""Kinds of critics and their classes, which are imported when a critic is built: a spec is read without torch."""
CRITICS.register_all("composer.critic.state", {"state": "Critic"})
CRITICS.register_all("composer.critic.shared_state", {"shared_state": "SharedStateCritic"})
CRITICS.register_all("composer.critic.delta_state", {"delta_state": "DeltaStateCritic"})
CRITICS.register_all("composer.critic.state_action", {"state_action": "StateActionCritic"})
CRITICS.register_all(
    "composer.critic.shared_state_action", {"shared_state_action": "SharedStateActionCritic"}
)


@dataclass(frozen=True)
class NodeSpec:
    """One node of a graph, or one head.

    ``block`` is a registered name, a dotted path, ``"graph"``, or from Python a class, a callable or a ready module;
    None with ``same_as``. ``inputs`` names values by position, or by argument name; for a nested ``graph`` it maps the
    inner name to the outer one. ``out`` names the outputs, "_" for one that is dropped (a nested graph: the inner
    names, or outer -> inner); None: the node's own name.
    """

    path: Path
    name: str
    block: object
    inputs: tuple[str, ...] | dict[str, str]
    out: tuple[str, ...] | dict[str, str] | None = None
    each: int = 0
    same_as: str | None = None
    init: object = None
    settings: dict[str, object] = field(default_factory=dict)
    graph: dict[str, NodeSpec] | None = None
    copies: int | None = None  # of the nested graph: an ensemble

    @property
    def reads(self) -> tuple[str, ...]:
        """The values that it reads, by their names in the graph."""
        return tuple(self.inputs.values()) if isinstance(self.inputs, dict) else self.inputs

    @property
    def inner_outputs(self) -> tuple[str, ...] | None:
        """The outputs of a nested graph, by their inner names; None: its only sink."""
        return tuple(self.out.values()) if isinstance(self.out, dict) else self.out

    @property
    def writes(self) -> tuple[str, ...]:
        """The values that it writes into the graph."""
        return (self.name,) if self.out is None else tuple(n for n in self.out if n != "_")

    @cached_property
    def writers(self) -> dict[str, Path]:
        """By each value inside of a nested graph, the path of the node that writes it."""
        return _writers(self.graph)


def _writers(graph: dict[str, NodeSpec] | None) -> dict[str, Path]:
    nodes = reversed((graph or {}).values())  # of two that write one value, the first counts
    return {name: node.path for node in nodes for name in node.writes}


@dataclass(frozen=True)
class HeadsSpec:
    """One node for every action (``default``, whose name is empty), or a node for each action (``actions``)."""

    path: Path
    default: NodeSpec | None = None
    actions: dict[str, NodeSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class TemplateSpec:
    """The settings of a network that follows from its observations; its nodes have no inputs yet.

    ``image`` to ``graph`` are the nodes for each kind of observation (None: the template's choice). ``by_name`` has
    nodes, and ``kinds`` the kind, for the observations whose names match a pattern. ``trunk`` and ``memory`` come
    after the nodes of the observations, or are None.
    """

    path: Path
    image: NodeSpec | None = None
    vector: NodeSpec | None = None
    discrete: NodeSpec | None = None
    set: NodeSpec | None = None
    text: NodeSpec | None = None
    graph: NodeSpec | None = None
    by_name: dict[str, NodeSpec] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    trunk: NodeSpec | None = None
    memory: NodeSpec | None = None


@dataclass(frozen=True)
class NetworkSpec:
    """One network: exactly one of ``graph``, ``target`` and ``template`` is not None.

    ``observations`` names the observations that it may see (None: all), ``shares`` the values that a policy shares
    with its critic. ``separate`` asks for a network of this form for each agent.
    """

    path: Path
    graph: dict[str, NodeSpec] | None = None
    target: object = None
    arguments: dict[str, object] = field(default_factory=dict)
    template: TemplateSpec | None = None
    heads: HeadsSpec | None = None
    observations: tuple[str, ...] | None = None
    init: object = None
    shares: tuple[str, ...] = ()
    separate: bool = False

    @cached_property
    def writers(self) -> dict[str, Path]:
        """By each value of the graph, the path of the node that writes it."""
        return _writers(self.graph)

    @property
    def written_nodes(self) -> list[NodeSpec]:
        """The nodes of the graph and the heads, as far as they are written."""
        heads = self.heads or HeadsSpec(self.path)
        default = [] if heads.default is None else [heads.default]
        return [*(self.graph or {}).values(), *default, *heads.actions.values()]


@dataclass(frozen=True)
class PolicySpec:
    """``networks`` has the key None for a policy of one network, else steps or agents (of a list: "0", "1", ...).

    ``action_mask`` maps an action to the observation that is its mask. ``separate`` holds for all networks.
    """

    path: Path
    networks: dict[str | None, NetworkSpec]
    action_mask: dict[str, str] = field(default_factory=dict)
    wrap: tuple[str | dict[str, object], ...] = ()
    separate: bool = False

    @property
    def shares(self) -> tuple[str, ...]:
        """The values that any of the networks shares with the critic."""
        return tuple(
            dict.fromkeys(name for network in self.networks.values() for name in network.shares)
        )


@dataclass(frozen=True)
class CriticSpec:
    """``kind`` is a name in `CRITICS`, ``shared`` has the policy's shared values, ``ensemble`` the number of copies."""

    path: Path
    networks: dict[str | None, NetworkSpec]
    kind: str = "state"
    stack: bool = False
    ensemble: int = 1
    normalize_value: bool = False
    separate: bool = False
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class DistributionRule:
    """An entry of ``distributions``, as it is written: ``{action: steer, distribution: beta}``."""

    path: Path
    entry: Mapping[str, object]


@dataclass(frozen=True)
class ModelSpec:
    """A whole spec. ``ignore`` and ``normalize`` name observations.

    ``texts`` has the longest length and the characters of observations that are texts, as `flatten_space` takes them.
    ``freeze``, ``weights`` (files) and ``learning_rate_scale`` are about parts of the model, by paths such as
    ``policy/screen`` (`composer.network.paths`); ``state_names`` names states such as ``policy/memory/h`` for hosts.
    ``parallel`` is how `composer.parallel` spreads the model over processes; nothing else looks at it.
    ``previous`` lists what `composer.with_previous` adds to observations: "action", "reward".
    Where there is a ``model``, the policy has no networks, and there is no critic. ``extensions`` are modules that are
    imported first.
    """

    version: int
    environment: str | None
    params: dict[str, object]
    distributions: tuple[DistributionRule, ...]
    ignore: tuple[str, ...]
    normalize: tuple[str, ...]
    texts: dict[str, dict[str, int | str]]
    policy: PolicySpec
    critic: CriticSpec | None
    source: Source
    parallel: ParallelSpec | None = None
    model: ActionModelSpec | None = None
    extensions: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    learning_rate_scale: Mapping[str, float] = field(default_factory=dict)
    previous: tuple[str, ...] = ()
    state_names: Mapping[str, str] = field(default_factory=dict)


def of_one_actor(spec: ModelSpec) -> ModelSpec:
    """``spec`` for an environment without steps and agents, where a list of one network is that network."""
    policy, critic = spec.policy, spec.critic
    policy = replace(policy, networks=_only(policy.networks))
    critic = critic and replace(critic, networks=_only(critic.networks))
    return replace(spec, policy=policy, critic=critic)


def _only(networks: dict[str | None, NetworkSpec]) -> dict[str | None, NetworkSpec]:
    return {None: networks["0"]} if list(networks) == ["0"] else networks
