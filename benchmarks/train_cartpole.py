"""CartPole-v1 from configs/cartpole.yaml with both trainers: each must reach a mean of 475 over 20 episodes.

    python benchmarks/train_cartpole.py
    python benchmarks/train_cartpole.py --trainer torchrl --seed 1 --out out/train_cartpole

It needs the extras [sb3], [torchrl] and [train]. The runs stay in the folder, with their learning curves.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

import gymnasium
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from composer.training.session import Outcome, train  # noqa: E402

ENOUGH, STEPS, ENVS = 475.0, 75_000, 8
# One set of settings, by the names of each library. Rollouts of 128 steps in each environment: after much shorter ones
# a policy that balances may be lost again, as the learning rate does not fall.
SETTINGS = {
    "sb3": {
        "n_steps": 128, "batch_size": 256, "n_epochs": 10,
        "gamma": 0.98, "gae_lambda": 0.9, "learning_rate": 1e-3,
    },
    "torchrl": {
        "frames_per_batch": 1024, "minibatch_size": 256, "epochs": 10,
        "gamma": 0.98, "lmbda": 0.9, "learning_rate": 1e-3,
    },
}  # fmt: skip


def train_one(trainer: str, seed: int, folder: Path) -> tuple[Outcome, float]:
    """A run and the seconds that it took."""
    begun = time.perf_counter()
    outcome = train(
        ROOT / "configs" / "cartpole.yaml", folder / f"{trainer}-{seed}",
        trainer=trainer, steps=STEPS, seed=seed, envs=ENVS, settings=SETTINGS[trainer],
    )  # fmt: skip
    return outcome, time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description="CartPole-v1 with both trainers.")
    parser.add_argument("--trainer", action="append", choices=list(SETTINGS))
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "train_cartpole")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"PPO, {STEPS:,} steps of {ENVS} environments; Python {platform.python_version()}, "
        f"torch {torch.__version__}, gymnasium {gymnasium.__version__}, one thread"
    )
    print(f"{'trainer':>8} {'seed':>5} {'steps':>7} {'mean':>7} {'std':>6} {'seconds':>8}")
    missed = False
    for trainer in given.trainer or SETTINGS:
        for seed in given.seed or [0]:
            outcome, seconds = train_one(trainer, seed, given.out)
            result = outcome.evaluation
            if result is None:
                return 128 + (outcome.signal or 0)
            missed |= result.mean < ENOUGH
            print(
                f"{trainer:>8} {seed:>5} {outcome.steps:>7,} {result.mean:>7.1f} "
                f"{result.std:>6.1f} {seconds:>8.1f}",
                flush=True,
            )
    print(f"a mean of {ENOUGH:g} was {'missed' if missed else 'reached by all'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
