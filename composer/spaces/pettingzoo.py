"""The spaces of the agents of PettingZoo's environments, and the environments by id.

An environment needs PettingZoo's interface, not the library; only `make_pettingzoo` imports that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeGuard

from gymnasium import Space

from composer.errors import RefusedError
from composer.spaces.actors import ActorKey
from composer.trust import PETTINGZOO
from perception_blocks.words import few_of, hint

__all__ = ["PREFIX", "PettingZooError", "agent_spaces", "is_pettingzoo", "make_pettingzoo"]

PREFIX = f"{PETTINGZOO}:"  # of ids: pettingzoo:butterfly/pistonball_v6


class PettingZooError(RefusedError):
    """There is no such environment; the message says why."""


class AgentEnvironment(Protocol):
    """The part of PettingZoo's interface that parallel and AEC environments share."""

    possible_agents: Sequence[str | int]
    observation_space: Callable[[str | int], Space]
    action_space: Callable[[str | int], Space]


def is_pettingzoo(env: object) -> TypeGuard[AgentEnvironment]:
    """Whether ``env`` is a parallel or AEC environment, wrapped or not."""
    methods = ("observation_space", "action_space")
    return hasattr(env, "possible_agents") and all(callable(getattr(env, m, None)) for m in methods)


def agent_spaces(env: AgentEnvironment) -> tuple[dict[ActorKey, Space], dict[ActorKey, Space]]:
    """The observation and action spaces of every agent that may be in ``env``."""
    agents = env.possible_agents
    return {a: env.observation_space(a) for a in agents}, {a: env.action_space(a) for a in agents}


def make_pettingzoo(environment: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """The environment that an id such as ``pettingzoo:butterfly/pistonball_v6`` names, parallel if it can be.

    ``arguments`` are given to its function. Only environments that PettingZoo (or MPE2) itself knows are made. Raises
    PettingZooError.
    """
    name = environment.removeprefix(PREFIX)
    makers = _mpe_makers() if name.startswith("mpe/") else _makers()
    if name not in makers:
        raise PettingZooError(f"there is no {name!r}{hint(name, makers, shown=few_of)}")
    try:
        return makers[name](**(arguments or {}))
    except Exception as error:  # PettingZoo's own for a missing library, or the environment's
        raise PettingZooError(f"{error}") from error


def _makers() -> dict[str, Callable[..., object]]:
    """The functions that make PettingZoo's environments, by name."""
    try:
        import pettingzoo
    except ImportError as error:
        raise PettingZooError("it needs PettingZoo") from error
    kinds = {"aec": pettingzoo.aec_registry, "parallel": pettingzoo.parallel_registry}
    return {
        re.sub(r"-v(\d+)$", r"_v\1", name): partial(pettingzoo.make, kind, name)  # type: ignore[arg-type]
        for kind, registry in kinds.items()
        for name in registry
    }


def _mpe_makers() -> dict[str, Callable[..., object]]:
    """The functions that make the particle environments, which are a separate package, by name."""
    try:
        from mpe2.all_modules import mpe_environments  # type: ignore[import-not-found]
    except ImportError as error:
        raise PettingZooError("it needs MPE2") from error
    return {name: module.parallel_env for name, module in mpe_environments.items()}
