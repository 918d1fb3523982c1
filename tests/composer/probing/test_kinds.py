"""Probes of environments and critics of every kind, and the pictures of probes."""

import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo.utils import parallel_to_aec
from torch import nn

import composer
from composer.probing import probe
from composer.probing.drawing import _heat, _largest
from composer.probing.node import NodeProbe
from perception_blocks import BLOCKS, PerceptionBlock
from tests.helpers.parallel_envs import Balance, Signs
from tests.helpers.paths import CONFIGS

LAYER = "{latent: {block: dense, in: observation, hidden_units: 6}}"
SHARED = f"version: 1\npolicy: {{graph: {LAYER}, heads: {{in: latent}}}}\n"
STATE = f"critic: {{kind: state, graph: {LAYER}, heads: {{in: latent}}}}\n"
CENTRAL = (
    "critic: {kind: shared_state, graph: {all: {block: concat, in: [left_0/observation, right_0/observation]}}, "
    "heads: {in: all}}\n"
)


def gradients(result):
    return {node.path: node.gradient_norm for node in result.outputs}


@pytest.mark.parametrize("critic", [STATE, CENTRAL, ""])
def test_agents_that_act_at_once(critic):
    model = composer.compose(SHARED + critic, env=Balance(), seed=0)
    result = probe(model, Balance(), 20, baseline=False)
    assert min(value for path, value in gradients(result).items() if path != "critic/all") > 0
    assert result.notes == ()
    assert len(result.returns) == 2  # of eight steps each


class Turns(Balance):
    render_mode = None


def test_agents_that_take_turns():
    env = parallel_to_aec(Turns())
    model = composer.compose(SHARED + STATE, env=env, seed=0)
    result = probe(model, env, 32, baseline=False)
    assert min(gradients(result).values()) > 0
    assert len(result.returns) == 2  # the second ends with the last step
    env.close()


def test_a_critic_that_reads_absent_agents_is_left_out_with_a_note():
    env = parallel_to_aec(Turns())
    model = composer.compose(SHARED + CENTRAL, env=env, seed=0)
    result = probe(model, env, 10, baseline=False)
    assert [note.partition(":")[0] for note in result.notes] == ["the critic did not run"]
    assert "critic/all" not in gradients(result)
    assert gradients(result)["policy/latent"] > 0
    env.close()


def test_values_of_steps_that_build_on_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(CONFIGS))
    model = composer.compose(CONFIGS / "pick_place.yaml", allow=["environments"], seed=0)
    result = probe(model, model.spec.environment, 12, baseline=False)
    assert result.notes == ()
    steps = {path.split("/")[1] for path in gradients(result) if path.startswith("critic/")}
    assert steps == {"pick", "place"}


@pytest.mark.parametrize(
    "critic",
    [
        "{kind: state, normalize_value: true, template: {}}",
        "{kind: state, ensemble: 3, template: {}}",
        "{kind: state, template: {}, value: {block: categorical_value, num_bins: 11}}",
        "{kind: state_action, template: {}}",
    ],
)
def test_critics_of_every_kind(critic):
    if "value:" in critic.partition("template: {}")[2]:
        critic = f"{{kind: state, graph: {LAYER}, heads: {{value: {{block: categorical_value, in: latent, num_bins: 11}}}}}}"
    model = composer.compose(f"{SHARED}critic: {critic}\n", env="CartPole-v1", seed=0)
    result = probe(model, "CartPole-v1", 20)
    of_critic = [value for path, value in gradients(result).items() if path.startswith("critic/")]
    assert result.notes == ()
    assert max(of_critic) > 0
    assert result.worse == ()


def test_an_action_without_a_density_has_no_gradient_of_the_policy():
    spec = SHARED + "distributions: [{action: action, distribution: deterministic}]\n"
    model = composer.compose(spec, env="Pendulum-v1", seed=0)
    result = probe(model, "Pendulum-v1", 10, baseline=False)
    assert set(gradients(result).values()) == {0.0}


class Acts(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs):
        return {"action": self.layer(inputs["observation"]).tanh()}

    def act(self, observation):
        return 1


def test_a_class_that_acts_itself_is_measured_without_gradients():
    spec = f"version: 1\npolicy: {{_target_: {__name__}.Acts}}"
    model = composer.compose(spec, env="CartPole-v1", allow=[__name__], seed=0)
    result = probe(model, "CartPole-v1", 10)
    assert result["policy"].units == 2
    assert set(gradients(result).values()) == {0.0}


class Legal(gymnasium.Env):
    """The only legal action is told by `action_masks`."""

    observation_space, action_space = spaces.Box(0, 1, (3,)), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.legal = int(self.np_random.integers(3))
        return np.eye(3, dtype=np.float32)[self.legal], {}

    def action_masks(self):
        return np.arange(3) == self.legal

    def step(self, action):
        assert action == self.legal
        self.legal = (self.legal + 1) % 3
        return np.eye(3, dtype=np.float32)[self.legal], 1.0, False, False, {}


def test_masks_of_the_environment_hold():
    model = composer.compose(SHARED, env=Legal(), seed=0)
    result = probe(model, Legal(), 30, baseline=False)
    assert gradients(result)["policy/latent"] == 0.0  # each action has probability 1
    assert result["policy/latent"].srank <= 3


def test_a_block_may_say_its_hidden_values_itself(monkeypatch):
    class Doubles(PerceptionBlock):
        def forward(self, x_F):
            return x_F * 2

        def hidden_values(self, inputs):
            return {"squares": self(inputs[0]) ** 2}

    monkeypatch.setattr(BLOCKS, "_entries", dict(BLOCKS._entries))
    BLOCKS.register("doubles")(Doubles)
    spec = SHARED.replace("dense, in: observation, hidden_units: 6", "doubles, in: observation")
    model = composer.compose(spec, env="CartPole-v1", seed=0)
    result = probe(model, "CartPole-v1", 10)
    layers = {node.layer: node for node in result.nodes if node.path == "policy/latent"}
    assert list(layers) == ["output", "squares"]
    assert layers["squares"].low >= 0 > layers["output"].low


# --- pictures ---


def dormant_model():
    spec = SHARED.replace("hidden_units: 6", "hidden_units: [8, 6]")
    model = composer.compose(spec, env="CartPole-v1", seed=0)
    with torch.no_grad():
        model.policy.network.module.get_submodule("latent").linears[0].bias.fill_(-100.0)
    return model


def heat(picture):
    return {path: box.heat for box in picture.boxes.values() for path in box.stands_for if box.heat}


@pytest.mark.parametrize("color", ["dormant", "rank", "gradient", "time"])
def test_nodes_that_got_worse_are_colored(color, tmp_path):
    result = probe(dormant_model(), "CartPole-v1", 30)
    picture = result.picture(color)
    colored = heat(picture)
    assert "policy/latent" in colored
    if color != "time":  # a head over zeros has no rank and no gradient either
        assert colored["policy/latent"] >= 0.2
    (box,) = (b for b in picture.boxes.values() if "policy/latent" in b.stands_for)
    assert box.details["probe linears.0"].startswith("dead 100.0%, dormant 100.0%, rank 0 of 8")
    assert result.draw(tmp_path / "probe.dot", color).read_text().count("deeper color: ") == 1
    assert composer.draw(result, tmp_path / "again.dot").exists()


def test_a_fresh_model_has_no_color_and_without_a_baseline_all_dormant_units_have():
    model = composer.compose(SHARED, env="CartPole-v1", seed=0)
    assert heat(probe(model, "CartPole-v1", 30).picture()) == {}
    model = dormant_model()
    bare = probe(model, "CartPole-v1", 30, baseline=False)
    assert heat(bare.picture())["policy/latent"] == 1.0
    with pytest.raises(
        ValueError, match=r"^color is one of 'dormant', 'rank', 'gradient', 'time', got 'red'$"
    ):
        bare.picture("red")


def test_one_of_the_copies_of_a_network_is_drawn_with_the_worst_color():
    spec = SHARED.replace("{graph:", "{separate: true, graph:")
    model = composer.compose(spec, env=Balance(), seed=0)
    with torch.no_grad():
        tensors = dict(model.policy.named_parameters())
        bias = next(t for name, t in tensors.items() if "latent" in name and "bias" in name)
        bias[1] = -100.0
    result = probe(model, Balance(), 12)
    assert result["policy/1/latent"].dead == 1.0 > result["policy/0/latent"].dead
    assert heat(result.picture())["policy/latent"] > 0.3


def test_agents_that_come_and_go_end_their_episodes_apart():
    spec = "version: 1\nignore: [sign]\npolicy: {action_mask: {a/action: legal}, networks: {a: {template: {}}, b_0: {template: {}}}}"
    model = composer.compose(spec, env=Signs(), seed=0)
    result = probe(model, Signs(), 24, baseline=False)
    assert len(result.returns) >= 1
    assert any(path.startswith("policy/a/") for path in gradients(result))


def test_gradients_are_compared_within_policy_and_critic():
    node = NodeProbe(
        path="policy/a", layer="output", units=1, mean=0, std=1, low=0, high=1, dead=0, dormant=0,
        saturated=None, srank=1, weight_norm=1.0, gradient_norm=0.1, time_share=None,
    )  # fmt: skip
    others = [
        replace(node, path="policy/b", gradient_norm=0.001),
        replace(node, path="critic/a", gradient_norm=1000.0),
        replace(node, path="critic/b", gradient_norm=math.nan),
    ]
    nodes = [node, *others]
    largest = _largest(nodes)
    assert largest == {"policy": 0.1, "critic": 1000.0}
    assert [_heat(each, "gradient", largest) for each in nodes] == [
        0.0,
        pytest.approx(0.5),
        0.0,
        1.0,
    ]
