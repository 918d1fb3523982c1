"""Composed models in Stable-Baselines3: the numbers are the model's, whatever the host does around them."""

import shutil
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from transformers import LlamaConfig, LlamaModel

import composer
from composer.adapters import sb3
from tests.helpers.paths import ROOT
from tests.helpers.sb3_agents import (
    ACTOR,
    CARTPOLE,
    NESTED,
    NESTED_ACTIONS,
    NESTED_SPEC,
    VALUES,
    Walk,
    agent,
)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def model_names(made):
    return [name for name, _ in made.policy.model.named_parameters()]


def numbers(space, count, seed=0):
    space.seed(seed)
    return np.stack([space.sample() for _ in range(count)])


def test_hooks_on_policy_and_critic_run_in_the_host():
    policy = agent(PPO, CARTPOLE, seed=3).policy
    seen, ran = torch.as_tensor(numbers(policy.model.observation_space, 5)), []
    policy.model.policy.register_forward_hook(lambda *_: ran.append("policy"))
    policy.model.critic.register_forward_hook(lambda *_: ran.append("critic"))
    actions, _, _ = policy(seen)
    policy.evaluate_actions(seen, actions)
    assert ran == ["policy", "critic"] * 2


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_the_first_forward_is_that_of_a_model_composed_directly(algorithm):
    model = composer.compose(CARTPOLE, seed=3)
    made = agent(algorithm, CARTPOLE, seed=3)
    assert_same_weights(weights(model), weights(made.policy.model))
    seen = torch.as_tensor(numbers(model.observation_space, 5))
    torch.manual_seed(0)
    actions, values, log_prob = made.policy(seen)
    torch.manual_seed(0)
    distribution = model.policy.distribution(seen)
    assert torch.equal(actions, distribution.sample())
    assert torch.equal(values, model.critic(seen)["value"])
    assert torch.equal(log_prob, distribution.log_prob(actions))
    again = made.policy.evaluate_actions(seen, actions)
    for ours, theirs in zip(again, (values, log_prob, distribution.entropy()), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(made.policy.predict_values(seen), values)
    assert torch.equal(made.policy.get_distribution(seen).mode(), distribution.mode())


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_it_learns_in_a_real_environment(algorithm):
    made = agent(algorithm, CARTPOLE)
    before = weights(made.policy.model)
    made.learn(64)
    changed = [n for n, t in weights(made.policy.model).items() if not torch.equal(t, before[n])]
    assert changed == list(before)


def test_ppo_gets_better_at_cartpole():
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    made = sb3.agent(
        PPO, CARTPOLE, env, seed=0, n_steps=64, batch_size=64, n_epochs=8, learning_rate=2e-3,
        gamma=0.98, gae_lambda=0.9,
    )  # fmt: skip
    made.learn(6000)
    lengths = [episode["l"] for episode in made.ep_info_buffer]
    assert np.mean(lengths[-5:]) > 3 * 22  # at random, an episode takes 22 steps


def test_the_first_ratio_of_ppo_is_one():
    """What was stored while collecting is what learning computes anew: with one epoch and one batch nothing is clipped."""
    spec = "environment: Pendulum-v1\n" + ACTOR + VALUES
    made = agent(PPO, spec, n_steps=32, batch_size=32, n_epochs=1)
    made.learn(32)
    assert made.logger.name_to_value["train/clip_fraction"] == 0
    assert abs(made.logger.name_to_value["train/approx_kl"]) < 1e-6


def test_weights_given_are_never_drawn_anew():
    """What the host does to weights of its own (orthogonal ones, zero biases) it does not do to ours (SB3 #1541)."""
    spec = ACTOR.replace(
        "heads: {in: latent}", "heads: {in: latent}\n  init: {body: xavier_uniform}"
    )
    model = composer.compose(f"environment: CartPole-v1\n{spec}{VALUES}", seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    made = agent(PPO, model, "CartPole-v1")
    assert_same_weights(weights(model), weights(made.policy.model))
    assert made.policy.model is not model
    made.learn(32)
    assert not torch.equal(next(model.parameters()), next(made.policy.model.parameters()))


def test_a_checkpoint_is_where_an_agent_begins(tmp_path):
    made = agent(PPO, CARTPOLE)
    made.learn(32)
    made.policy.model.save(tmp_path / "trained.safetensors")
    loaded = composer.load(tmp_path / "trained.safetensors")
    again = agent(PPO, loaded, "CartPole-v1", seed=5)
    assert_same_weights(weights(made.policy.model), weights(again.policy.model))
    observation = made.env.reset()
    action = loaded.policy.act(observation, deterministic=True)
    assert np.array_equal(action, made.predict(observation, deterministic=True)[0])


FRESH = """
import sys
from stable_baselines3 import PPO
agent = PPO.load(sys.argv[1])
actions = [int(agent.predict(agent.observation_space.sample() * 0 + i, deterministic=True)[0]) for i in range(4)]
print(actions, agent.policy.model.seed, sum(p.double().sum() for p in agent.policy.model.parameters()).item())
agent.set_env(agent.get_env() or __import__("gymnasium").make("CartPole-v1"))
agent.learn(32, reset_num_timesteps=False)
print(agent.num_timesteps)
"""


def test_save_and_load_of_the_host_work_in_a_fresh_process(tmp_path):
    spec = tmp_path / "agent.yaml"
    spec.write_text(CARTPOLE.read_text())
    made = agent(PPO, spec, seed=7, overrides=["params.width=32"])
    made.learn(32)
    made.save(tmp_path / "agent.zip")
    spec.unlink()  # what an agent is made of is in its file
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "agent.zip")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seen = [made.predict(np.full(4, i, np.float32), deterministic=True)[0] for i in range(4)]
    total = sum(p.double().sum() for p in made.policy.model.parameters()).item()
    assert done.stdout.splitlines() == [f"{[int(a) for a in seen]} 7 {total}", "64"]


def test_a_saved_agent_needs_the_files_of_its_body_no_more(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    body = LlamaModel(LlamaConfig(vocab_size=5, num_hidden_layers=1, **sizes))
    body.save_pretrained(tmp_path / "body")
    node = f"{{block: transformer, checkpoint: {tmp_path / 'body'}, in: observation}}"
    spec = (ACTOR + VALUES).replace("{block: dense, in: observation, hidden_units: [16]}", node)
    env = Walk(spaces.MultiDiscrete([5] * 4), spaces.Discrete(2))
    made = agent(PPO, spec, env, allow=[f"{tmp_path}/body/"])
    for part in (made.policy.model.policy, made.policy.model.critic):
        expected = body.embed_tokens.weight
        assert torch.equal(part.network.module.latent.body.embed_tokens.weight, expected)
    shutil.rmtree(tmp_path / "body")
    made.learn(32)
    made.save(tmp_path / "agent.zip")
    made.policy.save(tmp_path / "policy.pt")
    for loaded in (
        PPO.load(tmp_path / "agent.zip").policy,
        type(made.policy).load(tmp_path / "policy.pt"),
    ):
        assert_same_weights(weights(made.policy.model), weights(loaded.model))


def test_an_agent_is_described_by_plain_data():
    made = agent(PPO, CARTPOLE)
    kinds = {name: type(value) for name, value in made.policy_kwargs.items()}
    assert kinds == {
        "spec": str,
        "allow": list,
        "seed": int,
        "dtype": str,
        "spaces": list,
        "frozen": list,
    }


def test_a_policy_alone_is_saved_and_loaded(tmp_path):
    made = agent(PPO, CARTPOLE)
    made.policy.save(tmp_path / "policy.pt")
    loaded = type(made.policy).load(tmp_path / "policy.pt")
    assert_same_weights(weights(made.policy.model), weights(loaded.model))


def test_the_constructor_of_the_host_takes_a_spec_too():
    kwargs = {"spec": str(CARTPOLE), "seed": 3}
    made = PPO(sb3.POLICIES["PPO"], "CartPole-v1", policy_kwargs=kwargs)
    model = composer.compose(CARTPOLE, seed=3)
    assert_same_weights(weights(model), weights(made.policy.model))


def test_each_shared_weight_has_one_place_in_the_optimiser():
    space = spaces.Box(-1, 1, (3,))
    spec = """
version: 1
policy:
  graph:
    embedding: {block: dense, in: observation, hidden_units: [8]}
  heads: {in: embedding}
  shares: [embedding]
critic:
  graph:
    latent: {block: dense, in: embedding, hidden_units: [8]}
"""
    made = agent(PPO, spec, Walk(space, spaces.Discrete(2)))
    (group,) = made.policy.optimizer.param_groups
    learned = group["params"]
    assert (
        len(learned) == len({id(p) for p in learned}) == len(list(made.policy.model.parameters()))
    )
    seen = torch.randn(4, 3)
    made.policy.predict_values(seen).sum().backward()
    name = next(n for n in model_names(made) if n.startswith("policy.embedding"))
    embedding = dict(made.policy.model.named_parameters())[name]
    assert embedding.grad is not None  # the critic's loss reaches what it shares
    made.learn(32)


def test_what_is_frozen_stays_as_it_is_after_loading_too(tmp_path):
    model = composer.compose(CARTPOLE, seed=0)
    frozen = [name for name, _ in model.named_parameters() if "latent" in name]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    made = agent(PPO, model, "CartPole-v1")
    made.learn(32)
    made.save(tmp_path / "agent.zip")
    made = PPO.load(tmp_path / "agent.zip", env=made.env)
    made.learn(32)
    before, after = weights(model), weights(made.policy.model)
    assert [name for name in before if torch.equal(before[name], after[name])] == frozen


def test_optimisers_are_those_of_the_host_or_the_user():
    model = composer.compose(CARTPOLE, seed=0)
    made = agent(PPO, model, "CartPole-v1")
    assert made.policy.optimizer.defaults["eps"] == 1e-5  # as the host has it
    rms = agent(A2C, model, "CartPole-v1")
    assert isinstance(rms.policy.optimizer, torch.optim.RMSprop)
    own = agent(PPO, model, "CartPole-v1", policy_kwargs={"optimizer_class": torch.optim.SGD})
    assert isinstance(own.policy.optimizer, torch.optim.SGD)


def test_nested_observations_and_several_actions_are_flat_for_the_host():
    env = Walk(NESTED, NESTED_ACTIONS)
    made = agent(PPO, NESTED_SPEC, env)
    assert list(made.observation_space) == [
        "board", "body/hands/0", "body/hands/1", "body/joints", "hint", "hint:mask",
    ]  # fmt: skip
    assert made.action_space.shape == (3 * 2 + 1,)
    made.learn(64)
    assert len(env.seen) == 64
    assert made.policy.model.observation_space == NESTED
    model = composer.compose(NESTED_SPEC, env=env, seed=0)
    assert_same_weights(weights(model), weights(agent(PPO, NESTED_SPEC, env).policy.model))


def test_a_flat_observation_gives_what_the_nested_one_gives():
    env = sb3.wrap(Walk(NESTED, NESTED_ACTIONS), NESTED_SPEC)
    made = agent(PPO, NESTED_SPEC, env)
    policy = made.policy.model.policy
    NESTED.seed(1)
    for _ in range(5):
        nested = NESTED.sample()
        flat = env._observations.flat(nested)
        assert env.observation_space.contains(flat)
        seen, _ = made.policy.obs_to_tensor(flat)
        theirs, ours = policy(made.policy.read(seen)), policy(nested)
        for name, logits in ours.items():
            torch.testing.assert_close(theirs[name][0], logits)


def test_actions_of_one_vector_have_the_densities_of_the_model():
    made = agent(PPO, NESTED_SPEC, Walk(NESTED, NESTED_ACTIONS))
    seen, _ = made.policy.obs_to_tensor(made.env.reset())
    actions, _, log_prob = made.policy(seen)
    parts = made.policy.model.policy.distribution(made.policy.read(seen)).parts
    taken = {  # by hand, in the order of the space
        "grip": actions[:, 0].long() - 1,
        "arm/0": actions[:, 1:3].reshape(-1, 2, 1),
        "arm/1": actions[:, 3:5],
        "push": actions[:, 5],
        "count": actions[:, 6:7],
    }
    assert list(parts) == list(taken)
    torch.testing.assert_close(log_prob, sum(parts[key].log_prob(taken[key]) for key in taken))
    stored = torch.as_tensor(actions.numpy().reshape(1, -1))  # as the buffer has them
    assert torch.equal(made.policy.evaluate_actions(seen, stored)[1], log_prob)


def test_images_are_turned_back():
    """The host turns images to channels first; the model was composed for what the environment gives."""
    space = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    spec = """
version: 1
policy:
  graph:
    scaled: {block: scale_image, in: observation}
    latent: {block: flatten_dense, in: scaled, hidden_units: [4]}
  heads: {in: latent}
critic:
  graph:
    scaled: {block: scale_image, in: observation}
    latent: {block: flatten_dense, in: scaled, hidden_units: [4]}
"""
    made = agent(PPO, spec, Walk(space, spaces.Discrete(2)), n_steps=8, batch_size=4, n_epochs=1)
    assert made.observation_space.shape == (3, 36, 40)
    model = composer.compose(spec, observation_space=space, action_space=spaces.Discrete(2), seed=0)
    images = numbers(space, 2)
    seen, _ = made.policy.obs_to_tensor(images.transpose(0, 3, 1, 2))
    theirs, ours = made.policy.model(made.policy.read(seen)), model(images)
    for part, mine in zip(theirs, ours, strict=True):
        for name, tensor in mine.items():
            assert torch.equal(part[name], tensor)
    made.learn(8)


def test_choices_that_start_later_reach_the_environment_as_they_are():
    env = Walk(spaces.Discrete(3, start=2), spaces.Discrete(2, start=5))
    spec = """
version: 1
policy:
  graph:
    code: {block: one_hot, in: observation}
  heads: {in: code}
critic:
  graph:
    code: {block: one_hot, in: observation}
    latent: {block: dense, in: code, hidden_units: [4]}
"""
    made = agent(PPO, spec, env)
    made.learn(64)
    assert {int(action) for action in env.seen} == {5, 6}


@pytest.mark.parametrize("distribution", ["squashed_gaussian", "beta", "gaussian"])
def test_actions_are_scaled_once_by_the_model(distribution):
    """What reaches the environment is what the model drew, and clipped only where its distribution has no bounds."""
    low, high = np.float32([-2, 0]), np.float32([4, 0.5])
    env = Walk(spaces.Box(-1, 1, (3,)), spaces.Box(low, high))
    rule = f"distributions: [{{action: action, distribution: {distribution}}}]\n"
    made = agent(PPO, rule + ACTOR + VALUES, env, n_steps=16)
    drawn = []
    acted = made.policy.acted
    made.policy.acted = lambda step: drawn.append(acted(step)) or drawn[-1]
    made.learn(16)
    taken, asked = np.stack(env.seen), torch.cat([actions for actions, *_ in drawn]).numpy()
    assert np.array_equal(taken, np.clip(asked, low, high))
    assert (distribution == "gaussian") == (not np.array_equal(taken, asked))
    observation = made.env.reset()
    theirs = made.predict(observation, deterministic=True)[0]
    np.testing.assert_array_equal(
        theirs, made.policy.model.policy.act(observation, deterministic=True)
    )


@pytest.mark.parametrize("action", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_all_actions_and_dtypes_learn(action, dtype):
    made = agent(PPO, ACTOR + VALUES, Walk(spaces.Box(-1, 1, (3,)), action), dtype=dtype)
    assert next(made.policy.model.parameters()).dtype == dtype
    made.learn(32)


def test_masks_of_the_spec_hold_without_masks_of_the_host():
    space = spaces.Dict(observation=spaces.Box(-1, 1, (3,)), legal=spaces.MultiBinary(3))

    class Masked(Walk):
        def observed(self):
            self._legal = np.eye(3, dtype=np.int8)[self.np_random.integers(3)]
            return {**super().observed(), "legal": self._legal}

        def step(self, action):
            assert self._legal[action]
            return super().step(action)

    spec = ACTOR.replace("heads:", "action_mask: {action: legal}\n  heads:") + VALUES
    agent(PPO, spec, Masked(space, spaces.Discrete(3))).learn(64)


def test_a_critic_may_see_more_than_the_policy():
    space = spaces.Dict(observation=spaces.Box(-1, 1, (3,)), secret=spaces.Box(-1, 1, (2,)))
    critic = """
critic:
  graph:
    latent: {block: dense, in: secret, hidden_units: [4]}
"""
    made = agent(PPO, ACTOR + critic, Walk(space, spaces.Discrete(2)))
    made.learn(32)
    assert "secret" not in made.policy.model.policy.network.in_ports


def test_statistics_are_counted_between_rollouts():
    spec = "normalize: [observation]\n" + ACTOR + VALUES + "  normalize_value: true\n"
    env = Walk(spaces.Box(3, 5, (3,)), spaces.Discrete(2))
    made = agent(PPO, spec, env)
    model = made.policy.model
    made.learn(32)
    normalizer = next(iter(model.policy.observer.normalizers.values()))
    assert normalizer.count == 0  # nobody counts unless asked
    counts = []
    watch = ConvertCallback(lambda *_: counts.append(int(normalizer.count)) or True)
    made.learn(64, callback=[sb3.UpdateNormalizers(), watch])
    assert sorted(set(counts)) == [0, 32]
    assert normalizer.count == 64
    assert bool((normalizer.mean > 3.5).all())
    assert model.critic.value_normalizer.count == 64


def test_several_environments_are_wrapped_one_by_one(tmp_path):
    envs = DummyVecEnv(
        [lambda: sb3.wrap(Walk(NESTED, NESTED_ACTIONS), NESTED_SPEC) for _ in range(2)]
    )
    made = agent(PPO, NESTED_SPEC, envs)
    assert made.policy.model.observation_space == NESTED
    made.learn(64)
    made.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=envs)
    assert_same_weights(weights(made.policy.model), weights(loaded.policy.model))
    loaded.learn(64)


def test_wrapping_what_needs_no_wrapping_changes_nothing():
    env = gymnasium.make("CartPole-v1")
    assert sb3.wrap(env, CARTPOLE) is env
    once = sb3.wrap(Walk(NESTED, NESTED_ACTIONS), NESTED_SPEC)
    assert sb3.wrap(once, NESTED_SPEC) is once


def test_statistics_of_the_host_move_bounds_which_are_still_the_models():
    envs = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    for given in (CARTPOLE, composer.compose(CARTPOLE, seed=0)):
        made = agent(PPO, given, envs)
        made.learn(32)


def test_statistics_of_the_host_fit_around_what_is_flat():
    inner = DummyVecEnv([lambda: sb3.wrap(Walk(NESTED, NESTED_ACTIONS), NESTED_SPEC)])
    envs = VecNormalize(inner, norm_obs_keys=["body/joints"])
    made = agent(PPO, NESTED_SPEC, envs)
    made.learn(32)
    assert made.policy.model.observation_space == NESTED


def make_walk():
    return sb3.wrap(Walk(NESTED, NESTED_ACTIONS), NESTED_SPEC)


def test_environments_in_other_processes_are_wrapped_there():
    envs = SubprocVecEnv([make_walk], start_method="spawn")
    try:
        made = agent(PPO, NESTED_SPEC, envs)
        made.learn(32)
        assert made.policy.model.observation_space == NESTED
    finally:
        envs.close()


def test_a_model_without_weights_gets_those_of_its_seed():
    meta = composer.compose(CARTPOLE, seed=3, device="meta")
    model = composer.compose(CARTPOLE, seed=3)
    made = agent(PPO, meta, "CartPole-v1")
    assert_same_weights(weights(model), weights(made.policy.model))


def test_a_networks_own_preprocessing_gets_observations_as_the_environment_has_them():
    spec = """
version: 1
policy: {_target_: tests.helpers.sb3_agents.Preprocessing}
critic: {template: {}}
"""
    space = spaces.Dict(body=spaces.Dict(joints=spaces.Box(-1, 1, (2,))))
    env = Walk(space, spaces.Discrete(2))
    made = agent(PPO, spec, env, allow=["tests.helpers.sb3_agents"])
    made.learn(32)
    model = made.policy.model
    observation = space.sample()
    seen, _ = made.policy.obs_to_tensor({"body/joints": observation["body"]["joints"]})
    theirs, ours = model.policy(made.policy.read(seen)), model.policy(observation)
    torch.testing.assert_close(theirs["action"][0], ours["action"])
