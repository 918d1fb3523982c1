"""The training loops of docs/your-own-loop.md: first ratios of 1, bootstrapping at truncation, and they learn."""

import importlib
import re

import pytest
import torch

import composer
from tests.helpers.paths import CONFIGS, ROOT

LOOPS = ["ppo_cartpole", "ppo_memory"]
NOVEL_SEEDS = [21, 22, 23]  # which had no part in choosing settings


@pytest.fixture(params=LOOPS)
def loop(request):
    return importlib.import_module(request.param)


@pytest.fixture(autouse=True)
def _from_a_clone(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(CONFIGS)
    monkeypatch.syspath_prepend(CONFIGS / "trainers")


@pytest.mark.parametrize("name", LOOPS)
def test_the_page_has_the_file(name):
    page = (ROOT / "docs" / "your-own-loop.md").read_text()
    (block,) = re.findall(rf"^<!-- file: {name}\.py -->\n```python\n(.*?)^```$", page, re.M | re.S)
    assert block == (CONFIGS / "trainers" / f"{name}.py").read_text()


def recorded(loop, monkeypatch, **settings):
    """Train for two updates; the distances of ratios from 1 of each, and the model."""
    distances, learn = [], loop.learn

    def noted(*arguments):
        distances.append(learn(*arguments))
        return distances[-1]

    monkeypatch.setattr(loop, "learn", noted)
    per_update = loop.Settings.num_envs * loop.Settings.rollout_steps
    short = loop.Settings(total_steps=2 * per_update, **settings)
    model = loop.train(seed=3, settings=short, log=lambda line: None)
    assert len(distances) == 2
    return distances, model


def model_env(loop):
    return getattr(loop, "ENVIRONMENT", "CartPole-v1")


def test_every_ratio_is_1_at_learning_rate_0(loop, monkeypatch):
    distances, _ = recorded(loop, monkeypatch, learning_rate=0.0)
    assert max(max(of_update) for of_update in distances) < 1e-5


def test_the_first_ratio_of_an_update_is_1_and_the_others_are_not(loop, monkeypatch, tmp_path):
    distances, model = recorded(loop, monkeypatch)
    for of_update in distances:
        assert of_update[0] < 1e-5
        assert max(of_update) > 1e-3
    start = composer.compose(model.source, env=model_env(loop), seed=3)
    weights = dict(start.named_parameters())
    assert not any(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert isinstance(loop.evaluate(loaded, episodes=2), float)


def test_an_episode_that_is_cut_off_is_worth_its_last_observation(loop):
    """Of two environments the first is cut off in its second step, the second ends there."""
    settings = loop.Settings(gamma=0.5, gae_lambda=0.5)
    ended = torch.tensor([[False, False], [True, True], [False, False], [False, False]])
    rollout = {
        "value": torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]]),
        "reward": torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]),
        "terminated": ended & torch.tensor([False, True]),
        "ended": ended,
    }
    found = loop.advantages(rollout, torch.tensor([16.0, 16.0]), settings)
    last = 1 + 0.5 * 16 - 8
    cut_off, terminated = 1 + 0.5 * 4 - 2, 1 - 2
    first = 1 + 0.5 * 2 - 1
    expected = [
        [first + 0.25 * cut_off, first + 0.25 * terminated],
        [cut_off, terminated],
        [0 + 0.5 * 8 - 4 + 0.25 * last] * 2,  # the step that only resets, which no loss reads
        [last] * 2,
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_what_only_resets_is_marked(loop, monkeypatch):
    """Every rollout has such steps, and their number is the number of episodes that have ended before them."""
    seen, learn = [], loop.learn
    monkeypatch.setattr(loop, "learn", lambda *a: seen.append(a[2]) or learn(*a))
    per_update = loop.Settings.num_envs * loop.Settings.rollout_steps
    loop.train(seed=3, settings=loop.Settings(total_steps=per_update), log=lambda line: None)
    (rollout,) = seen
    ended, is_real = rollout["ended"], rollout["is_real"]
    assert (~is_real).any()
    assert torch.equal(~is_real[1:], ended[:-1])
    assert is_real[0].all()
    assert not rollout["reward"][~is_real].any()


@pytest.mark.full
@pytest.mark.parametrize("seed", NOVEL_SEEDS)
def test_the_loop_without_memory_solves_cartpole(seed):
    loop = importlib.import_module("ppo_cartpole")
    assert loop.Settings().total_steps == 100_000
    assert loop.evaluate(loop.train(seed=seed)) >= 475


@pytest.mark.full
@pytest.mark.parametrize("seed", NOVEL_SEEDS)
def test_the_loop_with_memory_remembers(seed):
    """Without memory the best mean return is about 0.5."""
    loop = importlib.import_module("ppo_memory")
    assert loop.evaluate(loop.train(seed=seed)) > 0.85
