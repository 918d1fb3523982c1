"""composer.probe: what it says of networks whose numbers are known, and that nothing of the model changes."""

import json
import math
import random
import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import composer
from composer.probing import ProbeError, probe
from composer.probing.play import played, prepared
from composer.probing.replay import GAMMA, spans_of
from composer.probing.watched import copied
from perception_blocks.random_states import random_states_kept
from tests.helpers.parallel_envs import Signs

KNOWN = """
version: 1
policy:
  graph:
    half: {block: dense, in: observation, hidden_units: 64}
    bound: {block: dense, in: half, hidden_units: [32, 8], activation: tanh}
    flat: {block: dense, in: bound, hidden_units: 16, activation: identity}
  heads: {in: flat}
"""
PLAIN = "version: 1\npolicy: {graph: {latent: {block: dense, in: observation, hidden_units: [8, 6]}}, heads: {in: latent}}"
CRITIC = "\ncritic: {kind: state, graph: {latent: {block: dense, in: observation, hidden_units: 5}}, heads: {in: latent}}"


@pytest.fixture
def env():
    with gymnasium.make("CartPole-v1") as env:
        yield env


def known(env):
    """Ten dead units of 64, a layer of tanh at its bounds, a layer whose values are a line."""
    model = composer.compose(KNOWN, env=env, seed=0)
    net = model.policy.network.module
    with torch.no_grad():
        half, bound, flat = (net.get_submodule(n).linears for n in ("half", "bound", "flat"))
        half[0].weight.mul_(0.05)
        half[0].bias.fill_(1.0)
        half[0].weight[:10] = 0.0
        half[0].bias[:10] = -1.0
        bound[0].weight.mul_(0.01)
        bound[0].bias.copy_(torch.where(torch.arange(32) % 2 == 0, 10.0, -10.0))
        flat[0].weight.copy_(torch.outer(torch.ones(16), torch.linspace(-1, 1, 8)))
        flat[0].bias.zero_()
    return model


def test_dead_and_dormant_units_saturated_values_and_a_rank_of_one_are_seen(env):
    result = probe(known(env), env, 128, baseline=False)
    half, flat = result["policy/half"], result["policy/flat"]
    assert (half.dead, half.dormant, half.units) == (10 / 64, 10 / 64, 64)
    assert half.saturated is None
    (inner,) = [n for n in result.nodes if (n.path, n.layer) == ("policy/bound", "linears.0")]
    assert inner.saturated == 1.0
    assert result["policy/bound"].saturated == 0.0
    assert flat.srank == 1
    assert "  15.6%" in str(result)
    assert "100.0%" in str(result)


def test_what_is_worse_than_at_the_beginning_is_told(env):
    model = known(env)
    with torch.no_grad():
        model.policy.network.module.get_submodule("half").linears[0].bias[:40] = -1.0
    result = probe(model, env, 64)
    half = result["policy/half"]
    assert half.worse == ("dead", "dormant", "srank", "gradient_norm")  # no gradient comes through
    assert half.dead == 40 / 64 > half.at_init.dead + 0.05
    assert result["policy/flat"].worse == ("srank",)
    (inner,) = [n for n in result.nodes if n.layer == "linears.0"]
    assert inner.worse == ("saturated", "srank", "gradient_norm")
    assert half in result.worse
    text = str(result)
    assert re.search(r"62\.5% \(was \d+\.\d%\)", text)
    assert re.search(r" 1 \(was \d+\)", text)
    assert re.search(r"0\.0e\+00 \(was \d\.\de-\d\d\)", text)
    assert text.endswith(f"worse than the same spec freshly drawn: {len(result.worse)} lines")


def test_a_fresh_model_is_as_its_baseline(env):
    result = probe(composer.compose(PLAIN + CRITIC, env=env, seed=3), env, 64)
    assert result.worse == ()
    for node in result.nodes:
        ours, theirs = vars(node), vars(node.at_init)
        for name in ("mean", "std", "dead", "dormant", "srank", "weight_norm", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-7)
    assert str(result).endswith("worse than the same spec freshly drawn: nothing")


def test_the_baseline_has_the_statistics_of_the_normalisers(env):
    model = composer.compose(PLAIN + "\nnormalize: [observation]", env=env, seed=0)
    model.update_normalizers(torch.randn(100, 4) * 50 + 30)
    node = probe(model, env, 32)["policy/latent"]
    assert node.mean == pytest.approx(node.at_init.mean)


def test_the_rank_of_latent_values_is_that_of_the_matrix_of_all_steps(env):
    model = composer.compose(PLAIN, env=env, seed=0)
    record = recorded(model, env, 100)
    x = model.policy(np.stack(record.observations))  # so that shapes are checked
    assert x["action"].shape == (100, 2)
    latent = model.policy.network.module.get_submodule("latent")(
        torch.tensor(np.stack(record.observations))
    )
    node = probe(model, env, 100, baseline=False)["policy/latent"]
    values = np.linalg.svd(latent.detach().double().numpy(), compute_uv=False)
    assert node.srank == int((values.cumsum() / values.sum() < 0.99).sum()) + 1
    assert node.mean == pytest.approx(latent.mean().item(), rel=1e-5)
    assert node.dead == (latent == 0).all(0).double().mean().item()


def recorded(model, env, steps, seed=0):
    with random_states_kept(seed):
        return played(copied(model), env, steps, seed)


def test_gradients_are_those_of_the_loss_written_by_hand(env):
    model = composer.compose(PLAIN + CRITIC, env=env, seed=0)
    record = recorded(model, env, 90)
    seen = torch.tensor(np.stack(record.observations))
    gained, running = [], 0.0
    for reward, ends in zip(record.rewards[::-1], [*record.firsts[1:], True][::-1]):
        running = reward + GAMMA * running * (not ends)
        gained.append(running)
    gained = torch.tensor(gained[::-1])
    logits = model.policy(seen)["action"].log_softmax(-1)
    log_prob = logits.gather(-1, torch.stack(record.actions).long()[:, None]).squeeze(-1)
    advantage = (gained - gained.mean()) / gained.std(correction=0)
    missed = model.critic.value(seen) - gained
    loss = (-log_prob * advantage + 0.5 * missed**2).mean()
    loss.backward()
    result = probe(model, env, 90)
    for path in ("policy/latent", "critic/latent", "policy/heads/action"):
        part, _, name = path.partition("/")
        module = getattr(model, part).network.module.get_submodule(name.replace("/", "."))
        norm = torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item()
        assert result[path].gradient_norm == pytest.approx(norm, rel=1e-3)
        weight = torch.cat([p.detach().flatten() for p in module.parameters()]).norm().item()
        assert result[path].weight_norm == pytest.approx(weight, rel=1e-5)


def test_memory_is_carried_through_the_steps_and_reset_with_each_episode(env):
    spec = "version: 1\npolicy: {graph: {memory: {block: lstm, in: observation, hidden_units: 8}}, heads: {in: memory}}"
    model = composer.compose(spec, env=env, seed=0)
    record = recorded(model, env, 200)
    assert sum(record.firsts) > 2
    state, rows = model.policy.initial_state(), []
    for observation, first in zip(record.observations, record.firsts):
        with torch.no_grad():
            _, state = model.policy(observation, state, torch.tensor(first))
        rows.append(state["memory/h"][0])
    node = probe(model, env, 200, baseline=False)["policy/memory"]
    assert node.mean == pytest.approx(torch.stack(rows).mean().item(), abs=1e-6)
    assert node.high == pytest.approx(torch.stack(rows).max().item(), abs=1e-6)


def state_of_everything(model):
    modules = dict(model.named_modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules.values()]
    parameters = [(p.requires_grad, p.grad) for p in model.parameters()]
    modes = [m.training for m in modules.values()]
    return list(modules), hooks, parameters, modes


def lowered_answer(model, lowered, seen):
    """Without dropout, after which all is in its mode again."""
    mode = model.training
    model.eval()
    answer = lowered(seen)["action"]
    model.train(mode)
    return answer


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_changes(env, training):
    layers = "hidden_units: [8, 6], dropout: 0.5, norm: batch"
    spec = PLAIN.replace("hidden_units: [8, 6]", layers) + CRITIC + "\nnormalize: [observation]"
    model = composer.compose(spec, env=env, seed=0).train(training)
    next(model.parameters()).requires_grad_(False)
    list(model.parameters())[-1].grad = torch.ones_like(list(model.parameters())[-1])
    lowered, seen = model.policy.lower(), torch.randn(3, 4)
    answer = lowered_answer(model, lowered, seen)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = state_of_everything(model)
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    probe(model, env, 40)
    assert state_of_everything(model) == before
    after = model.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    assert torch.equal(draws[0], torch.get_rng_state())
    assert (draws[1] == np.random.get_state()[1]).all()
    assert draws[2] == random.getstate()
    assert torch.equal(lowered_answer(model, lowered, seen), answer)


def test_the_same_seed_gives_the_same_numbers_and_another_other_ones(env):
    model = composer.compose(PLAIN, env=env, seed=0)
    first, again, other = (probe(model, env, 64, seed=s, baseline=False) for s in (0, 0, 1))

    def numbers(result):
        return [(n.mean, n.gradient_norm, n.srank) for n in result.nodes]

    assert numbers(first) == numbers(again) != numbers(other)
    assert first.returns == again.returns


def test_a_lowered_model_is_probed_as_the_model(env):
    model = composer.compose(PLAIN, env=env, seed=0)
    ours, lowered = (probe(m, env, 32, baseline=False) for m in (model, model.lower()))
    assert [n.mean for n in ours.nodes] == [n.mean for n in lowered.nodes]


def test_times_are_shares_of_a_step(env):
    result = probe(composer.compose(PLAIN + CRITIC, env=env, seed=0), env, 32, baseline=False)
    shares = [node.time_share for node in result.outputs]
    assert sum(shares) == pytest.approx(1.0)
    assert all(share and share > 0 for share in shares)
    assert all(n.time_share is None for n in result.nodes if n.layer == "linears.0")


# --- networks of all kinds ---

NESTED = """
version: 1
policy:
  graph:
    pair: {block: concat, in: [observation, observation]}
    alike: {block: ensemble, copies: 2, in: [pair], graph: {vote: {block: dense, in: pair, hidden_units: [5, 3]}}}
    both: {block: dense, in: alike, hidden_units: [4, 3], each: 1}
    joined: {block: flatten, in: both}
    left: {block: dense, in: joined, hidden_units: [7, 6]}
    right: {same_as: left, in: joined}
    nested: {block: graph, in: [left], graph: {inner: {block: dense, in: left, hidden_units: 4}}}
    end: {block: concat, in: [nested, right]}
  heads: {in: end}
"""


def paths(result):
    return [node.path for node in result.outputs]


def test_each_same_as_ensembles_and_nested_graphs():
    model = composer.compose(NESTED, env="CartPole-v1", seed=0)
    result = probe(model, "CartPole-v1", 40)
    assert paths(result)[:8] == [
        "policy/pair",
        "policy/alike/0/vote",
        "policy/alike/1/vote",
        "policy/both",
        "policy/joined",
        "policy/left",
        "policy/right",
        "policy/nested/inner",
    ]
    assert result["policy/alike/0/vote"].mean != result["policy/alike/1/vote"].mean
    assert result["policy/both"].units == 3
    left, right = result["policy/left"], result["policy/right"]
    assert (left.mean, left.weight_norm) == (right.mean, right.weight_norm)  # one module, one value
    assert result.worse == ()
    assert all(node.at_init is not None for node in result.nodes)


def test_each_copy_of_an_ensemble_has_a_path():
    spec = (
        "version: 1\n"
        "policy: {graph: {latent: {block: dense, in: observation, hidden_units: 5}}, heads: {in: latent}}\n"
        "critic: {kind: state_action, ensemble: 2, graph: {both: {block: concat, in: [observation, action]}, "
        "latent: {block: dense, in: both, hidden_units: 5}}, heads: {in: latent}}"
    )
    model = composer.compose(spec, env="Pendulum-v1", seed=0)
    result = probe(model, "Pendulum-v1", 40)
    first, second = (result[f"critic/{path}"] for path in ensemble_paths(result))
    assert first.mean != second.mean
    assert min(first.gradient_norm, second.gradient_norm) > 0
    assert result.worse == ()


def ensemble_paths(result):
    return [
        p.removeprefix("critic/") for p in paths(result) if re.fullmatch(r"critic/.*\d/latent", p)
    ]


ACTORS = """
version: 1
ignore: [sign]
policy:
  action_mask: {a/action: legal}
  networks:
    a:
      separate: SEPARATE
      graph:
        all: {block: concat, in: [legal, noise]}
        memory: {block: BLOCK, in: all, hidden_units: 6}
      heads: {in: memory}
    b_0: {graph: {latent: {block: dense, in: observation, hidden_units: 4}}, heads: {in: latent}}
critic: {kind: state, separate: true, template: {}}
"""


@pytest.mark.parametrize("block", ["dense", "lstm"])
@pytest.mark.parametrize("separate", ["false", "true"])
def test_several_actors_have_a_path_for_each_network(block, separate):
    spec = ACTORS.replace("SEPARATE", separate).replace("BLOCK", block)
    model = composer.compose(spec, env=Signs(), seed=0)
    result = probe(model, Signs(), 24)
    networks = ["policy/a"] if separate == "false" else ["policy/a/0", "policy/a/1"]
    assert {f"{network}/memory" for network in networks} <= {*paths(result)}
    assert "policy/b_0/latent" in paths(result)
    assert any(path.startswith("critic/") for path in paths(result))
    assert result.notes == ()
    assert result.worse == ()
    assert all(result[f"{network}/memory"].gradient_norm > 0 for network in networks)


class Takes(nn.Module):
    """A user's class with functions as activations."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.first, self.last = nn.Linear(4, 10), nn.Linear(10, 2)

    def forward(self, inputs):
        hidden = torch.relu(self.first(inputs["observation"]) - 100.0)
        return {"action": self.last(hidden)}


def test_a_network_class_of_a_user_shows_its_layers(env):
    spec = f"version: 1\npolicy: {{_target_: {__name__}.Takes}}"
    model = composer.compose(spec, env=env, allow=[__name__], seed=0)
    result = probe(model, env, 32)
    layers = {node.layer: node for node in result.nodes}
    assert [node.path for node in result.nodes] == ["policy"] * 2
    assert layers["first"].dead == layers["first"].dormant == 1.0
    assert layers["first"].at_init.dead == 1.0
    assert layers["first"].weight_norm > 0
    assert layers["output action"].units == 2


def test_the_result_is_plain_data(env):
    model = composer.compose(PLAIN + CRITIC, env=env, seed=0)
    result = probe(model, env, 64)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["steps"] == 64
    assert data["returns"] == list(result.returns)
    assert data["nodes"][0]["path"] == "policy/latent"
    assert data["nodes"][0]["worse"] == []
    assert data["nodes"][0]["at_init"]["srank"] == data["nodes"][0]["srank"]
    metrics = result.metrics()
    assert metrics["probe/policy/latent/srank"] == result["policy/latent"].srank
    assert "probe/policy/latent/linears.0/dormant" in metrics


def test_a_misspelt_path_is_told_with_the_near_one(env):
    result = probe(composer.compose(PLAIN, env=env, seed=0), env, 8, baseline=False)
    message = "there is no node 'policy/latnt'; did you mean 'policy/latent'?"
    with pytest.raises(KeyError, match=re.escape(message)):
        result["policy/latnt"]


def test_a_spec_that_cannot_be_composed_again_has_no_baseline(env):
    model = composer.compose(PLAIN, env=env, seed=0)
    model.size_limits = replace(model.size_limits, nodes=0)
    result = probe(model, env, 8)
    assert [note.partition(":")[0] for note in result.notes] == ["no baseline"]
    assert all(node.at_init is None for node in result.nodes)
    assert "freshly drawn" not in str(result)


def test_long_plays_are_replayed_in_batches(env):
    model = composer.compose(PLAIN, env=env, seed=0)
    record = recorded(model, env, 300)
    assert spans_of(model, record) == [
        (0, 128),
        (128, 256),
        (256, 300),
    ]


def latent(part):
    return part.network.module.get_submodule("latent")


@pytest.mark.parametrize("factor", [float("nan"), 1e15, 1e30])
def test_weights_that_exploded_are_worse_and_have_the_deepest_color(env, factor):
    model = composer.compose(PLAIN + CRITIC, env=env, seed=0)
    with torch.no_grad():
        latent(model.critic).linears[0].weight.mul_(factor)
        latent(model.critic).linears[0].bias.fill_(factor)
        model.critic.network.module.get_submodule("heads.value").linear.weight.mul_(factor)
    result = probe(model, env, 16)
    assert all(
        "gradient_norm" in node.worse
        for node in result.outputs
        if node.path == "critic/heads/value"
    )
    assert not any(node.worse for node in result.nodes if node.path.startswith("policy"))
    for color in ("dormant", "rank", "gradient", "time"):
        heats = [box.heat or 0.0 for box in result.picture(color).boxes.values()]
        assert all(0.0 <= heat <= 1.0 for heat in heats)
        if color == "gradient":
            assert max(heats) == 1.0
    if math.isnan(factor):
        value = result["critic/heads/value"]
        assert {"dormant", "srank", "gradient_norm"} <= {*value.worse}
        assert "nan (was 0.0%)" in str(result)
        json.dumps(result.to_json(), allow_nan=False)


def padded(steps, seed=0):
    """An environment of sets of 1 to 5 elements, and all elements that were observed."""

    class Sets(gymnasium.Env):
        observation_space = spaces.Sequence(spaces.Box(-1, 1, (3,), np.float32), stack=True)
        action_space = spaces.Discrete(2)
        lengths = np.random.default_rng(seed).integers(1, 6, steps)
        elements: list[np.ndarray] = []

        def observation(self):
            count = self.lengths[len(self.elements) % steps]
            self.elements.append(np.random.default_rng(len(self.elements)).normal(size=(count, 3)))
            return self.elements[-1].astype(np.float32)

        def reset(self, *, seed=None, options=None):
            self.elements = []
            return self.observation(), {}

        def step(self, action):
            return self.observation(), float(action), False, False, {}

    return Sets()


def test_padding_of_sets_does_not_count():
    spec = (
        "version: 1\npolicy: {graph: {bits: {block: dense, in: observation, hidden_units: [6, 4], each: 1}, "
        "latent: {block: deep_set, in: bits, hidden_units: 5}}, heads: {in: latent}}"
    )
    env = padded(20)
    model = composer.compose(spec, env=env, seed=0)
    with torch.no_grad():
        model.policy.network.module.get_submodule("bits").linears[0].bias.fill_(0.5)
    result = probe(model, env, 20, baseline=False)
    bits = model.policy.network.module.get_submodule("bits")
    x = torch.tensor(np.concatenate(env.elements[:20])).float()
    inner = bits.linears[0](x).relu()
    (seen,) = [n for n in result.nodes if (n.path, n.layer) == ("policy/bits", "linears.0")]
    for node, values in ((result["policy/bits"], bits(x)), (seen, inner)):
        assert node.mean == pytest.approx(values.mean().item(), rel=1e-5)
        assert node.std == pytest.approx(values.std(correction=0).item(), rel=1e-5)
        assert node.dead == (values == 0).all(0).double().mean().item()


# --- what cannot be probed ---


class Fails(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)

    def __init__(self, after=3, reward=1.0, shape=(4,)):
        self.after, self.reward, self.shape = after, reward, shape

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps > self.after:
            raise RuntimeError("the simulator is gone")
        return np.zeros(self.shape, np.float32), self.reward, False, False, {}


def refused(model, env, *, message, **options):
    with pytest.raises(ProbeError, match=f"^{re.escape(message)}$"):
        probe(model, env, **options)


def test_what_is_given_wrongly_is_told(env):
    model = composer.compose(PLAIN, env=env, seed=0)
    refused(model, env, steps=0, message="steps must be a positive integer, got 0")
    refused(model, env, steps=1.5, message="steps must be a positive integer, got 1.5")
    refused(model, env, seed=-1, message="seed must be an integer of 0 or more, got -1")
    refused(model, env, seed=1.5, message="seed must be an integer of 0 or more, got 1.5")
    refused(model, env, tau=-1, message="tau must be a number of 0 or more, got -1")
    refused(model, env, tau=float("nan"), message="tau must be a number of 0 or more, got nan")
    refused(model, None, message="probe acts in an environment: probe(model, env)")
    refused(nn.Linear(1, 1), env, message="probe takes a Model, got a Linear")
    meta = composer.compose(PLAIN, env=env, device="meta", seed=0)
    refused(meta, env, message="this model has no weights yet; call model.materialize(device)")
    message = (
        "probe acts in one environment, got a vector environment; give one of its environments"
    )
    vector = gymnasium.make_vec("CartPole-v1", 2)
    refused(model, vector, message=message)
    vector.close()
    refused(
        model,
        object(),
        message="env is an environment, a vector environment or an id, got a object",
    )


def test_an_environment_of_other_spaces_is_refused(env):
    model = composer.compose(PLAIN, env=env, seed=0)
    message = "the model is for other spaces than those of the environment:\n  "
    with pytest.raises(ProbeError, match=re.escape(message)):
        probe(model, "Pendulum-v1")
    rest = "the observation space of the model is for one, and that of the environment for the actors 'a_0', 'a_1', 'b_0'"
    with pytest.raises(ProbeError, match=re.escape(rest)):
        probe(model, Signs())


def test_an_environment_may_lack_actors_and_not_have_more():
    spec = "version: 1\nignore: [sign]\npolicy: {action_mask: {a/action: legal}, networks: {a: {template: {}}, b_0: {template: {}}}}"
    model = composer.compose(spec, env=Signs(), seed=0)

    class Fewer(Signs):
        possible_agents = ["a_0", "b_0"]

    class Other(Signs):
        possible_agents = ["a_0", "b_0", "c_0"]

        def action_space(self, agent):
            return spaces.Box(-1, 1, (3,)) if agent == "b_0" else super().action_space(agent)

    assert prepared(model, Fewer()).possible_agents == ["a_0", "b_0"]
    with pytest.raises(ProbeError) as caught:
        prepared(model, Other())
    assert str(caught.value) == (
        "the model is for other spaces than those of the environment:\n"
        "  the model has no actor 'c_0'\n"
        "  'b_0/action': shape is (3,), expected (1,)"
    )


def test_an_environment_that_fails_is_told_with_the_step():
    model = composer.compose(PLAIN, env=Fails(), seed=0)
    refused(
        model,
        Fails(),
        message="the environment fails where it takes a step, after 3 steps: RuntimeError: the simulator is gone",
    )
    refused(
        model,
        Fails(reward=float("nan")),
        message="the environment gave the reward nan in step 1",
    )
    result = probe(model, Fails(), steps=3)
    assert result.returns == ()
    assert "0 episodes" not in str(result)


def test_a_model_that_cannot_act_is_told_with_the_step_and_the_weight():
    model = composer.compose(PLAIN, env=Fails(), seed=0)
    refused(
        model,
        Fails(shape=(5,)),
        message="the model cannot act in step 2: observation 'observation' has shape (5,), expected (..., 4)",
    )
    with torch.no_grad():
        latent(model.policy).linears[1].weight[0] = float("nan")
    refused(
        model,
        Fails(),
        message="the model cannot act in step 1: the logits of action 'action' are NaN or infinite at index (0,); "
        "look for NaN in the observations, the state and the weights; the weight 'policy.latent.linears.1.weight' is "
        "NaN or infinite",
    )


class Reuses(gymnasium.Env):
    """Fills one array again and again; episodes of 8 steps."""

    observation_space, action_space = spaces.Box(-9, 9, (4,)), spaces.Discrete(2)

    def __init__(self, reward=0.0):
        self.seen, self.reward = np.zeros(4, np.float32), reward

    def reset(self, *, seed=None, options=None):
        self.seen[:] = 0.0
        return self.seen, {}

    def step(self, action):
        self.seen += 1.0
        return self.seen, self.reward, bool(self.seen[0] == 8), False, {}


def test_an_array_that_an_environment_fills_again_is_copied_and_all_episodes_count():
    model = composer.compose(PLAIN, env=Reuses(), seed=0)
    result = probe(model, Reuses(reward=0.5), 16)
    x = torch.arange(8.0).repeat(2)[:, None].expand(16, 4)
    assert result["policy/latent"].mean == pytest.approx(latent(model.policy)(x).mean().item())
    assert result.returns == (4.0, 4.0)
    assert result.notes == ()


def test_a_gradient_that_vanished_is_worse_and_nodes_without_weights_have_no_norms(env):
    spec = (
        "version: 1\npolicy: {graph: {latent: {block: dense, in: observation, hidden_units: 8, activation: tanh}, "
        "same: {block: flatten, in: latent}}, heads: {in: same}}"
    )
    model = composer.compose(spec, env=env, seed=0)
    with torch.no_grad():
        latent(model.policy).linears[0].bias.fill_(7.0)
    result = probe(model, env, 32)
    assert (
        0
        < result["policy/latent"].gradient_norm
        < 1e-4 * result["policy/latent"].at_init.gradient_norm
    )
    assert "gradient_norm" in result["policy/latent"].worse
    assert not result["policy/same"].has_weights
    (line,) = [line for line in str(result).splitlines() if line.startswith("policy/same")]
    assert "e+00" not in line


def test_equal_returns_are_told_as_they_give_no_gradient():
    model = composer.compose(PLAIN, env=Reuses(), seed=0)
    result = probe(model, Reuses(), 16)
    assert result["policy/latent"].gradient_norm == 0.0
    assert result.notes == (
        "every step has the same return: the policy has no gradient, whatever its weights",
    )
