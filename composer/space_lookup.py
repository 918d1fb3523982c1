"""Where a model's spaces come from: the caller, an environment, or the id of one."""

from __future__ import annotations

from typing import Any

import gymnasium

from composer.errors import Path, Problem, SpecError
from composer.model_spec import ModelSpec
from composer.source import Source

__all__ = ["find_spaces", "make_environment"]

PACKAGE_HINT = "package:id, such as ale_py:ALE/Pong-v5"


def find_spaces(
    spec: ModelSpec,
    env: Any,
    observation_space: gymnasium.Space | None,
    action_space: gymnasium.Space | None,
) -> tuple[gymnasium.Space, gymnasium.Space]:
    """Observation and action space: those that the caller gave, else those of ``env``, else of the spec's environment.

    Raises ValueError where the caller gave half of it or nothing at all.
    """
    if env is None and observation_space is not None and action_space is not None:
        return observation_space, action_space
    if (observation_space is None) != (action_space is None):
        raise ValueError("give both observation_space and action_space, or an env")
    made = None
    if env is None:
        if spec.environment is None:
            raise ValueError("compose needs env=..., both spaces, or a spec with an 'environment'")
        made = env = make_environment(spec.environment, ("environment",), spec.source)
    elif isinstance(env, str):
        made = env = make_environment(env)
    elif not hasattr(env, "observation_space"):
        kind = type(env).__name__
        raise ValueError(f"env is an environment, a vector environment or an id, got a {kind}")
    try:
        observation = getattr(env, "single_observation_space", None) or env.observation_space
        action = getattr(env, "single_action_space", None) or env.action_space
    finally:
        if made is not None:
            made.close()
    return observation, action


def make_environment(
    environment: str, path: Path = (), source: Source | None = None
) -> gymnasium.Env:
    """The environment; SpecError where there is none of that name, or a library that it needs is missing."""
    try:
        return gymnasium.make(environment)
    except (gymnasium.error.Error, ImportError) as error:
        message = f"the environment {environment!r} cannot be made: {error}"
        if isinstance(error, gymnasium.error.NamespaceNotFound) and ":" not in environment:
            message += f"\nIf a package brings it, name that too: {PACKAGE_HINT}"
        raise SpecError([Problem(message, path, source and source.position(path))]) from error
