"""What RLlib's env runners need: Ray, environments, new episodes, and what an environment says where it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
import ray
from gymnasium.vector import AutoresetMode, VectorEnv
from ray.exceptions import RayError
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.debug import update_global_seed_if_necessary

from composer.adapters.local_ray import start
from composer.training.environment import EnvironmentMaker, vectorized
from composer.training.telling import TellingEnvironment, telling, told_in
from composer.training.trainer import TrainingError

__all__ = ["begin_anew", "environments", "start_ray", "told"]


def start_ray(runners: int) -> Callable[[], None]:
    """A Ray for ``runners`` processes; returns what ends it. Raises TrainingError where it cannot be had."""
    logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)  # what it logs is raised too
    try:
        stop = start(runners + 1)
    except Exception as error:  # Ray's are of many kinds
        raise TrainingError(f"Ray, which RLlib runs on, cannot be started: {error}") from error
    free = int(ray.available_resources().get("CPU", 0))
    if free < runners:  # Ray itself would wait, for ever
        stop()
        raise TrainingError(
            f"'num_env_runners' is {runners}, but Ray has {free} processors free; give at most that"
        )
    return stop


def environments(
    maker: EnvironmentMaker, subprocess: bool, tell: str | None, context: Mapping[str, Any]
) -> VectorEnv:
    """The environments of one env runner, which reset in the step after the last, as RLlib expects it.

    Those of another process tell in the folder ``tell`` why they end.
    """
    make = maker if tell is None else partial(_telling, maker, tell)
    return vectorized(make, context["num_envs"], subprocess, AutoresetMode.NEXT_STEP)


def _telling(maker: EnvironmentMaker, folder: str) -> gymnasium.Env:
    with telling(folder, "num_env_runners"):
        return TellingEnvironment(maker(), folder, "num_env_runners")


def begin_anew(
    runner: SingleAgentEnvRunner, weights: dict[str, Any], seed: int | None, envs: int
) -> None:
    """Let ``runner``, of ``envs`` environments, begin new episodes with ``weights``, seeded if there is a seed."""
    runner._seed = seed if seed is None else seed + envs * max(0, (runner.worker_index or 0) - 1)
    update_global_seed_if_necessary("torch", runner._seed)
    runner._needs_initial_reset = True
    if runner.module is not None:
        runner.module.set_state(weights)


@contextmanager
def told(folder: str) -> Iterator[None]:
    """Raise what an environment has said, in a process of Ray in the ``folder``, and not what RLlib makes of it."""
    try:
        yield
    except RayError as error:
        raise TrainingError(told_in(folder) or f"a process of RLlib has ended: {error}") from error
    except RuntimeError as error:
        if error.args or error.__cause__ is None:
            raise
        raise error.__cause__ from None  # RLlib raises RuntimeError without a word
