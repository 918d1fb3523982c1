"""The evaluation of a policy: whole episodes, without exploration, in an environment of its own."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

from composer.policy.policy import Policy
from composer.training.environment import EnvironmentMaker, training_environment

__all__ = ["Evaluation", "acting", "evaluate", "greedy", "masks_of"]

FIRST_SEED = 2**30  # added to the seed of the run: training episodes have smaller seeds

Act = Callable[[object, object, bool, object], tuple[object, object]]
"""(observation, state, whether it is the first of its episode, mask) -> (action, state after).

The state is None at first. The mask is what the environment's ``action_masks()`` says, None where it has none.
"""


@dataclass(frozen=True)
class Evaluation:
    """The sums of rewards and the lengths of all episodes, in order."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    video: str | None = None  # the file of the first episode, where one was asked for

    @property
    def mean(self) -> float:
        return statistics.fmean(self.returns)

    @property
    def std(self) -> float:
        """The standard deviation of these episodes (divided by their number)."""
        return statistics.pstdev(self.returns)

    def __str__(self) -> str:
        return f"mean return {self.mean:.2f}, std {self.std:.2f}, {len(self.returns)} episodes"


def evaluate(
    act: Act,
    environment: str | EnvironmentMaker,
    episodes: int,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Play whole episodes, the n-th of them seeded with ``seed + FIRST_SEED + n``; None where ``stop()`` said so."""
    env = training_environment(environment) if isinstance(environment, str) else environment()
    masks = masks_of(env)
    returns, lengths = [], []
    try:
        for number in range(episodes):
            observation, _ = env.reset(seed=seed + FIRST_SEED + number)
            total, length, over, state = 0.0, 0, False, None
            while not over:
                if stop():
                    return None
                mask = masks() if masks else None
                action, state = act(observation, state, length == 0, mask)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, length = total + float(reward), length + 1
                over = bool(terminated or truncated)
            returns.append(total)
            lengths.append(length)
    finally:
        env.close()
    return Evaluation(tuple(returns), tuple(lengths))


def masks_of(env: gymnasium.Env) -> Callable[[], object] | None:
    """The method of ``env`` that says which actions are legal now; None where it has none."""
    return env.get_wrapper_attr("action_masks") if env.has_wrapper_attr("action_masks") else None


@contextmanager
def acting(model: nn.Module) -> Iterator[None]:
    """``model`` is in eval mode in this context, and no random state moves: training goes on as if nothing had been."""
    training = [module for module in model.modules() if module.training]
    states = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
        for module in training:
            module.training = True


def greedy(policy: Policy, *, masked: bool = False) -> Act:
    """Act by the mode of the distribution of ``policy``; if ``masked``, by the masks of the environment too."""

    def act(observation: object, state: Any, first: bool, mask: object) -> tuple[object, object]:
        mask = mask if masked else None
        if not policy.has_memory:
            return policy.act(observation, deterministic=True, mask=mask), None
        if state is None:
            state = policy.initial_state()
        return policy.act(observation, state, first, deterministic=True, mask=mask)

    return act
