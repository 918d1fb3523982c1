"""Tianshou's algorithms learn with a composed model; what it would lose or double is refused."""

import importlib.util

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.algorithm.modelfree.a2c import A2C
from tianshou.algorithm.modelfree.dqn import DQN
from tianshou.algorithm.modelfree.npg import NPG
from tianshou.algorithm.modelfree.reinforce import Reinforce
from tianshou.algorithm.modelfree.trpo import TRPO
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.torch_utils import policy_within_training_step

import composer
from composer.adapters import tianshou
from tests.helpers.paths import CONFIGS
from tests.helpers.sb3_agents import Walk

SEEN = spaces.Box(-1, 1, (3,))
TEMPLATES = "version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n"


def updated(algorithm, env, times=1, **collecting):
    for _ in range(times):
        collector = Collector[CollectStats](
            algorithm, DummyVectorEnv([lambda: env]), VectorReplayBuffer(64, 1)
        )
        collector.reset()
        with policy_within_training_step(algorithm.policy):
            collector.collect(n_step=32, **collecting)
            algorithm.update(collector.buffer, 16, 2)


@pytest.mark.parametrize("cls", [A2C, NPG, TRPO, Reinforce])
@pytest.mark.parametrize(
    "actions",
    [spaces.Discrete(3), spaces.Box(-2, 2, (2,)), spaces.MultiDiscrete([2, 3], start=[1, 0])],
    ids=str,
)
def test_the_algorithms_learn(cls, actions):
    torch.manual_seed(0)
    env = Walk(SEEN, actions)  # which raises for an action outside of its space
    policy = tianshou.policy(TEMPLATES, env, seed=0)
    settings = {"policy": policy, "optim": AdamOptimizerFactory(lr=1e-2)}
    if cls is NPG:  # whose step has no bound
        settings["trust_region_size"] = 0.1
    if cls is not Reinforce:
        settings["critic"] = tianshou.critic(policy)
    before = {name: value.clone() for name, value in policy.model.named_parameters()}
    updated(cls(**settings), env)
    still = [n for n, value in policy.model.named_parameters() if torch.equal(value, before[n])]
    assert [name for name in still if cls is not Reinforce or "policy" in name] == []


def test_algorithms_with_target_networks_are_refused():
    env = Walk(SEEN, spaces.Discrete(3))
    policy = tianshou.policy(TEMPLATES, env, seed=0)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), target_update_freq=10)
    buffer = VectorReplayBuffer(64, 1)
    collector = Collector[CollectStats](algorithm, DummyVectorEnv([lambda: env]), buffer)
    collector.reset()
    with policy_within_training_step(policy):
        collector.collect(n_step=32)
        with pytest.raises(ValueError, match="on-policy") as caught:
            algorithm.update(buffer, 8)
    assert str(caught.value) == (
        "a composed policy learns by Tianshou's on-policy algorithms, and this one has a target network; use "
        "PPO, A2C, Reinforce, NPG or TRPO, or DQN, SAC and TD3 of the trainer sb3"
    )


def test_random_steps_are_stored_as_the_policy_stores_its_own():
    env = Walk(SEEN, spaces.MultiDiscrete([2, 3], start=[1, 0]))
    policy = tianshou.policy(TEMPLATES, env, seed=0)
    updated(
        A2C(policy=policy, critic=tianshou.critic(policy), optim=AdamOptimizerFactory(lr=1e-3)),
        env,
        random=True,
    )


def test_it_acts_by_the_mode_outside_of_training_steps():
    policy = tianshou.policy(TEMPLATES, Walk(SEEN, spaces.Discrete(3)), seed=0)
    sampling = tianshou.policy(policy.model, deterministic_eval=False)
    batch = Batch(obs=np.zeros((200, 3), np.float32), info={})
    assert policy(batch).act.unique().numel() == 1
    assert sampling(batch).act.unique().numel() == 3


def test_normalisers_count_what_was_learnt_from():
    env = Walk(SEEN, spaces.Discrete(3))
    policy = tianshou.policy("normalize: [observation]\n" + TEMPLATES, env, seed=0)
    algorithm = A2C(
        policy=policy, critic=tianshou.critic(policy), optim=AdamOptimizerFactory(lr=1e-3)
    )
    updated(algorithm, env, times=2)
    (normalizer,) = policy.model.policy.observer.normalizers.values()
    assert int(normalizer.count) == 32


def test_memory_scaling_and_tuples_are_refused_at_once():
    observations = spaces.Tuple([SEEN, SEEN])
    spec = TEMPLATES.replace(
        "policy: {template: {}}", "policy: {template: {memory: {block: gru, hidden_units: 4}}}"
    )
    with pytest.raises(ValueError, match="Tianshou cannot train") as caught:
        tianshou.policy(
            spec, Walk(observations, spaces.Tuple([spaces.Discrete(2)])), action_scaling=True
        )
    assert str(caught.value) == (
        "Tianshou cannot train this model:\n"
        "  it has memory, which Tianshou's on-policy algorithms do not carry through an update; "
        "use the trainer rl_games, or recurrent_ppo of the trainer sb3\n"
        "  action_scaling and action_bound_method would scale and bound actions again, which are on the scale of the "
        "environment; leave them out\n"
        "  it stores actions as one array, got Tuple(Discrete(2)); use the trainer sb3\n"
        "  it stores no Tuple, of which '0' is a part; make it a Dict in the environment\n"
        "  it stores no Tuple, of which '1' is a part; make it a Dict in the environment"
    )


def test_a_critic_is_needed_and_its_values_are_as_they_are():
    policy = tianshou.policy(TEMPLATES, Walk(SEEN, spaces.Discrete(2)), overrides=["critic=null"])
    with pytest.raises(ValueError, match="PPO of Tianshou") as caught:
        tianshou.critic(policy)
    assert str(caught.value) == (
        "PPO of Tianshou cannot train this model:\n"
        "  PPO needs the value of a state; add a critic such as critic: {kind: state, template: {}}"
    )
    counts = ["critic={template: {}, normalize_value: true}"]
    policy = tianshou.policy(TEMPLATES, Walk(SEEN, spaces.Discrete(2)), overrides=counts)
    with pytest.raises(ValueError, match="no returns"):
        tianshou.critic(policy)
    with pytest.raises(ValueError, match=r"critic takes what .* got a Model"):
        tianshou.critic(composer.compose(TEMPLATES, env=Walk(SEEN, spaces.Discrete(2))))


def test_the_script_in_the_examples_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = importlib.util.spec_from_file_location(
        "script", CONFIGS / "trainers" / "tianshou_cartpole.py"
    )
    script = importlib.util.module_from_spec(source)
    source.loader.exec_module(script)
    script.train(epochs=1, steps=64, envs=2, per_update=64)
    assert composer.load("cartpole.safetensors").policy
