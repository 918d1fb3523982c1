"""Models of one actor, of every kind that differs to a trainer: memory, what is shared, masks, actions, classes."""

from typing import Any

import torch
import yaml
from gymnasium import spaces
from torch import nn

import composer
from composer.spaces.samples import SpaceSampler

SEEN = spaces.Dict(
    eye=spaces.Box(-1, 1, (4,)), goal=spaces.Discrete(3), legal=spaces.MultiBinary(5)
)
ACTIONS = {
    "choice": spaces.Discrete(5, start=-2),
    "box": spaces.Box(-2, 1, (2,)),
    "mixed": spaces.Dict(
        move=spaces.Discrete(5),
        hands=spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2, 1))]),
        lamps=spaces.MultiBinary(3),
    ),
}
LATENT = {
    "code": {"block": "one_hot", "in": "goal"},
    "seen": {"block": "concat", "in": ["code", "eye"]},
    "latent": {"block": "dense", "in": "seen", "hidden_units": [8], "activation": "tanh"},
}


def part(memory: str | None = None, reads: str | None = None, **more: Any) -> dict[str, Any]:
    """A graph of a few layers, or of ``reads``, which a policy shares; its memory is a block of the name."""
    settings = {"gtrxl": {"num_heads": 2, "memory_length": 3}}.get(str(memory), {})
    graph: dict[str, Any] = {} if reads else dict(LATENT)
    last = reads or "latent"
    if memory is not None:
        graph["past"] = {"block": memory, "in": last, "hidden_units": 6, **settings}
    else:
        graph["last"] = {"block": "dense", "in": last, "hidden_units": 6}
    return {"graph": graph, **more}


def heads(last: str, **more: Any) -> dict[str, Any]:
    return {"heads": {"in": last, "init_scale": 3.0}, **more}


MASK = {"action_mask": {"action": "legal"}}
# name -> (policy, critic, actions, more of the spec)
KINDS: dict[str, tuple[dict, dict | None, str, dict]] = {
    "plain": (part(**heads("last")), part(), "choice", {}),
    "no critic": (part(**heads("last")), None, "box", {}),
    "masked": (part(**heads("last", **MASK)), part(), "choice", {}),
    "mixed": (part(**heads("last")), part(), "mixed", {}),
    "shared trunk": (part(**heads("last", shares=["latent"])), part(reads="latent"), "box", {}),
    "memory of the policy": (part("gru", **heads("past", **MASK)), part(), "choice", {}),
    "memory of the critic": (part(**heads("last")), part("lstm"), "mixed", {}),
    "two memories": (part("lstm", **heads("past")), part("gru"), "mixed", {}),
    "shared trunk, two memories": (
        part("lru", **heads("past", shares=["latent"], **MASK)), part("min_gru", "latent"),
        "choice", {},
    ),
    "shared memory": (part("gru", **heads("past", shares=["past"])), part(reads="past"), "box", {}),
    "attention over the past": (part("gtrxl", **heads("past")), part("gtrxl"), "box", {}),
    "deterministic": (
        part("gru", **heads("past")), part(), "box",
        {"distributions": [{"space": "box", "distribution": "deterministic"}]},
    ),
    "learned deviation": (
        part(**heads("last")), part(), "mixed",
        {"distributions": [{"space": "box", "distribution": "gaussian", "log_std": "learned"}]},
    ),
    "value on the scale of returns": (
        part(**heads("last")), part(normalize_value=True), "box", {},
    ),
    "classes": (
        {"_target_": "tests.helpers.host_models.Torso"},
        {"_target_": "tests.helpers.host_models.Judge"}, "choice", {},
    ),
    "a class with memory": ({"_target_": "tests.helpers.host_models.Counting"}, part(), "choice", {}),
}  # fmt: skip


class Torso(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.head = nn.Linear(4, *action_logits_shapes["action"])

    def forward(self, inputs):
        return {"action": self.head(inputs["eye"])}


class Judge(nn.Module):
    def __init__(self, obs_shapes):
        super().__init__()
        self.out = nn.Linear(4, 1)

    def forward(self, inputs):
        return {"value": self.out(inputs["eye"])}


class Counting(nn.Module):
    """Its state is a whole number, the steps of the episode."""

    state_shapes = {"steps": ()}

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.head = nn.Linear(5, *action_logits_shapes["action"])

    def forward(self, inputs, state, resets=None):
        steps = state["steps"].to(torch.int64)
        steps = (steps if resets is None else steps * ~resets) + 1
        seen = torch.cat([inputs["eye"], steps.unsqueeze(-1).to(inputs["eye"].dtype)], -1)
        return {"action": self.head(seen)}, {"steps": steps}


def compose_kind(name: str, add: dict | None = None, **keywords: Any) -> composer.Model:
    """A model of a kind; ``add`` are more keys of its spec."""
    policy, critic, actions, more = KINDS[name]
    more = more | (add or {})
    unread = "graph" in policy and "action_mask" not in policy
    spec = {"version": 1, "policy": policy, **more, **({"ignore": ["legal"]} if unread else {})}
    spec |= {} if critic is None else {"critic": critic}
    keywords = {"seed": 0, "allow": ["tests.helpers.host_models"], **keywords}
    return composer.compose(
        yaml.safe_load(yaml.safe_dump(spec)),
        observation_space=SEEN, action_space=ACTIONS[actions], **keywords,
    ).eval()  # fmt: skip


def seen_by(model: composer.Model, leading: tuple[int, ...] = (), seed: int = 0) -> dict[str, Any]:
    """Observations by flat key with ``leading`` axes; every mask has a legal choice."""
    tree = model.policy.observer.tree
    drawn = SpaceSampler(tree, seed).draw((1, *leading), tree.leaves)
    drawn = {key: value[0] for key, value in drawn.items()}
    for key in model.policy.masks.values():
        drawn[key][..., seed % 3] = 1
    return drawn


def step_of(values: dict[str, Any], t: int) -> dict[str, Any]:
    """The values of sequences (B, T, ...) at one step."""
    return {key: value[:, t] for key, value in values.items()}


def in_sequence(actions: list[Any]) -> Any:
    """Actions of several steps (B, ...) as one of sequences (B, T, ...)."""
    if isinstance(actions[0], dict):
        return {key: torch.stack([action[key] for action in actions], 1) for key in actions[0]}
    return torch.stack(actions, 1)
