"""The spaces of a model: from the caller, from an environment, or from the id of one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import gymnasium

from composer.errors import MissingExtraSpecError, Path, Problem, SpecError
from composer.limits import GivenLimits, limits_from
from composer.source.load import Source
from composer.spaces.actors import ActorKey, counted_spaces
from composer.spaces.pettingzoo import (
    PREFIX,
    PettingZooError,
    agent_spaces,
    is_pettingzoo,
    make_pettingzoo,
)
from composer.spaces.previous import add_previous, why_not_recalled
from composer.spaces.sizes import refuse_actors, refuse_sizes
from composer.spaces.tree import SpaceError
from composer.spec.keys import PREVIOUS
from composer.spec.model_spec import ModelSpec
from composer.trust import advice_on_missing, check_environment
from perception_blocks.registry import extra_for

__all__ = ["Spaces", "environment_spaces", "find_spaces", "is_by_actor", "make_environment"]
__all__ += ["made_spaces", "own_environment", "recalled_spaces"]

PACKAGE_HINT = "package:id, such as ale_py:ALE/Pong-v5"
OWN_MODULE = "\nIf a module of yours registers it, allow that: allow=['my_envs'] or --allow my_envs"
PACKAGES = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}  # by the start of ids

SpaceOrActors = gymnasium.Space | Mapping[ActorKey, gymnasium.Space]
Spaces = tuple[Any, Any]
"""Observation and action space: two Spaces, or two mappings from actors to Spaces."""


def find_spaces(
    spec: ModelSpec,
    env: Any,
    observation_space: SpaceOrActors | None = None,
    action_space: SpaceOrActors | None = None,
    limits: GivenLimits = None,
) -> Spaces:
    """The spaces that the caller gave, or the spaces of ``env``, or of the spec's environment.

    Observations have the last action and reward where the spec's ``previous`` lists them.

    Raises ValueError for one space without the other, and if nothing says what the spaces are.
    """
    given = _given_spaces(spec, env, observation_space, action_space, limits)
    return _with_previous(spec, given, limits) if spec.previous else given


def _given_spaces(
    spec: ModelSpec,
    env: Any,
    observation_space: SpaceOrActors | None,
    action_space: SpaceOrActors | None,
    limits: GivenLimits,
) -> Spaces:
    if env is None and observation_space is not None and action_space is not None:
        return _in_one_form(observation_space, action_space, limits)
    if (observation_space is None) != (action_space is None):
        raise ValueError("give both observation_space and action_space, or an env")
    if env is not None and not isinstance(env, str):
        why = why_not_recalled(env) if spec.previous else ""
        return recalled_spaces(spec, environment_spaces(env, limits), why, limits)
    name = spec.environment if env is None else env
    if name is None:
        raise ValueError("compose needs env=..., both spaces, or a spec with an 'environment'")
    path, source = (("environment",), spec.source) if env is None else ((), None)
    return recalled_spaces(spec, *made_spaces(name, path, source, limits), limits)


def made_spaces(
    environment: str, path: Path = (), source: Source | None = None, limits: GivenLimits = None
) -> tuple[Spaces, str]:
    """The spaces of the ``environment`` of that id, and why nothing would show the last action and reward in it.

    Raises SpecError, at ``path``, where it cannot be made or used.
    """
    env = make_environment(environment, path, source)
    try:
        return environment_spaces(env, limits), why_not_recalled(env)
    except ValueError as error:
        message = f"the environment {environment!r} cannot be used: {error}"
        raise SpecError([Problem(message, path, source and source.position(path))]) from error
    finally:
        env.close()


def recalled_spaces(spec: ModelSpec, given: Spaces, why: str, limits: GivenLimits) -> Spaces:
    """``given``. Raises SpecError where ``previous`` lists what nothing would show, which ``why`` says if so."""
    if spec.previous and why and _with_previous(spec, given, limits)[0] != given[0]:
        path = (PREVIOUS,)
        raise SpecError([Problem(why, path, spec.source.position(path))])
    return given


def _with_previous(spec: ModelSpec, given: Spaces, limits: GivenLimits) -> Spaces:
    """The spaces with what ``previous`` adds, to each actor its own. Raises SpecError, at that key."""
    path, problems = (PREVIOUS,), []
    position = spec.source.position(path)

    def enlarged(observation_space: Any, action_space: Any, whose: str = "") -> Any:
        try:
            return add_previous(observation_space, action_space, spec.previous, limits)
        except SpaceError as error:  # what is wrong with the actions alone
            start = spec.source.position(())
            problems.extend(Problem(f"{whose}{text}", (), start) for _, text in error.problems)
        except ValueError as error:
            problems.append(Problem(f"{whose}{error}", path, position))
        return observation_space

    seen, taken = given
    if is_by_actor(seen):
        seen = {
            key: enlarged(space, taken[key], f"{key!r}: ") if key in taken else space
            for key, space in seen.items()
        }
    else:
        seen = enlarged(seen, taken)
    if problems:
        raise SpecError(problems)
    return _checked(seen, taken, limits)


def environment_spaces(env: object, limits: GivenLimits = None) -> Spaces:
    """The spaces of an environment of gymnasium or PettingZoo, by actor if it has several actors.

    The actors of an environment of gymnasium are its steps, if it has mappings ``observation_spaces`` and
    ``action_spaces`` by step; ``agent_counts`` may have the number of agents of a step, None for any number. Raises
    ValueError for what is no space, or larger than ``limits`` allow.
    """
    if is_pettingzoo(env):
        return _checked(*agent_spaces(env), limits)
    by_step = [_attribute(env, f"{kind}_spaces") for kind in ("observation", "action")]
    if all(isinstance(spaces, Mapping) for spaces in by_step):
        counts = _attribute(env, "agent_counts") or {}
        if not isinstance(counts, Mapping):
            got = type(counts).__name__
            raise ValueError(f"agent_counts is a mapping from steps to numbers, got a {got}")
        observations, actions = (counted_spaces(spaces, counts) for spaces in by_step)
        return _checked(observations, actions, limits)
    if not hasattr(env, "observation_space"):
        kind = type(env).__name__
        raise ValueError(f"env is an environment, a vector environment or an id, got a {kind}")
    kinds = ("observation_space", "action_space")
    observation, action = (getattr(env, f"single_{k}", None) or getattr(env, k) for k in kinds)
    return _checked(observation, action, limits)


def is_by_actor(space: object) -> TypeGuard[Mapping[ActorKey, gymnasium.Space]]:
    """Whether ``space`` maps actors to spaces; a gymnasium Dict is one space."""
    return isinstance(space, Mapping) and not isinstance(space, gymnasium.Space)


def own_environment(source: Source, allow: Iterable[str]) -> str | None:
    """The id of the environment that a spec names. Raises SpecError where making it would run what is not allowed."""
    environment, path = source.data.get("environment"), ("environment",)
    problem = check_environment(environment, allow) if isinstance(environment, str) else None
    if problem:
        raise SpecError([Problem(problem, path, source.position(path))])
    return environment


def make_environment(
    environment: str,
    path: Path = (),
    source: Source | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Any:
    """The environment; SpecError where there is none of that name, or a library that it needs is missing.

    ``arguments`` are the keyword arguments of `gymnasium.make`.
    """
    try:
        if environment.startswith(PREFIX):
            return make_pettingzoo(environment, arguments)
        if environment.count(":") > 1:
            raise gymnasium.error.Error("an id has at most one ':', after its module")
        return gymnasium.make(environment, **(arguments or {}))
    except (gymnasium.error.Error, ImportError, PettingZooError) as error:
        position = source and source.position(path)
        message = f"the environment {environment!r}"
        if needs := _needs(message, environment, error):
            raise MissingExtraSpecError([Problem(needs, path, position, True)]) from error
        message += f" cannot be made: {_reason(error)}"
        if isinstance(error, gymnasium.error.NamespaceNotFound) and ":" not in environment:
            message += f"\nIf a package brings it, name that too: {PACKAGE_HINT}"
        raise SpecError([Problem(message, path, position)]) from error
    except Warning:  # as an error, which the caller asked for
        raise
    except Exception as error:
        reason = error.__cause__ or error  # gymnasium raises it again, with a longer text
        message = f"the environment {environment!r} cannot be made: its own code raised "
        message += f"{type(reason).__name__}: {reason}{_advice_on_arguments(reason)}"
        raise SpecError([Problem(message, path, source and source.position(path))]) from error


def _advice_on_arguments(error: BaseException) -> str:
    """What helps if the constructor of an environment asks for more than an id says."""
    if not (isinstance(error, TypeError) and "required" in str(error)):
        return ""
    return (
        "\nRegister it under an id of your own: gymnasium.register(id, entry_point, kwargs={...})"
    )


def _needs(what: str, environment: str, error: Exception) -> str | None:
    """The missing library and the extra that brings it, as a message; None for any other error."""
    if isinstance(error, gymnasium.error.UnregisteredEnv):
        package = next((p for start, p in PACKAGES.items() if environment.startswith(start)), None)
        if package is None or importlib.util.find_spec(package) is not None:
            return None
        error = ModuleNotFoundError(name=package)
    return extra_for(error, what, "pettingzoo" if environment.startswith(PREFIX) else None)


def _reason(error: Exception) -> str:
    """Why the environment cannot be made, and what to allow if a module must be imported to register it."""
    if isinstance(error, gymnasium.error.NameNotFound):
        return f"{error}{OWN_MODULE}"
    missing = error.__cause__ or error
    if isinstance(missing, ImportError):
        return f"{missing}{advice_on_missing(missing)}"
    return str(error)


def _in_one_form(
    observation_space: SpaceOrActors, action_space: SpaceOrActors, given: GivenLimits
) -> Spaces:
    """The two spaces, checked. Raises ValueError where one is a Space and the other a mapping by actor."""
    forms = [is_by_actor(space) for space in (observation_space, action_space)]
    if forms[0] != forms[1]:
        by, other = ("observation", "action") if forms[0] else ("action", "observation")
        raise ValueError(
            f"{by}_space is a mapping by actor, but {other}_space is one Space; give both in one form"
        )
    return _checked(observation_space, action_space, given)


def _checked(
    observation_space: SpaceOrActors, action_space: SpaceOrActors, given: GivenLimits
) -> Spaces:
    """The two spaces. Raises ValueError for what is no Space of gymnasium, and for sizes beyond the limits."""
    limits = limits_from(given)
    for name, both in (("observation", observation_space), ("action", action_space)):
        spaces = both if is_by_actor(both) else {None: both}
        refuse_actors(len(spaces), limits)
        for key, space in spaces.items():
            what = f"the {name} space" + ("" if key is None else f" of {key!r}")
            if not isinstance(space, gymnasium.Space):
                raise ValueError(f"{what} is a Space of gymnasium, got a {type(space).__name__}")
            try:
                refuse_sizes(space, limits)
            except ValueError as error:
                raise ValueError(f"{what} is too large: {error}") from None
    return observation_space, action_space


def _attribute(env: object, name: str) -> Any:
    """An attribute of an environment, also of one inside wrappers."""
    inner = getattr(env, "unwrapped", env)
    return getattr(env, name, None) or getattr(inner, name, None)
