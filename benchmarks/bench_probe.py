"""What a probe costs: 512 steps with everything that is measured on them, beside the same steps of acting alone."""

import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import gymnasium
import torch

import composer
from harness import Row, main, medians

CONFIGS = Path(__file__).parent.parent / "configs"
# Config, its modules, the number of steps, and the limit in seconds.
RUNS = (("cartpole", (), 512, 1.0), ("masked_recurrent", ("environments",), 512, None))
RUNS += (("complex", ("environments",), 64, None),)


def act(model: composer.Model, env: gymnasium.Env, steps: int) -> None:
    """``steps`` as a loop of one's own makes them, with draws."""
    policy = model.policy
    observation, _ = env.reset(seed=0)
    state = policy.initial_state() if policy.has_memory else None
    first = True
    for _ in range(steps):
        if state is None:
            action = policy.act(observation)
        else:
            action, state = policy.act(observation, state, torch.tensor(first))
        observation, _, terminated, truncated, _ = env.step(action)
        first = terminated or truncated
        if first:
            observation, _ = env.reset()


def rows() -> Iterator[Row]:
    sys.path.append(str(CONFIGS))
    for name, allow, steps, limit in RUNS:
        model = composer.compose(CONFIGS / f"{name}.yaml", allow=allow, seed=0)
        assert model.spec.environment is not None
        with closing(gymnasium.make(model.spec.environment)) as env:
            probing, bare, acting = medians(
                partial(composer.probe, model, env, steps),
                partial(composer.probe, model, env, steps, baseline=False),
                partial(act, model, env, steps),
                rounds=3,
                repeat=1,
            )
        label = f"{name}: probe of {steps} steps"
        yield Row(label, probing, "acting alone", acting)
        yield Row(f"{label}, without the fresh spec", bare, "acting alone", acting)
        if limit is not None:
            yield Row(label, probing, "limit", limit, at_most=1)


if __name__ == "__main__":
    main("Probing", rows)
