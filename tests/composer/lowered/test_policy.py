"""policy.lower() and model.lower(): the same actions, logits and values, from the same random numbers."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import composer
from composer.lowered.policy import LoweredPolicy
from composer.policy.policy import Policy
from tests.helpers.structured_models import SEPARATE, SHARED, agents, observations
from tests.whole.test_configs import MODULES, PATHS, every_config, make_env

GRAPH = """
version: 1
{more}
policy:
  graph:
    latent: {{block: dense, in: observation, hidden_units: [16, 16]}}
  heads: {{in: latent}}
critic:
  graph:
    latent: {{block: dense, in: observation, hidden_units: 16}}
"""
OBSERVED = spaces.Box(-10, 10, (4,))


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(PATHS[0].parent)


def compose(action_space, more="", observed=OBSERVED, **keywords):
    return composer.compose(
        GRAPH.format(more=more),
        observation_space=observed,
        action_space=action_space,
        seed=0,
        **keywords,
    )


def rule(distribution, **settings):
    extra = "".join(f", {name}: {value}" for name, value in settings.items())
    return f"distributions:\n  - {{action: action, distribution: {distribution}{extra}}}"


ACTIONS = {
    "discrete": (spaces.Discrete(3), ""),
    "from seven": (spaces.Discrete(3, start=7), ""),
    "many": (spaces.MultiDiscrete([2, 3]), ""),
    "bits": (spaces.MultiBinary(3), ""),
    "squashed": (spaces.Box(-1, 1, (3,)), ""),
    "squashed and stretched": (spaces.Box(0, 5, (3,)), ""),
    "squashed, double": (spaces.Box(-1, 1, (3,), dtype=np.float64), ""),
    "of two axes": (spaces.Box(-1, 1, (2, 3)), ""),
    "of none": (spaces.Box(-1, 1, ()), ""),
    "bounds of their own": (spaces.Box(np.float32([-1, 0]), np.float32([1, 5])), ""),
    "integers": (spaces.Box(-3, 3, (2,), dtype=np.int32), ""),
    "unbounded": (spaces.Box(-np.inf, np.inf, (3,)), ""),
    "learned": (spaces.Box(-1, 1, (3,)), rule("gaussian", log_std="learned", init_log_std=-1)),
    "clipped": (spaces.Box(-0.1, 0.1, (2, 3)), rule("gaussian", init_log_std=0.5)),
    "beta": (spaces.Box(-1, 1, (3,)), rule("beta")),
    "several": (spaces.Dict({"go": spaces.Discrete(2), "turn": spaces.Box(-1, 1, (2,))}), ""),
    "tuple": (spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]), ""),
}
every_action = pytest.mark.parametrize("name", ACTIONS)


def expect_same(one, other):
    """Actions of one structure, kind and value."""
    assert type(one) is type(other)
    if isinstance(one, (dict, tuple)):
        pairs = zip(one.items(), other.items()) if isinstance(one, dict) else zip(one, other)
        for mine, theirs in pairs:
            expect_same(mine, theirs)
    elif isinstance(one, str):
        assert one == other
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other)
    else:
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def expect_same_actions(model, lowered, observation, **keywords):
    for deterministic in (False, True):
        for seed in range(5):
            results = []
            for policy in (model.policy, lowered):
                torch.manual_seed(seed)
                results.append(policy.act(observation, deterministic=deterministic, **keywords))
            expect_same(*results)


@every_action
def test_the_same_random_numbers_give_the_same_actions(name):
    space, more = ACTIONS[name]
    model = compose(space, more)
    lowered = model.policy.lower()
    one = np.random.default_rng(0).normal(size=4).astype(np.float32)
    many = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    for observation in (one, many, torch.tensor(one), torch.tensor(many), one.astype(np.float64)):
        expect_same_actions(model, lowered, observation)
    expect_same_actions(model, lowered, one, temperature=0.5)
    assert space.contains(lowered.act(one))
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    expect_same(
        model.policy.act(one, generator=generators[0]), lowered.act(one, generator=generators[1])
    )


@every_action
def test_deterministic_actions_are_exactly_those_of_the_policy(name):
    space, more = ACTIONS[name]
    model = compose(space, more)
    lowered = model.policy.lower()
    for observation in np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32):
        mine, theirs = (p.act(observation, deterministic=True) for p in (lowered, model.policy))
        assert str(mine) == str(theirs)


def test_choices_are_as_frequent_as_their_probabilities():
    model = compose(spaces.Discrete(4))
    with torch.no_grad():
        head = model.policy.get_submodule("heads.action").linear
        head.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
        head.weight.zero_()
    lowered, observation = model.policy.lower(), np.zeros(4, np.float32)
    counts = np.bincount([lowered.act(observation) for _ in range(4000)], minlength=4)
    expected = torch.distributions.Categorical(logits=head.bias).probs.detach().numpy()
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)


@pytest.mark.parametrize("log_std", ["learned", "state"])
def test_moments_of_a_gaussian_are_its_parameters(log_std):
    more = rule("gaussian", log_std=log_std, init_log_std=-0.5)
    model = compose(spaces.Box(-50, 50, (2,)), more)
    lowered, observation = model.policy.lower(), np.ones(4, np.float32)
    drawn = np.stack([lowered.act(observation) for _ in range(4000)])
    distribution = model.policy.distribution(observation)
    mean, std = distribution.mean.detach().numpy(), distribution.stddev.detach().numpy()
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(drawn.std(0), std, atol=0.05)


def test_a_mask_is_obeyed():
    model = compose(spaces.Discrete(3))
    lowered, observation = model.policy.lower(), np.zeros(4, np.float32)
    mask = np.array([False, True, False])
    assert {int(lowered.act(observation, mask=mask)) for _ in range(20)} == {1}
    expect_same_actions(model, lowered, observation, mask=np.array([True, False, True]))


def stacked(observations):
    if isinstance(observations[0], dict):
        return {k: stacked([o[k] for o in observations]) for k in observations[0]}
    return np.stack(observations)


def sample(space):
    return {k: s.sample() for k, s in space.items()} if type(space) is dict else space.sample()


@every_config
def test_every_config_acts_the_same_lowered(path):
    model = composer.compose(path, allow=MODULES, seed=0)
    if not isinstance(model.policy, Policy):
        return  # of several actors: each has a Policy of its own
    lowered = model.policy.lower()
    with make_env(path) as env:
        observation, _ = env.reset(seed=0)
        first, state, other = True, model.policy.initial_state(), lowered.initial_state()
        for step in range(10):
            torch.manual_seed(step)
            arguments = (state, first) if model.policy.has_memory else ()
            action = model.policy.act(observation, *arguments)
            torch.manual_seed(step)
            arguments = (other, first) if model.policy.has_memory else ()
            mine = lowered.act(observation, *arguments)
            if model.policy.has_memory:
                (action, state), (mine, other) = action, mine
                torch.testing.assert_close(other, state)
            expect_same(mine, action)
            observation, _, terminated, truncated, _ = env.step(mine)
            first = terminated or truncated
            if first:
                observation, _ = env.reset()


@every_config
def test_every_config_computes_the_same_lowered(path):
    model = composer.compose(path, allow=MODULES, seed=0)
    lowered = model.lower()
    observation = sample(model.observation_space)
    arguments = ()
    if model.has_memory:
        arguments = (model.initial_state(), None)
    keywords = {}
    if getattr(model.critic, "takes_action", False):
        keywords["action"] = model.policy.distribution(observation).mode()
    with torch.no_grad():
        expected = model(observation, *arguments, **keywords)
        torch.testing.assert_close(lowered(observation, *arguments, **keywords), expected)
        arguments = (model.policy.initial_state(), None) if model.policy.has_memory else ()
        expected = model.policy(observation, *arguments)
        torch.testing.assert_close(lowered.policy(observation, *arguments), expected)


CHANGES = {
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "load": lambda model: model.load_state_dict(
        {name: value + 0.1 for name, value in model.state_dict().items()}
    ),
    "hook": lambda model: model.policy.get_submodule("latent").register_forward_hook(
        lambda m, i, o: o + 1
    ),
    "hook of a distribution": lambda model: model.policy.distributions[
        "action"
    ].register_forward_pre_hook(lambda m, i: (i[0] * 0 + 5, *i[1:])),
    "another distribution": lambda model: setattr(
        model.policy.distributions["action"], "log_std", nn.Parameter(torch.full((3,), -9.0))
    ),
    "train": lambda model: model.train(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_lowered_policy_is_never_stale(name):
    more = rule("gaussian", log_std="learned")
    model = compose(spaces.Box(-50, 50, (3,)), more).eval()
    lowered, whole = model.policy.lower(), model.lower()
    observation = np.ones(4, np.float32)
    lowered.act(observation)
    whole(observation)
    CHANGES[name](model)
    expect_same_actions(model, lowered, observation)
    torch.testing.assert_close(whole(observation), model(observation))
    torch.testing.assert_close(lowered(observation), model.policy(observation))


def test_another_policy_in_its_place_is_the_one_that_runs():
    model, other = compose(spaces.Discrete(3)), compose(spaces.Discrete(3))
    with torch.no_grad():
        for parameter in other.policy.parameters():
            parameter.add_(1)
    lowered = model.lower()
    observation = np.ones(4, np.float32)
    lowered(observation)
    model.policy = other.policy
    torch.testing.assert_close(lowered(observation), model(observation))


def test_a_model_without_weights_says_so_and_has_them_later():
    model = compose(spaces.Discrete(3), device="meta")
    policy, whole = model.policy.lower(), model.lower()
    observation = np.ones(4, np.float32)
    message = "^this model has no weights yet; call model.materialize\\(device\\) first$"
    for call in (policy, policy.act, whole):
        with pytest.raises(ValueError, match=message):
            call(observation)
    model.materialize("cpu")
    torch.testing.assert_close(whole(observation), model(observation))
    expect_same_actions(model, policy, observation)


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_a_policy_of_several_actors_is_lowered_actor_by_actor(separate):
    model = agents(separate=separate)
    seen = observations(model)
    policy = model.policy.lower()
    assert policy is model.policy
    assert model.lower().policy is policy
    one, lowered = policy["agent_1"], policy["agent_1"].lower()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    torch.testing.assert_close(lowered(seen["agent_1"]), one(seen["agent_1"]))
    expected = policy.act(seen, deterministic=True)["agent_1"]
    assert lowered.act(seen["agent_1"], deterministic=True) == expected


def test_hooks_of_policy_and_model_are_called():
    model = compose(spaces.Discrete(3))
    policy, whole = model.policy.lower(), model.lower()
    seen = []
    model.policy.register_forward_hook(lambda *_: seen.append("policy"))
    model.register_forward_hook(lambda *_: seen.append("model"))
    policy(np.ones(4, np.float32))
    assert seen == ["policy"]
    whole(np.ones(4, np.float32))
    assert seen == ["policy", "policy", "model"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_act_by_weights_of_their_own(copied):
    model = compose(spaces.Discrete(3))
    observation = np.ones(4, np.float32)
    for lowered in (model.policy.lower(), model.lower()):
        twin = copied(lowered)
        torch.testing.assert_close(twin(observation), lowered(observation))
    assert isinstance(copied(model.policy.lower()), LoweredPolicy)


def test_gradients_flow_and_the_mode_of_gradients_stays():
    model = compose(spaces.Discrete(3))
    lowered = model.policy.lower()
    observation = np.ones(4, np.float32)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            lowered.act(observation)
            assert torch.is_grad_enabled() is enabled
    with pytest.raises(ValueError, match="expected"):
        lowered.act(np.ones(3, np.float32))
    assert torch.is_grad_enabled()
    logits, values = model.lower()(observation)
    (logits["action"].sum() + values["value"].sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_array_that_changes_afterwards_changes_nothing():
    model = compose(spaces.Discrete(3), observed=spaces.Box(-10, 10, (4,)))
    observation = np.ones(4, np.float32)
    inputs, _ = model.policy.lower()._read(observation)
    observation[:] = 0
    assert inputs["observation"].tolist() == [1.0] * 4


def test_a_read_only_array_is_read():
    model = compose(spaces.Discrete(3))
    observation = np.ones(4, np.float32)
    observation.flags.writeable = False
    expect_same_actions(model, model.policy.lower(), observation)


def test_normalised_observations_of_several_parts():
    spec = """
    version: 1
    normalize: [a]
    policy:
      graph:
        both: {block: concat, in: [a, b]}
      heads: {in: both}
    """
    observed = spaces.Dict({"a": spaces.Box(-9, 9, (2,)), "b": spaces.Box(-9, 9, (3,))})
    model = composer.compose(
        spec, observation_space=observed, action_space=spaces.Discrete(2), seed=0
    )
    lowered = model.policy.lower()
    observed.seed(0)
    samples = [observed.sample() for _ in range(4)]
    model.update_normalizers(stacked(samples))
    for sample in samples:
        expect_same_actions(model, lowered, sample)
    expect_same_actions(model, lowered, stacked(samples))
    with pytest.raises(ValueError, match="'c' is not in the observation space"):
        lowered.act({**samples[0], "c": np.zeros(2)})


def test_a_vector_environment():
    model = compose(spaces.Discrete(2))
    envs = gymnasium.make_vec("CartPole-v1", num_envs=3)
    observations, _ = envs.reset(seed=0)
    expect_same_actions(model, model.policy.lower(), observations)
    envs.close()
