"""Model.step, Model.value and rows of states: the same for every kind of model."""

import re

import pytest
import torch
from torch import nn

import composer
from tests.helpers.host_models import KINDS, compose_kind, in_sequence, seen_by, step_of

every_kind = pytest.mark.parametrize("kind", KINDS)
LEADING = [(), (3,), (2, 3)]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def arguments(model, leading):
    """State and resets for a call, None without memory."""
    if not model.has_memory:
        return None, None
    state = {name: torch.rand(v.shape) for name, v in model.initial_state(leading).items()}
    if "policy/steps" in state:
        state["policy/steps"] = (9 * state["policy/steps"]).round()
    return state, torch.rand(leading) < 0.4


def by_hand(model, observations, state, resets):
    """The distribution and the value from policy and critic, each called by itself."""
    policy, critic = model.policy, model.critic
    more = (state, resets)
    distribution = policy.distribution(observations, *more[: 2 * policy.has_memory])
    if policy.has_memory:
        distribution = distribution[0]
    if critic is None:
        return distribution, None
    logits = policy(observations, *more[: 2 * policy.has_memory])
    shared = {"shared": logits[0] if policy.has_memory else logits} if critic.shared else {}
    value = critic.value(observations, *more[: 2 * critic.has_memory], **shared)
    return distribution, value[0] if critic.has_memory else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("leading", LEADING, ids=str)
@every_kind
def test_a_step_is_what_the_parts_give(kind, leading, dtype):
    torch.manual_seed(0)
    model = compose_kind(kind, dtype=dtype)
    observations, (state, resets) = seen_by(model, leading), arguments(model, leading)
    state = state and {name: value.to(dtype) for name, value in state.items()}
    step = model.step(observations, None, state, resets)
    distribution, value = by_hand(model, observations, state, resets)
    if kind == "deterministic":
        assert step.log_prob is step.entropy is None
        assert torch.equal(step.action, distribution.mode())
    else:
        assert step.log_prob.shape == step.entropy.shape == leading
        torch.testing.assert_close(step.log_prob, distribution.log_prob(step.action))
        torch.testing.assert_close(step.entropy, distribution.entropy())
    torch.testing.assert_close(step.value, value)
    torch.testing.assert_close(model.value(observations, state, resets), value)
    assert value is None or value.shape == leading
    assert (step.state is None) == (not model.has_memory)
    if model.has_memory:
        assert step.state.keys() == state.keys()
        torch.testing.assert_close(step.state, model(observations, state, resets)[2])
    again = model.step(observations, step.action, state, resets, entropy=False)
    torch.testing.assert_close(again.log_prob, step.log_prob)
    assert again.entropy is None
    mode = model.step(observations, None, state, resets, deterministic=True)
    torch.testing.assert_close(mode.action, distribution.mode())


@every_kind
def test_sequences_repeat_the_steps(kind):
    """So the first ratio of an update is 1, over sequences that cross episodes too."""
    torch.manual_seed(0)
    model = compose_kind(kind)
    observations, (start, _) = seen_by(model, (4, 6)), arguments(model, (4,))
    resets = torch.rand(4, 6) < 0.3 if model.has_memory else None
    state, steps = start, []
    for t in range(6):
        at_t = None if resets is None else resets[:, t]
        steps.append(model.step(step_of(observations, t), None, state, at_t))
        state = steps[-1].state
    actions = in_sequence([step.action for step in steps])
    together = model.step(observations, actions, start, resets, unroll=True)
    for name in ("log_prob", "value", "entropy"):
        if (expected := getattr(steps[0], name)) is not None:
            expected = torch.stack([getattr(step, name) for step in steps], 1)
            torch.testing.assert_close(getattr(together, name), expected, **CLOSE)
    if model.has_memory:
        torch.testing.assert_close(together.state, state, **CLOSE)
    if model.critic is not None:
        value = model.value(observations, start, resets, unroll=True)
        torch.testing.assert_close(value, together.value)


@pytest.mark.parametrize("leading", LEADING, ids=str)
@every_kind
def test_a_state_is_a_row_of_floats(kind, leading):
    model = compose_kind(kind)
    if not model.has_memory:
        assert model.state_width == 0
        assert model.state_shapes == {}
        return
    state, resets = arguments(model, leading)
    after = model.step(seen_by(model, leading), None, state, resets).state
    row = model.pack_state(after)
    assert row.shape == (*leading, model.state_width)
    again = model.unpack_state(row.float())
    assert again.keys() == model.state_shapes.keys() == after.keys()
    for name, value in again.items():
        assert torch.equal(value, after[name].to(value.dtype))
    torch.testing.assert_close(model.pack_state(again), row.to(model.policy.dtype))


@every_kind
def test_gradients_reach_all_that_a_loss_has(kind):
    model = compose_kind(kind)
    state, resets = arguments(model, (3,))
    step = model.step(seen_by(model, (3,)), None, state, resets)
    terms = [t for t in (step.log_prob, step.entropy, step.value) if t is not None]
    sum(term.sum() for term in terms).backward()
    heads_without = {"deterministic"}  # nothing of its policy is in those terms
    names = {name for name, p in model.named_parameters() if p.grad is None}
    if kind in heads_without:
        assert all(name.startswith("policy.") for name in names)
    else:
        assert not names


@every_kind
def test_hooks_run(kind):
    model, calls = compose_kind(kind), []
    parts = [part for part in (model.policy, model.critic) if part is not None]
    for part in parts:
        part.register_forward_hook(lambda part, *_: calls.append(part.part))
    state, resets = arguments(model, (3,))
    model.step(seen_by(model, (3,)), None, state, resets)
    assert calls == [part.part for part in parts]


@pytest.mark.parametrize("kind", ["shared trunk", "shared trunk, two memories", "shared memory"])
def test_what_is_shared_runs_once_and_for_a_value_only_where_it_is_shared(kind):
    model, calls = compose_kind(kind), []
    for name, module in model.policy.named_modules():
        if isinstance(module, nn.Linear | nn.GRU) and "distributions" not in name:
            module.register_forward_hook(lambda *_: calls.append(1))
    observations, (state, resets) = seen_by(model, (3,)), arguments(model, (3,))
    model.policy(observations, *(state, resets)[: 2 * model.policy.has_memory])
    once = len(calls)
    assert once
    model.step(observations, None, state, resets)
    model.value(observations, state, resets)
    assert len(calls) == 3 * once
    plain, calls = compose_kind("plain"), []
    plain.policy.register_forward_hook(lambda *_: calls.append(1))
    plain.value(seen_by(plain, (3,)))
    assert not calls


@pytest.mark.parametrize("kind", ["masked", "memory of the policy", "shared trunk, two memories"])
def test_masks_of_the_spec_and_of_the_call_both_hold(kind):
    model = compose_kind(kind)
    observations, (state, resets) = seen_by(model, (50,)), arguments(model, (50,))
    observations["legal"][:] = torch.tensor([1, 1, 0, 1, 0])
    free = model.step(observations, None, state, resets)
    assert set(free.action.tolist()) == {0, 1, 3}
    given = torch.tensor([False, True, True, True, True]).expand(50, 5)
    step = model.step(observations, None, state, resets, mask=given)
    assert set(step.action.tolist()) == {1, 3}
    row = step.distribution.row()
    assert row.isfinite().all()
    again = model.policy.distribution_of_row(row)
    torch.testing.assert_close(again.log_prob(step.action), step.log_prob)
    assert set(again.sample().tolist()) <= {1, 3}


@every_kind
def test_actions_go_both_ways(kind):
    model = compose_kind(kind)
    state, resets = arguments(model, (4,))
    step = model.step(seen_by(model, (4,)), None, state, resets)
    outside = model.to_environment(step.action)
    inside = model.from_environment(outside)  # the step's action, clipped to the bounds
    torch.testing.assert_close(model.to_environment(inside), outside)
    if kind != "learned deviation":  # its gaussian has no bounds
        torch.testing.assert_close(inside, step.action, **CLOSE)
    single = arguments(model, ())
    action = model.step(seen_by(model, ()), None, *single).action
    assert model.action_space.contains(model.to_environment(action))


CHOICE = "outside of Discrete(5, start=-2) counted from 0; policy.from_environment(action) counts an environment's action from zero"
WRONG = {
    "no choice": ("plain", torch.tensor([5]), f"'action' is 5 at index (0,), {CHOICE}"),
    "negative": ("plain", torch.tensor(-1), f"'action' is -1, {CHOICE}"),
    "fraction": ("plain", torch.tensor([0.5]), f"'action' is 0.5 at index (0,), {CHOICE}"),
    "NaN": ("plain", torch.tensor([torch.nan]), f"'action' is nan at index (0,), {CHOICE}"),
    "text": ("plain", "x", "'action' must be numbers, got a str; its space is Discrete(5, start=-2)"),
    "width": ("no critic", torch.zeros(3, 3), "action 'action' has shape (3, 3), expected (..., 2)"),
    "keys": ("mixed", {"move": torch.tensor([0])}, "action 'hands/0' is missing; got the keys 'move'"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "action", "message"), WRONG.values(), ids=WRONG)
def test_an_environment_gets_no_action_that_there_is_not(kind, action, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compose_kind(kind).to_environment(action)


def test_flags_are_no_numbers_of_a_box():
    model = compose_kind("no critic")
    message = "action 'action' must be of numbers, got torch.bool; give action.float()"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.step(seen_by(model, (3,)), torch.zeros(3, 2, dtype=torch.bool))


def test_an_action_that_a_class_chooses_has_no_distribution():
    spec = """
version: 1
policy: {_target_: tests.composer.host.test_every_kind.Acts}
"""
    model = composer.compose(
        spec, env="CartPole-v1", allow=["tests.composer.host.test_every_kind"], seed=0
    )
    message = (
        "the network class 'Acts' defines 'act', whose actions have no distribution; call "
        r"model\.policy\.act\(observations\), or leave 'act' out of the class"
    )
    for call in (model.step, model.value):
        with pytest.raises(ValueError, match=f"^{message}$"):
            call(torch.zeros(4))
    assert model.policy.act(torch.zeros(4)) == 1


class Acts(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, inputs):
        return {"action": self.head(inputs["observation"])}

    def act(self, observation):
        return 1
