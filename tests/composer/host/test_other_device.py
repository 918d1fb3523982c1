"""Models on another device than the CPU: steps, values, critics and rows create no tensor beside it."""

import gymnasium.vector.utils as batches
import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from tests.helpers.other_device import elsewhere

BOX = spaces.Box(-1, 1, (3,))
UNEVEN = spaces.Box(np.array([-1, -2], np.float32), np.array([1, 3], np.float32))
ACTIONS = {
    "discrete": spaces.Discrete(3, start=2),
    "multi_discrete": spaces.MultiDiscrete([2, 3], start=[1, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "integers": spaces.Box(1, 8, (2,), np.int64),
    "numbers": UNEVEN,
    "several": spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1, (2,))),
}
FAMILIES = ("gaussian", "squashed_gaussian", "beta", "gsde", "deterministic")
SEEN = spaces.Dict(
    image=spaces.Box(0, 255, (16, 16, 3), np.uint8),
    choice=spaces.Discrete(4, start=1),
    choices=spaces.MultiDiscrete([2, 3], start=[1, 1]),
    numbers=UNEVEN,
    legal=spaces.MultiBinary(3),
)
TEMPLATE = {"template": {}}
MEMORY = {"template": {"memory": {"block": "gru", "hidden_units": 4}}}
STATE, ACTION = {"kind": "state"}, {"kind": "state_action", "ensemble": 2}
CASES = [(a, {}, p) for a in ACTIONS for p in (TEMPLATE, MEMORY)]
CASES += [
    ("numbers", {"distributions": [{"action": "action", "distribution": f}]}, TEMPLATE)
    for f in FAMILIES
]


def composed(network, critic, action, seen=BOX, **keys):
    spec = {"version": 1, "policy": network, "critic": {**network, **critic}, **keys}
    return composer.compose(spec, observation_space=seen, action_space=action, seed=0)


def only(device, *values):
    """Assert that all tensors among ``values`` are on ``device``; any of them may be None, or a dict."""
    for value in values:
        if isinstance(value, dict):
            only(device, *value.values())
        elif value is not None:
            assert value.device.type == device


def test_the_device_of_these_tests_refuses_tensors_of_the_cpu():
    with elsewhere() as device:
        moved = torch.ones(2, 3, device=device)
        with pytest.raises(RuntimeError, match="takes tensors of two devices"):
            torch.add(moved, torch.ones(3))
        assert (moved + torch.tensor(1.0)).cpu().tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize(("action", "keys", "network"), CASES)
def test_a_step_and_its_gradients(action, keys, network):
    with elsewhere() as device:
        model = composed(network, STATE, ACTIONS[action], **keys).to(device)
        seen = torch.rand(4, 3, device=device)
        state = model.initial_state(4) if model.has_memory else None
        resets = None if state is None else torch.zeros(4, dtype=torch.bool, device=device)
        step = model.step(seen, None, state, resets)
        again = model.step(seen, step.action, state, resets)
        total = again.value.sum()
        if again.log_prob is not None:
            total = total + again.log_prob.sum() + again.entropy.sum()
        total.backward()
        lowered = model.lower().step(seen, None, state, resets)
        only(device, *step[1:], *again[1:], lowered.action, model.value(seen, state, resets))
        only(device, *(p.grad for p in model.parameters()))
        if state is not None:
            only(device, model.unpack_state(model.pack_state(step.state)))
            rows = torch.rand(4, 5, 3, device=device)
            only(device, model.step(rows, None, state, resets.expand(5, 4).T, unroll=True).value)


@pytest.mark.parametrize(("action", "keys", "network"), CASES)
def test_a_critic_of_actions_and_what_distributions_give(action, keys, network):
    with elsewhere() as device:
        model = composed(network, ACTION, ACTIONS[action], **keys).to(device)
        policy, critic, seen = model.policy, model.critic, torch.rand(4, 3, device=device)
        before = [[m.initial_state(4)] if m.has_memory else [] for m in (policy, critic)]
        distribution = policy.distribution(seen, *before[0])
        distribution = distribution[0] if before[0] else distribution
        drawn = distribution.sample()
        critic.update_targets(0.5)
        for each in (critic, critic.target):
            values = each(seen, drawn, *before[1])
            only(device, values[0] if before[1] else values)
        only(device, drawn, distribution.mode())
        if distribution.has_density:
            only(device, distribution.kl(distribution), distribution.top_k(2).log_probs)
            only(device, policy.distribution_of_row(distribution.row()).log_prob(drawn))


@pytest.mark.parametrize(
    "keys", [{}, {"normalize": ["numbers"]}, {"previous": ["action", "reward"]}]
)
def test_observations_of_all_kinds_with_a_mask_and_statistics(keys):
    policy = {**TEMPLATE, "action_mask": {"action": "legal"}}
    spec = {"version": 1, "policy": policy, "critic": {**TEMPLATE, "normalize_value": True}, **keys}
    choices = spaces.Discrete(3)
    model = composer.compose(spec, observation_space=SEEN, action_space=choices, seed=0)
    with elsewhere() as device:
        model.to(device)
        space = model.observation_space
        rows = [space.sample() for _ in range(4)]
        for row in rows:
            row["legal"][:] = 1
        arrays = batches.concatenate(space, rows, batches.create_empty_array(space, 4))
        moved = torch.utils._pytree.tree_map(lambda a: torch.as_tensor(a).to(device), arrays)
        for seen in (arrays, moved):  # a model moves what comes from the CPU
            step = model.step(seen)
            only(device, step.action, step.log_prob, step.value)
        if "normalize" in keys:
            model.update_normalizers({"numbers": moved["numbers"]})
        model.update_normalizers(returns=torch.rand(4, device=device))
        only(device, model.step(moved, step.action).value, model.state_dict())


@pytest.mark.parametrize("critic", [STATE, {"kind": "shared_state"}, {"kind": "state_action"}])
@pytest.mark.parametrize("network", [TEMPLATE, MEMORY])
def test_several_actors(critic, network):
    names = ("a", "b", "c")
    choices = dict.fromkeys(names, spaces.Discrete(2))
    with elsewhere() as device:
        model = composed(network, critic, choices, dict.fromkeys(names, BOX)).to(device)
        seen = {name: torch.rand(4, 3, device=device) for name in names}
        if critic["kind"] != "state_action":
            state = model.initial_state(4) if model.has_memory else None
            step = model.step(seen, None, state)
            again = model.step(seen, step.action, state)
            only(device, again.log_prob, model.value(seen, state))
            return
        before = [
            [m.initial_state(4)] if m.has_memory else [] for m in (model.policy, model.critic)
        ]
        drawn = model.policy.distribution(seen, *before[0])
        drawn = {k: d.sample() for k, d in (drawn[0] if before[0] else drawn).items()}
        values = model.critic(seen, drawn, *before[1])
        only(device, values[0] if before[1] else values)
