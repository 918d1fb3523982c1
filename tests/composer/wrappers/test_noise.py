"""Noise on actions: its moments, its limits, and what it is added to."""

import re

import pytest
import torch

import composer
from tests.composer.wrappers.test_samples import Echo, seeded

FREE = {"action_range": None}


def wrap(**settings):
    return composer.model_wrap(Echo(), "action_noise", **settings)


def test_gauss_has_the_moments_that_are_asked_for():
    zeros = {"action": torch.zeros(100_000)}
    noise = wrap(**FREE)(zeros, generator=seeded())["action"]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    model = wrap(noise_kwargs={"mu": 2.0, "sigma": 0.5}, **FREE)
    noise = model(zeros, generator=seeded())["action"]
    assert abs(noise.mean() - 2) < 0.02
    assert abs(noise.std() - 0.5) < 0.02


def test_ou_has_the_moments_of_the_process():
    settings = {"mu": 1.0, "sigma": 0.3, "theta": 2.0, "dt": 0.1, "x0": -1.0}
    model = wrap(noise_type="ou", noise_kwargs=settings, **FREE)
    generator, steps, x = seeded(), 12, torch.zeros(())
    for _ in range(steps):
        x = model({"action": torch.zeros(50_000)}, generator=generator)["action"]
    decay = 1 - settings["theta"] * settings["dt"]
    mean = 1.0 - 2.0 * decay**steps
    variance = 0.3**2 * 0.1 * (1 - decay ** (2 * steps)) / (1 - decay**2)
    assert abs(x.mean() - mean) < 0.005
    assert abs(x.var() - variance) < 0.001


def test_ou_follows_its_formula_with_the_defaults():
    model, generator = wrap(noise_type="ou", **FREE), seeded()
    x, normal = torch.zeros(2, 3), seeded()
    for _ in range(5):
        got = model({"action": torch.ones(2, 3)}, generator=generator)["action"] - 1
        x = x - 0.15 * x * 0.01 + 0.3 * 0.1 * torch.randn(2, 3, generator=normal)
        torch.testing.assert_close(got, x)


def test_ou_begins_anew_with_reset_in_all_rows_or_some():
    model = wrap(noise_type="ou", noise_kwargs={"sigma": 0.0, "mu": 1.0, "theta": 50.0}, **FREE)
    data = {"action": torch.zeros(3, 1)}

    def step():
        return model(data)["action"].flatten().tolist()

    assert step() == [0.5] * 3
    assert step() == [0.75] * 3
    model.reset(data_id=[1])
    assert step() == [0.875, 0.5, 0.875]
    model.reset()
    assert step() == [0.5] * 3
    with pytest.raises(KeyError, match=re.escape("'data_id' names 3; there are the slots 0 to 2")):
        model.reset(data_id=[3])


def test_first_the_noise_is_clipped_and_then_the_action():
    data = {"action": torch.full((1000,), 0.95)}
    action = wrap(noise_range={"min": -0.1, "max": 0.1})(data, generator=seeded())["action"]
    assert action.max() == 1.0
    torch.testing.assert_close(action.min(), torch.tensor(0.85))
    free = wrap(noise_range=[-0.1, 0.1], action_range=None)(data, generator=seeded())["action"]
    torch.testing.assert_close(free.max(), torch.tensor(1.05))
    assert wrap(action_range=[-0.5, 0.5])(data)["action"].max() == 0.5


def test_sigma_of_the_call_takes_effect_for_the_call():
    data = {"action": torch.zeros(10_000)}
    for kind in ("gauss", "ou"):
        model = wrap(noise_type=kind, **FREE)
        assert model(data, sigma=0.0)["action"].abs().max() == 0
        assert model(data)["action"].std() > 0.02
    assert abs(wrap(**FREE)(data, sigma=3.0, generator=seeded())["action"].std() - 3) < 0.1


def test_action_args_and_both():
    parts = {"action_args": torch.zeros(2, 2), "logit": torch.zeros(2, 2)}
    output = wrap()(parts)
    assert output["action_args"].abs().min() > 0
    assert output["logit"] is parts["logit"]
    both = wrap()({**parts, "action": torch.zeros(2, 2)})
    assert both["action"].abs().min() > 0
    assert both["action_args"].abs().min() > 0
    assert not torch.equal(both["action"], both["action_args"])


def test_of_a_hybrid_action_only_the_arguments_are_noisy():
    action = {"action_type": torch.tensor([1, 0]), "action_args": torch.zeros(2, 1)}
    noisy = wrap()({"action": action})["action"]
    assert noisy["action_type"] is action["action_type"]
    assert noisy["action_args"].abs().min() > 0
    assert action["action_args"].abs().max() == 0


def test_a_list_of_actions_has_noise_in_each():
    noisy = wrap(noise_type="ou")({"action": [torch.zeros(2, 1), torch.zeros(2, 3)]})["action"]
    assert [part.shape for part in noisy] == [(2, 1), (2, 3)]


def test_the_call_changes_nothing_if_it_fails():
    model = wrap(noise_type="ou", **FREE)
    model({"action": torch.zeros(2)})
    before = dict(model.noise.values)
    with pytest.raises(ValueError, match="adds to continuous actions"):
        model({"action": torch.zeros(2), "action_args": torch.zeros(2, dtype=torch.int64)})
    assert model.noise.values == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"noise_type": "gaus"},
            "'noise_type' must be one of 'gauss', 'ou', got 'gaus'; did you mean 'gauss'?",
        ),
        (
            {"noise_kwargs": {"sgma": 1.0}},
            "'sgma' is not a setting of noise 'gauss'; did you mean 'sigma'?",
        ),
        (
            {"noise_type": "ou", "noise_kwargs": {"sigma": -1.0}},
            "'sigma' must be a number of 0 or more, got -1.0",
        ),
        (
            {"action_range": [1, -1]},
            "'action_range' must be [low, high] or {min: low, max: high}, got [1, -1]",
        ),
        (
            {"noise_range": {"min": 0}},
            "'noise_range' must be [low, high] or {min: low, max: high}, got {'min': 0}",
        ),
    ],
)
def test_wrong_settings_are_said(settings, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        wrap(**settings)


@pytest.mark.parametrize(
    ("data", "keywords", "message"),
    [
        (
            {"logit": torch.zeros(2)},
            {},
            "'action_noise' adds to 'action' or 'action_args', but the model's output has 'logit'",
        ),
        (
            {"action": torch.zeros(2, dtype=torch.int64)},
            {},
            "'action_noise' adds to continuous actions, but 'action' is of torch.int64",
        ),
        (
            {"action": torch.zeros(2)},
            {"sigma": -1},
            "'action_noise': 'sigma' must be a number of 0 or more, got -1",
        ),
    ],
)
def test_wrong_input_is_said(data, keywords, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        wrap()(data, **keywords)
