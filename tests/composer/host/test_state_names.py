"""Whatever takes a state takes a part's own names or the model's, and returns the names that it was given."""

import pytest
import torch

from composer.network.network import share_of
from tests.helpers.host_models import compose_kind, seen_by
from tests.helpers.structured_models import MEMORY, SEPARATE, SHARED, agents, observations

KINDS = [
    "memory of the policy",
    "memory of the critic",
    "two memories",
    "shared trunk, two memories",
]
KINDS += ["shared memory", "a class with memory", "shared", "separate"]


def compose(kind):
    if kind in ("shared", "separate"):
        model = agents(MEMORY, SHARED if kind == "shared" else SEPARATE, number=2)
        steps = observations(model, (3, 2))
        return model, {key: value[:, 0] for key, value in steps.items()}, steps
    model = compose_kind(kind)
    steps = seen_by(model, (3, 2))
    return model, {key: value[:, 0] for key, value in steps.items()}, steps


def calls_of_policy(model, seen, steps, resets):
    """What takes a state of the policy: name -> state -> the state after."""
    policy, lowered = model.policy, model.policy.lower()
    return {
        "policy": lambda s: policy(seen, s, resets)[1],
        "distribution": lambda s: policy.distribution(seen, s, resets)[1],
        "act": lambda s: policy.act(seen, s, resets)[1],
        "unroll": lambda s: policy.unroll(steps, s)[1],
        "distribution of steps": lambda s: policy.distribution(steps, s, unroll=True)[1],
        "lowered": lambda s: lowered(seen, s, resets)[1],
        "lowered act": lambda s: lowered.act(seen, s, resets)[1],
    }


def calls_of_critic(model, seen, steps, resets):
    start = model.initial_state(3)
    before = (start,) if model.policy.has_memory else ()
    shared = {}
    if model.critic.shared:
        logits = model.policy(seen, *before)
        shared = {"shared": logits[0] if model.policy.has_memory else logits}
    return {
        "critic": lambda s: model.critic(seen, s, resets, **shared)[1],
        "critic.value": lambda s: model.critic.value(seen, s, resets, **shared)[1],
    }


def calls_of_model(model, seen, steps, resets):
    def after_value(state):
        value = model.value(seen, state, resets)
        expected = model.step(seen, None, state, resets)
        torch.testing.assert_close(value, expected.value)
        return expected.state

    return {
        "model": lambda s: model(seen, s, resets)[2],
        "lowered model": lambda s: model.lower()(seen, s, resets)[2],
        "step": lambda s: model.step(seen, None, s, resets).state,
        "lowered step": lambda s: model.lower().step(seen, None, s, resets).state,
        "steps": lambda s: model.step(steps, None, s, unroll=True).state,
        "value": after_value,
        "packed": lambda s: s if model.pack_state(s).shape == (3, model.state_width) else {},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_comes_back_under_the_names_it_had(kind):
    torch.manual_seed(0)
    model, seen, steps = compose(kind)
    resets = torch.tensor([True, False, False])
    start = {name: torch.rand(value.shape) for name, value in model.initial_state(3).items()}
    of_part = {name: share_of(name, start) for name in ("policy", "critic")}
    parts = {name: share for name, share in of_part.items() if share}
    calls = {}
    if "policy" in parts:
        calls |= {("policy", *c): c[1] for c in calls_of_policy(model, seen, steps, resets).items()}
    if "critic" in parts:
        calls |= {("critic", *c): c[1] for c in calls_of_critic(model, seen, steps, resets).items()}
    for (part, name, call), _ in calls.items():
        of_model = call(start)
        alone = call({f"{part}/{key}": value for key, value in parts[part].items()})
        bare = call(parts[part])
        assert of_model.keys() == start.keys(), name
        assert bare.keys() == parts[part].keys(), name
        for key, value in bare.items():
            torch.testing.assert_close(of_model[f"{part}/{key}"], value)
            torch.testing.assert_close(alone[f"{part}/{key}"], value)
    for name, call in calls_of_model(model, seen, steps, resets).items():
        after = call(start)
        assert after.keys() == start.keys(), name
        if len(parts) == 1:
            ((part, share),) = parts.items()
            bare = call(share)
            assert bare.keys() == share.keys(), name
            for key, value in bare.items():
                torch.testing.assert_close(after[f"{part}/{key}"], value)


@pytest.mark.parametrize("call", ["model", "step", "value"])
def test_two_memories_need_the_state_of_both(call):
    model, seen, _ = compose("two memories")
    state = model.policy.initial_state(3)
    with pytest.raises(ValueError, match=r"^the state needs 'past/h', got 'past/h', 'past/c'$"):
        (model if call == "model" else getattr(model, call))(seen, state=state)
