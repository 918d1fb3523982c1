"""A first spec for an environment, as YAML to edit: the default template, written out as a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gymnasium import Space

from composer.distributions.rules import build_distributions
from composer.errors import Problems
from composer.source.dump import dump_flow
from composer.spaces.actors import Actor, ActorKey, Actors, read_actors
from composer.spaces.json_form import spaces_differ
from composer.spaces.tree import SpaceError, SpaceTree, flatten_space, format_space, walk_space
from composer.spec.model_spec import NetworkSpec, NodeSpec, TemplateSpec
from composer.spec.template import TRUNK
from composer.template.expansion import expand
from composer.template.kinds import kind_of_observation
from composer.trust import allow_options
from perception_blocks.words import few_of

__all__ = ["entry", "node_data", "starting_actor_spec", "starting_spec"]

ACTION_MASK = "action_mask"  # what PettingZoo's environments call the observation of what is legal


def starting_spec(
    observation_space: Space,
    action_space: Space,
    environment: str | None = None,
    allow: Iterable[str] = (),
) -> str:
    """The text of a spec that composes for these spaces; ``allow`` is what making the environment needs.

    If there is an image, the critic shares the policy's features of it. Observations that no network can read are
    ignored, with a comment. Raises ValueError where none is left, and SpaceError for an action that is not supported.
    """
    observations, ignored = _readable(observation_space)
    actions = flatten_space(action_space, "action")
    lines = [
        *_heading(environment, allow, _described(observations, actions), ignored),
        *("", "policy:", *_masking(_masked_actions(observations, actions))),
        *_policy_lines(observations),
        *("", "critic:", *_critic_lines(observations)),
    ]
    return "\n".join(lines) + "\n"


def _readable(observation_space: Space) -> tuple[SpaceTree, dict[str, str]]:
    """The observations that networks can read, and the ones to ignore, each with the reason.

    Raises ValueError if none can be read.
    """
    ignored = _unreadable(observation_space)
    observations = flatten_space(observation_space, "observation", list(ignored))
    empty = [key for key, port in observations.ports.items() if 0 in port.shape]
    if empty:
        ignored |= dict.fromkeys(empty, "empty")
        observations = flatten_space(observation_space, "observation", list(ignored))
    if not observations.leaves:
        what = ", ".join(f"{key!r} is {reason}" for key, reason in ignored.items())
        raise ValueError(
            f"there is no observation that a network can read: {what or 'the space is empty'}"
        )
    return observations, ignored


def _unreadable(space: Space) -> dict[str, str]:
    """The flat keys of the observations to ignore, each with the reason."""
    reasons = {}
    for key, _, part in walk_space(space, "observation"):
        what = f"a {type(part).__name__} space"
        try:
            flatten_space(part, "observation")
        except SpaceError:
            reasons[key] = f"{what}, which no block reads yet"
            if part.dtype is not None and part.dtype.kind == "U":
                declared = f"texts: {{{dump_flow({key: {'max_length': 64}})[1:-1]}}}"
                reasons[key] = f"{what}, read where its length is known: {declared}"
    return reasons


def _heading(
    environment: str | None,
    allow: Iterable[str],
    comments: Iterable[str],
    ignored: Mapping[str, str],
) -> Iterator[str]:
    """The lines before the policy."""
    yield f"# A first policy and critic for {environment or 'these spaces'}, to be changed at will."
    needed = allow_options(allow, environment)
    if needed:
        yield f"# The environment is code: composer check FILE{needed}"
    yield from comments
    yield "version: 1"
    if environment:
        yield entry("environment", environment)
    if ignored:
        yield "ignore:"
        for key, reason in ignored.items():
            yield f"  - {dump_flow({'key': key})[6:-1]} # {reason}"


def _described(observations: SpaceTree, actions: SpaceTree, margin: str = "") -> Iterator[str]:
    """Comments that list the observations and actions."""
    for tree, word in ((observations, "observation"), (actions, "action")):
        read = {leaf.path for leaf in tree.leaves.values()}
        for key, path, part in walk_space(tree.space, word):
            if path in read:
                plain = key and key.isprintable()
                name = "" if not path else f" {key if plain else ascii(key)}"
                yield f"{margin}#   {word}{name}: {format_space(part)}"


def _masked_actions(observations: SpaceTree, actions: SpaceTree) -> dict[str, str]:
    """The only action, if it is a choice, by the observation ``action_mask`` (as PettingZoo names it) that masks it."""
    mask, leaves = observations.ports.get(ACTION_MASK), list(actions.leaves.values())
    if mask is None or len(leaves) != 1 or leaves[0].kind == "box":
        return {}
    fits = mask.shape == build_distributions(actions)[leaves[0].key].logits_shape
    return {leaves[0].key: ACTION_MASK} if fits and (mask.low, mask.high) == (0.0, 1.0) else {}


def _masking(masked: dict[str, str]) -> Iterator[str]:
    if masked:
        yield f"  {entry('action_mask', masked)}"


def _default_nodes(observations: SpaceTree) -> list[NodeSpec]:
    """The nodes of the default template, the last of which is its trunk."""
    trunk = NodeSpec((), "", "dense", (), settings={k: v for k, v in TRUNK.items() if k != "block"})
    template = TemplateSpec((), trunk=trunk)
    network = expand(NetworkSpec((), template=template), observations.ports, Problems())
    assert network is not None
    assert network.graph is not None
    return list(network.graph.values())


def _policy_lines(observations: SpaceTree, margin: str = "  ") -> Iterator[str]:
    """A policy's network; with an image, it shares its features with the critic."""
    nodes = _default_nodes(observations)
    yield f"{margin}graph:"
    yield from (_node_line(node, f"{margin}  ") for node in nodes)
    yield f"{margin}heads: {{in: {nodes[-1].name}}}"
    if _is_pictured(observations):
        yield f"{margin}shares: [{nodes[-1].reads[0]}] # the critic sees through the policy's eyes"


def _critic_lines(observations: SpaceTree, margin: str = "  ") -> Iterator[str]:
    """The network of a critic beside that policy."""
    *features, latent = _default_nodes(observations)
    yield f"{margin}graph:"
    for node in (*(() if _is_pictured(observations) else features), latent):
        yield _node_line(node, f"{margin}  ")


def _is_pictured(observations: SpaceTree) -> bool:
    return any(kind_of_observation(port) == "image" for port in observations.ports.values())


def node_data(node: NodeSpec) -> dict[str, Any]:
    """A node of a template's graph as it stands in a spec."""
    reads = node.reads[0] if len(node.reads) == 1 else list(node.reads)
    each = {"each": node.each} if node.each else {}
    init = {} if node.init is None else {"init": node.init}
    return {"block": node.block, "in": reads, **each, **init, **node.settings}


def entry(key: str, value: object) -> str:
    """``key: value`` on one line."""
    return dump_flow({key: value})[1:-1]


def _node_line(node: NodeSpec, margin: str = "    ") -> str:
    """A node of a graph on one line of a spec."""
    return margin + entry(node.name, node_data(node))


def starting_actor_spec(
    observation_space: Mapping[ActorKey, Space],
    action_space: Mapping[ActorKey, Space],
    environment: str | None = None,
    allow: Iterable[str] = (),
) -> str:
    """The text of a spec that composes for these spaces by actor, as `starting_spec` writes it for one space.

    Agents of one step, or of one type (``knight_0``, ``knight_1``), share a network if their spaces are equal.
    """
    ignored: dict[str, str] = {}
    masked: dict[str, str] = {}
    policies: list[str] = []
    critics: list[str] = []
    for key, members in _kinds(read_actors(observation_space, action_space)).items():
        observations, unread = _readable(members[0].observation_space)
        actions = flatten_space(members[0].action_space, "action")
        ignored |= {f"{key}/{name}": reason for name, reason in unread.items()}
        masks = _masked_actions(observations, actions)
        masked |= {f"{key}/{action}": mask for action, mask in masks.items()}
        title = f"    {entry(key, {}).removesuffix('{}')}"
        names = few_of(actor.name for actor in members)
        policies += [f"{title}# {names}", *_described(observations, actions, "      ")]
        policies += _policy_lines(observations, "      ")
        critics += [title.rstrip(), *_critic_lines(observations, "      ")]
    lines = [
        *_heading(environment, allow, (), ignored),
        *("", "policy:", *_masking(masked), "  networks:", *policies),
        *("", "critic: # a value for each of them, of its own observations", "  networks:"),
        *critics,
    ]
    return "\n".join(lines) + "\n"


def _kinds(actors: Actors) -> dict[str, list[Actor]]:
    """Actors that can share a network, by a key that serves all of them."""
    kinds: dict[str, list[Actor]] = {}
    for actor in actors:
        kinds.setdefault(actor.step or actor.type or actor.name, []).append(actor)
    return {
        key: members
        for kind, alike in kinds.items()
        for key, members in (
            {kind: alike} if _are_equal(alike) else {a.name: [a] for a in alike}
        ).items()
    }


def _are_equal(actors: list[Actor]) -> bool:
    first = actors[0]
    return not any(
        spaces_differ(first.observation_space, actor.observation_space)
        or spaces_differ(first.action_space, actor.action_space)
        for actor in actors[1:]
    )
