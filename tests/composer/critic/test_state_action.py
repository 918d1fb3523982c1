"""Critics of actions: Q values by choice or of an action that is an input, ensembles, and target copies."""

import copy
import pickle
import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer import SpecError

STATE = spaces.Box(-1, 1, (3,))
TORQUE = spaces.Box(-2, 2, (2,))
MOVE = spaces.Discrete(4, start=3)
MIXED = spaces.Dict(
    arm=spaces.Box(-1, 1, (2, 2)),
    grip=spaces.Discrete(3, start=1),
    lights=spaces.MultiBinary(2),
    wheels=spaces.MultiDiscrete([2, 3]),
)
POLICY = {
    "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": 8}},
    "heads": {"in": "latent"},
}
OF_ACTION = {
    "kind": "state_action",
    "graph": {
        "both": {"block": "concat", "in": ["observation", "action/action"]},
        "latent": {"block": "dense", "in": "both", "hidden_units": 8},
    },
}
OF_CHOICES = {
    "kind": "state_action",
    "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": 8}},
}
LINEAR = {  # the value of an action is a plain sum
    "kind": "state_action",
    "graph": {
        "both": {"block": "concat", "in": ["observation", "action/action"]},
        "value": {"block": "linear_output", "in": "both", "output_units": 1},
    },
}


def compose(critic, action=TORQUE, policy=POLICY, observation=STATE, **keywords):
    spec = {"version": 1, "policy": policy, "critic": critic}
    keywords = {"seed": 0, **keywords}
    return composer.compose(spec, observation_space=observation, action_space=action, **keywords)


def batch(size=5):
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(0))


def torques(size=5):
    return torch.randn(size, 2, generator=torch.Generator().manual_seed(1))


# --- the action as an input ---


def test_the_value_of_an_action_is_what_the_network_makes_of_state_and_action():
    critic = compose(LINEAR).critic
    head = critic.get_submodule("value").linear
    state, action = batch(), torques()
    expected = torch.cat([state, action], dim=-1) @ head.weight.T + head.bias
    torch.testing.assert_close(critic(state, action)["q_value"], expected)
    torch.testing.assert_close(critic.value(state, action), expected.squeeze(-1))


def test_the_value_changes_with_the_action_as_its_weights_say():
    critic = compose(LINEAR).critic
    action = torques().requires_grad_()
    critic.value(batch(), action).sum().backward()
    expected = critic.get_submodule("value").linear.weight[0, 3:].expand(5, 2)
    torch.testing.assert_close(action.grad, expected)


def test_gradients_reach_the_policy_through_a_sample():
    model = compose(OF_ACTION)
    action = model.policy.distribution(batch()).rsample()
    model.critic.value(batch(), action).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.policy.parameters())


def test_mixed_actions_are_vectors_choices_as_ones_among_zeros():
    critic = {
        "kind": "state_action",
        "graph": {
            "all": {
                "block": "concat",
                "in": [
                    "action/arm", "action/grip", "action/lights", "action/wheels", "observation",
                ],
            },
            "value": {"block": "linear_output", "in": "all", "output_units": 1},
        },
    }  # fmt: skip
    model = compose(critic, MIXED)
    action = {
        "arm": torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]),
        "grip": torch.tensor([2]),
        "lights": torch.tensor([[1, 0]]),
        "wheels": torch.tensor([[0, 2]]),
    }
    read = [0.1, 0.2, 0.3, 0.4, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 0.5, 0.5, 0.5]
    head = model.critic.get_submodule("value").linear
    expected = torch.tensor([read]) @ head.weight.T + head.bias
    values = model.critic(torch.full((1, 3), 0.5), action)
    torch.testing.assert_close(values["q_value"], expected)


def test_an_environments_action_is_counted_from_zero_first():
    MIXED.seed(0)
    sample = MIXED.sample()
    model = compose({"kind": "state_action", "template": {}}, MIXED)
    action = model.policy.from_environment(sample)
    assert int(action["grip"]) == sample["grip"] - 1
    state = np.zeros(3, np.float32)
    once = model.critic.value(state, action)
    assert once.shape == ()
    many = {name: np.stack([value] * 4) for name, value in action.items()}
    several = model.critic.value(np.zeros((4, 3), np.float32), many)
    torch.testing.assert_close(several, once.expand(4))


def test_the_model_hands_the_action_to_its_critic():
    model = compose(OF_ACTION)
    logits, values = model(batch(), action=torques())
    assert set(logits) == {"action"}
    torch.testing.assert_close(values, model.critic(batch(), torques()))
    needed = (
        "this critic reads the action; call critic(observations, action), "
        "or the model itself with action=action"
    )
    with pytest.raises(ValueError, match=re.escape(needed)):
        model(batch())
    with pytest.raises(ValueError, match=r"action; call critic\.value\(observations, action\)$"):
        model.critic.value(batch())
    of_states = compose({"graph": POLICY["graph"]})
    refused = "the critic of this model values states; call it without an action"
    with pytest.raises(ValueError, match=re.escape(refused)):
        of_states(batch(), action=torques())


# --- one value for each choice ---


def test_each_choice_has_a_value_and_one_is_picked_by_an_action():
    critic = compose(OF_CHOICES, MOVE).critic
    all_values = critic(batch())["action_q_values"]
    assert all_values.shape == (5, 4)
    action = torch.tensor([0, 1, 2, 3, 3])
    values = critic(batch(), action)
    assert list(values) == ["action_q_values", "q_value"]
    torch.testing.assert_close(values["q_value"], all_values.gather(-1, action[:, None]))
    torch.testing.assert_close(critic.value(batch(), action), values["q_value"].squeeze(-1))


def test_without_an_action_the_value_is_that_of_the_best_one():
    critic = compose(OF_CHOICES, MOVE).critic
    best = critic(batch())["action_q_values"].max(dim=-1).values
    torch.testing.assert_close(critic.value(batch()), best)


def test_several_choices_together_are_worth_their_mean():
    action = spaces.Dict(move=spaces.Discrete(3), wheels=spaces.MultiDiscrete([2, 4]))
    critic = compose(OF_CHOICES, action).critic
    values = critic(batch(2), {"move": [2, 0], "wheels": [[1, 3], [0, 0]]})
    move, wheels = values["move_q_values"], values["wheels_q_values"]
    assert (move.shape, wheels.shape) == ((2, 3), (2, 6))
    first = (move[0, 2] + wheels[0, 1] + wheels[0, 2 + 3]) / 3
    second = (move[1, 0] + wheels[1, 0] + wheels[1, 2]) / 3
    torch.testing.assert_close(values["q_value"], torch.stack([first, second])[:, None])
    best = (move.amax(-1) + wheels[:, :2].amax(-1) + wheels[:, 2:].amax(-1)) / 3
    torch.testing.assert_close(critic.value(batch(2)), best)


def test_heads_by_choice_can_be_dueling_and_written_one_by_one():
    action = spaces.Dict(move=spaces.Discrete(3), use=spaces.Discrete(2))
    heads = {
        "move_q_values": {"block": "dueling", "in": "latent"},
        "use_q_values": {"in": "latent"},
    }
    critic = compose({**OF_CHOICES, "heads": heads}, action).critic
    values = critic(batch())
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "move_q_values": (5, 3),
        "use_q_values": (5, 2),
    }


# --- ensembles ---


def test_twins_differ_and_are_the_networks_that_one_would_get_alone():
    critic = compose({**OF_ACTION, "ensemble": 2}).critic
    values = critic(batch(), torques())["q_value"]
    assert values.shape == (5, 2, 1)
    assert not torch.isclose(values[:, 0], values[:, 1]).any()
    ensemble = critic.get_submodule("ensemble")
    assert ensemble.why_looped is None
    inputs = {"observation": batch(), "action/action": torques()}
    for index in range(2):
        (alone,) = ensemble.copy_of(index)(inputs).values()
        torch.testing.assert_close(values[:, index], alone)


def test_a_members_weights_depend_on_its_number_only():
    two = compose({**OF_ACTION, "ensemble": 2}).critic.state_dict()
    five = compose({**OF_ACTION, "ensemble": 5}).critic.state_dict()
    shared = [name for name in two if name.startswith("ensemble.")]
    assert len(shared) == 8
    assert all(torch.equal(two[name], five[name]) for name in shared)
    other = compose({**OF_ACTION, "ensemble": 2}, seed=1).critic.state_dict()
    assert not torch.equal(two[shared[0]], other[shared[0]])


def test_each_twin_has_a_value_for_each_choice():
    critic = compose({**OF_CHOICES, "ensemble": 3}, MOVE).critic
    values = critic(batch(), torch.tensor([0, 1, 2, 3, 3]))
    assert values["action_q_values"].shape == (5, 3, 4)
    assert values["q_value"].shape == (5, 3, 1)
    torch.testing.assert_close(values["q_value"][1, :, 0], values["action_q_values"][1, :, 1])
    torch.testing.assert_close(critic.value(batch()), values["action_q_values"].amax(-1))


def test_an_ensemble_of_states_has_an_axis_of_its_members():
    critic = compose({"ensemble": 2, "graph": POLICY["graph"]}).critic
    assert critic(batch())["value"].shape == (5, 2, 1)
    assert critic.value(batch()).shape == (5, 2)


# --- targets ---


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("ensemble", [1, 2])
def test_a_target_begins_as_a_copy_and_is_never_trained(ensemble):
    critic = compose({**OF_ACTION, "ensemble": ensemble}).critic
    state, action = batch(), torques()
    online = critic(state, action)["q_value"]
    assert torch.equal(critic.target(state, action)["q_value"], online)
    assert not any(parameter.requires_grad for parameter in critic.target.parameters())
    critic.target.value(state, action.requires_grad_()).sum().backward()
    assert all(p.grad is None for p in critic.target.parameters())
    assert action.grad.any()  # but it can be differentiated by the action
    assert sum(name.startswith("target.") for name in critic.state_dict()) == 4 * ensemble


def test_a_target_moves_by_tau():
    critic = compose({**OF_ACTION, "ensemble": 2}).critic
    before = tensors(critic.target)
    with torch.no_grad():
        for parameter in critic.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert all(torch.equal(tensors(critic.target)[name], before[name]) for name in before)
    critic.update_targets(0.25)
    for name, tensor in critic.target.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + 0.25)
    critic.update_targets(1.0)
    values = critic.value(batch(), torques())
    assert torch.equal(critic.target.value(batch(), torques()), values)
    for tau in (2, float("nan"), "fast"):
        with pytest.raises(
            ValueError, match=re.escape(f"tau must be between 0 and 1, got {tau!r}")
        ):
            critic.update_targets(tau)


def test_a_target_is_always_in_eval_mode():
    graph = {**OF_ACTION["graph"], "dropped": {"block": "torch.nn.Dropout", "in": "latent"}}
    critic = compose({**OF_ACTION, "graph": graph}).critic.train()
    state, action = batch(64), torques(64)
    assert not torch.equal(critic.value(state, action), critic.value(state, action))
    assert torch.equal(critic.target.value(state, action), critic.target.value(state, action))


def test_statistics_follow_into_the_target_as_asked():
    graph = {
        **OF_ACTION["graph"],
        "normed": {"block": "torch.nn.BatchNorm1d", "in": "latent", "num_features": 8},
    }
    critic = compose({**OF_ACTION, "graph": graph}).critic.train()
    critic(batch(64), torques(64))
    seen = critic.get_submodule("normed").running_mean.clone()
    target = critic.target.get_submodule("normed")
    assert seen.any()
    assert not target.running_mean.any()
    critic.update_targets(0.1, buffers="keep")
    assert not target.running_mean.any()
    critic.update_targets(0.5, buffers="blend")
    torch.testing.assert_close(target.running_mean, seen / 2)
    critic.update_targets(0.1)
    assert torch.equal(target.running_mean, seen)


@pytest.mark.parametrize("critic", [OF_ACTION, {**OF_ACTION, "ensemble": 2}])
def test_composing_without_weights_first_gives_the_same_critic_and_target(critic):
    direct, later = compose(critic), compose(critic, device="meta")
    assert all(parameter.is_meta for parameter in later.critic.parameters())
    later.materialize()
    torch.testing.assert_close(tensors(later), tensors(direct), rtol=0, atol=0)
    later.critic.update_targets(0.5)
    torch.testing.assert_close(tensors(later), tensors(direct), rtol=0, atol=0)


def test_targets_are_saved_and_loaded_and_copied_with_the_model(tmp_path):
    model = compose({**OF_ACTION, "ensemble": 2})
    with torch.no_grad():
        for parameter in model.critic.target.parameters():
            parameter.mul_(3.0)
    expected = model.critic.target.value(batch(), torques())
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.critic.target.value(batch(), torques()), expected)
        other.critic.update_targets(1.0)
        assert torch.equal(
            other.critic.target.value(batch(), torques()), other.critic.value(batch(), torques())
        )
    assert torch.equal(model.critic.target.value(batch(), torques()), expected)


def test_a_model_in_another_dtype_has_targets_in_it():
    critic = compose({**OF_ACTION, "ensemble": 2}).to(torch.float64).critic
    action = torques().double()
    assert critic.target.value(batch(), action).dtype == torch.float64
    assert critic.target.dtype == torch.float64
    critic.update_targets(0.5)


# --- memory ---


def test_a_critic_with_memory_steps_as_it_unrolls_and_so_does_its_target():
    graph = {**OF_ACTION["graph"], "memory": {"block": "lstm", "in": "latent", "hidden_units": 6}}
    critic = compose({**OF_ACTION, "graph": graph, "ensemble": 2}).critic.eval()
    states, actions = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    resets = torch.tensor([[True, False, True, False], [False, False, False, True]])
    start = {name: torch.randn_like(value) for name, value in critic.initial_state(2).items()}
    assert {name: tuple(value.shape) for name, value in start.items()} == {
        "ensemble/memory/h": (2, 2, 1, 6),
        "ensemble/memory/c": (2, 2, 1, 6),
    }
    for net in (critic, critic.target):
        expected, end = net.unroll(states, actions, start, resets)
        assert expected["q_value"].shape == (2, 4, 2, 1)
        state = start
        for t in range(4):
            value, state = net.value(states[:, t], actions[:, t], state, resets[:, t])
            torch.testing.assert_close(
                value, expected["q_value"][:, t].squeeze(-1), atol=1e-5, rtol=1e-5
            )
        torch.testing.assert_close(state, end, atol=1e-5, rtol=1e-5)
    message = (
        "this network has memory; call critic(observations, action, state, resets), "
        "beginning with initial_state(batch_size)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        critic(states[:, 0], actions[:, 0])


# --- what the policy shares ---


def test_a_critic_reads_what_the_policy_shares():
    graph = {
        "both": {"block": "concat", "in": ["latent", "action/action"]},
        "body": {"block": "dense", "in": "both", "hidden_units": 8},
    }
    model = compose({**OF_ACTION, "graph": graph}, policy={**POLICY, "shares": ["latent"]})
    logits = model.policy(batch())
    _, values = model(batch(), action=torques())
    torch.testing.assert_close(model.critic(batch(), torques(), shared=logits), values)
    torch.testing.assert_close(model.critic.target(batch(), torques(), shared=logits), values)
    with pytest.raises(ValueError, match=r"this critic reads 'latent' of the policy; call critic"):
        model.critic(batch(), torques())


def trained_by_the_critic_alone(**changes):
    """A model whose policy reads the encoder that it shares through a detach block."""
    graph = {
        "encoder": {"block": "dense", "in": "observation", "hidden_units": 8},
        "fixed": {"block": "detach", "in": "encoder"},
        "latent": {"block": "dense", "in": "fixed", "hidden_units": 8},
    }
    of_action = {
        "both": {"block": "concat", "in": ["encoder", "action/action"]},
        "latent": {"block": "dense", "in": "both", "hidden_units": 8},
    }
    policy = {"shares": ["encoder"], "graph": {**graph, **changes}, "heads": {"in": "latent"}}
    return compose({**OF_ACTION, "ensemble": 2, "graph": of_action}, policy=policy)


def gradients(model):
    """The nodes of the policy with a gradient."""
    nodes = {key.split(".")[0] for key, p in model.policy.named_parameters() if p.grad is not None}
    return nodes & {"encoder", "memory", "latent"}


def test_a_shared_encoder_behind_detach_is_trained_by_the_critic_alone():
    model = trained_by_the_critic_alone()
    model.policy(batch())["action"].sum().backward()
    assert gradients(model) == {"latent"}
    model.zero_grad()
    _, values = model(batch(), action=torques())
    values["q_value"].sum().backward()
    assert gradients(model) == {"encoder"}


def test_detach_holds_through_time_and_in_straight_line_code():
    memory = {"block": "gru", "in": "encoder", "hidden_units": 8}
    fixed = {"block": "detach", "in": "memory", "each": 1}
    model = trained_by_the_critic_alone(memory=memory, fixed=fixed)
    state = model.policy.initial_state(2)
    logits, _ = model.policy.unroll(torch.randn(2, 5, 3), state, torch.zeros(2, 5).bool())
    logits["action"].sum().backward()
    assert gradients(model) == {"latent"}
    model = trained_by_the_critic_alone()
    logits = model.policy.lower()(batch())
    logits["action"].sum().backward()
    assert gradients(model) == {"latent"}
    torch.testing.assert_close(logits["action"], model.policy(batch())["action"])


# --- what cannot be ---


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.zeros(5, 3), "action 'action' has shape (5, 3), expected (..., 2)"),
        (torch.zeros(4, 2), "the inputs differ in their leading (batch) axes: 'observation' (5,), 'action/action' (4,)"),
        ({"torque": torch.zeros(5, 2)}, "'torque' is not in the action space; it has 'action'"),
    ],
)  # fmt: skip
def test_an_action_that_does_not_fit_is_refused(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compose(OF_ACTION).critic(batch(), action)


def test_a_critic_of_states_takes_no_action_and_no_agents():
    with pytest.raises(ValueError, match="this critic has no memory; call it without a state"):
        compose({"template": {}}).critic(batch(), torques())
    message = (
        "critic.separate: 'separate' gives each agent a critic of its own, but this environment has no agents; "
        "leave it out"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        compose({"template": {}, "separate": True})


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.tensor([3, 4, 5, 6, 6]), "'action' is 4 at index (1,), outside of Discrete(4, start=3) counted from 0; policy.from_environment(action) counts an environment's action from zero"),
        (torch.tensor([0, 1]), "the action 'action' has the leading (batch) axes (2,), the observations (5,)"),
    ],
)  # fmt: skip
def test_a_choice_that_there_is_not_is_refused(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compose(OF_CHOICES, MOVE).critic(batch(), action)


def test_an_observation_called_like_the_action_is_refused():
    observation = spaces.Dict({"state": STATE, "action/action": TORQUE})
    policy = {**POLICY, "graph": {"latent": {"block": "dense", "in": "state", "hidden_units": 8}}}
    critic = {"kind": "state_action", "template": {}}
    message = (
        "the observation 'action/action' is called as the action is that the critic reads; "
        "rename it, or name it under 'ignore'"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        compose(critic, policy=policy, observation=observation)


# --- in a real environment ---


def test_twins_learn_in_pendulum():
    """A few steps of soft actor-critic: losses are finite, weights move, targets follow slowly."""
    env = gymnasium.make("Pendulum-v1")
    model = compose(
        {**OF_ACTION, "ensemble": 2}, env.action_space, observation=env.observation_space
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    state, _ = env.reset(seed=0)
    before = tensors(model.critic.target)
    for _ in range(10):
        action = model.policy.act(state)
        following, reward, terminated, _, _ = env.step(action)
        with torch.no_grad():
            ahead = model.policy.distribution(following)
            chosen = ahead.sample()
            lowest = model.critic.target.value(following, chosen).amin(-1) - ahead.log_prob(chosen)
            goal = torch.tensor(reward) + 0.99 * (1 - terminated) * lowest
        taken = model.policy.from_environment(action)
        judged = ((model.critic.value(state, taken) - goal) ** 2).mean()
        drawn = model.policy.distribution(state).rsample()
        loss = judged - model.critic.value(state, drawn).amin(-1)
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.critic.update_targets(0.005)
        state = following
    env.close()
    after = model.critic.target.state_dict()
    moved = [(after[name] - tensor).abs().max() for name, tensor in before.items()]
    assert all(0 < distance < 0.01 for distance in moved)


@pytest.mark.parametrize("name", ["q_value", "q_value_", "ensemble"])
def test_an_ensemble_reads_an_observation_that_is_called_like_its_output(name):
    def built(name):
        graph = {"both": {"block": "concat", "in": [name, "action/action"]}}
        spec = {
            "version": 1,
            "policy": {
                "graph": {"latent": {"block": "dense", "in": name, "hidden_units": 4}},
                "heads": {"in": "latent"},
            },
            "critic": {"kind": "state_action", "ensemble": 2, "graph": graph},
        }
        both = {
            "observation_space": spaces.Dict({name: spaces.Box(-1, 1, (2,))}),
            "action_space": spaces.Box(-1, 1, (2,)),
        }
        return composer.compose(spec, **both, seed=0)

    model, plain = built(name), built("seen")
    assert model.critic.state_dict().keys() == plain.critic.state_dict().keys()
    seen, action = torch.randn(3, 2), torch.rand(3, 2)
    values = model.critic({name: seen}, action)
    assert values.keys() == {"q_value"}
    torch.testing.assert_close(values["q_value"], plain.critic({"seen": seen}, action)["q_value"])
    torch.testing.assert_close(
        model.critic.target.value({name: seen}, action),
        plain.critic.target.value({"seen": seen}, action),
    )
