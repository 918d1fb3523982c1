"""State-dependent exploration: its densities by hand, its noise between two observations, what holds it, gradients."""

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer.distributions.gsde import GSDE
from composer.spaces.tree import flatten_space

FREE = spaces.Box(-np.inf, np.inf, (2,))
UNEVEN = spaces.Box(np.float32([[-3.0], [0.1]]), np.float32([[7.0], [0.2]]))
SPEC = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
  heads: {in: latent}
distributions:
  - {space: box, distribution: gsde, latent_units: 5}
"""
SEEN = spaces.Box(-1, 1, (3,))


def build(space=FREE, **settings) -> Any:
    family: Any = GSDE(flatten_space(space, "action").leaves["action"], **settings)
    with torch.no_grad():
        family.log_std += 0.5 * torch.randn(
            family.log_std.shape, generator=torch.Generator().manual_seed(3)
        )
    return family.double()


def policy_of(action_space: spaces.Space, spec=SPEC) -> Any:
    return composer.compose(spec, observation_space=SEEN, action_space=action_space, seed=0).policy


def expected(family, logits):
    """Means, features and the exploration matrix's standard deviations, by hand."""
    std = family.log_std.exp().expand(family._split[1], 2)
    return logits[..., :2], logits[..., 2:].tanh(), std


@pytest.mark.parametrize("full_std", [True, False])
def test_an_action_is_normal_with_the_variance_of_all_exploration_matrices(full_std):
    family = build(latent_units=4, full_std=full_std)
    assert family.log_std.shape == (4, 2 if full_std else 1)
    logits = torch.randn(7, 6, dtype=torch.float64)
    mean, phi, std = expected(family, logits)
    covariance = torch.stack([std.T @ torch.diag(row.square()) @ std for row in phi])
    by_hand = torch.distributions.Normal(mean, (covariance.diagonal(0, 1, 2) + 1e-6).sqrt())
    ours = family(logits)
    action = ours.sample()
    torch.testing.assert_close(ours.log_prob(action), by_hand.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), by_hand.entropy().sum(-1))
    assert torch.equal(ours.mode(), mean)


def test_held_noise_has_the_covariance_between_observations_that_one_matrix_gives():
    family, count = build(latent_units=3), 40_000
    logits = torch.randn(2, 5, dtype=torch.float64)
    mean, phi, std = expected(family, logits)
    family.hold_noise(count, torch.Generator().manual_seed(0))
    drawn = family(logits.unsqueeze(1).expand(2, count, 5)).sample() - mean.unsqueeze(1)
    found = torch.einsum("snd,tne->dest", drawn, drawn) / count
    by_hand = torch.einsum("sl,tl,ld->dst", phi, phi, std.square())
    for dim in range(2):
        torch.testing.assert_close(found[dim, dim], by_hand[dim], rtol=0.05, atol=2e-3)
    assert found[0, 1].abs().max() < 0.02 * by_hand.max()  # dimensions are independent


def test_held_noise_is_a_smooth_function_of_the_observation_and_else_it_is_fresh():
    family = build(latent_units=4)
    logits = torch.randn(3, 6, dtype=torch.float64)
    assert not torch.equal(family(logits).sample(), family(logits).sample())
    family.hold_noise()
    first = family(logits).sample()
    assert torch.equal(first, family(logits).sample())
    assert torch.equal(first[1], family(logits[1]).sample())
    assert (family(logits + 1e-6).sample() - first).abs().max() < 1e-4
    family.hold_noise()
    assert not torch.equal(first, family(logits).sample())
    family.release_noise()
    assert not torch.equal(family(logits).sample(), family(logits).sample())


def test_each_environment_has_its_own_matrix_and_another_batch_the_first():
    family = build(latent_units=4)
    logits = torch.randn(6, dtype=torch.float64).expand(5, 3, 6)
    family.hold_noise(3)
    action = family(logits).sample()
    assert torch.equal(action[0], action[4])  # the same environments at another step
    assert len(action[0].unique(dim=0)) == 3
    for other in (logits[0, 0], logits[:, 0]):
        assert torch.equal(family(other).sample().reshape(-1, 2)[0], action[0, 0])
        assert len(family(other).sample().reshape(-1, 2).unique(dim=0)) == 1


def test_generators_repeat_held_noise_and_it_is_not_saved_but_copied():
    family = build(latent_units=4)
    logits = torch.randn(6, dtype=torch.float64)
    family.hold_noise(1, torch.Generator().manual_seed(1))
    action = family(logits).sample()
    assert torch.equal(copy.deepcopy(family)(logits).sample(), action)
    assert list(family.state_dict()) == ["log_std"]
    family.hold_noise(1, torch.Generator().manual_seed(2))
    assert not torch.equal(family(logits).sample(), action)
    family.hold_noise(1, torch.Generator().manual_seed(1))
    assert torch.equal(family(logits).sample(), action)


@pytest.mark.parametrize("learn_features", [True, False])
@pytest.mark.parametrize("what", ["log_prob", "rsample"])
def test_gradients_reach_the_features_only_if_they_learn(what, learn_features):
    family = build(UNEVEN, latent_units=4, learn_features=learn_features)
    family.hold_noise()
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    distribution = family(logits)
    value = distribution.rsample()
    value = value if what == "rsample" else distribution.log_prob(value.detach())
    of_logits, of_std = torch.autograd.grad(value.sum(), [logits, family.log_std])
    assert bool((of_logits[:, :2] != 0).all())
    assert bool((of_logits[:, 2:] != 0).any()) is learn_features
    assert bool((of_std != 0).all())


def test_held_noise_follows_what_is_learned_since():
    family = build(latent_units=4)
    logits = torch.randn(6, dtype=torch.float64)
    family.hold_noise()
    noise = family(logits).sample() - family(logits).mode()
    with torch.no_grad():
        family.log_std += np.log(3)
    torch.testing.assert_close(family(logits).sample() - family(logits).mode(), 3 * noise)


def test_a_box_with_bounds_is_squashed_and_its_row_is_its_normal():
    family = build(UNEVEN, latent_units=4)
    logits = 3 * torch.randn(50, 6, dtype=torch.float64)
    family.hold_noise(50)
    distribution = family(logits)
    action = distribution.sample()
    low, high = (torch.tensor(bound) for bound in (UNEVEN.low, UNEVEN.high))
    assert bool(((action >= low) & (action <= high)).all())
    row = distribution.row()
    assert row.shape == (50, family.row_width) == (50, 4)
    again = family.of_row(row)
    torch.testing.assert_close(again.log_prob(action), distribution.log_prob(action))
    torch.testing.assert_close(again.kl(distribution), torch.zeros(50, dtype=torch.float64))
    assert not torch.equal(again.sample(), again.sample())  # fresh


def test_features_can_be_used_as_they_are():
    family = build(latent_units=4, feature_activation="identity")
    logits = torch.randn(7, 6, dtype=torch.float64)
    variance = logits[:, 2:].square() @ family.log_std.exp().square() + 1e-6
    torch.testing.assert_close(family(logits).stddev, variance.sqrt())
    family.hold_noise(1)
    noise = logits[:, 2:] @ (family.exploration[0] * family.log_std.exp())
    torch.testing.assert_close(family(logits).sample(), logits[:, :2] + noise)


def test_a_box_with_bounds_need_not_be_squashed():
    logits = torch.randn(7, 6, dtype=torch.float64)
    family = build(spaces.Box(-2, 2, (2,)), latent_units=4, squash=False)
    torch.testing.assert_close(family(logits).mean, logits[:, :2])
    torch.testing.assert_close(family.of_row(family(logits).row()).mean, logits[:, :2])
    policy = policy_of(spaces.Box(-0.01, 0.01, (2,)), SPEC.replace("gsde,", "gsde, squash: false,"))
    actions = policy.act(torch.randn(9, 3).numpy())
    assert float(np.max(np.abs(np.asarray(actions)))) <= float(np.float32(0.01))  # clipped


def test_expln_grows_like_a_logarithm_above_one():
    family = build(use_expln=True, latent_units=2)
    with torch.no_grad():
        family.log_std.copy_(torch.tensor([[-1.0, 0.0], [1.0, 2.0]]))
    by_hand = [[np.exp(-1), 1.0], [1 + np.log(2), 1 + np.log(3)]]
    torch.testing.assert_close(
        family.matrix_std(torch.float64), torch.tensor(by_hand, dtype=torch.float64)
    )
    (gradient,) = torch.autograd.grad(family.matrix_std(torch.float64).sum(), family.log_std)
    assert gradient.isfinite().all()


def test_temperature_scales_noise_that_is_held():
    family = build(latent_units=4)
    logits = torch.randn(6, dtype=torch.float64)
    family.hold_noise()
    noise = family(logits).sample() - family(logits).mode()
    colder = family(logits, temperature=0.25)
    torch.testing.assert_close(colder.sample() - colder.mode(), noise / 4)
    ratio = colder.base.stddev if hasattr(colder, "base") else colder.stddev
    torch.testing.assert_close(ratio, family(logits).stddev / 4)


def test_a_policy_acts_with_held_noise_lowered_compiled_and_after_a_copy():
    policy = policy_of(spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)))
    seen = np.float32([0.1, 0.2, 0.3])
    assert not np.array_equal(policy.act(seen)["a"], policy.act(seen)["a"])
    policy.resample_exploration(generator=torch.Generator().manual_seed(0))
    action = policy.act(seen)["a"]
    for other in (policy, policy.lower(), copy.deepcopy(policy)):
        np.testing.assert_allclose(other.act(seen)["a"], action, rtol=1e-6)
    policy.release_exploration()
    assert not np.array_equal(policy.act(seen)["a"], policy.act(seen)["a"])


@pytest.mark.parametrize("separate", [False, True])
def test_actors_that_share_a_policy_share_its_noise(separate):
    spec = SPEC.replace("policy:", f"policy:\n  separate: {str(separate).lower()}")
    names = ["a_0", "a_1"]
    policy = composer.compose(
        spec, observation_space=dict.fromkeys(names, SEEN), action_space=dict.fromkeys(names, FREE)
    ).policy
    seen = dict.fromkeys(names, torch.randn(4, 3))
    policy.resample_exploration(4)
    first, again = policy.act(seen), policy.act(seen)
    for name in names:
        assert torch.equal(first[name], again[name])
        assert len(first[name].unique(dim=0)) == 4
    assert torch.equal(first["a_0"], first["a_1"]) is not separate
    policy.release_exploration()
    assert not torch.equal(policy.act(seen)["a_0"], first["a_0"])


def test_several_actors_without_such_an_action_are_all_named():
    names = ["a_0", "b"]
    policy = composer.compose(
        SPEC.replace("gsde, latent_units: 5", "gaussian"),
        observation_space=dict.fromkeys(names, SEEN),
        action_space=dict.fromkeys(names, FREE),
    ).policy
    text = "no action of this policy ('a_0/action', 'b/action') has noise that could be held"
    with pytest.raises(ValueError, match=re.escape(text)):
        policy.resample_exploration()


def test_a_model_with_it_is_saved_shown_and_exported_by_its_mean(tmp_path):
    model = composer.compose(SPEC, observation_space=SEEN, action_space=FREE, seed=0)
    model.policy.resample_exploration()
    model.save(tmp_path / "model.safetensors")
    again = composer.load(tmp_path / "model.safetensors")
    seen = torch.randn(4, 3)
    for policy in (model.policy, again.policy):
        policy.resample_exploration(4, torch.Generator().manual_seed(0))
    assert torch.equal(model.policy.act(seen), again.policy.act(seen))
    assert re.search(r"distributions/action +gsde +10", model.summary())
    model.export(tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    outputs = exported({"observation": seen})
    torch.testing.assert_close(outputs["action"], model.policy.distribution(seen).mode())


def test_densities_and_samples_compile_without_a_break():
    family = build(latent_units=4)
    family.hold_noise()

    def step(logits):
        distribution = family(logits)
        action = distribution.sample()
        return action, distribution.log_prob(action)

    logits = torch.randn(3, 6, dtype=torch.float64)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(logits), step(logits), strict=True):
        torch.testing.assert_close(ours, theirs)
    family.hold_noise()
    torch.testing.assert_close(compiled(logits)[0], step(logits)[0])


@pytest.mark.parametrize("size", [0, -1, True, 1.0, None])
def test_a_number_of_environments_is_a_positive_integer(size):
    text = f"batch_size must be a positive integer, the number of environments, got {size!r}"
    with pytest.raises(ValueError, match=re.escape(text)):
        policy_of(FREE).resample_exploration(size)


def test_a_policy_without_such_an_action_says_what_would_have_one():
    spec = SPEC.replace(
        "distributions:\n  - {space: box, distribution: gsde, latent_units: 5}\n", ""
    )
    text = (
        "no action of this policy ('action') has noise that could be held; "
        "write distribution: gsde for a Box action under 'distributions'"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        policy_of(FREE, spec).resample_exploration()
    policy_of(FREE).resample_exploration()


def test_a_family_without_held_noise_says_so():
    policy = policy_of(FREE, SPEC.replace("gsde, latent_units: 5", "gaussian"))
    with pytest.raises(TypeError, match="Gaussian draws fresh noise for every sample"):
        policy.distributions["action"].hold_noise(1)


def test_a_mask_is_refused():
    with pytest.raises(ValueError, match="action 'action' is gsde, which takes no mask"):
        build()(torch.zeros(66), mask=torch.ones(66))
