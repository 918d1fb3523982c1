"""Models of several actors that the tests of structured policies share."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete

import composer

SHARED, SEPARATE = "", "separate: true"

# Two steps whose actions have one name and other spaces; two agents place.
PICK = Dict(camera=Box(0, 1, (5,)), goal=Discrete(4))
PLACE = Box(-1, 1, (3,))
OBSERVATIONS = {"pick": PICK, ("place", 0): PLACE, ("place", 1): PLACE}
ACTIONS = {
    "pick": Dict(move=Discrete(3)),
    ("place", 0): Dict(move=Box(-2, 1, (2,))),
    ("place", 1): Dict(move=Box(-2, 1, (2,))),
}
PICK_AND_PLACE = """
version: 1
policy:
  networks:
    pick:
      graph:
        target: {block: one_hot, in: goal}
        latent: {block: concat, in: [camera, target]}
        hidden: {block: dense, in: latent, hidden_units: [8]}
      heads: {in: hidden}
    place:
      SEPARATE
      graph:
        latent: {block: dense, in: observation, hidden_units: [8], activation: tanh}
        memory: {block: gru, in: latent, hidden_units: 6}
      heads: {in: memory}
"""
AGENT = """
version: 1
policy:
  SEPARATE
  graph:
    latent: {block: dense, in: observation, hidden_units: [8, 8], activation: tanh}
  heads: {in: latent}
"""
MEMORY = """
version: 1
policy:
  SEPARATE
  graph:
    memory: {block: gru, in: observation, hidden_units: 6}
  heads: {in: memory}
"""


def pick_and_place(separate: str = SHARED, **keywords) -> composer.Model:
    spec = PICK_AND_PLACE.replace("SEPARATE", separate or "init: orthogonal")
    return composer.compose(
        spec, observation_space=OBSERVATIONS, action_space=ACTIONS, seed=3, **keywords
    )


def agents(
    spec: str | dict = AGENT,
    separate: str = SHARED,
    number: int = 4,
    observation: gymnasium.Space = PLACE,
    action: gymnasium.Space | None = None,
    **keywords,
) -> composer.Model:
    action = action or Discrete(5)
    names = [f"agent_{index}" for index in range(number)]
    if isinstance(spec, str):
        spec = spec.replace("SEPARATE", separate or "init: orthogonal")
    return composer.compose(
        spec,
        observation_space=dict.fromkeys(names, observation),
        action_space=dict.fromkeys(names, action),
        **{"seed": 3, **keywords},
    )


def observations(model: composer.Model, leading=(), keys=None, seed: int = 0) -> dict:
    """Random observations by key, as arrays with ``leading`` axes."""
    generator = np.random.default_rng(seed)
    drawn = {}
    for key, space in model.observation_space.items():
        if keys is None or key in keys:
            drawn[key] = _drawn(space, leading, generator)
    return drawn


def _drawn(space, leading, generator):
    if isinstance(space, Dict):
        return {name: _drawn(part, leading, generator) for name, part in space.items()}
    if isinstance(space, Discrete):
        return generator.integers(space.n, size=leading)
    return generator.uniform(-1, 1, size=(*leading, *space.shape)).astype(np.float32)


def same(a, b) -> bool:
    return all(torch.allclose(a[name], b[name], atol=1e-6) for name in {*a, *b})


class Crowd(gymnasium.Env):
    """Any number of agents look, one of them decides."""

    observation_spaces = {"look": Box(-1, 1, (3,)), "decide": Box(-1, 1, (2,))}
    action_spaces = {"look": Discrete(2), "decide": Discrete(4)}
    agent_counts = {"look": None}


def crowd() -> composer.Model:
    networks = MEMORY.replace("  SEPARATE\n", "").partition("  graph:")[2]
    spec = "version: 1\npolicy:\n  networks:\n"
    for step in ("look", "decide"):
        spec += f"    {step}:\n      graph:" + networks.replace("\n", "\n    ") + "\n"
    return composer.compose(spec, env=Crowd(), seed=1)
