"""Critics of several actors that the tests of them share."""

import torch
from gymnasium import spaces
from torch import nn

import composer

GOAL, ARM, EYE = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (4,))
OBSERVATIONS = {
    "pick": spaces.Dict(view=EYE, goal=GOAL),
    ("place", 0): spaces.Dict(view=ARM, goal=GOAL),
    ("place", 1): spaces.Dict(view=ARM, goal=GOAL),
}
ACTIONS = {
    "pick": spaces.Discrete(3),
    ("place", 0): spaces.Box(-1, 1, (2,)),
    ("place", 1): spaces.Box(-1, 1, (2,)),
}


def network(*reads, node="own", **more):
    """A graph of one dense layer over ``reads``."""
    both = {"block": "concat", "in": list(reads)}
    return {
        "graph": {"all": both, node: {"block": "dense", "in": "all", "hidden_units": 8}},
        **more,
    }


def linear(*reads):
    """A value that is a plain sum of ``reads``."""
    both = {"block": "concat", "in": list(reads)}
    value = {"block": "linear_output", "in": "all", "output_units": 1}
    return {"graph": {"all": both, "sum": value}}


def policy(shares=()):
    own = network("view", "goal", node="latent", heads={"in": "latent"}, shares=list(shares))
    return {"networks": {"pick": own, "place": own}}


def compose(critic, shares=(), observations=OBSERVATIONS, actions=ACTIONS, **keywords):
    own = keywords.pop("policy", None) or policy(shares)
    spec = {"version": 1, "policy": own, "critic": critic, "ignore": keywords.pop("ignore", [])}
    keywords = {"seed": 0, **keywords}
    return composer.compose(spec, observation_space=observations, action_space=actions, **keywords)


def observe(batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(batch, *shape, generator=generator)  # noqa: E731
    return {
        "pick": {"view": draw(4), "goal": draw(2)},
        ("place", 0): {"view": draw(3), "goal": draw(2)},
        ("place", 1): {"view": draw(3), "goal": draw(2)},
    }


def summed(critic, *values):
    """What the last layer of a `linear` network makes of ``values``."""
    layer = critic.get_submodule("sum").linear
    return torch.cat(values, dim=-1) @ layer.weight.T + layer.bias


BY_STEP = {"networks": {"pick": linear("view"), "place": linear("view", "goal")}}
CHAINED = {
    "kind": "delta_state",
    "networks": {"pick": linear("view"), "place": linear("goal", "prev_value")},
}
CENTRAL = {
    "kind": "shared_state",
    **linear("pick/view", "place/0/view", "place/1/view", "pick/goal"),
}
STACKED = {
    "kind": "shared_state",
    "stack": True,
    "observations": ["goal"],
    "graph": {
        "flat": {"block": "flatten", "in": "goal"},
        "sum": {"block": "linear_output", "in": "flat", "output_units": 1},
    },
}


class Sum(nn.Module):
    """A user's critic: a weighted sum of all that it is told of."""

    def __init__(self, obs_shapes):
        super().__init__()
        self.shapes = dict(obs_shapes)
        self.sum = nn.Linear(sum(torch.Size(shape).numel() for shape in obs_shapes.values()), 1)

    def forward(self, inputs):
        flat = [inputs[name].flatten(1) for name in self.shapes]
        return {"value": self.sum(torch.cat(flat, dim=-1))}
