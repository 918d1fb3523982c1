"""Heads that read what other heads have drawn: one joint distribution, whose numbers agree with all its actions."""

import copy
import itertools
import math
import pickle
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer.distributions.autoregressive import AutoregressiveDistribution
from composer.distributions.joint import CompositeDistribution

SEEN = spaces.Box(-1, 1, (4,))
CHAIN = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
    after_kind: {block: concat, in: [latent, action/kind]}
    after_both: {block: concat, in: [action/kind, action/pair, observation]}
    bits_of_both: {block: dense, in: after_both, hidden_units: [8]}
  heads:
    bits: {in: bits_of_both}
    kind: {in: latent}
    pair: {in: after_kind}
"""
CHOICES = spaces.Dict(
    kind=spaces.Discrete(3, start=2), pair=spaces.MultiDiscrete([2, 3]), bits=spaces.MultiBinary(2)
)
VALUES = "critic: {graph: {seen: {block: dense, in: observation, hidden_units: [8]}}}\n"
REMEMBERS = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
    memory: {block: gru, in: latent, hidden_units: 8}
    after_kind: {block: concat, in: [memory, action/kind]}
  heads:
    kind: {in: memory}
    steer: {in: after_kind}
"""
MIXED = spaces.Dict(kind=spaces.Discrete(3), steer=spaces.Box(-2, 2, (2,)))
BOXES = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
    both: {block: concat, in: [latent, action/first]}
  heads:
    first: {in: latent}
    second: {in: both}
"""
TWO_BOXES = spaces.Dict(first=spaces.Box(-1, 1, (2,)), second=spaces.Box(-1, 1, ()))


def composed(spec=CHAIN, actions=CHOICES, seed=0, scale=3, **settings):
    model = composer.compose(
        spec, observation_space=settings.pop("seen", SEEN), action_space=actions, seed=seed
    )
    with torch.no_grad():  # what is drawn matters for what comes after
        for parameter in model.policy.parameters():
            parameter.mul_(scale)
    return model


def seen(*leading, seed=0):
    return torch.rand(*leading, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def all_actions():
    """All joint actions of CHOICES as the distribution has them, each (36,) and its own axes."""
    rows = list(itertools.product(range(3), range(2), range(3), range(2), range(2)))
    table = torch.tensor(rows)
    return {"kind": table[:, 0], "pair": table[:, 1:3], "bits": table[:, 3:].float()}


def for_each(actions, *batch):
    """Actions (n, ...) for a batch: (n, *batch, ...)."""
    axes = [1] * len(batch)
    return {
        key: value.reshape(len(value), *axes, *value.shape[1:]).expand(
            len(value), *batch, *value.shape[1:]
        )
        for key, value in actions.items()
    }


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_probabilities_of_all_joint_actions_sum_to_1(leading):
    distribution = composed().policy.distribution(seen(*leading))
    log_probs = distribution.log_prob(for_each(all_actions(), *leading))
    assert log_probs.shape == (72, *leading)
    torch.testing.assert_close(log_probs.exp().sum(0), torch.ones(leading))


def test_entropy_and_kl_are_those_of_all_joint_actions():
    policy, other = composed().policy, composed(seed=1).policy
    ours, theirs = (p.distribution(seen(5)) for p in (policy, other))
    actions = for_each(all_actions(), 5)
    p, q = ours.log_prob(actions), theirs.log_prob(actions)
    torch.testing.assert_close(ours.entropy(), -(p.exp() * p).sum(0))
    torch.testing.assert_close(ours.kl(theirs), (p.exp() * (p - q)).sum(0))
    # Gradients too: that the actions which heads read depend on the weights is not left out.
    exact = torch.autograd.grad(ours.entropy().sum(), list(policy.parameters()), retain_graph=True)
    enumerated = torch.autograd.grad(-(p.exp() * p).sum(), list(policy.parameters()))
    for ours_, theirs_ in zip(exact, enumerated, strict=True):
        torch.testing.assert_close(ours_, theirs_, atol=1e-5, rtol=1e-4)


def test_samples_are_as_frequent_as_log_prob_says():
    distribution = composed().policy.distribution(seen(1).expand(20000, 4))
    drawn = distribution.sample(torch.Generator().manual_seed(0))
    numbers = drawn["kind"] * 24 + drawn["pair"][:, 0] * 12 + drawn["pair"][:, 1] * 4
    numbers += (drawn["bits"][:, 0] * 2 + drawn["bits"][:, 1]).long()
    frequencies = torch.bincount(numbers, minlength=72) / 20000
    one = composed().policy.distribution(seen(1)[0])
    expected = one.log_prob(all_actions()).exp()
    deviations = (expected * (1 - expected) / 20000).sqrt()
    assert ((frequencies - expected).abs() <= 5 * deviations + 2e-4).all()


def test_the_order_of_heads_follows_from_what_they_read():
    model = composed()
    assert list(model.policy.network.heads) == [("kind",), ("pair",), ("bits",)]
    drawn = model.policy.distribution(seen(2)).sample()
    assert list(drawn) == list(model.policy.distributions)
    assert {key: tuple(value.shape) for key, value in drawn.items()} == {
        "kind": (2,), "pair": (2, 2), "bits": (2, 2)
    }  # fmt: skip


def test_mode_takes_one_head_after_the_other():
    policy = composed().policy
    distribution = policy.distribution(seen(5))
    mode = distribution.mode()
    given = distribution.given(mode)
    assert isinstance(given, CompositeDistribution)
    for key, part in given.parts.items():
        assert torch.equal(part.mode(), mode[key])
    torch.testing.assert_close(given.log_prob(mode), distribution.log_prob(mode))
    other = {**mode, "kind": (mode["kind"] + 1) % 3}
    assert not torch.equal(distribution.logits(other)["pair"], distribution.logits(mode)["pair"])


def test_log_prob_trains_every_head_and_draws_are_without_gradient():
    policy = composed().policy
    distribution = policy.distribution(seen(5))
    drawn = distribution.sample()
    assert not any(value.requires_grad for value in drawn.values())
    for log_prob in (distribution.log_prob_of_draw(drawn), distribution.log_prob(drawn)):
        gradients = torch.autograd.grad(
            log_prob.sum(), list(policy.parameters()), retain_graph=True
        )
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
    with torch.no_grad():
        drawn = distribution.sample()
    assert distribution.log_prob_of_draw(
        drawn
    ).requires_grad  # not that of the draw, which has no history


def test_a_reparametrised_sample_carries_gradients_to_the_heads_before():
    policy = composed(BOXES, TWO_BOXES).policy
    distribution = policy.distribution(seen(5))
    drawn = distribution.rsample()
    first = dict(policy.named_parameters())["heads.first.linear.weight"]
    (gradient,) = torch.autograd.grad(drawn["second"].sum(), [first], retain_graph=True)
    assert gradient.abs().sum() > 0
    choices = composed(MASKED, MOVES).policy.distribution(seen(5))
    with pytest.raises(ValueError, match=re.escape("no reparametrised sample; use sample()")):
        choices.rsample()


def test_entropy_is_an_estimate_without_bias_where_a_head_reads_numbers():
    policy = composed(BOXES, TWO_BOXES, scale=1).policy
    torch.manual_seed(0)
    with torch.no_grad():
        distribution = policy.distribution(seen(1).expand(20000, 4))
        estimate, drawn = distribution.entropy(), distribution.sample()
        surprise = -distribution.log_prob(drawn)
        kl = distribution.kl(
            composed(BOXES, TWO_BOXES, seed=1, scale=1).policy.distribution(seen(20000))
        )
    assert estimate.std() > 0.01
    spread = (estimate.var() + surprise.var()).sqrt() / math.sqrt(20000)
    assert abs(estimate.mean() - surprise.mean()) < 5 * spread
    assert (kl > -1e-3).all()


def test_an_entropy_of_a_draw_is_that_of_the_conditionals_at_it():
    distribution = composed(BOXES, TWO_BOXES).policy.distribution(seen(5))
    drawn = distribution.sample()
    parts = distribution.given(drawn).parts.values()
    torch.testing.assert_close(distribution.entropy(), sum(part.entropy() for part in parts))


@pytest.mark.parametrize(
    ("spec", "actions"), [(CHAIN, CHOICES), (BOXES, TWO_BOXES)], ids=["choices", "boxes"]
)
def test_act_gives_legal_actions_whose_log_prob_is_finite(spec, actions):
    policy = composed(spec, actions).policy
    for index in range(20):
        action = policy.act(seen(4, seed=index)[0].numpy(), deterministic=index % 2 == 0)
        assert actions.contains(action)
        given = policy.from_environment(action)
        assert policy.distribution(seen(4, seed=index)[0]).log_prob(given).isfinite()
    draws = [
        policy.act(seen(3), generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert all(torch.equal(draws[0][key], draws[1][key]) for key in draws[0])
    assert any(not torch.equal(draws[0][key], draws[2][key]) for key in draws[0])


def test_a_step_evaluates_what_it_has_drawn():
    model = composed(CHAIN + VALUES)
    drawn = model.step(seen(5))
    given = model.step(seen(5), action=drawn.action)
    torch.testing.assert_close(given.log_prob, drawn.log_prob)
    torch.testing.assert_close(given.entropy, drawn.entropy)
    assert torch.equal(model.value(seen(5)), drawn.value)
    assert isinstance(drawn.distribution, AutoregressiveDistribution)
    logits, values = model(seen(5))
    assert list(logits) == ["kind", "latent", "observation"]
    assert values["value"].shape == (5, 1)


def test_the_policy_gives_the_logits_of_all_heads_for_actions():
    policy = composed().policy
    distribution = policy.distribution(seen(5))
    drawn = distribution.sample()
    logits = policy(seen(5), actions=drawn)
    assert list(logits) == ["kind", "pair", "bits"]
    conditional = policy.distributions(logits)
    torch.testing.assert_close(conditional.log_prob(drawn), distribution.log_prob(drawn))
    for key, value in distribution.logits(drawn).items():
        torch.testing.assert_close(logits[key], value)


SEQUENCE = seen(3, 6)


def test_memory_unrolled_is_memory_step_by_step():
    model = composed(REMEMBERS + VALUES, MIXED)
    starts = torch.zeros(3, 6, dtype=torch.bool)
    starts[1, 3] = True
    state = model.initial_state(3)
    whole = model.step(SEQUENCE, state=state, resets=starts, unroll=True)
    for t in range(6):
        taken = {key: value[:, t] for key, value in whole.action.items()}
        step = model.step(SEQUENCE[:, t], action=taken, state=state, resets=starts[:, t])
        state = step.state
        torch.testing.assert_close(step.log_prob, whole.log_prob[:, t])
        torch.testing.assert_close(step.entropy, whole.entropy[:, t])
    action, after = model.policy.act(SEQUENCE[0, 0], model.policy.initial_state())
    assert MIXED.contains({key: value.numpy() for key, value in action.items()})
    assert after.keys() == model.policy.state_shapes.keys()


def test_copies_files_and_lowered_forms_compute_the_same(tmp_path):
    model = composed(CHAIN + VALUES)
    action = model.step(seen(5)).action
    expected = model.step(seen(5), action=action).log_prob
    model.save(tmp_path / "model.safetensors")
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        composer.load(tmp_path / "model.safetensors"),
        model.lower(),
    ]
    for other in others:
        assert torch.equal(other.step(seen(5), action=action).log_prob, expected)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert torch.equal(model.step(seen(5), action=action).log_prob, expected)
    assert not torch.equal(changed.step(seen(5), action=action).log_prob, expected)
    gradients = [
        torch.autograd.grad(
            each.step(seen(5), action=action).log_prob.sum(),
            dict(model.policy.named_parameters())["heads.kind.linear.weight"],
        )
        for each in (model, model.lower())
    ]
    torch.testing.assert_close(*gradients)
    assert model.lower()._parts.keys() == {"policy", "critic"}
    observation = seen(1)[0].numpy()
    lowered = model.policy.lower().act(observation, generator=torch.Generator().manual_seed(0))
    acted = model.policy.act(observation, generator=torch.Generator().manual_seed(0))
    assert all(np.array_equal(lowered[key], acted[key]) for key in acted)


def test_a_step_compiles_as_one_graph():
    model = composed(REMEMBERS + VALUES, MIXED)
    state = model.initial_state(5)
    action = model.step(seen(5), state=state).action

    def evaluate(observations, action, state):
        return model.step(observations, action=action, state=state)[2:5]

    compiled = torch.compile(evaluate, fullgraph=True, backend="eager")
    for ours, theirs in zip(
        compiled(seen(5), action, state), evaluate(seen(5), action, state), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_hook_on_the_policy_changes_the_heads_that_read_no_action():
    policy = composed().policy
    handle = policy.register_forward_hook(
        lambda module, inputs, outputs: {**outputs, "kind": torch.tensor([[0.0, 99.0, 0.0]])}
    )
    assert policy.distribution(seen(1)).sample()["kind"].item() == 1
    handle.remove()


MASKED = REMEMBERS.replace(
    "gru, in: latent, hidden_units: 8", "dense, in: latent, hidden_units: 8"
).replace("steer", "move")
MASKS = spaces.Dict(observation=SEEN, legal=spaces.MultiBinary(4), kinds=spaces.MultiBinary(3))
MOVES = spaces.Dict(kind=spaces.Discrete(3), move=spaces.Discrete(4))


def masked():
    spec = MASKED.replace("  heads:", "  action_mask: {move: legal, kind: kinds}\n  heads:")
    return composed(spec, MOVES, seen=MASKS).policy


def observed(legal, kinds=(1, 1, 0)):
    rows = len(legal)
    return {
        "observation": seen(rows),
        "legal": torch.tensor(legal),
        "kinds": torch.tensor([kinds] * rows),
    }


def test_masks_hold_for_each_head():
    policy = masked()
    distribution = policy.distribution(observed([[0, 1, 0, 0], [1, 0, 0, 1]]))
    assert distribution.mode()["move"][0] == 1
    for _ in range(20):
        drawn = distribution.sample()
        assert drawn["move"][0] == 1
        assert drawn["move"][1] in (0, 3)
        assert (drawn["kind"] < 2).all()
    rows = torch.tensor(list(itertools.product(range(3), range(4))))
    actions = for_each({"kind": rows[:, 0], "move": rows[:, 1]}, 2)
    log_probs = distribution.log_prob(actions)
    torch.testing.assert_close(log_probs.exp().sum(0), torch.ones(2))
    entropy = -(log_probs.exp() * log_probs).sum(0)
    torch.testing.assert_close(distribution.entropy(), entropy)
    only = policy.distribution(observed([[1, 1, 1, 1]]), mask={"move": torch.tensor([0, 0, 1, 0])})
    assert only.sample()["move"] == 2


def test_a_later_head_without_a_legal_choice_names_its_mask():
    with pytest.raises(
        ValueError, match=r"the mask of action 'move' \(observation 'legal'\) leaves no"
    ):
        masked().act(observed([[0, 0, 0, 0]]))


def test_a_later_head_that_is_nan_is_refused_with_its_name():
    policy = composed().policy
    with torch.no_grad():
        dict(policy.named_parameters())["heads.bits.linear.weight"].fill_(math.nan)
    with pytest.raises(ValueError, match="the logits of action 'bits' are NaN or infinite"):
        policy.act(seen(2))


WRONG = {
    "no dict": (lambda d: d.log_prob(torch.zeros(5)), "log_prob takes a dict of 'kind', 'pair', 'bits', got a Tensor"),
    "one missing": (lambda d: d.log_prob({"kind": torch.zeros(5).long()}), "log_prob needs every action; missing: 'pair', 'bits'"),
    "no choice": (
        lambda d: d.log_prob({**d.sample(), "kind": torch.full((5,), 7)}),
        "action 'kind' is 7 at index (0,), expected an integer from 0 to 2; log_prob takes actions as sample() gives them",
    ),
    "another batch": (
        lambda d: d.log_prob({**d.sample(), "kind": torch.zeros(4).long()}),
        "actions of the shape (4,) are no batch for this one, (5,)",
    ),
    "an axis more": (
        lambda d: d.log_prob({**d.sample(), "kind": torch.zeros(5, 1).long()}),
        "an action of this distribution has the shape (5,), got (5, 1)",
    ),
    "a row": (
        lambda d: d.row(),
        "no row of numbers stands for a distribution whose heads read actions, for it needs the weights of the later "
        "heads; keep observations and actions, and evaluate them by policy.distribution(observations).log_prob(action)",
    ),
    "kl to another family": (
        lambda d: d.kl(CompositeDistribution(d.given(d.sample()).parts)),
        "kl of a AutoregressiveDistribution is to another one, got a CompositeDistribution",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls_are_refused(call, message):
    distribution = composed().policy.distribution(seen(5))
    with pytest.raises(ValueError, match=re.escape(message)):
        call(distribution)


def test_kl_needs_one_order_of_heads():
    turned = MASKED.replace("action/kind", "action/move").replace(
        "kind: {in: memory}", "move: {in: memory}"
    )
    turned = turned.replace("move: {in: after_kind}", "kind: {in: after_kind}")
    ours, theirs = (composed(spec, MOVES).policy.distribution(seen(2)) for spec in (MASKED, turned))
    message = "this distribution draws 'kind' then 'move', the other one 'move' then 'kind'; kl needs one order of heads"
    with pytest.raises(ValueError, match=re.escape(message)):
        ours.kl(theirs)


def test_logits_without_actions_are_no_distribution():
    policy = composed().policy
    message = (
        "the head of action 'pair' reads the action of 'kind', so that its logits are not known before an action is; "
        "policy.distribution(observations) draws head after head, and policy(observations, actions=actions) gives all "
        "logits"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        policy.distributions(policy(seen(2)))
    message = (
        "the head of action 'pair' reads the action of 'kind', so that no row of numbers stands for the distribution; "
        "policy.distribution(observations) makes it again"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        policy.distribution_of_row(torch.zeros(2, 13))
    plain = composer.compose(
        "version: 1\npolicy: {template: {}}\n", observation_space=SEEN, action_space=CHOICES
    )
    message = "no head of this policy reads an action, so its logits are the same for all; leave out 'actions'"
    with pytest.raises(ValueError, match=re.escape(message)):
        plain.policy(seen(2), actions=plain.policy.distribution(seen(2)).sample())
    assert len(plain.policy(seen(2))) == 3


def test_a_critic_of_actions_reads_them_as_the_heads_do():
    critic = """
critic:
  kind: state_action
  graph:
    all: {block: concat, in: [observation, action/first, action/second]}
    q: {block: dense, in: all, hidden_units: [8]}
"""
    model = composed(BOXES + critic, TWO_BOXES)
    drawn = model.policy.distribution(seen(5)).rsample()
    value = model.critic.value(seen(5), drawn)
    first = dict(model.policy.named_parameters())["heads.first.linear.weight"]
    (gradient,) = torch.autograd.grad(value.sum(), [first])
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("separate", [False, True])
def test_each_actor_draws_with_heads_of_its_own(separate):
    spec = CHAIN.replace("policy:\n", f"policy:\n  separate: {str(separate).lower()}\n")
    names = ("left", "right")
    model = composer.compose(
        spec, observation_space=dict.fromkeys(names, SEEN),
        action_space=dict.fromkeys(names, CHOICES), seed=0,
    )  # fmt: skip
    observations = {name: seen(3, seed=index) for index, name in enumerate(names)}
    step = model.step(observations)
    again = model.step(observations, action=step.action)
    for name in names:
        torch.testing.assert_close(again.log_prob[name], step.log_prob[name])
        alone = model.policy[name].distribution(observations[name])
        torch.testing.assert_close(alone.log_prob(step.action[name]), step.log_prob[name])
        torch.testing.assert_close(alone.entropy(), step.entropy[name])
    acted = model.policy.act({name: value[0].numpy() for name, value in observations.items()})
    assert all(CHOICES.contains(action) for action in acted.values())
    assert ("heads read what other heads have drawn" in str(model.summary())) == separate


def test_summary_and_picture_show_who_reads_whom():
    model = composed()
    summary = str(model.summary())
    assert "the policy draws 'pair' after 'kind', which it reads" in summary
    assert "the policy draws 'bits' after 'kind', 'pair', which it reads" in summary
    graph = model.policy.network.module.to_networkx()
    assert "after_kind" in graph


def test_onnx_with_memory_takes_equal_actions_over_200_steps(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = composed(REMEMBERS, MIXED)
    report = model.export(tmp_path / "policy.onnx")
    assert report.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    names = [value.name for value in session.get_outputs()]
    state = model.policy.initial_state(1)
    theirs = {name: value.numpy() for name, value in state.items()}
    kinds = set()
    for step in range(200):
        observation, resets = seen(1, seed=step), np.array([step % 50 == 0])
        action, state = model.policy.act(observation.numpy(), state, resets, deterministic=True)
        given = {"observation": observation.numpy(), "resets": resets, **theirs}
        outputs = dict(zip(names, session.run(None, given), strict=True))
        theirs = {name: outputs[f"next/{name}"] for name in theirs}
        assert np.array_equal(outputs["action/kind"], action["kind"])
        np.testing.assert_allclose(outputs["action/steer"], action["steer"], atol=1e-4)
        kinds |= set(action["kind"].tolist())
    assert len(kinds) > 1


WHOLE = """
version: 1
previous: [action, reward]
freeze: [policy/encoder]
policy:
  graph:
    encoder: {block: dense, in: observation, hidden_units: [8]}
    all: {block: concat, in: [encoder, previous/kind, previous/steer, previous/reward]}
    memory: {block: gru, in: all, hidden_units: 8}
    after_kind: {block: concat, in: [memory, action/kind]}
  heads:
    kind: {in: memory}
    steer: {in: after_kind}
critic: {template: {}}
"""


def test_a_frozen_encoder_last_actions_memory_and_dependent_heads_go_together(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = composed(WHOLE, MIXED)
    frozen = [name for name, p in model.policy.named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.linears.0.weight", "encoder.linears.0.bias"]
    model.save(tmp_path / "model.safetensors")
    model = composer.load(tmp_path / "model.safetensors")
    model.export(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    names = [value.name for value in session.get_outputs()]
    state = model.policy.initial_state(1)
    theirs = {name: value.numpy() for name, value in state.items()}
    kind, steer = np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32)
    for step in range(200):
        resets = np.array([step == 0])
        last = {"kind": kind, "steer": steer, "reward": np.full((1, 1), step % 3, np.float32)}
        observation = {"observation": seen(1, seed=step).numpy(), "previous": last}
        action, state = model.policy.act(observation, state, resets, deterministic=True)
        flat = {f"previous/{name}": value for name, value in last.items()}
        given = {"observation": observation["observation"], **flat, "resets": resets, **theirs}
        outputs = dict(zip(names, session.run(None, given), strict=True))
        theirs = {name: outputs[f"next/{name}"] for name in theirs}
        assert np.array_equal(outputs["action/kind"], action["kind"])
        np.testing.assert_allclose(outputs["action/steer"], action["steer"], atol=1e-4)
        kind, steer = np.eye(3, dtype=np.float32)[action["kind"]], action["steer"]


def test_a_pt2_file_takes_equal_actions(tmp_path):
    assert composed(REMEMBERS, MIXED).export(tmp_path / "policy.pt2").difference < 1e-4
