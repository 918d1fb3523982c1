"""Model.step and Model.value of several actors."""

import re

import pytest
import torch
import yaml
from torch import nn

from tests.helpers.actor_critics import BY_STEP, CENTRAL, CHAINED, compose, network, observe
from tests.helpers.example_models import mlp
from tests.helpers.structured_models import (
    MEMORY,
    SEPARATE,
    SHARED,
    agents,
    crowd,
    observations,
    pick_and_place,
)

SHARED_TRUNK = {"kind": "shared_state", **network("pick/latent", "place/0/view")}
PRESENT = {"kind": "shared_state", **network("pick/view", "place/0/view", "present")}
CENTRAL_MEMORY = {
    "kind": "shared_state",
    "stack": True,
    "graph": {
        "flat": {"block": "flatten", "in": "observation"},
        "past": {"block": "gru", "in": "flat", "hidden_units": 4},
    },
}


def raises(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("critic", [BY_STEP, CHAINED, CENTRAL])
def test_a_step_is_what_the_parts_give(critic):
    model, seen = compose(critic), observe()
    step = model.step(seen)
    distributions, values = model.policy.distribution(seen), model.critic.value(seen)
    assert list(step.distribution) == list(step.action) == list(seen)
    for key, distribution in distributions.items():
        action = step.action[key]
        torch.testing.assert_close(step.log_prob[key], distribution.log_prob(action))
        torch.testing.assert_close(step.entropy[key], distribution.entropy())
    assert step.state is None
    torch.testing.assert_close(step.value, values)
    torch.testing.assert_close(model.value(seen), values)
    again = model.step(seen, step.action, entropy=False)
    torch.testing.assert_close(again.log_prob, step.log_prob)
    assert again.entropy is None


def test_the_value_is_one_for_all_or_one_for_each():
    seen = observe(batch=5)
    assert compose(CENTRAL).step(seen).value.shape == (5,)
    assert {v.shape for v in compose(BY_STEP).step(seen).value.values()} == {(5,)}


def test_a_shared_trunk_runs_once():
    model = compose(SHARED_TRUNK, shares=["latent"])
    calls = []
    for module in model.policy.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: calls.append(1))
    seen = observe()
    model.policy.distribution(seen)
    by_policy, value = len(calls), model.step(seen).value
    assert len(calls) == 2 * by_policy
    torch.testing.assert_close(value, model.critic.value(seen, shared=model.policy(seen)))
    torch.testing.assert_close(value, model.value(seen))


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_memory_is_carried_and_sequences_repeat_the_steps(separate):
    model = agents(MEMORY, separate)
    resets = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) < 0.4
    seen = {k: torch.as_tensor(v) for k, v in observations(model, (5, 3)).items()}
    state = start = model.initial_state(5)
    steps = []
    for t in range(3):
        steps.append(model.step({k: v[:, t] for k, v in seen.items()}, None, state, resets[:, t]))
        state = steps[-1].state
    actions = {k: torch.stack([s.action[k] for s in steps], 1) for k in seen}
    whole = model.step(seen, actions, start, resets, unroll=True)
    for key, log_prob in whole.log_prob.items():
        at_rollout = torch.stack([step.log_prob[key] for step in steps], 1)
        torch.testing.assert_close(log_prob, at_rollout)
    torch.testing.assert_close(whole.state, state)
    row = model.pack_state(state)
    assert row.shape == (5, model.state_width)
    torch.testing.assert_close(model.unpack_state(row), state)


def test_a_central_critic_with_memory_shares_the_state():
    spec = yaml.safe_load(MEMORY.replace("SEPARATE", "init: orthogonal")) | {
        "critic": CENTRAL_MEMORY
    }
    model = agents(spec, number=2)
    seen, state, resets = observations(model, (4,)), model.initial_state(4), torch.zeros(4) > 0
    step = model.step(seen, None, state, resets)
    assert step.state.keys() == state.keys()
    assert not any(torch.equal(step.state[name], state[name]) for name in state)
    torch.testing.assert_close(model.value(seen, state, resets), step.value)
    torch.testing.assert_close(model(seen, state, resets)[2], step.state)


def test_masks_deterministic_actions_and_both_ways_of_actions():
    model = agents(number=2)
    seen = observations(model, (4,))
    mask = {"agent_0": torch.tensor([False, False, True, False, False])}
    step = model.step(seen, mask=mask, deterministic=True)
    assert step.action["agent_0"].tolist() == [2] * 4
    for key, distribution in model.policy.distribution(seen, mask=mask).items():
        assert torch.equal(step.action[key], distribution.mode())
    there = model.to_environment(step.action)
    assert there["agent_1"].dtype == model.action_space["agent_1"].dtype
    torch.testing.assert_close(model.from_environment(there), step.action)


def test_rows_of_distributions_are_by_actor():
    model = pick_and_place()
    seen, state = observations(model, (4,)), model.initial_state(4)
    step = model.step(seen, state=state)
    again = model.policy.distribution_of_row({k: d.row() for k, d in step.distribution.items()})
    for key, distribution in again.items():
        torch.testing.assert_close(distribution.log_prob(step.action[key]), step.log_prob[key])


def test_absent_actors_and_a_central_critic_that_reads_presence():
    model = compose(PRESENT)
    seen = {k: v for k, v in observe(batch=3).items() if k != ("place", 0)}
    step = model.step(seen)
    assert list(step.action) == ["pick", ("place", 1)]
    present = {"pick": torch.tensor([True, False, True])}
    with_presence = model.step(seen, present=present).value
    torch.testing.assert_close(with_presence, model.critic.value(seen, present=present))
    torch.testing.assert_close(with_presence, model.value(seen, present=present))
    assert with_presence[1] != step.value[1]


def test_agents_whose_number_is_not_known_have_no_row_of_a_state():
    model = crowd()
    seen = {("look", i): torch.zeros(2, 3) for i in range(3)} | {"decide": torch.zeros(2, 2)}
    step = model.step(seen, state=model.initial_state(2, actors=list(seen)))
    assert list(step.log_prob) == list(seen)
    with raises(
        "no row holds 'policy/look/0/memory/h', 'policy/look/1/memory/h', 'policy/look/2/memory/h'; it holds "
        "'policy/decide/memory/h', of actors whose number is known"
    ):
        model.pack_state(step.state)


def test_wrong_calls():
    model = agents(number=2)
    seen = observations(model, (4,))
    action = model.step(seen).action
    with raises("there are observations but no actions of 'agent_1'"):
        model.step(seen, {"agent_0": action["agent_0"]})
    with raises("there are actions but no observations of 'agent_1'"):
        model.step({"agent_0": seen["agent_0"]}, action)
    with raises("observations come as a dict by actor ('agent_0', 'agent_1'), got a ndarray"):
        model.step(seen["agent_0"])
    with raises(
        "this model has memory; call model.step(observations, state=state, resets=resets), beginning with "
        "model.initial_state(batch_size)"
    ):
        agents(MEMORY).step(observations(agents(MEMORY), (4,)))
    one = mlp()
    with raises("'present' is for steps and agents, of which this model has none"):
        one.value(torch.zeros(2, 4), present={})
