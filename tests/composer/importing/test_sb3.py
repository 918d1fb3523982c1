"""Agents of Stable-Baselines3 and sb3-contrib as specs with their weights: the outputs are those of the library."""

import io
import json
import os
import pickle
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn

import composer
from composer.checkpoint.container import CheckpointError
from composer.errors import SpecError
from composer.importing import import_config, read_checkpoint

VECTOR, CHOICE = Box(-9, 9, (5,)), Discrete(3)
PUSH = Box(np.array([-2, 0], np.float32), np.array([2, 6], np.float32))
IMAGE = Box(0, 255, (36, 36, 3), np.uint8)
MIXED = Dict(
    {
        "camera": IMAGE,
        "joints": Box(-1, 1, (4,)),
        "map": Box(-1, 1, (2, 3)),
        "mode": Discrete(3),
        "modes": MultiDiscrete([2, 3]),
        "flags": MultiBinary(4),
    }
)


class Env(gymnasium.Env):
    def __init__(self, observations, actions):
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}

    def action_masks(self):
        return np.ones(3, bool)


def saved(folder, algorithm, policy, observations, actions, change=None, **keywords):
    """An agent with weights that are not small, and the file that it is saved in."""
    is_off_policy = issubclass(algorithm, OffPolicyAlgorithm)
    more = {"buffer_size": 10} if is_off_policy else {"n_steps": 64}
    torch.manual_seed(0)
    env = Env(observations, actions)
    agent = algorithm(policy, env, seed=0, device="cpu", **more, **keywords)
    with torch.no_grad():
        for name, parameter in agent.policy.named_parameters():
            parameter.normal_(std=0.1 if "cnn" in name or "linear" in name else 0.3)
        if change is not None:
            change(agent)
    agent.policy.set_training_mode(False)
    agent.save(folder / "agent.zip")
    return agent


def adopted(folder, observations, actions):
    imported = import_config(folder / "agent.zip")
    model = composer.compose(imported.spec, observation_space=observations, action_space=actions)
    weights = read_checkpoint(folder / "agent.zip")
    report = composer.adopt_weights(model, weights.tensors, imported.weights, strict=True)
    return imported, model, report


def samples(space, count=6):
    space.seed(1)
    drawn = [space.sample() for _ in range(count)]
    if isinstance(space, Dict):
        return {key: np.stack([each[key] for each in drawn]) for key in space}
    return np.stack(drawn)


def theirs_of(agent, seen):
    """The observations as the agent's policy takes them."""
    return agent.policy.obs_to_tensor(seen)[0]


def close(ours, theirs):
    torch.testing.assert_close(ours.reshape(theirs.shape), theirs, rtol=1e-5, atol=1e-5)


def logits_of(distribution):
    inner = distribution.distribution
    if isinstance(inner, list):
        return torch.cat([each.logits for each in inner], -1)
    return inner.logits if hasattr(inner, "logits") else inner.mean


SIZES = {"pi": [7, 6], "vf": [9]}
ACTOR_CRITICS = {
    "default": (PPO, "MlpPolicy", VECTOR, PUSH, {}),
    "a2c": (A2C, "MlpPolicy", VECTOR, CHOICE, {}),
    "sizes": (PPO, "MlpPolicy", VECTOR, PUSH, {"net_arch": SIZES, "activation_fn": nn.ELU, "log_std_init": -1.0}),
    "list": (PPO, "MlpPolicy", VECTOR, MultiDiscrete([2, 3]), {"net_arch": [8], "ortho_init": False}),
    "linear": (PPO, "MlpPolicy", VECTOR, MultiBinary(3), {"net_arch": []}),
    "policy only": (PPO, "MlpPolicy", VECTOR, CHOICE, {"net_arch": {"pi": [8]}}),
    "categories": (PPO, "MlpPolicy", MultiDiscrete([3, 4]), CHOICE, {"net_arch": [8]}),
    "image": (PPO, "CnnPolicy", IMAGE, CHOICE, {}),
    "image apart": (
        PPO, "CnnPolicy", IMAGE, CHOICE,
        {"share_features_extractor": False, "features_extractor_kwargs": {"features_dim": 16}, "net_arch": [8]},
    ),
    "mixed": (PPO, "MultiInputPolicy", MIXED, PUSH, {"features_extractor_kwargs": {"cnn_output_dim": 16}}),
    "mixed apart": (PPO, "MultiInputPolicy", MIXED, CHOICE, {"share_features_extractor": False, "net_arch": [8]}),
    "mask": (MaskablePPO, "MlpPolicy", VECTOR, CHOICE, {"net_arch": [8]}),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTOR_CRITICS)
def test_actor_critics(name, tmp_path):
    algorithm, policy, observations, actions, kwargs = ACTOR_CRITICS[name]
    agent = saved(tmp_path, algorithm, policy, observations, actions, policy_kwargs=kwargs)
    imported, model, report = adopted(tmp_path, observations, actions)
    assert report.skipped == []
    note = "action_masks() of the environment: name the observation that holds the mask under 'action_mask:'"
    assert (note in imported.notes) == (name == "mask")
    seen = samples(observations)
    with torch.no_grad():
        logits, values = model(seen)
        x = theirs_of(agent, seen)
        theirs = logits_of(agent.policy.get_distribution(x))
        if name in (
            "a2c",
            "policy only",
            "categories",
            "image",
            "image apart",
            "mixed apart",
            "mask",
        ):
            logits["action"] = logits["action"].log_softmax(-1)  # as torch normalises them
        elif name == "list":
            logits["action"] = torch.cat(
                [p.log_softmax(-1) for p in logits["action"].split([2, 3], -1)], -1
            )
        close(logits["action"], theirs)
        close(values["value"], agent.policy.predict_values(x))
        if isinstance(actions, Box):
            log_std = model.policy.get_parameter("distributions.action.log_std")
            close(log_std, agent.policy.log_std)
    assert imported.left == []
    masks = "action_masks() of the environment: name the observation that holds the mask under 'action_mask:'"
    assert (masks in imported.notes) == (name == "mask")


MEMORIES = {
    "apart": {},
    "layers": {"n_lstm_layers": 2, "lstm_hidden_size": 6},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False, "lstm_hidden_size": 6},
    "none": {"enable_critic_lstm": False, "lstm_hidden_size": 6},
}


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "CnnLstmPolicy"])
def test_recurrent_policies(policy, name, tmp_path):
    observations = VECTOR if policy == "MlpLstmPolicy" else IMAGE
    kwargs = {"net_arch": [8], **MEMORIES[name]}
    agent = saved(tmp_path, RecurrentPPO, policy, observations, CHOICE, policy_kwargs=kwargs)
    imported, model, _ = adopted(tmp_path, observations, CHOICE)
    seen = samples(observations, 3)
    state, inner = model.initial_state(1), None
    starts = torch.ones(1)
    sizes = agent.policy.lstm_hidden_state_shape
    zeros = tuple(torch.zeros(sizes) for _ in range(2))
    inner = type(agent._last_lstm_states)(zeros, zeros)
    with torch.no_grad():
        for t in range(3):
            logits, values, state = model(seen[t : t + 1], state)
            x = theirs_of(agent, seen[t : t + 1])
            value = agent.policy.predict_values(x, inner.vf, starts)
            distribution, _ = agent.policy.get_distribution(x, inner.pi, starts)
            _, _, _, inner = agent.policy.forward(x, inner, starts, deterministic=True)
            close(logits["action"].log_softmax(-1), distribution.distribution.logits)
            close(values["value"], value)
            starts = torch.zeros(1)
    assert imported.left == []


@pytest.mark.parametrize(
    ("policy", "observations"),
    [("MlpPolicy", VECTOR), ("CnnPolicy", IMAGE), ("MultiInputPolicy", MIXED)],
)
def test_the_logits_of_a_dqn_are_its_values(policy, observations, tmp_path):
    agent = saved(tmp_path, DQN, policy, observations, CHOICE)
    _, model, report = adopted(tmp_path, observations, CHOICE)
    seen = samples(observations)
    with torch.no_grad():
        close(model.policy(seen)["action"], agent.q_net(theirs_of(agent, seen)))
    assert model.critic is None
    assert report.skipped[0].startswith("not used: 'q_net_target.")


OFF_POLICY = {
    "sac": (SAC, "MlpPolicy", VECTOR, {"net_arch": {"pi": [8], "qf": [7, 6]}}),
    "sac default": (SAC, "MlpPolicy", VECTOR, {}),
    "td3": (TD3, "MlpPolicy", VECTOR, {"net_arch": [8], "n_critics": 3, "activation_fn": nn.Tanh}),
    "ddpg": (DDPG, "MlpPolicy", VECTOR, {"net_arch": []}),
    "sac image": (SAC, "CnnPolicy", IMAGE, {"share_features_extractor": True}),
    "td3 image": (TD3, "CnnPolicy", IMAGE, {"net_arch": [8]}),
    "sac mixed": (SAC, "MultiInputPolicy", MIXED, {"net_arch": [8]}),
}


@pytest.mark.parametrize("name", OFF_POLICY)
def test_q_functions_of_continuous_actions(name, tmp_path):
    """The critics of the library read actions between -1 and 1, ours in the units of the space."""
    algorithm, policy, observations, kwargs = OFF_POLICY[name]
    agent = saved(tmp_path, algorithm, policy, observations, PUSH, policy_kwargs=kwargs)
    imported, model, _ = adopted(tmp_path, observations, PUSH)
    seen, actions = samples(observations), samples(PUSH)
    scaled = torch.as_tensor(agent.policy.scale_action(actions))
    with torch.no_grad():
        x = theirs_of(agent, seen)
        ours = model.policy.act(seen, deterministic=True)
        theirs, _ = agent.policy.predict(seen, deterministic=True)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        if algorithm is SAC:
            mean, log_std, _ = agent.actor.get_action_dist_params(x)
            raw = model.policy(seen)["action"]
            close(raw, torch.cat([mean, log_std], -1)) if float(log_std.max()) < 2 else close(
                raw[..., :2], mean
            )
        for critic, other in (
            (model.critic, agent.critic),
            (model.critic.target, agent.critic_target),
        ):
            values = torch.cat(other(x, scaled), -1)
            mine = critic.value(seen, torch.as_tensor(actions)) if not critic.shared else None
            if mine is None:
                _, outputs = model(seen, action=torch.as_tensor(actions))
                mine = outputs["q_value"]
                if critic is not model.critic:
                    continue
            close(mine.reshape(values.shape), values)
    assert imported.left == []


def test_a_spec_says_what_the_policy_began_with(tmp_path):
    saved(
        tmp_path,
        PPO,
        "MlpPolicy",
        VECTOR,
        PUSH,
        policy_kwargs={"net_arch": SIZES, "log_std_init": -1.0},
    )
    spec = import_config(tmp_path / "agent.zip").spec
    body = {"orthogonal": {"gain": 1.414214}}
    assert spec == {
        "version": 1,
        "distributions": [
            {"space": "box", "distribution": "gaussian", "log_std": "learned", "init_log_std": -1.0}
        ],
        "policy": {
            "init": {"body": body, "heads": {"orthogonal": {"gain": 0.01}}},
            "graph": {
                "latent": {
                    "block": "dense",
                    "in": "observation",
                    "hidden_units": [7, 6],
                    "activation": "tanh",
                }
            },
            "heads": {"in": "latent"},
        },
        "critic": {
            "init": {"body": body, "heads": {"orthogonal": {"gain": 1.0}}},
            "graph": {
                "latent": {
                    "block": "dense",
                    "in": "observation",
                    "hidden_units": [9],
                    "activation": "tanh",
                }
            },
            "heads": {"in": "latent"},
        },
    }


# --- layers of earlier versions ---


def rewritten(path, **parts):
    """The archive with other ``parts``: bytes, None to leave one out, or a function of what is there."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in {
            **kept,
            **{k.replace("_pth", ".pth"): v for k, v in parts.items()},
        }.items():
            part = part(kept[name]) if callable(part) else part
            if part is not None:
                archive.writestr(name, part)


def changed(**settings):
    def change(data):
        return json.dumps({**json.loads(data), **settings}).encode()

    return change


def test_layers_that_policy_and_critic_shared_before_1_8(tmp_path):
    saved(tmp_path, PPO, "MlpPolicy", VECTOR, CHOICE, policy_kwargs={"net_arch": [8]})
    old = changed(policy_kwargs={"net_arch": [8, 7, {"vf": [6]}]})
    tensors = nn.ModuleDict(
        {
            "mlp_extractor": nn.ModuleDict(
                {
                    "shared_net": nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7)),
                    "value_net": nn.Sequential(nn.Linear(7, 6)),
                }
            ),
            "action_net": nn.Linear(7, 3),
            "value_net": nn.Linear(6, 1),
        }
    ).state_dict()
    file = io.BytesIO()
    torch.save(tensors, file)
    rewritten(
        tmp_path / "agent.zip",
        data=old,
        policy_pth=file.getvalue(),
        _stable_baselines3_version=b"1.7.0",
    )
    imported, model, _ = adopted(tmp_path, VECTOR, CHOICE)
    assert imported.spec["policy"]["shares"] == ["shared"]
    assert [*imported.spec["policy"]["graph"]] == ["shared"]
    x = torch.randn(2, 5)
    one = (
        x @ tensors["mlp_extractor.shared_net.0.weight"].T
        + tensors["mlp_extractor.shared_net.0.bias"]
    ).tanh()
    two = (
        one @ tensors["mlp_extractor.shared_net.2.weight"].T
        + tensors["mlp_extractor.shared_net.2.bias"]
    ).tanh()
    close(
        model.policy(x)["action"], two @ tensors["action_net.weight"].T + tensors["action_net.bias"]
    )

    rewritten(tmp_path / "agent.zip", data=changed(policy_kwargs={"net_arch": [8]}))
    spec = import_config(tmp_path / "agent.zip").spec
    assert spec["critic"]["graph"] == {}  # a list alone was shared, too
    rewritten(tmp_path / "agent.zip", _stable_baselines3_version=b"2.0.0")
    assert "latent" in import_config(tmp_path / "agent.zip").spec["critic"]["graph"]


# --- what is refused ---


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile_was_here",))


def test_pickles_in_an_agent_are_inert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, PPO, "MlpPolicy", VECTOR, CHOICE, policy_kwargs={"net_arch": [8]})
    text = pickle.dumps(Hostile()).hex()

    def poison(data):
        values = json.loads(data)
        for value in values.values():
            if isinstance(value, dict) and ":serialized:" in value:
                value[":serialized:"] = text
        return json.dumps(values).encode()

    file = io.BytesIO()
    torch.save({"action_net.weight": Hostile()}, file)
    rewritten(tmp_path / "agent.zip", data=poison)
    adopted(tmp_path, VECTOR, CHOICE)
    rewritten(tmp_path / "agent.zip", policy_pth=file.getvalue(), **{"../outside": b"x"})
    import_config("agent.zip")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint("agent.zip")
    assert str(caught.value) == (
        "'agent.zip, its policy.pth' cannot be read: it holds more than tensors, and reading that could run code; save "
        "its weights alone: torch.save(module.state_dict(), path)"
    )
    assert os.listdir() == ["agent.zip"]
    assert not (tmp_path.parent / "outside").exists()


def bomb(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, b" " * 50_000_000 if name == "data" else part)


KWARGS = "agent.zip: policy_kwargs"
REFUSED = {
    "no data": ({"data": None}, "agent.zip:1:1: it has no part 'data'; an agent that Stable-Baselines3 saved has one"),
    "no JSON": ({"data": b"{"}, "agent.zip:1:1: 'data' in it is not JSON: Expecting property name enclosed in double quotes: "
                "line 1 column 2 (char 1)"),
    "deep": ({"data": b"[" * 100_000}, "agent.zip:1:1: 'data' in it is not JSON: maximum recursion depth exceeded while "
             "decoding a JSON array from a unicode string"),
    "many": ({"data": b"[" + b"1," * 300_001 + b"1]"}, "agent.zip:1:1: 'data' in it has more than 300,000 values"),
    "list": ({"data": b"[]"}, "agent.zip:1:1: 'data' in it is an empty list, not a mapping"),
    "other policy": (
        {"data": changed(policy_class={"__module__": "sb3_contrib.ars.policies"})},
        "agent.zip: policy_class: policies of 'sb3_contrib.ars.policies' are not read; 'PPO', 'A2C', 'DQN', 'SAC', "
        "'TD3', 'RecurrentPPO', 'MaskablePPO', 'QRDQN', 'TQC', 'CrossQ' are",
    ),
    "class of the user": (
        {"data": changed(policy_class={"__module__": "mine"})},
        "agent.zip: policy_class: a class of your own in 'mine', whose code is not read",
    ),
    "ours": (
        {"data": changed(policy_class={"__module__": "composer.adapters.sb3.policies"})},
        "agent.zip: policy_class: the policy is a model of this library already; load the agent with Stable-Baselines3 "
        "and call agent.policy.model.save(path)",
    ),
    "space": (
        {"data": changed(observation_space={":type:": "<class 'gymnasium.spaces.graph.Graph'>"})},
        "agent.zip: observation_space: the text of the space cannot be read",
    ),
    "extractor": (
        {"data": changed(policy_kwargs={"features_extractor_class": "<class 'mine.Camera'>"})},
        f"{KWARGS}.features_extractor_class: 'Camera' is a class of your own, whose layers are not read; there is "
        "'CombinedExtractor', 'FlattenExtractor', 'NatureCNN'",
    ),
    "activation": (
        {"data": changed(policy_kwargs={"activation_fn": "<class 'torch.nn.modules.activation.Relu'>"})},
        f"{KWARGS}.activation_fn: there is no activation 'Relu'; did you mean 'ReLU'?",
    ),
    "sizes": (
        {"data": changed(policy_kwargs={"net_arch": [64, "64"]})},
        f"{KWARGS}.net_arch: must be a list of sizes, or {{pi: [...], vf: [...]}}, got a list",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def an_agent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    saved(folder, PPO, "MlpPolicy", VECTOR, CHOICE, policy_kwargs={"net_arch": [8]})
    return (folder / "agent.zip").read_bytes()


@pytest.mark.parametrize("name", REFUSED)
def test_agents_that_cannot_be_read(name, an_agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.zip").write_bytes(an_agent)
    parts, message = REFUSED[name]
    rewritten(tmp_path / "agent.zip", **parts)
    with pytest.raises(SpecError) as caught:
        import_config("agent.zip")
    assert str(caught.value) == message


def test_an_archive_that_is_no_agent_or_a_bomb(an_agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.zip").write_bytes(an_agent)
    bomb(tmp_path / "agent.zip")
    with pytest.raises(SpecError) as caught:
        import_config("agent.zip")
    assert (
        str(caught.value)
        == "agent.zip:1:1: 'data' in it would be 50,000,000 bytes, too large to read"
    )
    (tmp_path / "agent.zip").write_bytes(an_agent[:2000])
    with pytest.raises(
        SpecError, match=r"agent.zip:1:1: it cannot be read: File is not a zip file"
    ):
        import_config("agent.zip")
    (tmp_path / "agent.zip").write_bytes(an_agent)
    with pytest.raises(
        SpecError, match="an agent has no entries, and none is called 'CartPole-v1'"
    ):
        import_config("agent.zip", name="CartPole-v1")


def test_keys_that_differ_in_a_sign_are_nodes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    observations = Dict({"arm-1": Discrete(2), "arm_1": Discrete(3)})
    saved(tmp_path, PPO, "MultiInputPolicy", observations, CHOICE)
    graph = import_config("agent.zip").spec["policy"]["graph"]
    assert {name: node["in"] for name, node in graph.items() if node["block"] == "one_hot"} == {
        "arm_1_codes": "arm-1",
        "arm_1_codes_2": "arm_1",
    }
    assert graph["features"]["in"] == ["arm_1_codes", "arm_1_codes_2"]


def test_a_setting_that_is_not_taken_over_is_named(an_agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.zip").write_bytes(an_agent)
    rewritten(
        tmp_path / "agent.zip",
        data=changed(policy_kwargs={"net_arch": [8], "depth": 3, "optimizer_kwargs": {"eps": 1}}),
    )
    imported = import_config("agent.zip")
    assert imported.left == ["policy_kwargs.depth"]
    assert "policy_kwargs.optimizer_kwargs.eps" in imported.training
    assert "gamma" in imported.training
