"""`model.step` against the calls of its parts: distribution, sample, log probability, entropy and value.

By hand means what a training loop calls without it. Rollouts are without gradients, updates with a given action. Where
the policy shares values with the critic, by hand goes through ``model(observations)`` and ``policy.distributions``.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import composer
from composer.policy.structured import one_policy
from harness import Row, main, medians

CONFIGS = Path(__file__).parent.parent / "configs"
AT_MOST = 1.02
Numbers = tuple[Tensor, Tensor, Tensor]


def separate_by_hand(model: Any, observations: Any, action: Tensor | None) -> Numbers:
    distribution = model.policy.distribution(observations)
    if action is None:
        action = distribution.sample()
    value = model.critic.value(observations)
    return distribution.log_prob(action), distribution.entropy(), value


def shared_by_hand(
    model: Any, observations: Any, action: Tensor | None, state: Any, resets: Any
) -> Numbers:
    logits, values, _ = model(observations, state, resets)
    masks = {"action": torch.as_tensor(observations["legal"])}
    distribution = model.policy.distributions(logits, masks=masks).parts["action"]
    if action is None:
        action = distribution.sample()
    return distribution.log_prob(action), distribution.entropy(), values["value"].squeeze(-1)


def recall(batch: int) -> dict[str, np.ndarray]:
    """Observations of configs/environments/recall_env.py."""
    return {
        "sign": np.arange(batch) % 4,
        "place": np.ones((batch, 2), np.float32),
        "legal": np.ones((batch, 5), np.int8),
    }


def pair(name: str, model: Any, by_hand: Callable, gradients: bool, *call: Any) -> Row:
    """``call`` are the arguments of `step`, and of ``by_hand`` after the model; in a rollout without the action."""
    seen, action, *memory = call
    given = action if gradients else None
    with torch.set_grad_enabled(gradients):
        ours, theirs = medians(
            lambda: model.step(seen, given, *memory),
            lambda: by_hand(model, seen, given, *memory),
        )
    return Row(
        f"{name}, {'update' if gradients else 'rollout'}", ours, "its parts", theirs, AT_MOST
    )


def feedforward_rows() -> Iterator[Row]:
    for spec in ("cartpole", "continuous"):
        model = composer.compose(CONFIGS / f"{spec}.yaml", allow=["environments"], seed=0)
        space = one_policy(model.policy).observation_space
        for batch in (8, 256):
            seen = np.stack([space.sample() for _ in range(batch)])
            call, name = (seen, model.step(seen).action), f"{spec}.yaml, batch {batch}"
            yield pair(name, model, separate_by_hand, False, *call)
            yield pair(name, model, separate_by_hand, True, *call)


def recurrent_rows() -> Iterator[Row]:
    model = composer.compose(CONFIGS / "masked_recurrent.yaml", allow=["environments"], seed=0)
    for batch in (8, 256):
        seen, state = recall(batch), model.initial_state(batch)
        memory = state, torch.zeros(batch, dtype=torch.bool)
        call = (seen, model.step(seen, None, *memory).action, *memory)
        name = f"masked_recurrent.yaml, batch {batch}"
        yield pair(name, model, shared_by_hand, False, *call)
        yield pair(name, model, shared_by_hand, True, *call)


def rows() -> Iterator[Row]:
    sys.path.insert(0, str(CONFIGS))
    yield from feedforward_rows()
    yield from recurrent_rows()


if __name__ == "__main__":
    main("Steps of a model", rows)
