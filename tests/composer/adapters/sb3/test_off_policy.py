"""Composed models in DQN, SAC and TD3: targets, ensembles, scales of actions, and what the optimisers see."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise

import composer
from composer.adapters import sb3
from composer.training.evaluation import greedy
from tests.helpers.sb3_agents import (
    ACTOR,
    DETERMINISTIC,
    NESTED,
    NESTED_SPEC,
    TWINS,
    Walk,
    agent,
)

DUELING = ACTOR.replace("heads: {in", "heads: {block: dueling, in")
PENDULUM = "environment: Pendulum-v1\n"
CARTPOLE = "environment: CartPole-v1\n"
CONTINUOUS = pytest.mark.parametrize(
    ("algorithm", "spec"),
    [(SAC, PENDULUM + ACTOR + TWINS), (TD3, PENDULUM + DETERMINISTIC + ACTOR + TWINS)],
    ids=["SAC", "TD3"],
)
EVERY = pytest.mark.parametrize(
    ("algorithm", "spec"),
    [
        (DQN, CARTPOLE + ACTOR),
        (DQN, CARTPOLE + DUELING),
        (SAC, PENDULUM + ACTOR + TWINS),
        (SAC, PENDULUM + ACTOR + TWINS.replace("ensemble: 2", "ensemble: 1")),
        (TD3, PENDULUM + DETERMINISTIC + ACTOR + TWINS),
    ],
    ids=["DQN", "DQN with a dueling head", "SAC", "SAC of one critic", "TD3"],
)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def some(made, count=5):
    space = made.policy.model.observation_space
    space.seed(0)
    return torch.as_tensor(np.stack([space.sample() for _ in range(count)]))


@EVERY
def test_the_weights_are_those_of_a_model_composed_directly(algorithm, spec):
    model = composer.compose(spec, seed=4)
    own = agent(algorithm, spec, seed=4).policy.model.state_dict()
    assert own.keys() == model.state_dict().keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())


@EVERY
def test_it_learns_and_is_the_same_after_save_and_load(algorithm, spec, tmp_path):
    made = agent(algorithm, spec)
    before = state(made.policy)
    made.learn(30)
    assert before.keys() == made.policy.state_dict().keys()
    for name, tensor in made.policy.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    made.save(tmp_path / "agent.zip")
    loaded = algorithm.load(tmp_path / "agent.zip", env=made.env)
    for name, tensor in loaded.policy.state_dict().items():
        assert torch.equal(tensor, made.policy.state_dict()[name]), name
    observation = made.env.reset()
    ours, theirs = (a.predict(observation, deterministic=True)[0] for a in (made, loaded))
    assert np.array_equal(ours, theirs)
    loaded.learn(10, reset_num_timesteps=False)
    made.policy.model.save(tmp_path / "model.safetensors")
    composer.load(tmp_path / "model.safetensors")


@EVERY
def test_targets_follow_by_the_rule_of_the_host(algorithm, spec):
    """With tau = 0.25 every target is a quarter of the way to what it follows, after one update."""
    settings = {"learning_starts": 8, "tau": 0.25, "train_freq": 1, "gradient_steps": 1}
    if algorithm is DQN:
        settings |= {"target_update_interval": 1000}
    made = agent(algorithm, spec, **settings)
    pairs = targets(made)
    start = [state(target) for _, target in pairs]
    for (followed, _), begun in zip(pairs, start, strict=True):
        assert all(torch.equal(t, begun[name]) for name, t in followed.state_dict().items())
    made.learn(8 if algorithm is TD3 else 9)
    if algorithm is DQN:
        made.target_update_interval = 1
        made._on_step()
    elif algorithm is TD3:
        made.train(2, 8)  # the second of two updates moves the actor and all targets
    for (followed, target), begun in zip(pairs, start, strict=True):
        after = target.state_dict()
        for name, tensor in followed.state_dict().items():
            expected = begun[name] + 0.25 * (tensor - begun[name])
            torch.testing.assert_close(after[name], expected)
            assert not torch.equal(after[name], tensor)


def targets(made):
    """(what is followed, its target)."""
    policy, critic = made.policy.model.policy, made.policy.model.critic
    pairs = [] if critic is None else [(critic.online, critic.target.online)]
    if not isinstance(made, SAC):
        pairs.append((policy, made.policy.policy_target))
    return pairs


@EVERY
def test_each_optimiser_has_its_own_weights_once(algorithm, spec):
    made = agent(algorithm, spec)
    model = made.policy.model
    if algorithm is DQN:
        parts = [(made.policy, model.policy)]
    else:
        parts = [(made.actor, model.policy), (made.critic, model.critic.online)]
    for part, module in parts:
        (group,) = part.optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in module.parameters()]
    assert not any(p.requires_grad for _, target in targets(made) for p in target.parameters())


@pytest.mark.parametrize("spec", [ACTOR, DUELING], ids=["linear", "dueling"])
def test_what_dqn_learns_is_the_policy_wherever_it_acts(spec, tmp_path):
    """`predict`, the model of the agent, its checkpoint, and how `composer train` evaluates take the same action."""
    made = agent(DQN, CARTPOLE + spec, learning_rate=0.02)
    made.learn(40)
    model, seen = made.policy.model, some(made, 200)
    logits = model.policy(seen)["action"]
    assert torch.equal(made.q_net(seen), logits)
    best = logits.argmax(-1).numpy()
    model.save(tmp_path / "trained.safetensors")
    loaded = composer.load(tmp_path / "trained.safetensors")
    assert torch.equal(loaded.policy(seen)["action"], logits)
    assert np.array_equal(made.predict(seen.numpy(), deterministic=True)[0], best)
    for policy in (model.policy, loaded.policy):
        assert np.array_equal(policy.act(seen.numpy(), deterministic=True), best)
    act = greedy(model.policy)
    assert [act(each.numpy(), None, True, None)[0] for each in seen] == list(best)


UNEVEN = spaces.Box(np.float32([[-3.0], [0.5]]), np.float32([[1.0], [0.75]]))


@pytest.mark.parametrize(
    ("algorithm", "spec"),
    [(SAC, ACTOR + TWINS), (TD3, DETERMINISTIC + ACTOR + TWINS)],
    ids=["SAC", "TD3"],
)
def test_the_critic_sees_actions_in_the_scale_of_the_environment(algorithm, spec):
    env = Walk(spaces.Box(-1, 1, (3,)), UNEVEN)
    made = agent(algorithm, spec, env)
    noise = NormalActionNoise(np.zeros(UNEVEN.shape), 0.5 * np.ones(UNEVEN.shape))
    made.action_noise = noise
    made.learn(30)
    seen, model = some(made), made.policy.model
    taken = model.policy.distribution(seen).mode()
    scaled = torch.as_tensor(made.policy.scale_action(taken.detach().numpy())).flatten(1)
    torch.testing.assert_close(made.actor(seen, deterministic=True), scaled)
    values = made.critic(seen, scaled)
    assert [value.shape for value in values] == [(5, 1), (5, 1)]
    expected = model.critic(seen, taken)["q_value"]
    for index, value in enumerate(values):
        torch.testing.assert_close(value, expected[:, index])
    assert torch.equal(made.critic.q1_forward(seen, scaled), values[0])
    target = torch.cat(made.critic_target(seen, scaled), -1)
    torch.testing.assert_close(target, model.critic.target(seen, taken)["q_value"].squeeze(-1))
    theirs = made.predict(seen.numpy(), deterministic=True)[0]
    np.testing.assert_array_equal(theirs, model.policy.act(seen.numpy(), deterministic=True))


def test_the_density_that_sac_learns_from_is_that_of_the_scaled_action():
    """It integrates to 1 over the host's scale, from -1 to 1, for which its target entropy is made."""
    env = Walk(spaces.Box(-1, 1, (3,)), spaces.Box(-3.0, 1.0, (1,)))
    made = agent(SAC, ACTOR + TWINS, env)
    seen = some(made, 1)
    torch.manual_seed(0)
    scaled, log_prob = made.actor.action_log_prob(seen)
    assert scaled.requires_grad
    assert log_prob.requires_grad
    assert log_prob.shape == (1,)
    distribution = made.policy.model.policy.distribution(seen)
    grid = torch.linspace(-1, 1, 20001)[1:-1].unsqueeze(-1)
    density = (distribution.log_prob(made.policy.unscaled(grid)) + made.policy.log_half).exp()
    assert float(density.detach().sum() * 2 / 20000) == pytest.approx(1, abs=1e-3)
    at = distribution.log_prob(made.policy.unscaled(scaled)) + math.log(2)
    torch.testing.assert_close(log_prob, at)


@CONTINUOUS
def test_what_the_critic_shares_learns_from_the_actor_alone(algorithm, spec):
    spec = spec.replace("heads: {in: latent}", "heads: {in: latent}\n  shares: [latent]", 1)
    head, _, critic = spec.partition("critic:")
    critic = critic.replace("[observation, act", "[latent, act").replace(
        "    latent:", "    judged:"
    )
    spec = f"{head}critic:{critic}"
    made = agent(algorithm, spec)
    before = state(made.policy.model)
    values = made.critic(some(made), torch.zeros(5, 1))
    sum(value.sum() for value in values).backward()
    assert all(p.grad is None for p in made.policy.model.policy.parameters())
    made.learn(30)
    after = made.policy.model.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_a_critic_may_see_more_than_the_actor():
    space = spaces.Dict(observation=spaces.Box(-1, 1, (3,)), secret=spaces.Box(-1, 1, (2,)))
    critic = TWINS.replace("[observation, act", "[secret, act")
    made = agent(SAC, ACTOR + critic, Walk(space, spaces.Box(-1, 1, (1,))))
    made.learn(20)


@pytest.mark.parametrize("algorithm", [DQN, SAC])
def test_nested_observations_are_flat_in_the_replay_buffer(algorithm):
    action, critic = spaces.Discrete(2), ""
    if algorithm is SAC:
        action = spaces.Dict(a=UNEVEN, b=spaces.Box(0.0, 1.0, ()))
        critic = "critic: {kind: state_action, template: {}}"
    spec = NESTED_SPEC.replace("critic:\n  template: {}", critic)
    env = Walk(NESTED, action)
    agent(algorithm, spec, env).learn(32)
    assert len(env.seen) == 32


@CONTINUOUS
def test_statistics_of_batch_norm_reach_the_targets(algorithm, spec):
    norm = "    normed: {block: torch.nn.BatchNorm1d, in: both, num_features: 4}\n    latent: {block: dense, in: normed"
    spec = spec.replace("    latent: {block: dense, in: both", norm)
    made = agent(algorithm, spec)
    made.learn(20)
    own, target = (part.module.state_dict() for part in (made.critic, made.critic_target))
    running = [name for name in own if "running_mean" in name]
    assert running
    for name in running:
        assert own[name].abs().sum() > 0
        assert torch.equal(own[name], target[name])


def test_targets_stay_in_eval_mode_and_normalise_as_the_model_does():
    spec = PENDULUM + DETERMINISTIC + "normalize: [observation]\n" + ACTOR + TWINS
    made = agent(TD3, spec)
    made.policy.set_training_mode(True)
    assert made.policy.model.policy.training
    assert not made.policy.policy_target.training
    assert not made.policy.model.critic.target.training
    made.policy.model.update_normalizers(torch.randn(50, 3) + 3)
    seen = some(made)
    assert torch.equal(made.actor(seen), made.actor_target(seen))


def test_weights_of_a_model_reach_the_targets():
    model = composer.compose(PENDULUM + DETERMINISTIC + ACTOR + TWINS, seed=0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.5)
    made = agent(TD3, model, "Pendulum-v1")
    seen = some(made)
    assert torch.equal(made.actor(seen), made.actor_target(seen))
    assert torch.equal(
        made.actor_target(seen), made.policy.scaled(model.policy.distribution(seen).mode())
    )


def test_sac_gets_better_at_a_task_of_one_step():
    """Reward is how near the action is to the observation: at random about -1, and near 0 once it is learned."""

    class Near(gymnasium.Env):
        observation_space = spaces.Box(-2, 2, (1,))
        action_space = spaces.Box(-2, 2, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self._at = self.np_random.uniform(-2, 2, 1).astype(np.float32)
            return self._at, {}

        def step(self, action):
            return self._at, -float(np.abs(action - self._at).sum()), True, False, {}

    made = agent(SAC, ACTOR + TWINS, Near(), learning_rate=3e-3, batch_size=64, buffer_size=2000)
    made.learn(300)
    seen = np.linspace(-1.5, 1.5, 9, dtype=np.float32).reshape(-1, 1)
    assert np.abs(made.predict(seen, deterministic=True)[0] - seen).mean() < 0.4


def test_ddpg_is_td3_with_one_critic():
    spec = PENDULUM + DETERMINISTIC + ACTOR + TWINS.replace("ensemble: 2", "ensemble: 1")
    made = sb3.agent(DDPG, spec, seed=0, learning_starts=8, buffer_size=100, batch_size=8)
    made.learn(20)
    assert made.policy.model.critic.copies == 1


def test_a_batch_that_was_written_to_is_read_again():
    made = agent(SAC, ACTOR + TWINS, Walk(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (1,))))
    seen, policy = some(made), made.policy
    first = policy.actor(seen, deterministic=True)
    assert policy.seen(seen) is policy.seen(seen)
    seen.neg_()
    with torch.inference_mode():  # whose tensors do not count how often they were written to
        copied = seen.clone()
        expected = policy.actor(copied, deterministic=True)
        copied.neg_()
        assert torch.equal(policy.actor(copied, deterministic=True), first)
    assert torch.equal(policy.actor(seen, deterministic=True), expected)
    assert not torch.equal(first, expected)
