"""compose gives a model whose every part is determined by the spec, the spaces and the seed, and nothing else moves."""

import copy
import pickle
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer import SpecError
from composer.cli.write_out import written_out

OBSERVATIONS = spaces.Dict(
    screen=spaces.Box(0, 255, (3, 36, 36), np.uint8),
    inventory=spaces.Box(-1, 1, (16,)),
    level=spaces.Discrete(5, start=2),
)
ACTIONS = spaces.Dict(move=spaces.Discrete(4, start=-1), use=spaces.MultiBinary(6))
SPEC = {
    "version": 1,
    "policy": {
        "graph": {
            "scaled": {"block": "scale_image", "in": "screen"},
            "latent_screen": {"block": "nature_cnn_dense", "in": "scaled", "hidden_units": [32]},
            "latent_level": {"block": "one_hot", "in": "level"},
            "both": {"block": "concat", "in": ["latent_screen", "latent_level", "inventory"]},
            "latent": {"block": "dense", "in": "both", "hidden_units": [16]},
        },
        "heads": {"in": "latent", "init_scale": 0.01},
        "shares": ["latent_screen"],
    },
    "critic": {
        "graph": {
            "both": {"block": "concat", "in": ["latent_screen", "inventory"]},
            "latent": {"block": "dense", "in": "both", "hidden_units": [16]},
        }
    },
}


def compose(spec=SPEC, **keywords):
    keywords = {"observation_space": OBSERVATIONS, "action_space": ACTIONS, "seed": 0} | keywords
    return composer.compose(spec, **keywords)


def observations(batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "screen": rng.integers(0, 256, (batch, 3, 36, 36), dtype=np.uint8),
        "inventory": rng.uniform(-1, 1, (batch, 16)).astype(np.float32),
        "level": rng.integers(2, 7, (batch,)),
    }


def recurrent_spec():
    spec = copy.deepcopy(SPEC)
    spec["policy"]["graph"]["memory"] = {"block": "lstm", "in": "latent", "hidden_units": 8}
    spec["policy"]["heads"] = {"in": "memory"}
    spec["critic"]["graph"]["memory"] = {"block": "gru", "in": "latent", "hidden_units": 8}
    return spec


def test_a_model_gives_logits_and_values():
    logits, values = compose()(observations(3))
    assert {name: tuple(value.shape) for name, value in {**logits, **values}.items()} == {
        "move": (3, 4),
        "use": (3, 6),
        "latent_screen": (3, 32),
        "value": (3, 1),
    }


def test_the_shared_part_runs_once_and_gradients_flow_into_it():
    model = compose()
    calls = []
    model.policy.get_submodule("latent_screen").register_forward_hook(lambda *_: calls.append(1))
    _, values = model(observations(2))
    assert calls == [1]
    values["value"].sum().backward()
    shared = list(model.policy.get_submodule("latent_screen").parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in shared)
    assert model.policy.get_submodule("latent").linears[0].weight.grad is None


def test_shared_parameters_belong_to_the_policy_once():
    model = compose()
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    assert not any(name.startswith("critic.latent_screen") for name in model.state_dict())


def test_a_critic_that_lacks_the_shared_values_says_how_to_call_it():
    model = compose()
    with pytest.raises(ValueError, match=r"this critic reads 'latent_screen' of the policy; call"):
        model.critic(observations(2))
    with pytest.raises(ValueError, match=r"call critic\.value") as caught:
        model.critic.value(observations(2))
    assert str(caught.value) == (
        "this critic reads 'latent_screen' of the policy; call critic.value(observations, shared=logits) with the "
        "logits that the policy returns"
    )
    shared = model.policy(observations(2))
    assert model.critic.value(observations(2), shared=shared).shape == (2,)


def test_parameters_are_named_by_their_nodes():
    names = set(compose().state_dict())
    assert "policy.latent.linears.0.weight" in names
    assert "policy.heads.move.linear.weight" in names
    assert "critic.latent.linears.0.weight" in names


# --- seeds and side effects ---------------------------------------------------------------------


def states(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second) -> None:
    torch.testing.assert_close(states(first), states(second), rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights():
    assert_same(compose(seed=3), compose(seed=3))
    assert not torch.equal(
        compose(seed=3).state_dict()["policy.latent.linears.0.weight"],
        compose(seed=4).state_dict()["policy.latent.linears.0.weight"],
    )


def test_a_weight_depends_on_its_own_name_only():
    other = copy.deepcopy(SPEC)
    other["policy"]["graph"] = {
        "before": {"block": "dense", "in": "inventory", "hidden_units": [3]}
    } | other["policy"]["graph"]
    other["policy"]["graph"]["both"]["in"] = [
        "latent_screen",
        "latent_level",
        "inventory",
        "before",
    ]
    first, second = compose().state_dict(), compose(other).state_dict()
    for name in (
        "policy.latent_screen.dense.linears.0.weight",
        "policy.heads.use.linear.weight",
        "critic.latent.linears.0.bias",
    ):
        if name in first:
            assert torch.equal(first[name], second[name]), name


def test_composing_moves_no_random_state_and_changes_nothing_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec, torch_state, numpy_state = (
        copy.deepcopy(SPEC),
        torch.get_rng_state(),
        np.random.get_state(),
    )
    space_state = copy.deepcopy(OBSERVATIONS.np_random.bit_generator.state)
    compose(spec)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state()))
    assert space_state == OBSERVATIONS.np_random.bit_generator.state
    assert spec == SPEC
    assert list(tmp_path.iterdir()) == []


def test_without_a_seed_one_number_is_drawn_and_kept():
    torch.manual_seed(5)
    first = compose(seed=None)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    expected = int(torch.randint(2**62, ()))
    assert first.seed == expected
    assert torch.equal(after, torch.get_rng_state())
    assert_same(first, compose(seed=expected))


def test_composing_on_meta_then_materialising_is_composing():
    empty = compose(device="meta")
    assert all(p.is_meta for p in empty.parameters())
    assert_same(empty.materialize("cpu"), compose())
    with pytest.raises(ValueError, match="this model has its weights already"):
        empty.materialize("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_may_have_another_dtype(dtype):
    model = compose(dtype=dtype)
    logits, values = model(observations(2))
    assert {value.dtype for value in (*logits.values(), *values.values())} == {dtype}
    assert model.action_space.contains(model.policy.act(single(observations(1))))


def test_initialisers_by_name_for_body_and_heads():
    spec = copy.deepcopy(SPEC)
    spec["policy"]["heads"] = {"in": "latent"}
    spec["policy"]["init"] = {"body": "orthogonal", "heads": {"orthogonal": {"gain": 0.01}}}
    policy = compose(spec).policy
    weight = policy.get_submodule("latent").linears[0].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), atol=1e-5, rtol=0)
    head = policy.get_submodule("heads.move").linear
    torch.testing.assert_close(head.weight @ head.weight.T, 1e-4 * torch.eye(4), atol=1e-7, rtol=0)
    assert head.bias.abs().sum() == 0


def test_heads_start_near_uniform_with_a_small_scale():
    probabilities = torch.softmax(compose().policy(observations(8))["move"], -1)
    assert (probabilities - 0.25).abs().max() < 0.02


# --- acting -------------------------------------------------------------------------------------


def single(batch):
    return {name: value[0] for name, value in batch.items()}


def test_actions_are_legal_and_as_their_observation_is():
    policy = compose().policy
    action = policy.act(single(observations(1)))
    assert ACTIONS.contains(action)
    batched = policy.act(observations(5))
    assert {k: (type(v), v.shape) for k, v in batched.items()} == {
        "move": (np.ndarray, (5,)),
        "use": (np.ndarray, (5, 6)),
    }
    assert all(ACTIONS.contains({k: v[i] for k, v in batched.items()}) for i in range(5))
    tensors = {k: torch.as_tensor(v) for k, v in observations(5).items()}
    assert all(isinstance(v, torch.Tensor) for v in policy.act(tensors).values())


def test_log_prob_of_a_joint_action_is_the_sum_of_its_parts():
    distribution = compose().policy.distribution(observations(5))
    action = distribution.sample()
    parts = [distribution.parts[name].log_prob(action[name]) for name in action]
    torch.testing.assert_close(distribution.log_prob(action), sum(parts))
    assert distribution.log_prob(action).shape == distribution.entropy().shape == (5,)


def test_an_environments_action_becomes_one_of_the_distribution():
    policy = compose().policy
    distribution = policy.distribution(observations(5))
    action = policy.act(observations(5))
    encoded = policy.from_environment(action)
    assert encoded["move"].tolist() == (action["move"] + 1).tolist()
    assert distribution.log_prob(encoded).isfinite().all()
    single_action = composer.compose("configs/cartpole.yaml").policy.from_environment(np.int64(1))
    assert single_action.tolist() == 1


def test_masks_come_from_an_observation_or_from_the_call():
    observed = spaces.Dict(x=spaces.Box(-1, 1, (4,)), legal=spaces.MultiBinary(3))
    spec = {
        "version": 1,
        "policy": {
            "graph": {"latent": {"block": "dense", "in": "x", "hidden_units": [8]}},
            "heads": {"in": "latent"},
            "action_mask": {"action": "legal"},
        },
    }
    policy = compose(spec, observation_space=observed, action_space=spaces.Discrete(3)).policy
    batch = {
        "x": np.zeros((200, 4), np.float32),
        "legal": np.tile(np.array([1, 1, 0], np.int8), (200, 1)),
    }
    assert set(policy.act(batch)) == {0, 1}
    assert set(policy.act(batch, mask=np.array([False, True, True]))) == {1}
    assert policy.distribution(batch, mask=np.array([0, 1, 1])).entropy().abs().max() < 1e-6
    with pytest.raises(ValueError, match="there is no action 'mve' to mask; did you mean 'move'"):
        compose().policy.act(observations(2), mask={"mve": np.ones(4)})
    with pytest.raises(
        ValueError, match="has several actions: give mask as a dict of 'move', 'use'"
    ):
        compose().policy.act(observations(2), mask=np.ones(4))
    with pytest.raises(ValueError, match="'mask' must be numbers, got a str"):
        policy.act(batch, mask="all")


def test_acting_in_a_vector_environment():
    environments = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync")
    model = composer.compose("configs/cartpole.yaml", env=environments)
    observation, _ = environments.reset(seed=0)
    for _ in range(20):
        observation, *_ = environments.step(model.policy.act(observation))
    environments.close()


def test_a_network_class_may_preprocess_and_act_itself():
    class Own(torch.nn.Module):
        def __init__(self, obs_shapes, action_logits_shapes):
            super().__init__()
            self.linear = torch.nn.Linear(4, 2)

        def preprocess(self, observation):
            return np.asarray(observation) * 0

        def forward(self, inputs):
            assert inputs["observation"].abs().sum() == 0
            return {"action": self.linear(inputs["observation"])}

        def act(self, observation):
            return 1

    spec = {"version": 1, "environment": "CartPole-v1", "policy": {"_target_": Own}}
    policy = composer.compose(spec).policy
    assert policy.act(np.ones(4, np.float32)) == 1
    torch.testing.assert_close(policy(np.ones(4))["action"], policy.network.module.linear.bias)


# --- names and batches -------------------------------------------------------------------------


def test_observations_of_different_batches_are_refused():
    mixed = observations(2) | {"level": np.array([2])}
    message = r"leading \(batch\) axes: 'screen' \(2,\), 'inventory' \(2,\), 'level' \(1,\)"
    with pytest.raises(ValueError, match=message):
        compose().policy(mixed)


@pytest.mark.parametrize("name", ["act", "preprocess"])
def test_a_node_may_be_named_like_a_hook_of_custom_classes(name):
    nodes = {name: {"block": "dense", "in": "observation", "hidden_units": 4}}
    spec = {"version": 1, "policy": {"graph": nodes, "heads": {"in": name}}}
    model = composer.compose(spec, env="CartPole-v1")
    assert model.policy.act(np.zeros(4, np.float32)) in (0, 1)


def test_shared_values_of_another_batch_are_refused():
    model = compose()
    with pytest.raises(
        ValueError, match=r"the inputs differ in their leading \(batch\) axes: .*\(3,\)"
    ):
        model.critic(observations(3), shared=model.policy(observations(1)))


def test_module_names_depend_on_no_other_name():
    actions = spaces.Dict(
        {"a.b": spaces.Discrete(2), "a_b": spaces.Discrete(2), "type": spaces.Discrete(2)}
    )
    spec = {
        "version": 1,
        "policy": {
            "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [4]}},
            "heads": {"in": "latent"},
        },
    }
    model = compose(spec, observation_space=spaces.Box(-1, 1, (3,)), action_space=actions)
    heads = {name.split(".")[2] for name in model.state_dict() if name.startswith("policy.heads")}
    assert heads == {"a%2Eb", "a_b", "%74ype"}
    assert set(model.policy(torch.zeros(3))) == {"a.b", "a_b", "type"}


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_a_model_of_its_own(clone):
    model = compose(recurrent_spec())
    other = clone(model)
    assert_same(model, other)
    torch.testing.assert_close(
        other(observations(2), other.initial_state(2)),
        model(observations(2), model.initial_state(2)),
    )
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert not torch.equal(next(other.parameters()), next(model.parameters()))
    other.double()
    assert next(model.parameters()).dtype == torch.float32


def test_train_and_eval_reach_every_module():
    model = compose().eval()
    assert not any(m.training for m in model.modules())
    assert not model.policy.network.module.training
    model.train()
    assert model.policy.network.module.training


def test_normalisers_learn_only_when_told_and_are_saved(tmp_path):
    spec = {**SPEC, "normalize": ["inventory"]}
    model = compose(spec)
    before = model(observations(4))[0]["move"]
    model.train()(observations(4))
    torch.testing.assert_close(model(observations(4))[0]["move"], before)
    model.update_normalizers({"inventory": observations(64)["inventory"] * 3 + 1})
    assert not torch.allclose(model(observations(4))[0]["move"], before)
    model.save(tmp_path / "m.safetensors")
    loaded = composer.load(tmp_path / "m.safetensors")
    torch.testing.assert_close(loaded(observations(4)), model(observations(4)))


# --- what is refused ----------------------------------------------------------------------------


def refused(spec, **keywords) -> str:
    with pytest.raises(SpecError) as caught:
        compose(spec, **keywords)
    return str(caught.value)


def test_an_observation_that_no_one_reads_is_an_error():
    spec = copy.deepcopy(SPEC)
    spec["policy"]["graph"]["both"]["in"] = ["latent_screen", "inventory"]
    del spec["policy"]["graph"]["latent_level"]
    assert refused(spec) == (
        "policy: the observation 'level' is read by no network; name it under 'ignore' if that is meant"
    )
    compose({**spec, "ignore": ["level"]})


def test_policy_and_critic_problems_come_together():
    spec = copy.deepcopy(SPEC)
    spec["policy"]["graph"]["latent"]["activation"] = "rleu"
    spec["critic"]["graph"]["latent"]["hidden_unit"] = 3
    text = refused(spec)
    assert (
        "policy.graph.latent.activation: 'activation' names the unknown activation 'rleu'" in text
    )
    assert (
        "critic.graph.latent.hidden_unit: 'hidden_unit' is not a setting of block 'dense'" in text
    )


def test_compose_needs_to_know_the_spaces():
    with pytest.raises(
        ValueError, match=r"compose needs env=\.\.\., both spaces, or a spec with an 'environment'"
    ):
        composer.compose(SPEC)
    with pytest.raises(ValueError, match=r"env is an environment, .* or an id, got a Discrete"):
        composer.compose(SPEC, env=spaces.Discrete(3))
    with pytest.raises(ValueError, match="give both observation_space and action_space, or an env"):
        composer.compose(SPEC, observation_space=OBSERVATIONS)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"seed": "7"}, "seed is a whole number or None, got '7'"),
        ({"seed": 1.5}, "seed is a whole number or None, got 1.5"),
        ({"dtype": "float32"}, "dtype is a floating point type such as torch.float32, got 'float32'"),
        ({"dtype": torch.int32}, "dtype is a floating point type such as torch.float32, got torch.int32"),
        ({"dtype": torch.float8_e4m3fn}, "dtype is a floating point type such as torch.float32, got torch.float8_e4m3fn"),
        ({"allow": "my_nets"}, "allow is a list of modules, got the text 'my_nets'; write allow=['my_nets']"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_refused_in_words(keywords, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compose(**keywords)


def test_a_numpy_seed_is_a_number_like_any_other(tmp_path):
    model = compose(seed=np.int64(3))
    model.save(tmp_path / "agent.safetensors")
    assert composer.load(tmp_path / "agent.safetensors").seed == 3


def test_every_normalised_observation_has_statistics_of_its_own():
    keys = ["a.b", "a_b", "a b", "type", "keys", ""]
    space = spaces.Dict({key: spaces.Box(-9, 9, (1,)) for key in keys})
    spec = {"version": 1, "normalize": keys, "policy": {"template": {}}}
    model = composer.compose(spec, observation_space=space, action_space=spaces.Discrete(2))
    model.update_normalizers({key: np.full((8, 1), i) for i, key in enumerate(keys)})
    means = [b.item() for n, b in model.named_buffers() if n.endswith(".mean")]
    assert means == [0, 1, 2, 3, 4, 5]


def test_torchs_default_device_changes_nothing():
    spec = {**SPEC, "normalize": ["inventory"]}
    expected = compose(spec, dtype=torch.float64).state_dict()
    with torch.device("meta"):
        model = compose(spec, dtype=torch.float64)
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


SINGLE: dict[str, Any] = {"template": {"memory": {"block": "gru", "hidden_units": 4}}}


@pytest.mark.parametrize("listed", [["policy"], ["critic"], ["policy", "critic"]])
def test_without_actors_a_list_of_one_network_is_that_network(listed, tmp_path):
    spaces_of = {"observation_space": spaces.Box(-1, 1, (3,)), "action_space": spaces.Discrete(2)}
    plain = {"version": 1, "policy": SINGLE, "critic": SINGLE}
    lists = plain | {name: {"networks": [SINGLE]} for name in listed}
    alone, model = (composer.compose(spec, **spaces_of, seed=0) for spec in (plain, lists))
    model.save(tmp_path / "model.safetensors")
    for made in (model, composer.load(tmp_path / "model.safetensors")):
        ours, theirs = made.state_dict(), alone.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        lines = [line for line in made.summary().splitlines() if not line.startswith("spec ")]
        assert len(lines) == len(alone.summary().splitlines())
        made.draw(tmp_path / "a.dot")
        alone.draw(tmp_path / "b.dot")
        assert (tmp_path / "a.dot").read_text() == (tmp_path / "b.dot").read_text()
    again = composer.compose(written_out(model), **spaces_of, seed=0)
    assert list(again.state_dict()) == list(alone.state_dict())


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([SINGLE, SINGLE], "networks: networks by step or agent need an environment with steps or agents; this one takes a single network"),
        ({"a": SINGLE}, "networks: networks by step or agent need an environment with steps or agents; this one takes a single network"),
        ([{**SINGLE, "separate": True}], "networks.0.separate: 'separate' gives each agent"),
    ],
)  # fmt: skip
def test_without_actors_several_networks_are_refused(networks, message):
    spaces_of = {"observation_space": spaces.Box(-1, 1, (3,)), "action_space": spaces.Discrete(2)}
    for name in ("policy", "critic"):
        spec = {"version": 1, "policy": SINGLE, "critic": SINGLE} | {name: {"networks": networks}}
        with pytest.raises(SpecError, match=re.escape(f"{name}.{message}")):
            composer.compose(spec, **spaces_of)
