"""The examples of several actors in configs/ act in their environments, train, and are the same after save and load."""

import copy

import numpy as np
import pytest
import torch

import composer
from composer.source.load import load_source
from composer.spaces.lookup import make_environment
from tests.helpers.paths import CONFIGS

ALLOW = ["environments"]

every_config = pytest.mark.parametrize("name", ["knights_archers", "pick_place"])


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)


def compose(name: str) -> composer.Model:
    return composer.compose(CONFIGS / f"{name}.yaml", allow=ALLOW, seed=0)


def episode(model: composer.Model, name: str, seed: int = 0):
    """One episode: observations and actions by actor, step by step."""
    env = make_environment(load_source(CONFIGS / f"{name}.yaml").data["environment"])
    observations, _ = env.reset(seed=seed)
    state, over = model.policy.initial_state(), False
    while not over:
        if model.policy.has_memory:
            actions, state = model.policy.act(observations, state)
        else:
            actions = model.policy.act(observations)
        assert all(model.action_space[key].contains(action) for key, action in actions.items())
        yield observations, actions
        observations, _, ended, cut, _ = env.step(actions)
        if isinstance(ended, dict):
            observations = {agent: observations[agent] for agent in env.agents}
            over = not env.agents
        else:
            over = ended or cut
    env.close()


@every_config
def test_episodes_are_played_to_their_ends_and_not_everyone_is_always_there(name):
    torch.manual_seed(0)
    model = compose(name)
    present = {tuple(seen) for seed in range(4) for seen, _ in episode(model, name, seed)}
    assert len(present) > 1


def flat(values):
    """All values as one tensor."""
    return torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(values)])


@every_config
def test_one_step_of_training_reaches_every_parameter(name):
    model = compose(name)
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss, state, picked = torch.zeros(()), model.policy.initial_state(), None
    for observations, actions in list(episode(model, name))[:8]:
        told = {"prev_value": picked} if "place" in observations else {}
        values = model.critic(observations, **told)
        picked = values["pick"]["value"] if "pick" in values else None
        loss = loss + flat(values).square().sum()
        result = model.policy.distribution(observations, state)
        distributions, state = result if model.policy.has_memory else (result, state)
        taken = model.policy.from_environment(actions)
        for key, distribution in distributions.items():
            loss = loss - distribution.log_prob(taken[key]) - 0.01 * distribution.entropy()
    loss.backward()
    optimizer.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


@every_config
def test_a_config_is_the_same_after_save_and_load(name, tmp_path):
    model = compose(name)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors", allow=ALLOW)
    for seed in range(2):
        ours, theirs = (
            list(episode(m.eval(), name, torch.manual_seed(seed).initial_seed()))
            for m in (model, loaded)
        )
        assert len(ours) == len(theirs)
        for (_, mine), (_, other) in zip(ours, theirs, strict=True):
            for key, action in mine.items():
                np.testing.assert_equal(action, other[key])


@every_config
def test_a_config_is_drawn(name, tmp_path):
    assert compose(name).draw(tmp_path / "model.png").stat().st_size > 10_000


def test_the_sorting_task_is_solved_by_its_rules():
    """Whoever takes what is there, and puts it on the mark of its kind, gets all there is."""
    env = make_environment("environments.pick_place_env:PickPlace-v0")
    for seed in range(5):
        observations, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            if "pick" in observations:
                action = {"pick": {"where": int(observations["pick"]["things"].any(1).argmax())}}
            else:
                seen = observations["place"]
                action = {"place": {"where": seen["marks"][seen["held"]]}}
            observations, reward, over, _, _ = env.step(action)
            total += float(reward)
        assert total == pytest.approx(6.0)
