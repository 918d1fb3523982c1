"""Networks that are a user's own class, and remember."""

import re

import pytest
import torch
from torch import nn

from perception_blocks import Graph, InferenceBlock
from tests.composer.network.test_custom_networks import (
    ACTIONS,
    OBSERVATIONS,
    Policy,
    batch,
    compose,
    problems_of,
)

HERE = f"{__name__}."


class Remembers(nn.Module):
    """A GRU cell; the first of its episode forgets."""

    def __init__(self, obs_shapes, action_logits_shapes, change=None):
        super().__init__()
        self.change = change
        self.cell = nn.GRUCell(4, 6)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(6, n) for name, (n,) in action_logits_shapes.items()}
        )
        self.state_shapes = {"h": (6,), "steps": ()}

    def forward(self, inputs, state, resets):
        h, steps = state["h"], state["steps"]
        if resets is not None:
            h, steps = h * ~resets[:, None], steps * ~resets
        h = self.cell(inputs["speed"], h)
        result = {name: head(h) for name, head in self.heads.items()}, {"h": h, "steps": steps + 1}
        return result if self.change is None else self.change(*result)


def test_a_class_with_memory_steps_as_it_unrolls():
    policy = compose({"_target_": Remembers}).policy
    assert policy.state_shapes == {"h": (6,), "steps": ()}
    torch.manual_seed(0)
    steps = {"speed": torch.randn(3, 7, 4), "gear": torch.ones(3, 7, dtype=torch.int64)}
    resets = torch.rand(3, 7) < 0.3
    unrolled, end = policy.unroll(steps, policy.initial_state(3), resets)
    state = policy.initial_state(3)
    for t in range(7):
        logits, state = policy({k: x[:, t] for k, x in steps.items()}, state, resets[:, t])
        assert torch.allclose(logits["move"], unrolled["move"][:, t], atol=1e-6)
    assert all(torch.allclose(state[name], end[name], atol=1e-6) for name in state)
    assert state["steps"].tolist() == [since_the_last(row) for row in resets.tolist()]


def since_the_last(resets):
    return len(resets) - max([t for t, reset in enumerate(resets) if reset], default=0)


@pytest.mark.parametrize("leading", [(), (1,), (5, 2), (0,)])
def test_a_class_with_memory_takes_any_leading_axes(leading):
    policy = compose({"_target_": Remembers}).policy
    logits, state = policy(
        batch(*leading), policy.initial_state(leading), torch.zeros(leading, dtype=torch.bool)
    )
    assert logits["use"].shape == (*leading, 3)
    assert {name: value.shape for name, value in state.items()} == {
        "h": (*leading, 6),
        "steps": leading,
    }


def test_a_class_with_memory_acts_and_says_when_its_state_is_missing():
    policy = compose({"_target_": Remembers}).policy
    action, state = policy.act(OBSERVATIONS.sample(), policy.initial_state())
    assert ACTIONS.contains(action)
    assert state["steps"] == 1
    with pytest.raises(
        ValueError,
        match=re.escape("this network has memory; call policy(observations, state, resets)"),
    ):
        policy(OBSERVATIONS.sample())


REMEMBERS = f"policy._target_: {HERE}Remembers"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda out, state: out,
            f"{REMEMBERS} declares state_shapes, so forward must return (outputs, state), got a dict",
        ),
        (
            lambda out, state: (out, state["h"]),
            f"{REMEMBERS} returned a Tensor as its state; it must be a dict with 'h', 'steps'",
        ),
        (
            lambda out, state: (out, {"h": state["h"]}),
            f"{REMEMBERS} returned a state with 'h', but state_shapes declares 'h', 'steps'",
        ),
        (
            lambda out, state: (out, {**state, "h": state["h"][:, :5]}),
            "policy._target_: the state 'h' declares (6,), but forward returns (5,)",
        ),
        (
            lambda out, state: (out, {**state, "steps": 1}),
            f"policy._target_: the state 'steps' of {HERE}Remembers returned a value of type int; a tensor is needed",
        ),
        (lambda out, state: ({"move": out["move"]}, state), f"{REMEMBERS} returned no 'use'"),
    ],
)
def test_a_wrong_state_is_answered(change, message):
    assert problems_of({"_target_": Remembers, "change": change}) == [message]


class WrongShapes(Remembers):
    def __init__(self, obs_shapes, action_logits_shapes, state_shapes):
        super().__init__(obs_shapes, action_logits_shapes)
        self.state_shapes = state_shapes


@pytest.mark.parametrize(
    ("shapes", "got"),
    [([6], "a list"), ({"h": 6}, "a mapping"), ({"h": ["6"]}, "a mapping")],
)
def test_wrong_state_shapes_are_answered(shapes, got):
    assert problems_of({"_target_": WrongShapes, "state_shapes": shapes}) == [
        f"policy._target_: 'state_shapes' of {HERE}WrongShapes must map names to shapes such as "
        f"{{'h': (64,)}}, got {got}"
    ]


class RecurrentCritic(nn.Module):
    """Reads an integer only, and keeps its memory in blocks."""

    def __init__(self, obs_shapes):
        super().__init__()
        graph = Graph({"code": (3,)})
        graph.add("memory", "lstm", "code", hidden_units=4)
        graph.add("value", "linear_output", "memory", output_units=1)
        self.net = InferenceBlock(graph, ["value"])
        self.state_shapes = self.net.state_shapes

    def forward(self, inputs, state, resets):
        code = nn.functional.one_hot(inputs["gear"], 3).float()
        return self.net({"code": code}, state, resets)


def test_a_critic_class_may_have_memory_of_its_own():
    critic = {"_target_": RecurrentCritic, "observations": ["gear"]}
    model = compose({"_target_": Policy}, critic)
    assert not model.policy.has_memory
    assert set(model.initial_state(2)) == {"critic/memory/h", "critic/memory/c"}
    _, values, state = model(batch(2), model.initial_state(2))
    _, later, _ = model(batch(2), state)
    assert not torch.allclose(values["value"], later["value"])
    _, reset, _ = model(batch(2), state, torch.ones(2, dtype=torch.bool))
    assert torch.allclose(values["value"], reset["value"])
