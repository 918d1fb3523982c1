"""Training by each library with a composed policy, against the library's own policy of the same network.

Both have the library's default network and settings and train in turns in one process: the median processor seconds
of a rollout with its update, of 15 pairs. A trainer is entered in ``PAIRS``; ``--only TEXT`` measures those whose
workload contains it.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from harness import Row, main, seconds

ROUNDS = 15
TOLERANCE = 0.02  # of a ratio, between two runs of the same
Train = Callable[[], object]
"""Trains on, by one rollout and its update."""


@dataclass(frozen=True)
class Pair:
    """Two ways to train one network with the same settings; each is made when its turn comes."""

    workload: str
    baseline: str
    ours: Callable[[], Train]
    theirs: Callable[[], Train]
    at_most: float | None = 1.0


def measured(pair: Pair) -> Row:
    trains = [make() for make in (pair.ours, pair.theirs)]
    times: list[list[float]] = [[], []]
    for train in trains:
        train()
    for _ in range(ROUNDS):
        for train, spent in zip(trains, times, strict=True):
            spent.append(seconds(train, clock=time.process_time))
    ours, theirs = map(statistics.median, times)
    at_most = None if pair.at_most is None else pair.at_most + TOLERANCE
    return Row(pair.workload, ours, pair.baseline, theirs, at_most)


# --- Stable-Baselines3 and sb3-contrib ---

PPO_SPEC = """
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [64, 64], activation: tanh}
  heads: {in: latent}
critic:
  graph:
    latent: {block: dense, in: observation, hidden_units: [64, 64], activation: tanh}
"""
SAC_SPEC = """
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [256, 256]}
  heads: {in: latent}
critic:
  kind: state_action
  ensemble: 2
  graph:
    both: {block: concat, in: [observation, action/action]}
    latent: {block: dense, in: both, hidden_units: [256, 256]}
"""
MEMORY = "{block: lstm, in: observation, hidden_units: 256}"
RECURRENT_SPEC = f"""
policy:
  graph:
    memory: {MEMORY}
    latent: {{block: dense, in: memory, hidden_units: [64, 64], activation: tanh}}
  heads: {{in: latent}}
critic:
  graph:
    memory: {MEMORY}
    latent: {{block: dense, in: memory, hidden_units: [64, 64], activation: tanh}}
"""


def sb3_pair(
    algorithm: str, env_id: str, spec: str, policy: str, network: dict[str, Any], steps: int,
    at_most: float, **settings: Any,
) -> Pair:  # fmt: skip
    """``steps`` of ``algorithm`` with ``settings``; the host's ``policy`` has the layers of ``network``."""

    def algorithm_class() -> Any:
        import sb3_contrib
        import stable_baselines3

        return getattr(stable_baselines3, algorithm, None) or getattr(sb3_contrib, algorithm)

    def ours() -> Train:
        from composer.adapters import sb3

        return trained(sb3.agent(algorithm_class(), f"version: 1{spec}", env_id, **shared))

    def theirs() -> Train:
        return trained(algorithm_class()(policy, env_id, policy_kwargs=network, **shared))

    def trained(agent: Any) -> Train:
        agent.learn(settings.get("learning_starts", 0))
        return lambda: agent.learn(steps, reset_num_timesteps=False)

    shared: dict[str, Any] = {"seed": 0, "device": "cpu", **settings}
    workload = f"{algorithm} of {'sb3-contrib' if 'Recurrent' in algorithm else 'SB3'}, {env_id}"
    return Pair(workload, f"its {policy}", ours, theirs, at_most)


PAIRS = [
    sb3_pair(
        "PPO", "CartPole-v1", PPO_SPEC, "MlpPolicy", {"net_arch": [64, 64]}, 512, 1.00,
        n_steps=512, batch_size=64, n_epochs=10,
    ),
    sb3_pair(
        "SAC", "Pendulum-v1", SAC_SPEC, "MlpPolicy", {"net_arch": [256, 256]}, 100, 1.00,
        learning_starts=300, batch_size=256,
    ),
    sb3_pair(
        "RecurrentPPO", "CartPole-v1", RECURRENT_SPEC, "MlpLstmPolicy", {}, 128, 0.30,
        n_steps=128, batch_size=128, n_epochs=10,
    ),
]  # fmt: skip


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries themselves
    wanted = os.environ.get("ONLY", "")
    for pair in PAIRS:
        if wanted in pair.workload:
            yield measured(pair)


if __name__ == "__main__":
    if "--only" in sys.argv:
        at = sys.argv.index("--only")
        _, os.environ["ONLY"] = sys.argv[at : at + 2]
        del sys.argv[at : at + 2]
    main("Training", rows, peers=["stable-baselines3", "sb3-contrib"])
