"""Composed models in sb3-contrib: memory that is the model's own, and masks that add to those of the spec."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

import composer
from composer.adapters.sb3.agents import wrap
from tests.helpers.sb3_agents import ACTOR, CONFIGS, VALUES, Walk, agent

RECALL = CONFIGS / "masked_recurrent.yaml"
MEMORIES = {
    "lstm": "{block: lstm, in: observation, hidden_units: 5, num_layers: 2}",
    "gru": "{block: gru, in: observation, hidden_units: 5}",
    "frame_stack": "{block: frame_stack, in: observation, num_frames: 3}",
    "lru": "{block: lru, in: observation, hidden_units: 4}",
}
POLICY_ONLY = """
version: 1
policy:
  graph:
    memory: MEMORY
    latent: {block: flatten_dense, in: memory, hidden_units: [8]}
  heads: {in: latent}
"""
CRITIC_ONLY = (
    ACTOR
    + """
critic:
  graph:
    memory: MEMORY
    latent: {block: flatten_dense, in: memory, hidden_units: [8]}
"""
)


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)


def recall(count):
    envs = DummyVecEnv([lambda: gymnasium.make("environments.recall_env:Recall-v0")] * count)
    envs.seed(0)
    return envs


class Rollouts(BaseCallback):
    """Keeps what was collected: observations, actions, episode starts, values and log-probabilities, (steps, envs)."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        names = ("observations", "actions", "episode_starts", "values", "log_probs")
        self.kept.append({name: copy.copy(getattr(buffer, name)) for name in names})


def play(made, rollouts):
    """(value, log-probability) by a plain loop over what was collected, with resets where episodes begin."""
    model = made.policy.model
    state = model.initial_state(made.n_envs)
    for kept in rollouts:
        for step, starts in enumerate(kept["episode_starts"]):
            seen = pick(kept["observations"], step)
            resets = torch.as_tensor(starts != 0)
            inputs = model.policy.read(seen)
            with torch.no_grad():
                logits, values, state = model(seen, state, resets)
                distribution = model.policy.distribution_of(logits, inputs, None, 1.0)
                actions = torch.as_tensor(kept["actions"][step]).squeeze(-1).long()
                yield values["value"].squeeze(-1), distribution.log_prob(actions)


def pick(observations, step):
    if not isinstance(observations, dict):
        seen = torch.as_tensor(observations[step])
        return seen if seen.is_floating_point() else seen.squeeze(-1)
    seen = {key: torch.as_tensor(value[step]) for key, value in observations.items()}
    return {key: v.squeeze(-1) if key == "sign" else v for key, v in seen.items()}


def assert_as_a_plain_loop(made, steps):
    collected = Rollouts()
    made.learn(steps, callback=collected)
    theirs = [
        (values, log_probs)
        for kept in collected.kept
        for values, log_probs in zip(kept["values"], kept["log_probs"], strict=True)
    ]
    assert len(collected.kept) == 2
    assert sum(kept["episode_starts"].sum() for kept in collected.kept) > 2
    for (values, log_probs), (ours, own) in zip(theirs, play(made, collected.kept), strict=True):
        np.testing.assert_allclose(values, ours, atol=1e-5)
        np.testing.assert_allclose(log_probs, own, atol=1e-5)
    logged = made.logger.name_to_value
    assert abs(logged["train/approx_kl"]) < 1e-6  # and evaluating sequences gives the same again
    assert logged["train/clip_fraction"] == 0


def test_memory_masks_and_a_shared_embedding_are_those_of_a_plain_loop():
    env = recall(3)
    made = agent(
        RecurrentPPO, RECALL, env, allow=["environments"], learning_rate=0.0, batch_size=25
    )
    assert_as_a_plain_loop(made, 2 * 3 * 32)


@pytest.mark.parametrize("spec", [POLICY_ONLY + VALUES, CRITIC_ONLY], ids=["policy", "critic"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_any_memory_in_policy_or_critic_is_that_of_a_plain_loop(memory, spec):
    envs = DummyVecEnv(
        [lambda n=n: Walk(spaces.Box(-1, 1, (3,)), spaces.Discrete(3), n) for n in (3, 5)]
    )
    spec = spec.replace("MEMORY", MEMORIES[memory])
    made = agent(RecurrentPPO, spec, envs, learning_rate=0.0, n_steps=16)
    assert_as_a_plain_loop(made, 2 * 2 * 16)


def test_a_state_that_is_changed_in_place_is_read_again():
    spec = CRITIC_ONLY.replace("MEMORY", MEMORIES["gru"])
    policy = agent(RecurrentPPO, spec, Walk(spaces.Box(-1, 1, (3,)), spaces.Discrete(3))).policy
    seen, starts = torch.ones(1, 3), torch.zeros(1)
    zeros = torch.zeros(policy.lstm_hidden_state_shape)
    with torch.no_grad():
        first = policy.predict_values(seen, (zeros, zeros), starts)
        _, _, _, states = policy.forward(seen, RNNStates((zeros, zeros), (zeros, zeros)), starts)
        later = policy.predict_values(seen, states.vf, starts)
        assert torch.equal(later, policy.predict_values(seen, copy.deepcopy(states.vf), starts))
        for half in states.vf:
            half.zero_()
        assert torch.equal(policy.predict_values(seen, states.vf, starts), first)
    assert not torch.equal(later, first)
    policy.forward(seen, RNNStates(states.pi, states.vf), starts)
    copy.deepcopy(policy)  # no graph is held


def test_gradients_are_those_of_unrolled_sequences():
    space = spaces.Box(-1, 1, (3,))
    spec = (POLICY_ONLY + VALUES).replace("MEMORY", MEMORIES["gru"])
    made = agent(RecurrentPPO, spec, Walk(space, spaces.Discrete(3)))
    policy, model = made.policy, made.policy.model
    seen, actions = torch.randn(2, 5, 3), torch.randint(3, (2, 5))
    state = {"policy/memory/h": torch.randn(2, *model.policy.state_shapes["memory/h"])}
    starts = torch.zeros(2, 5)
    starts[0, 0] = 1
    packed = policy._pack(state, torch.zeros(2, 1), torch.zeros(2).bool())
    rows = (seen.flatten(0, 1), actions.flatten(), RNNStates(packed, packed), starts.flatten())
    log_prob = policy.evaluate_actions(*rows)[1]
    own = {"memory/h": state["policy/memory/h"]}
    distribution, _ = model.policy.distribution(seen, own, starts.bool(), unroll=True)
    expected = distribution.log_prob(actions).flatten()
    torch.testing.assert_close(log_prob, expected)
    parameters = list(model.policy.parameters())
    ours = torch.autograd.grad(log_prob.sum(), parameters)
    for one, other in zip(ours, torch.autograd.grad(expected.sum(), parameters), strict=True):
        torch.testing.assert_close(one, other)


DECODER = """
version: 1
policy:
  graph:
    latent: {block: decoder, in: observation, width: 8, num_layers: 1, num_heads: 2, max_length: LENGTH}
  heads: {in: latent}
  shares: [latent]
critic:
  graph:
    value: {block: linear_output, in: latent, output_units: 1}
"""


def test_a_decoder_needs_no_places_for_the_padding_of_sequences():
    """Sequences that begin within an episode are padded to the length of others, which are whole episodes."""
    envs = DummyVecEnv(
        [lambda n=n: Walk(spaces.Discrete(6), spaces.Discrete(3), n) for n in (7, 5)]
    )
    spec = DECODER.replace("LENGTH", "7")
    made = agent(RecurrentPPO, spec, envs, learning_rate=0.0, n_steps=33)
    assert_as_a_plain_loop(made, 2 * 2 * 33)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_of_sequences_without_padding(dtype):
    """One row goes on where its episode has 3 steps left; the other is a whole episode, which fills the cache."""
    longest, left = 260, 3  # more than bfloat16 counts
    spec = DECODER.replace("LENGTH", str(longest))
    policy = agent(
        RecurrentPPO, spec, Walk(spaces.Discrete(6), spaces.Discrete(3)), dtype=dtype
    ).policy
    tokens, actions = torch.randint(6, (2, longest, 1)), torch.randint(3, (2, longest))
    packed = tuple(torch.zeros(1, 1, policy.lstm_hidden_state_shape[-1]) for _ in range(2))
    states = RNNStates(packed, packed)
    with torch.no_grad():
        for step in range(longest - left):
            *_, states = policy(tokens[0, step : step + 1], states, torch.tensor([step == 0]))
    halves = tuple(torch.cat([half, torch.zeros_like(half)], 1) for half in states.pi)
    tokens[0] = torch.cat([tokens[0, -left:], torch.zeros(longest - left, 1)])
    starts = torch.zeros(2, longest)
    starts[1, 0] = 1

    def gradients(rows, steps):
        """Of what the steps of the rows give that are no padding."""
        seen = tokens[rows, : max(steps)].flatten(0, 1), actions[rows, : max(steps)].flatten()
        state = tuple(half[:, rows] for half in halves)
        outputs = policy.evaluate_actions(
            *seen, RNNStates(state, state), starts[rows, : max(steps)].flatten()
        )
        real = torch.arange(max(steps)) < torch.tensor(steps).unsqueeze(-1)
        total = sum(output.flatten()[real.flatten()].sum() for output in outputs)
        return torch.autograd.grad(total, list(policy.model.parameters()))

    together = gradients([0, 1], [left, longest])
    alone = zip(gradients([0], [left]), gradients([1], [longest]), strict=True)
    for ours, (first, second) in zip(together, alone, strict=True):
        scale = (first + second).abs().max().clamp_min(1.0)
        tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
        torch.testing.assert_close(ours / scale, (first + second) / scale, atol=tolerance, rtol=0)


def test_padding_is_never_an_observation_that_is_none():
    """The host fills sequences up with zeros: no choice of a space that starts later, and no legal action."""
    space = spaces.Dict(
        kind=spaces.Discrete(2, start=3),
        pair=spaces.MultiDiscrete([2, 2], start=[1, 2]),
        legal=spaces.MultiBinary(2),
    )
    spec = """
version: 1
policy:
  graph:
    kinds: {block: one_hot, in: kind}
    pairs: {block: one_hot, in: pair}
    seen: {block: concat, in: [kinds, pairs]}
    memory: {block: gru, in: seen, hidden_units: 4}
  heads: {in: memory}
  action_mask: {action: legal}
critic:
  graph:
    kinds: {block: one_hot, in: kind}
    latent: {block: dense, in: kinds, hidden_units: [4]}
"""

    class Legal(Walk):
        def observed(self):
            return {**super().observed(), "legal": np.ones(2, np.int8)}

    envs = DummyVecEnv([lambda n=n: Legal(space, spaces.Discrete(2), n) for n in (2, 7)])
    agent(RecurrentPPO, spec, envs, n_steps=16, batch_size=16).learn(64)


ACTIONS = {
    "box above 0": spaces.Box(1.0, 8.0, (2,)),
    "box below 0": spaces.Box(-8.0, -1.0, (1,)),
    "discrete": spaces.Discrete(2, start=3),
    "several": spaces.Dict(kind=spaces.Discrete(3, start=-4), size=spaces.Box(1.0, 8.0, (1,))),
}


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_padding_is_never_an_action_that_is_none(space):
    """Zeros are outside of a Box that begins above them, and no choice of a space that starts elsewhere."""
    spec = """
version: 1
policy:
  graph:
    memory: {block: gru, in: observation, hidden_units: 4}
  heads: {in: memory}
critic: {graph: {latent: {block: dense, in: observation, hidden_units: [4]}}}
"""
    seen = spaces.Box(-1, 1, (2,), np.float32)
    envs = DummyVecEnv([lambda n=n: wrap(Walk(seen, space, n), spec) for n in (2, 7)])
    made = agent(RecurrentPPO, spec, envs, n_steps=16, batch_size=16)
    before = [parameter.clone() for parameter in made.policy.parameters()]
    made.learn(64)
    assert all(p.isfinite().all() for p in made.policy.parameters())
    assert any((p != old).any() for p, old in zip(made.policy.parameters(), before, strict=True))
    drawn = made.policy.actions.space.sample()
    rows = torch.as_tensor(np.array([drawn])).float().reshape(1, -1)
    assert torch.equal(made.policy.actions.without_padding(rows), rows)


def test_predicting_carries_the_state_and_resets_it():
    env = recall(2)
    made = agent(RecurrentPPO, RECALL, env, allow=["environments"])
    made.learn(64)
    policy = made.policy.model.policy
    own, carried = policy.initial_state(2), None
    observation, starts = env.reset(), np.ones(2, bool)
    for _ in range(12):
        action, carried = made.predict(observation, carried, starts, deterministic=True)
        expected, own = policy.act(observation, own, starts, deterministic=True)
        assert np.array_equal(action, expected)
        observation, _, starts, _ = env.step(action)


def test_images_several_actions_and_memory_at_once(tmp_path):
    """configs/mixed_lstm.yaml as it is: the host has images turned, and both actions as one vector."""
    made = agent(
        RecurrentPPO, CONFIGS / "mixed_lstm.yaml", allow=["environments"],
        n_steps=8, batch_size=8, n_epochs=1,
    )  # fmt: skip
    made.learn(8)
    made.save(tmp_path / "agent.zip")
    loaded = RecurrentPPO.load(tmp_path / "agent.zip")
    own = composer.compose(CONFIGS / "mixed_lstm.yaml", allow=["environments"], seed=0)
    assert loaded.policy.model.observation_space == own.observation_space
    for name, tensor in loaded.policy.state_dict().items():
        assert torch.equal(tensor, made.policy.state_dict()[name])


# --- masks ---

CHOICES = {
    "discrete": (spaces.Discrete(3, start=2), 3),
    "multi_discrete": (spaces.MultiDiscrete([2, 3]), 5),
    "multi_binary": (spaces.MultiBinary(2), 4),
}


class MaskedWalk(Walk):
    """One action is legal in each step, and that is taken."""

    def action_masks(self):
        if isinstance(self.action_space, spaces.Discrete):
            self._legal = self.np_random.integers(self.action_space.n)
            return np.arange(self.action_space.n) == self._legal
        if isinstance(self.action_space, spaces.MultiBinary):
            return np.array([1, 0, 1, 1])  # the first bit is 0, the second what it may be
        self._legal = [self.np_random.integers(n) for n in self.action_space.nvec]
        parts = zip(self.action_space.nvec, self._legal, strict=True)
        return np.concatenate([np.arange(n) == legal for n, legal in parts])

    def step(self, action):
        if isinstance(self.action_space, spaces.Discrete):
            assert action == self._legal + self.action_space.start
        elif isinstance(self.action_space, spaces.MultiBinary):
            assert action[0] == 0
        else:
            assert list(action) == self._legal
        return super().step(action)


@pytest.mark.parametrize("kind", CHOICES)
def test_masks_of_the_environment_hold(kind):
    space, width = CHOICES[kind]
    made = agent(MaskablePPO, ACTOR + VALUES, MaskedWalk(spaces.Box(-1, 1, (3,)), space))
    made.learn(64)
    assert abs(made.logger.name_to_value["train/approx_kl"]) < 0.1
    observation, masks = made.env.reset(), np.ones(width, bool)
    theirs = made.predict(observation, deterministic=True, action_masks=masks)[0]
    ours = made.policy.model.policy.act(observation, deterministic=True)
    assert np.array_equal(theirs, ours)


def test_masks_of_the_environment_add_to_those_of_the_spec():
    space = spaces.Dict(observation=spaces.Box(-1, 1, (3,)), legal=spaces.MultiBinary(3))
    spec = ACTOR.replace("heads:", "action_mask: {action: legal}\n  heads:") + VALUES
    made = agent(MaskablePPO, spec, MaskedWalk(space, spaces.Discrete(3)))
    seen = {"observation": torch.zeros(1, 3), "legal": torch.tensor([[1, 1, 0]])}
    distribution = made.policy.get_distribution(seen, np.array([[False, True, True]]))
    assert {int(distribution.sample()) for _ in range(20)} == {1}
    actions, values, log_prob = made.policy(seen, action_masks=np.array([[0, 1, 1]]))
    again = made.policy.evaluate_actions(seen, actions, torch.tensor([[0.0, 1.0, 1.0]]))
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], log_prob)
    assert log_prob.item() == 0


def test_a_bit_that_may_not_be_zero_is_refused():
    env = MaskedWalk(spaces.Box(-1, 1, (3,)), spaces.MultiBinary(2))
    made = agent(MaskablePPO, ACTOR + VALUES, env)
    expected = (
        "action_masks forbids the value 0 of a bit; a composed model can only forbid the value 1"
    )
    with pytest.raises(ValueError, match=expected):
        made.predict(made.env.reset(), action_masks=np.array([0, 1, 1, 1]))
