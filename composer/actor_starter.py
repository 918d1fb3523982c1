"""A first spec for an environment with several actors: one network for each kind of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from composer.actors import Actor, Actors, read_actors, shortened
from composer.space_json import spaces_differ
from composer.spaces import flatten_space
from composer.starter import (
    critic_lines,
    described,
    entry,
    heading,
    ignoring,
    masked_actions,
    masking,
    policy_lines,
    readable,
)

__all__ = ["starting_actor_spec"]


def starting_actor_spec(
    observation_space: Mapping[Any, Any],
    action_space: Mapping[Any, Any],
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
        observations, unread = readable(members[0].observation_space)
        actions = flatten_space(members[0].action_space, "action")
        ignored |= {f"{key}/{name}": reason for name, reason in unread.items()}
        masks = masked_actions(observations, actions)
        masked |= {f"{key}/{action}": mask for action, mask in masks.items()}
        title = f"    {entry(key, {}).removesuffix('{}')}"
        names = shortened(actor.name for actor in members)
        policies += [f"{title}# {names}", *described(observations, actions, "      ")]
        policies += policy_lines(observations, "      ")
        critics += [title.rstrip(), *critic_lines(observations, "      ")]
    lines = [
        *heading(environment, allow, "policy and critic"),
        "version: 1",
        *([entry("environment", environment)] if environment else []),
        *ignoring(ignored),
        *("", "policy:", *masking(masked), "  networks:", *policies),
        *(
            "",
            "critic: # a value for each of them, of its own observations",
            "  networks:",
            *critics,
        ),
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
