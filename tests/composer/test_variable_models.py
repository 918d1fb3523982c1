"""Models that read sets, texts, graphs and alternatives: from a spec to actions, whatever the number of elements."""

import re

import gymnasium
import minigrid  # noqa: F401  # registers its environments
import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer.errors import SpecError

MOVE = spaces.Discrete(3)
UNITS = spaces.Dict(units=spaces.Sequence(spaces.Box(-10, 10, (2,))), speed=spaces.Box(-1, 1, (2,)))
POOLED = """version: 1
normalize: [units]
policy:
  graph:
    pooled: {block: deep_set, in: units, hidden_units: 8}
    latent: {block: concat, in: [pooled, speed]}
  heads: {in: latent}
"""
SPEED = np.zeros(2, np.float32)


def compose(text, observations, **keywords):
    return composer.compose(
        text, observation_space=observations, action_space=MOVE, seed=0, **keywords
    )


def batch(*sets):
    """Observations of UNITS, as a vector environment gives them."""
    arrays = tuple(tuple(np.array(unit, np.float32) for unit in units) for units in sets)
    return {"units": arrays, "speed": np.zeros((len(sets), 2), np.float32)}


# --- normalize ---


def test_statistics_of_a_set_are_those_of_the_elements_that_are_there():
    model = compose(POOLED, UNITS)
    model.update_normalizers(batch([(2, 0), (4, 0)], [], [(6, 3)]))
    (normalizer,) = model.policy.observer.normalizers.values()
    assert normalizer.mean.tolist() == [4.0, 1.0]
    torch.testing.assert_close(normalizer.var, torch.tensor([8 / 3, 2.0]))
    assert int(normalizer.count) == 3


def test_padding_is_zero_after_normalising_and_counts_nowhere():
    model = compose(POOLED, UNITS)
    model.update_normalizers(batch([(2, 1), (4, 5)], [(6, 3)]))
    together = batch([(2, 0), (4, 0)], [(1, 1)], [])
    read = model.policy.observer.read(together, ["units"], torch.float32, torch.device("cpu"))
    assert [*read] == ["units"]
    assert read["units"][1, 1].tolist() == read["units"][2, 0].tolist() == [0.0, 0.0]
    alone = [model.policy(batch(units))["action"] for units in ([(2, 0), (4, 0)], [(1, 1)], [])]
    torch.testing.assert_close(model.policy(together)["action"], torch.cat(alone))


def test_an_update_without_any_elements_changes_nothing():
    model = compose(POOLED, UNITS)
    model.update_normalizers(batch([], []))
    model.update_normalizers({"units": (), "speed": SPEED})
    (normalizer,) = model.policy.observer.normalizers.values()
    assert int(normalizer.count) == 0


def test_a_scalar_of_each_element_and_an_alternative_are_normalised():
    space = spaces.Dict(
        health=spaces.Sequence(spaces.Box(0, 9, ())),
        goal=spaces.OneOf([spaces.Box(0, 9, (1,)), spaces.Discrete(2)]),
    )
    text = "version: 1\nnormalize: [health, goal/0]\npolicy:\n  template: {}\n"
    model = compose(text, space)
    goals = ((0, np.array([3.0], np.float32)), (1, 1), (0, np.array([5.0], np.float32)))
    health = tuple(tuple(np.float32(x) for x in xs) for xs in ((1, 2), (), (6,)))
    model.update_normalizers({"health": health, "goal": goals})
    of_health, of_goal = model.policy.observer.normalizers.values()
    assert of_health.mean.tolist() == 3.0
    assert of_goal.mean.tolist() == [4.0]
    read = model.policy.observer.read(
        {"health": health, "goal": goals}, ["goal/0"], torch.float32, torch.device("cpu")
    )
    assert read["goal/0"].flatten().tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_a_mask_is_not_normalised():
    with pytest.raises(SpecError) as caught:
        compose(POOLED.replace("[units]", "['units:mask']"), UNITS)
    assert str(caught.value) == ("<spec>:2:13: 'units:mask' is a mask; only numbers are normalised")


# --- what a network may see ---


def test_a_network_that_may_see_a_set_sees_its_mask():
    text = POOLED.replace("policy:\n", "policy:\n  observations: [speed, units]\n")
    model = compose(text, UNITS)
    assert set(model.policy.network.in_ports) == {"units", "units:mask", "speed"}


def test_a_mask_that_is_dropped_is_answered_at_its_node():
    text = """version: 1
policy:
  graph:
    embedded: {block: embedding, in: observation, embedding_dim: 3}
    latent: {block: flatten, in: embedded}
  heads: {in: latent}
"""
    with pytest.raises(SpecError) as caught:
        compose(text, spaces.Text(5))
    assert str(caught.value) == (
        "<spec>:5:34: block 'flatten' would drop the mask of 'embedded'; pool or attend first, or instead "
        "(masked_global_pooling, attention_pooling), or apply it to each element: each: 1"
    )


# --- texts ---

MISSION = """version: 1
texts: {mission: {max_length: 64, charset: "abcdefghijklmnopqrstuvwxyz "}}
ignore: [direction]
policy:
  graph:
    scaled: {block: scale_image, in: image}
    seen: {block: flatten_dense, in: scaled, hidden_units: 32}
    letters: {block: embedding, in: mission, embedding_dim: 16}
    placed: {block: positional_encoding, in: letters}
    read: {block: attention_pooling, in: placed, num_heads: 2}
    latent: {block: concat, in: [seen, read]}
  heads: {in: latent}
"""


def test_minigrids_mission_is_read_once_its_length_is_declared(tmp_path):
    env = gymnasium.make("MiniGrid-Empty-5x5-v0")
    model = composer.compose(MISSION, env=env, seed=0)
    observation, _ = env.reset(seed=0)
    for _ in range(10):
        action = model.policy.act(observation)
        assert env.action_space.contains(action)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    logits = model.policy(observation)["action"]
    other = {**observation, "mission": "get to the red goal square"}
    assert not torch.equal(model.policy(other)["action"], logits)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.policy(observation)["action"], logits)
    env.close()


@pytest.mark.parametrize(
    ("mission", "message"),
    [
        (
            "get to goal 7",
            "'mission' has the character '7', which is not in its charset: 'get to goal 7'; "
            "declare a charset with it in texts",
        ),
        (
            "a" * 65,
            "'mission' is a text of 65 characters, its max_length is 64: "
            f"'{'a' * 56}...; declare more in texts",
        ),
    ],
)
def test_a_text_that_was_not_declared_so_is_answered(mission, message):
    env = gymnasium.make("MiniGrid-Empty-5x5-v0")
    model = composer.compose(MISSION, env=env, seed=0, device="cpu")
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.policy.act({**observation, "mission": mission})
    env.close()


def test_what_follows_a_texts_end_makes_no_difference():
    text = """version: 1
policy:
  graph:
    letters: {block: embedding, in: observation, embedding_dim: 16}
    latent: {block: attention_pooling, in: letters}
  heads: {in: latent}
"""
    long, short = (compose(text, spaces.Text(n, charset="abc")) for n in (30, 3))
    torch.testing.assert_close(
        long.policy("abc")["action"], short.policy("abc")["action"], rtol=0, atol=1e-6
    )
