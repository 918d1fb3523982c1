"""The numbers of PPO for several actors: the same model in rollout and update, advantages, losses, gradients."""

import math

import pytest
import torch

from composer import compose
from composer.training.actors.advantages import advantages
from composer.training.actors.passes import CENTRAL, ModelPass
from composer.training.actors.rollout import Collector
from composer.training.actors.settings import Settings
from composer.training.actors.updates import batches, flattened, losses, update
from composer.training.environment import JointEnvironment
from tests.helpers.parallel_envs import Signs

GRAPHS = {
    "plain": (
        {
            "code": {"block": "one_hot", "in": "sign"},
            "x": {"block": "concat", "in": ["code", "noise"]},
        },
        {"x": {"block": "dense", "in": "observation", "hidden_units": 8}},
    ),
    "memory": (
        {
            "code": {"block": "one_hot", "in": "sign"},
            "both": {"block": "concat", "in": ["code", "noise"]},
            "x": {"block": "gru", "in": "both", "hidden_units": 8},
        },
        {"x": {"block": "lstm", "in": "observation", "hidden_units": 8}},
    ),
}


def spec(form="plain", critic="central", separate=False, normalize=False, shared=False):
    of_a, of_b = (dict(graph) for graph in GRAPHS[form])
    policy = {
        "networks": {
            "a": {"graph": of_a, "heads": {"in": "x"}, "separate": separate},
            "b": {"graph": of_b, "heads": {"in": "x"}},
        },
        "action_mask": {"a/action": "legal"},
    }
    if shared:
        for network in policy["networks"].values():
            network["shares"] = ["x"]
    memory = {"block": "gru" if form == "memory" else "dense", "hidden_units": 8}
    if critic == "central":
        inputs = ["a_0/noise", "a_1/noise", "b_0/observation", "present"]
        inputs += ["a_0/x", "b_0/x"] if shared else []
        graph = {"all": {"block": "concat", "in": inputs}, "y": {**memory, "in": "all"}}
        of_critic = {"kind": "shared_state", "graph": graph}
    elif shared:
        graph = {"y": {"block": "dense", "in": "x", "hidden_units": 8}}
        of_critic = {"networks": {"a": {"graph": graph}, "b": {"graph": dict(graph)}}}
    else:
        of_critic = {
            "networks": {
                "a": {"graph": {"y": {**memory, "in": "noise"}}},
                "b": {"graph": {"y": {**memory, "in": "observation"}}},
            }
        }
    of_critic["normalize_value"] = normalize
    whole = {"version": 1, "policy": policy, "critic": of_critic}
    return whole | ({"normalize": ["noise", "b/observation"]} if normalize else {})


def rollout_of(settings, steps=24, envs=3, leaves=True, at_once=False, **which):
    environments = [Signs(leaves=leaves, at_once=at_once) for _ in range(envs)]
    model = compose(spec(**which), env=environments[0], seed=0)
    with torch.no_grad():  # heads that differ from input to input
        for weight in model.parameters():
            weight.mul_(2)
    passing = ModelPass(model)
    joint = [JointEnvironment(env, "signs") for env in environments]
    torch.manual_seed(0)
    collector = Collector(passing, joint, seed=5)
    rollout = collector.collect(
        steps, settings.sequence_length or steps, lambda count, episodes: True,
        gamma=settings.gamma, gae_lambda=settings.gae_lambda,
    )  # fmt: skip
    assert rollout is not None
    return passing, rollout, environments


EVERY_KIND = [
    {"form": form, "critic": critic, "separate": separate, "shared": shared}
    for form in GRAPHS
    for critic in ("central", "each")
    for separate in (False, True)
    for shared in (False, True)
]


@pytest.mark.parametrize("which", EVERY_KIND, ids=str)
def test_the_first_update_sees_the_model_of_the_rollout(which):
    """With memory in sequences that begin within lives and cross them; actors come and go."""
    settings = Settings(sequence_length=8, batch_size=24, n_epochs=1, gamma=0.9)
    model, rollout, _ = rollout_of(settings, **which, normalize=True)
    some = [float(there.float().mean()) for there in rollout.present.values()]
    assert all(0.2 < share < 1 for share in some)
    whole = flattened(model, rollout, settings)
    seen = 0
    for batch in batches(whole, model, settings, None):
        outcome = model(
            batch.observations, batch.present, batch.state, batch.resets, unroll=model.has_memory
        )
        for name, distribution in outcome.distributions.items():
            there = batch.present[name]
            log_probs = distribution.log_prob(batch.actions[name])[there]
            torch.testing.assert_close(log_probs, batch.log_probs[name][there], atol=1e-5, rtol=0)
            seen += int(there.sum())
        for stream in model.streams:
            there = batch.present.get(stream, slice(None))
            value = outcome.values.value[stream][there]
            torch.testing.assert_close(value, batch.values[stream][there], atol=1e-5, rtol=1e-5)
    assert seen == sum(int(there.sum()) for there in rollout.present.values())


@pytest.mark.parametrize("which", EVERY_KIND, ids=str)
def test_gradients_reach_every_parameter(which):
    settings = Settings(sequence_length=8, n_epochs=1, ent_coef=0.01)
    model, rollout, _ = rollout_of(settings, **which, normalize=True)
    (batch,) = batches(flattened(model, rollout, settings), model, settings, None)
    losses(model, batch, settings).total.backward()
    weights = [*model.policy.named_parameters(), *model.critic.named_parameters()]
    without = [name for name, weight in weights if weight.grad is None or not weight.grad.any()]
    assert without == []


@pytest.mark.parametrize("at_once", [False, True])
def test_an_actor_that_comes_again_begins_with_a_new_memory(at_once):
    settings = Settings(sequence_length=8)
    _, rollout, (env,) = rollout_of(settings, steps=40, envs=1, at_once=at_once, form="memory")
    returned = 0
    for step, (rewards, gone, _, _) in enumerate(env.log[:-1]):
        begins = bool(rollout.resets[CENTRAL][step + 1, 0])
        for name, there in rollout.present.items():
            if there[step + 1, 0]:
                is_new = begins or name in gone or name not in rewards
                assert bool(rollout.resets[name][step + 1, 0]) == is_new
                returned += name in gone and not begins
    assert bool(returned) == at_once


def plain_advantages(rewards, values, following, ended, present, gamma, lam):
    """One actor in one environment: the sum of errors of each life, from its definition."""
    count = len(values)
    result = [0.0] * count
    for start in range(count):
        if not present[start]:
            continue
        weight, total = 1.0, 0.0
        for step in range(start, count):
            if not present[step]:
                break
            total += weight * (rewards[step] + gamma * following[step] - values[step])
            if ended[step]:
                break
            weight *= gamma * lam
        result[start] = total
    return result


@pytest.mark.parametrize("seed", range(4))
def test_advantages_are_those_of_a_plain_loop(seed):
    random = torch.Generator().manual_seed(seed)
    rewards, values, following = torch.randn(3, 30, 5, generator=random)
    ended, present = (torch.rand(30, 5, generator=random) < share for share in (0.2, 0.8))
    got = advantages(rewards, values, following, ended, present, gamma=0.9, gae_lambda=0.7)
    for env in range(5):
        columns = (each[:, env].tolist() for each in (rewards, values, following, ended, present))
        expected = plain_advantages(*columns, 0.9, 0.7)
        torch.testing.assert_close(got[:, env], torch.tensor(expected))


@pytest.mark.parametrize("critic", ["central", "each"])
@pytest.mark.parametrize("leaves", [True, False])
def test_returns_bootstrap_at_truncation_and_not_after_a_termination(critic, leaves):
    """With lambda 0 a return is the reward and the value of what is seen after it, the last observation included."""
    settings = Settings(gamma=0.9, gae_lambda=0.0)
    model, rollout, (env,) = rollout_of(settings, steps=40, envs=1, critic=critic, leaves=leaves)
    ends = {"terminated": 0, "truncated": 0}
    for step, (rewards, gone, cut, after) in enumerate(env.log):
        ends["truncated"] += len(cut)
        ends["terminated"] += len(gone)
        with torch.no_grad():
            values = model.critic.value(after) if after else None
        if critic == "central":
            value = 0.0 if values is None else float(values)
            expected = {CENTRAL: sum(rewards.values()) + 0.9 * value}
        else:
            expected = {
                agent: reward + (0.0 if agent in gone else 0.9 * float(values[agent]))
                for agent, reward in rewards.items()
            }
        for stream, goal in expected.items():
            assert float(rollout.returns[stream][step, 0]) == pytest.approx(goal, abs=1e-5)
    assert ends["truncated"]
    assert bool(ends["terminated"]) == leaves


@pytest.mark.parametrize("normalize", [False, True])
def test_a_loss_is_that_of_a_direct_computation(normalize):
    settings = Settings(ent_coef=0.03, vf_coef=0.7, clip_range=0.1, gamma=0.9)
    model, rollout, _ = rollout_of(settings, critic="each", separate=True, normalize=normalize)
    scale = dict.fromkeys(model.names, (0.0, 1.0))
    if normalize:  # the critic of each agent learns returns by the statistics of its group
        there = rollout.present
        model.count_returns({name: rollout.returns[name][there[name]] for name in model.names})
        for names in (["a_0", "a_1"], ["b_0"]):
            seen = torch.cat([rollout.returns[name][there[name]] for name in names])
            spread = float((seen.var(correction=0) + 1e-8).sqrt())
            scale |= dict.fromkeys(names, (float(seen.mean()), spread))
    with torch.no_grad():
        for weight in model.policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    whole = flattened(model, rollout, settings)
    with torch.no_grad():
        got = losses(model, whole, settings)
        outcome = model(whole.observations, whole.present, {}, whole.resets)
        log_probs = {n: d.log_prob(whole.actions[n]) for n, d in outcome.distributions.items()}
        entropies = {n: d.entropy() for n, d in outcome.distributions.items()}
    policy, value, entropy, clipped, count = 0.0, 0.0, 0.0, 0, 0
    for name in model.names:
        there = rollout.present[name].flatten()
        gains = rollout.advantages[name].flatten()
        for row in there.nonzero().flatten().tolist():
            before = rollout.log_probs[name].flatten()
            ratio = math.exp(float(log_probs[name][row]) - float(before[row]))
            deviation = float(gains[there].std(correction=0))
            gain = (float(gains[row]) - float(gains[there].mean())) / deviation
            policy -= min(ratio * gain, max(min(ratio, 1.1), 0.9) * gain)
            clipped += abs(ratio - 1) > 0.1
            goal = float(rollout.returns[name].flatten()[row])
            mean, spread = scale[name]
            value += (float(outcome.values.learned[name][row]) - (goal - mean) / spread) ** 2
            entropy += float(entropies[name][row])
            count += 1
    expected = (policy + 0.7 * value - 0.03 * entropy) / count
    assert 0 < clipped < count
    assert float(got.total) == pytest.approx(expected, rel=1e-4)
    assert float(got.clip_fraction) == pytest.approx(clipped / count, abs=1e-6)


@pytest.mark.parametrize("critic", ["central", "each"])
def test_only_what_is_there_counts(critic):
    """What stands in a rollout for an absent actor changes neither the loss nor its gradients."""
    settings = Settings(sequence_length=8, n_epochs=1)
    model, rollout, _ = rollout_of(settings, critic=critic, form="memory")
    gradients = []
    for fill in (None, 0.7):
        if fill is not None:
            for name in ("a_0", "a_1"):
                rollout.observations[name]["noise"][~rollout.present[name]] = fill
                rollout.log_probs[name][~rollout.present[name]] = fill
        model.policy.zero_grad()
        losses(model, flattened(model, rollout, settings), settings).total.backward()
        gradients.append([w.grad.clone() for w in model.policy.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("which", [EVERY_KIND[0], EVERY_KIND[-1]], ids=str)
def test_an_update_raises_the_chance_of_what_did_well(which):
    """Its direction: after an update the actions with positive advantages are more likely, the values are closer."""
    settings = Settings(
        n_epochs=4, learning_rate=3e-3, sequence_length=8, normalize_advantage=False
    )
    model, rollout, _ = rollout_of(settings, **which)
    whole = flattened(model, rollout, settings)
    with torch.no_grad():
        before = losses(model, whole, settings)
    weights = [*model.policy.parameters(), *model.critic.parameters()]
    update(model, rollout, settings, torch.optim.Adam(set(weights), lr=settings.learning_rate))
    with torch.no_grad():
        after = losses(model, whole, settings)
    assert float(after.policy) < float(before.policy)
    assert float(after.value) < float(before.value)


def test_a_target_kl_ends_an_update():
    settings = Settings(n_epochs=50, learning_rate=3e-2, target_kl=0.01, batch_size=16)
    model, rollout, _ = rollout_of(settings)
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=settings.learning_rate)
    update(model, rollout, settings, optimizer)
    steps = next(iter(optimizer.state.values()))["step"]
    assert 0 < float(steps) < 100
