"""Wrappers around composed policies."""

import copy
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import composer

BOX = spaces.Box(-1.0, 1.0, (3,))
ACTIONS = spaces.Dict(
    {
        "move": spaces.Discrete(4, start=2),
        "keys": spaces.MultiBinary(2),
        "pair": spaces.MultiDiscrete([2, 3]),
    }
)
MEMORY = {"memory": {"block": "gru", "hidden_units": 8}}


def compose(observation_space, action_space, template=None, seed=0, **policy):
    spec = {"version": 1, "policy": {"template": template or {}, **policy}}
    return composer.compose(
        spec, observation_space=observation_space, action_space=action_space, seed=seed
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- logits and actions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_one_action_has_one_logit(leading):
    policy = compose(BOX, spaces.Discrete(4)).policy
    x = torch.randn(*leading, 3)
    model = composer.model_wrap(policy, "argmax_sample")
    for data in (x, {"observation": x}, x.numpy()):
        output = model(data)
        torch.testing.assert_close(output["logit"], policy(x)["action"])
        assert torch.equal(output["action"], policy.distribution(x).mode())


@pytest.mark.parametrize("template", [{}, MEMORY])
def test_a_hook_on_the_policy_runs_once_and_what_it_returns_is_used(template):
    policy, ran = compose(BOX, spaces.Discrete(4), template).policy, []

    def hook(module, arguments, result):
        ran.append("after")
        logits = {"action": torch.tensor([[0.0, 0.0, 9.0, 0.0]])}
        return (logits, result[1]) if policy.has_memory else logits

    policy.register_forward_hook(hook)
    state = {"prev_state": None} if policy.has_memory else {}
    output = composer.model_wrap(policy, "argmax_sample")(
        {"observation": torch.zeros(1, 3), **state}
    )
    assert output["action"].tolist() == [2]
    assert ran == ["after"]


def test_several_actions_are_a_list_in_the_order_of_the_space():
    policy = compose(BOX, ACTIONS).policy
    x = torch.randn(5, 3)
    model = composer.model_wrap(policy, "argmax_sample")
    output = model(x)
    shapes = {"keys": (5, 2, 2), "move": (5, 4), "pair": (5, 2, 3)}
    assert [logit.shape for logit in output["logit"]] == [shapes[key] for key in ACTIONS]
    mode = policy.distribution(x).mode()
    for key, action in zip(ACTIONS, output["action"], strict=True):
        assert torch.equal(action.to(mode[key].dtype), mode[key])


@pytest.mark.parametrize("name", ["multinomial_sample", "eps_greedy_sample"])
def test_actions_are_the_environments_after_environment_action(name):
    policy = compose(BOX, ACTIONS).policy
    model = composer.model_wrap(policy, name)
    keywords = {"eps": 1.0} if name == "eps_greedy_sample" else {}
    for seed in range(100):
        action = model(BOX.sample(), generator=seeded(seed), **keywords)["action"]
        assert ACTIONS.contains(model.environment_action(action))
    batch = model(np.stack([BOX.sample() for _ in range(4)]), **keywords)["action"]
    tensors = model.environment_action(batch, as_numpy=False)
    assert tensors["move"].min() >= 2
    assert tensors["pair"].shape == (4, 2)


@pytest.mark.parametrize(
    ("space", "distribution"),
    [
        (spaces.Box(-2.0, 3.0, (2,)), "squashed_gaussian"),
        (spaces.Box(np.float32([-1, 0]), np.float32([1, 5])), "squashed_gaussian"),
        (spaces.Box(-np.inf, np.inf, (2,)), "gaussian"),
        (spaces.Box(-2.0, 3.0, (2,)), "gsde"),
        (spaces.Box(-np.inf, np.inf, (2,)), "gsde"),
    ],
)
def test_normals_are_mu_and_sigma_and_actions_are_within_bounds(space, distribution):
    spec = {"distributions": [{"space": "box", "distribution": distribution}]}
    spec |= {"version": 1, "policy": {"template": {}}}
    policy = composer.compose(spec, observation_space=BOX, action_space=space, seed=0).policy
    x = torch.randn(1000, 3)
    output = composer.model_wrap(policy, "deterministic_sample")(x)
    dist = policy.distribution(x)
    normals = getattr(dist, "base", dist)
    torch.testing.assert_close(output["logit"], {"mu": normals.mean, "sigma": normals.stddev})
    torch.testing.assert_close(output["action"], dist.mode())
    drawn = composer.model_wrap(policy, "reparam_sample")(x, generator=seeded())["action"]
    torch.testing.assert_close(drawn, dist.rsample(seeded()))
    assert drawn.requires_grad


def test_noise_on_a_continuous_policy():
    model = composer.model_wrap(
        compose(BOX, spaces.Box(-2, 2, (1,))).policy, "deterministic_sample"
    )
    x = torch.randn(500, 3)
    noisy = composer.model_wrap(model, "action_noise", action_range=[-2, 2])
    difference = noisy(x, sigma=0.1, generator=seeded())["action"] - model(x)["action"]
    assert abs(difference.std() - 0.1) < 0.01


HYBRID = spaces.Dict({"kind": spaces.Discrete(3), "amount": spaces.Box(-2.0, 2.0, (2,))})


def test_a_choice_and_a_normal_are_a_hybrid_action():
    policy = compose(BOX, HYBRID).policy
    x, mode = torch.randn(4, 3), None
    mode = policy.distribution(x).mode()
    for name, keywords in (
        ("hybrid_argmax_sample", {}),
        ("hybrid_deterministic_argmax_sample", {}),
        ("hybrid_eps_greedy_sample", {"eps": 0.0}),
    ):
        model = composer.model_wrap(policy, name)
        action = model(x, **keywords)["action"]
        torch.testing.assert_close(action["action_type"], mode["kind"])
        torch.testing.assert_close(action["action_args"], mode["amount"])
        one = model(x[0], **keywords)["action"]
        assert HYBRID.contains(model.environment_action(one))
    drawn = composer.model_wrap(policy, "hybrid_reparam_multinomial_sample")
    noisy = composer.model_wrap(drawn, "action_noise", action_range=[-2, 2])
    assert noisy(x)["action"]["action_args"].abs().max() <= 2


def test_masks_of_the_spec_hold():
    observations = spaces.Dict({"x": BOX, "legal": spaces.MultiBinary(4)})
    policy = compose(observations, spaces.Discrete(4), action_mask={"action": "legal"}).policy
    legal = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0]])
    data = {"x": torch.randn(2, 3), "legal": legal}
    output = composer.model_wrap(policy, "argmax_sample")(data)
    assert torch.equal(output["action_mask"], legal.bool())
    model = composer.model_wrap(policy, "eps_greedy_sample")
    for seed in range(100):
        action = model(data, eps=0.9, generator=seeded(seed))["action"]
        assert legal.gather(-1, action[:, None]).all()
    with pytest.raises(
        ValueError, match="'argmax_sample' got a mask without a legal action in row 1"
    ):
        composer.model_wrap(policy, "argmax_sample")({**data, "legal": legal * legal[:1]})


def test_masks_of_several_actions_are_a_list():
    observations = spaces.Dict(
        {"x": BOX, "bits": spaces.MultiBinary(2), "five": spaces.MultiBinary(5)}
    )
    masks = {"keys": "bits", "pair": "five"}
    policy = compose(observations, ACTIONS, action_mask=masks).policy
    data = {
        "x": torch.randn(50, 3),
        "bits": torch.tensor([1, 0]).expand(50, 2),
        "five": torch.tensor([0, 1, 1, 0, 1]).expand(50, 5),
    }
    output = composer.model_wrap(policy, "eps_greedy_sample")(data, eps=1.0, generator=seeded())
    actions = dict(zip(ACTIONS, output["action"], strict=True))
    legal = dict(zip(ACTIONS, output["action_mask"], strict=True))
    assert legal["move"] is None
    assert set(actions["keys"][:, 1].tolist()) == {0}
    assert set(actions["keys"][:, 0].tolist()) == {0, 1}
    assert set(actions["pair"][:, 0].tolist()) == {1}
    assert set(actions["pair"][:, 1].tolist()) == {0, 2}


def test_values_that_a_critic_shares_come_out():
    spec = {
        "version": 1,
        "policy": {
            "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [8]}},
            "heads": {"in": "latent"},
            "shares": ["latent"],
        },
        "critic": {
            "graph": {"value": {"block": "linear_output", "in": "latent", "output_units": 1}}
        },
    }
    model = composer.compose(spec, observation_space=BOX, action_space=spaces.Discrete(2))
    x = torch.randn(4, 3)
    output = composer.model_wrap(model.policy, "argmax_sample")(x)
    value = model.critic(x, shared=output["shared"])["value"]
    torch.testing.assert_close(value, model(x)[1]["value"])


# --- memory -----------------------------------------------------------------------------------------------------------


def test_slots_play_as_the_policy_does_with_its_state():
    policy = compose(BOX, spaces.Discrete(4), MEMORY).policy
    model = composer.model_wrap(policy, "hidden_state", state_num=5, save_prev_state=True)
    state, x = policy.initial_state(5), torch.randn(6, 5, 3)
    expected, state = policy(x[0], state)
    output = model(x[0])
    torch.testing.assert_close(output["logit"], expected["action"])
    assert "next_state" not in output
    assert all(not value.any() for value in output["prev_state"].values())
    ids = torch.tensor([3, 0, 4])
    some = {name: value[ids] for name, value in state.items()}
    expected, after = policy(x[1, :3], some)
    output = model(x[1, :3], data_id=ids, valid_id=[4])
    torch.testing.assert_close(output["logit"], expected["action"])
    for name, value in after.items():
        state[name] = state[name].index_copy(0, ids[2:], value[2:])
    for slot, row in model.states.items():
        torch.testing.assert_close(row, {name: value[slot] for name, value in state.items()})
    assert not any(value.requires_grad for row in model.states.values() for value in row.values())


def test_slots_of_a_policy_are_reset_and_set():
    policy = compose(BOX, spaces.Discrete(4), MEMORY).policy
    model = composer.model_wrap(policy, "hidden_state", state_num=3)
    model(torch.randn(3, 3))
    row = {name: torch.ones(shape) for name, shape in policy.state_shapes.items()}
    model.reset(data_id=[2, 0], state=[row, None])
    states = model.states
    torch.testing.assert_close(states[2], row)
    assert all(not value.any() for value in states[0].values())
    assert all(value.any() for value in states[1].values())
    model.reset()
    assert not any(value.any() for state in model.states.values() for value in state.values())


def test_resets_reach_the_policy():
    policy = compose(BOX, spaces.Discrete(4), MEMORY).policy
    model = composer.model_wrap(policy, "hidden_state", state_num=2)
    x = torch.randn(2, 3)
    first = model(x)["logit"]
    second = model(x, resets=[True, False])["logit"]
    torch.testing.assert_close(second[0], first[0])
    assert not torch.allclose(second[1], first[1])


def test_states_may_be_one_a_row_and_none_for_zero():
    policy = compose(BOX, spaces.Discrete(4), MEMORY).policy
    model = composer.model_wrap(policy, "base")
    x = torch.randn(2, 3)
    once = model({"observation": x, "prev_state": [None, None]})
    assert [set(row) for row in once["next_state"]] == [set(policy.state_shapes)] * 2
    zero = model({"observation": x, "prev_state": None})
    twice = model({"observation": x, "prev_state": once["next_state"]})
    again = model({"observation": x, "prev_state": zero["next_state"]})
    torch.testing.assert_close(twice["logit"], again["logit"])


def test_memory_with_a_tuple_of_observations():
    policy = compose(spaces.Tuple([BOX, BOX]), spaces.Discrete(2), MEMORY).policy
    model = composer.model_wrap(policy, "hidden_state", state_num=2)
    x = (torch.randn(2, 3), torch.randn(2, 3))
    torch.testing.assert_close(model(x)["logit"], policy(x, policy.initial_state(2))[0]["action"])


@pytest.mark.parametrize(
    ("data", "keywords", "message"),
    [
        (
            torch.zeros(3, 3),
            {},
            "there are states for (2,), but observations for (3,); "
            "data_id=[...] says which of the environments of 'hidden_state' these are",
        ),
        (torch.zeros(2, 4), {}, "observation 'observation' has shape (2, 4), expected (..., 3)"),
    ],
)
def test_wrong_batches_are_said_and_nothing_changes(data, keywords, message):
    model = composer.model_wrap(
        compose(BOX, spaces.Discrete(4), MEMORY).policy, "hidden_state", state_num=2
    )
    model(torch.randn(2, 3))
    before = copy.deepcopy(model.states)
    with pytest.raises(ValueError, match=re.escape(message)):
        model(data, **keywords)
    torch.testing.assert_close(model.states, before)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([{"h": 1}], "a state needs 'memory/h', got 'h'"),
        ([3], "a state must be a dict of tensors or None, got a int"),
        (
            [{"memory/h": torch.zeros(1, 9)}],
            "the state 'memory/h' must have the shape (1, 8), got (1, 9)",
        ),
        ([{"memory/h": 3}], "the state 'memory/h' must have the shape (1, 8), got a int"),
        (
            {"memory/h": torch.zeros(2, 1, 8)},
            "the state 'memory/h' must have the shape (1, 1, 8), got (2, 1, 8)",
        ),
        ({"h": torch.zeros(1)}, "the state needs 'memory/h', got 'h'"),
    ],
)
def test_wrong_states_of_a_policy_are_said(state, message):
    policy = compose(BOX, spaces.Discrete(4), MEMORY).policy
    model = composer.model_wrap(policy, "hidden_state", state_num=2)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.reset(data_id=[1], state=state)


def test_a_policy_with_memory_asks_for_a_state():
    model = composer.model_wrap(compose(BOX, spaces.Discrete(4), MEMORY).policy, "argmax_sample")
    message = "this policy has memory: wrap it in 'hidden_state', or put 'prev_state' beside the observation"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(torch.zeros(2, 3))
    message = "'prev_state' must be a dict of tensors, or a list of one a row, got a int"
    with pytest.raises(ValueError, match=re.escape(message)):
        model({"observation": torch.zeros(2, 3), "prev_state": 3})


def test_an_observation_may_be_called_prev_state_without_memory():
    observations = spaces.Dict({"prev_state": BOX})
    policy = compose(observations, spaces.Discrete(2)).policy
    data = {"prev_state": torch.zeros(2, 3)}
    assert composer.model_wrap(policy, "argmax_sample")(data)["action"].shape == (2,)
    policy = compose(observations, spaces.Discrete(2), MEMORY).policy
    message = (
        "this policy observes 'prev_state', under which a wrapper puts the state of its memory"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        composer.model_wrap(policy, "base")


def test_a_whole_model_is_not_what_chooses():
    model = composer.model_wrap(compose(BOX, spaces.Discrete(2)), "argmax_sample")
    message = "needs a model that returns a dict, got a tuple; wrap its 'policy'"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(torch.zeros(3))


def test_wrapped_play_with_resets_is_that_of_the_policy():
    policy = compose(BOX, spaces.Discrete(4), MEMORY).policy
    model = composer.model_wrap(policy, "hidden_state", state_num=3)
    state = policy.initial_state(3)
    for _ in range(10):
        x, resets = torch.randn(3, 3), torch.rand(3) < 0.3
        expected, state = policy(x, state, resets)
        torch.testing.assert_close(model(x, resets=resets)["logit"], expected["action"])


def test_a_mask_that_fails_outside_leaves_the_slots():
    observations = spaces.Dict({"x": BOX, "legal": spaces.MultiBinary(2)})
    policy = compose(
        observations, spaces.Discrete(2), MEMORY, action_mask={"action": "legal"}
    ).policy
    model = composer.model_wrap(policy, "hidden_state", state_num=1)
    model = composer.model_wrap(model, "eps_greedy_sample")
    data = {"x": torch.randn(1, 3), "legal": torch.zeros(1, 2)}
    for bad, eps in ((data, 0.1), ({**data, "legal": torch.ones(1, 2)}, torch.zeros(2))):
        with pytest.raises(ValueError, match="eps_greedy_sample"):
            model(bad, eps=eps)
        assert not any(value.any() for value in model.states[0].values())


def test_slots_follow_the_policy_to_another_dtype():
    policy = compose(BOX, spaces.Discrete(4), MEMORY).policy
    model = composer.model_wrap(policy, "hidden_state", state_num=2)
    model(torch.randn(2, 3))
    model.double()
    assert model(torch.randn(2, 3))["logit"].dtype == torch.float64


# --- targets and sequences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["policy", "critic"])
def test_targets_of_a_composed_policy_and_critic(part):
    spec = {"version": 1, "policy": {"template": {}}, "critic": {"template": {}}}
    model = composer.compose(spec, observation_space=BOX, action_space=spaces.Discrete(2), seed=0)
    online = getattr(model, part)
    target = composer.model_wrap(online, "target", update_type="momentum", theta=0.5)
    x = torch.randn(3, 3)
    start = copy.deepcopy(online.state_dict())
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1.0)
    target.update(online.state_dict())
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, start[name] + 0.5)
    key = "logit" if part == "policy" else "value"
    assert target(x)[key].shape[0] == 3


def test_a_target_of_stacked_weights_is_updated_by_a_state_dict():
    graph = {
        "twin": {
            "block": "ensemble",
            "copies": 2,
            "in": "observation",
            "out": ["q"],
            "graph": {"q": {"block": "linear_output", "in": "observation", "output_units": 1}},
        },
        "flat": {"block": "flatten", "in": "q"},
    }
    spec = {"version": 1, "policy": {"graph": graph, "heads": {"in": "flat"}}}
    policy = composer.compose(spec, observation_space=BOX, action_space=spaces.Discrete(2)).policy
    target = composer.model_wrap(policy, "target", freq=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(2.0)
    target.update(policy.state_dict())
    x = torch.randn(2, 3)
    torch.testing.assert_close(target(x)["logit"], policy(x)["action"])


def test_sequences_of_observations_go_through_a_policy():
    policy = compose(BOX, HYBRID).policy
    model = composer.model_wrap(policy, "transformer_input", seq_len=3)
    model = composer.model_wrap(model, "hybrid_argmax_sample")
    x = torch.randn(2, 3)
    torch.testing.assert_close(
        model(x)["action"]["action_args"], policy.distribution(x).mode()["amount"]
    )


# --- checked before any forward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "names", "message"),
    [
        (
            spaces.Discrete(2),
            ["deterministic_sample"],
            "'deterministic_sample' needs normals, logits {mu, sigma}, got 'action' (a choice); use 'argmax_sample'",
        ),
        (
            BOX,
            ["argmax_sample"],
            "'argmax_sample' needs choices, got 'action' (a normal); use 'deterministic_sample'",
        ),
        (
            HYBRID,
            ["argmax_sample"],
            "'argmax_sample' needs choices, got 'amount' (a normal), 'kind' (a choice); "
            "use 'hybrid_deterministic_argmax_sample'",
        ),
        (
            ACTIONS,
            ["hybrid_argmax_sample"],
            "'hybrid_argmax_sample' needs one action that is a choice and one that is a normal, got "
            "'keys' (a choice), 'move' (a choice), 'pair' (a choice)",
        ),
        (
            BOX,
            ["hidden_state"],
            "'hidden_state' keeps the state of a memory, but this policy has no memory",
        ),
        (
            spaces.Discrete(2),
            ["argmax_sample", "action_noise"],
            "'action_noise' adds to continuous actions, but there is choices",
        ),
        (
            BOX,
            ["action_noise"],
            "'action_noise' adds to continuous actions, but there is no action yet; put a wrapper such as "
            "'deterministic_sample' before it",
        ),
        (
            BOX,
            ["deterministic_sample", "reparam_sample"],
            "'reparam_sample' would replace the action that a wrapper inside of it chooses; keep one of them",
        ),
    ],
)
def test_a_wrapper_that_does_not_fit_a_policy_is_refused_when_wrapping(space, names, message):
    model = compose(BOX, space).policy
    for name in names[:-1]:
        model = composer.model_wrap(model, name)
    settings = {"state_num": 2} if names[-1] == "hidden_state" else {}
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        composer.model_wrap(model, names[-1], **settings)


def test_a_beta_is_neither_choice_nor_normal():
    spec = {
        "version": 1,
        "distributions": [{"action": "action", "distribution": "beta"}],
        "policy": {"template": {}},
    }
    policy = composer.compose(spec, observation_space=BOX, action_space=BOX).policy
    assert composer.model_wrap(policy, "base")(torch.zeros(3))["logit"].shape == (6,)
    message = "got 'action' (neither choice nor normal)"
    with pytest.raises(ValueError, match=re.escape(message)):
        composer.model_wrap(policy, "deterministic_sample")


def test_a_policy_inside_of_a_module_is_not_looked_for():
    class Around(nn.Module):
        def __init__(self, policy):
            super().__init__()
            self.policy = policy

        def forward(self, data):
            return {"logit": self.policy(data)["action"]}

    policy = compose(BOX, spaces.Discrete(2)).policy
    assert (
        composer.model_wrap(Around(policy), "argmax_sample")(torch.zeros(3))["action"].shape == ()
    )
