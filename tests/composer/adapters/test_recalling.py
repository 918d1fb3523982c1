"""The last action and reward of `previous` in the adapters: filled by what makes environments, else asked for."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation
from skrl.envs.wrappers.torch import wrap_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from torchrl.envs import GymWrapper

import composer
from composer.adapters import rsl_rl, sb3, skrl
from composer.adapters.rl_games.environments import GymnasiumEnvironments
from composer.adapters.torchrl import to_torchrl
from composer.training import train
from composer.training.judging import judge

SPEC = """
version: 1
environment: CartPole-v1
previous: [action, reward]
policy:
  graph:
    seen: {block: concat, in: [observation, previous/action, previous/reward]}
    latent: {block: dense, in: seen, hidden_units: 8}
  heads: {in: latent}
critic: {template: {}}
"""
PENDULUM = SPEC.replace("CartPole-v1", "Pendulum-v1")
BOTH = ("action", "reward")
WAY_OUT = "; wrap the environment: env = composer.with_previous(env, ['action', 'reward'])"
MISSING = "\n  'previous/action' is missing\n  'previous/reward' is missing"


class Rewarded(gymnasium.Env):
    """Several actions; the reward says how many steps there were."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Dict(arm=spaces.Discrete(2, start=1), turn=spaces.Box(-1, 1, (1,)))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.taken = action
        return np.zeros(2, np.float32), float(self.steps), self.steps == 3, False, {}


@pytest.mark.parametrize(
    ("trainer", "environment", "settings"),
    [
        ("sb3", "CartPole-v1", {"n_steps": 32, "batch_size": 32}),
        pytest.param("skrl", "CartPole-v1", {}, marks=pytest.mark.full),
        pytest.param("torchrl", "CartPole-v1", {"frames_per_batch": 64}, marks=pytest.mark.full),
        pytest.param("rl_games", "CartPole-v1", {"horizon_length": 32}, marks=pytest.mark.full),
        pytest.param(
            "tianshou", "CartPole-v1", {"collection_step_num_env_steps": 64}, marks=pytest.mark.full
        ),
        pytest.param("rsl_rl", "Pendulum-v1", {}, marks=pytest.mark.full),
    ],
)
def test_every_trainer_fills_them_in_training_and_evaluation(
    trainer, environment, settings, tmp_path
):
    outcome = train(
        SPEC, tmp_path / "run", env=environment, trainer=trainer, steps=64, envs=2,
        eval_episodes=2, settings=settings,
    )  # fmt: skip
    model = composer.load(tmp_path / "run" / "model.safetensors")
    assert model.spec.previous == BOTH
    assert outcome.evaluation == judge(tmp_path / "run", episodes=2)


def test_sb3_wraps_a_single_environment_itself():
    spec = SPEC.replace("environment: CartPole-v1\n", "").replace(
        "previous/action", "previous/arm, previous/turn"
    )
    env = Rewarded()
    trained = sb3.agent(PPO, spec, env, n_steps=4, batch_size=4, device="cpu")
    trained.learn(4)
    buffer = trained.rollout_buffer.observations
    assert buffer["previous/reward"][:, 0].tolist() == [0.0, 1.0, 2.0, 0.0]
    assert (buffer["previous/arm"][[1, 2]].sum(-1) == 1).all()
    assert not buffer["previous/arm"][[0, 3]].any()


def test_sb3_asks_for_the_wrapper_in_environments_that_others_have_made():
    with pytest.raises(ValueError, match="previous") as error:
        sb3.agent(PPO, SPEC, make_vec_env("CartPole-v1"))
    said = f"the environment's spaces are not those of the model:{MISSING}{WAY_OUT}"
    assert str(error.value) == said
    envs = make_vec_env("CartPole-v1", wrapper_class=sb3.agents.wrap, wrapper_kwargs={"spec": SPEC})
    trained = sb3.agent(PPO, SPEC, envs, n_steps=16, batch_size=16, device="cpu").learn(16)
    actions = trained.rollout_buffer.actions[:-1, 0].astype(int)
    seen = trained.rollout_buffer.observations["previous/action"][1:]
    begun = trained.rollout_buffer.episode_starts[1:, 0].astype(bool)
    assert (seen[~begun].argmax(-1) == actions[~begun]).all()
    assert not seen[begun].any()


def test_torchrl_names_the_wrapper():
    model = composer.compose(SPEC, seed=0)
    with pytest.raises(ValueError, match="previous") as error:
        to_torchrl(model, GymWrapper(gymnasium.make("CartPole-v1")))
    wrap = "; give GymWrapper an environment of composer.with_previous(env, model.spec.previous)"
    lines = str(error.value).splitlines()
    assert len([line for line in lines if line.endswith(wrap)]) == 2
    env = composer.with_previous(gymnasium.make("CartPole-v1"), model.spec.previous)
    host = GymWrapper(env, categorical_action_encoding=True)
    actor = to_torchrl(model, host).actor_inference
    rollout = host.rollout(5, actor)
    chosen = rollout["action"][:-1]
    assert torch.equal(rollout["previous", "action"][1:].argmax(-1), chosen)


def test_rsl_rl_has_them_as_groups():
    with pytest.raises(ValueError, match="previous") as error:
        _rsl_rl_actor(rsl_rl.vector_env("Pendulum-v1", 2))
    fill = "; give vector_env(..., previous=model.spec.previous), or let the environment give this group"
    for name in BOTH:
        line = f"the model reads 'previous/{name}', which is no group of the environment{fill}"
        assert line in str(error.value)
    env = rsl_rl.vector_env("Pendulum-v1", 2, previous=BOTH)
    assert env.obs_groups == ["observation", "previous/action", "previous/reward"]
    actor = _rsl_rl_actor(env)
    taken = actor(env.get_observations()).detach()
    seen, rewards, *_ = env.step(taken)
    assert torch.equal(seen["previous/action"], taken.clamp(-2, 2))
    assert torch.equal(seen["previous/reward"][:, 0], rewards)
    assert actor(seen).shape == (2, 1)


def _rsl_rl_actor(env):
    groups = {"actor": env.obs_groups, "critic": env.obs_groups}
    return rsl_rl.Actor(env.get_observations(), groups, "actor", 1, spec=PENDULUM, seed=0)


def test_rl_games_is_told_what_to_fill():
    envs = GymnasiumEnvironments(2, "CartPole-v1", previous=BOTH, seed=0)
    model = composer.compose(
        SPEC, observation_space=envs.model_spaces[0], action_space=envs.model_spaces[1]
    )
    assert model.observation_space == envs.model_spaces[0]
    envs.reset()
    seen, rewards, *_ = envs.step(torch.tensor([1, 0]))
    assert seen["obs"]["previous/action"].tolist() == [[0, 1], [1, 0]]
    assert torch.equal(seen["obs"]["previous/reward"][:, 0], rewards)


def test_skrl_asks_for_the_wrapper():
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    envs = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs=mode)
    with pytest.raises(ValueError, match="previous") as error:
        skrl.models(SPEC, wrap_env(envs, verbose=False))
    said = f"the environment's spaces are not those that the model needs:{MISSING}{WAY_OUT}"
    assert str(error.value) == said
    host = wrap_env(composer.with_previous(envs), verbose=False)
    policy = skrl.models(SPEC, host)["policy"]
    observations, _ = host.reset()
    actions, _ = policy.act({"observations": observations}, role="policy")
    following, *_ = host.step(actions)
    assert policy.act({"observations": following}, role="policy")[0].shape == (2, 1)


def test_a_wrapper_that_hides_them_is_told():
    env = FlattenObservation(composer.with_previous(gymnasium.make("CartPole-v1")))
    policy = composer.compose(SPEC).policy
    with pytest.raises(ValueError, match="with_previous"):
        policy.act(env.reset(seed=0)[0])


class OneArm(gymnasium.Env):
    """One of two arms pays, in each episode another; what is seen says nothing of it."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.pays, self.left = int(self.np_random.integers(2)), 10
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.ones(1, np.float32), float(action == self.pays), self.left == 0, False, {}


gymnasium.register("OneArm-v0", OneArm)
BANDIT = """
version: 1
environment: OneArm-v0
previous: [action, reward]
ignore: []
policy:
  graph:
    seen: {block: concat, in: [observation, previous/action, previous/reward]}
    latent: {block: dense, in: seen, hidden_units: 16}
  heads: {in: latent}
critic: {template: {}}
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("hidden", "least", "most"),
    [
        ((), 9.0, 10.0),  # 9.5: the first choice is a guess, and what did not pay is left
        (("previous/action",), 4.0, 7.0),
        (("previous/reward",), 4.0, 7.0),
    ],
    ids=["both", "reward alone", "action alone"],
)
def test_who_sees_both_finds_the_arm_that_pays(hidden, least, most, tmp_path):
    spec = BANDIT
    for name in hidden:
        spec = spec.replace(f", {name}", "").replace("ignore: []", f"ignore: [{name}]")
    settings = {"n_steps": 128, "batch_size": 256, "learning_rate": 3e-3, "gamma": 0.9}
    outcome = train(
        spec, tmp_path / "run", steps=16_384, envs=8, eval_episodes=200, settings=settings
    )
    assert outcome.evaluation is not None
    assert least <= outcome.evaluation.mean <= most
