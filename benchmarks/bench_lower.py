"""Lowered networks against the same layers in a hand-written module, and acting against a loop written by hand.

Acting is one environment step: an observation in numpy in, a legal action in numpy out; by hand it goes through
torch.distributions. Forward passes are measured as they are used for acting, without gradients, and with them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, distributions

import composer
from bench_eager import Mlp, composed_mlp
from composer.policy.structured import one_policy
from harness import Row, main, medians

SPEC = """
version: 1
{more}
policy:
  graph:
    latent: {{block: dense, in: observation, hidden_units: [64, 64]}}
  heads: {{in: latent}}
"""
LEARNED = "distributions: [{action: action, distribution: gaussian, log_std: learned}]"
OBSERVED = spaces.Box(-10, 10, (4,))


class Acting(Mlp):
    """An `Mlp` with a head of ``width``, used in an environment's loop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(64, width)
        self.log_std = torch.nn.Parameter(torch.zeros(width))

    def logits(self, observation: np.ndarray) -> Tensor:
        return self({"observation": torch.as_tensor(observation)})["action"]

    @torch.no_grad()
    def choice(self, observation: np.ndarray) -> int:
        return int(distributions.Categorical(logits=self.logits(observation)).sample().item())

    @torch.no_grad()
    def clipped(self, observation: np.ndarray) -> np.ndarray:
        mean = self.logits(observation)
        action = distributions.Normal(mean, self.log_std.exp()).sample()
        return action.clamp(-1.0, 1.0).numpy()

    @torch.no_grad()
    def squashed(self, observation: np.ndarray) -> np.ndarray:
        mean, log_std = self.logits(observation).chunk(2, dim=-1)
        normal = distributions.Normal(mean, log_std.clamp(-20.0, 2.0).exp())
        squash = distributions.TanhTransform(cache_size=1)
        action: Tensor = distributions.TransformedDistribution(normal, [squash]).sample()  # type: ignore[assignment]
        return action.numpy()


def forward_rows() -> Iterator[Row]:
    by_hand, lowered = Mlp(), composed_mlp().lower()
    for batch, at_most in ((1, 0.55), (64, 0.9), (256, None)):
        name = f"MLP 4-64-64-2, batch {batch}"
        yield forward_row(name, lowered, by_hand, batch, False, at_most)
        yield forward_row(f"{name}, with gradients", lowered, by_hand, batch, True, None)


def forward_row(
    name: str, ours: Callable, theirs: Callable, batch: int, gradients: bool, at_most: float | None
) -> Row:
    inputs = {"observation": torch.randn(batch, 4)}
    with torch.set_grad_enabled(gradients):
        times = medians(lambda: ours(inputs), lambda: theirs(inputs))
    return Row(name, times[0], "by hand", times[1], at_most)


def act_row(
    name: str, space: Space, more: str, act: Callable[[np.ndarray], Any], at_most: float
) -> Row:
    model = composer.compose(
        SPEC.format(more=more), observation_space=OBSERVED, action_space=space, seed=0
    )
    policy, observation = one_policy(model.policy).lower(), np.ones(4, np.float32)
    ours, theirs = medians(lambda: policy.act(observation), lambda: act(observation))
    return Row(f"one environment step, {name}", ours, "by hand", theirs, at_most)


def rows() -> Iterator[Row]:
    yield from forward_rows()
    box = spaces.Box(-1, 1, (3,))
    yield act_row("Discrete(2)", spaces.Discrete(2), "", Acting(2).choice, 0.35)
    yield act_row("Box(3), gaussian", box, LEARNED, Acting(3).clipped, 0.35)
    yield act_row("Box(3), squashed gaussian", box, "", Acting(6).squashed, 0.35)


if __name__ == "__main__":
    main("Lowered execution", rows)
