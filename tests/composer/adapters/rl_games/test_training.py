"""composer train --trainer rl_games: what it learns, keeps, writes and refuses."""

import copy
import os

import pytest
import torch
from gymnasium import spaces

import composer
from composer.adapters.rl_games.training import RlGamesTrainer
from composer.training.session import resume, train
from composer.training.trainer import Task, TrainingError
from tests.helpers.training_runs import ALLOW, CARTPOLE, FORGETFUL, SORT

pytestmark = pytest.mark.usefixtures("run_folder")
SETTINGS = {"horizon_length": 64, "learning_rate": 3e-3, "gamma": 0.5}
AIM = """
version: 1
environment: training_envs:Aim-v0
policy: {template: {trunk: {block: dense, hidden_units: [32]}}}
critic: {template: {trunk: {block: dense, hidden_units: [32]}}}
"""


def run(spec, steps, **options):
    options = {"envs": 8, "settings": SETTINGS, "allow": ALLOW, "eval_episodes": 5, **options}
    return train(spec, "run", trainer="rl_games", algorithm="ppo", steps=steps, **options)


def trainer(spec, envs=2, steps=256, **settings):
    model = composer.compose(spec, allow=ALLOW, seed=0)
    task = Task(
        spec="", environment=model.spec.environment, trainer="rl_games", steps=steps, envs=envs,
        settings={**SETTINGS, **settings},
    )  # fmt: skip
    return RlGamesTrainer(task, model)


@pytest.mark.parametrize(
    ("spec", "steps", "least"),
    [(SORT, 6144, 8.0), (AIM, 8192, -3.0)],  # guessing is worth 3.3, and costs 6.7
    ids=["choices", "numbers"],
)
def test_it_learns(spec, steps, least, capsys):
    outcome = run(spec, steps)
    assert outcome.evaluation.mean > least
    assert "seq_length" not in capsys.readouterr().out


def test_nothing_is_written_beside_the_folder_of_the_run():
    run(FORGETFUL, 512)
    assert sorted(os.listdir()) == ["run"]


def test_masks_of_the_environment_hold_where_they_are_asked_for():
    unmasked = FORGETFUL.replace("  action_mask: {action: legal}\n", "")
    run(
        "ignore: [legal]" + unmasked, 512, settings={**SETTINGS, "use_action_masks": True}
    )  # StrictRecall raises
    with pytest.raises(ValueError, match="use_action_masks") as caught:
        trainer(SORT, use_action_masks=True)
    assert str(caught.value) == (
        "use_action_masks asks the environment for its masks, but 'training_envs:Sort-v0' has no action_masks(); "
        "define it there, or leave it out: the action_mask of the spec applies by itself"
    )


def test_numbers_of_every_update_are_reported():
    made, reported = trainer(SORT), []
    made.learn(256, lambda steps, episodes, metrics=None: reported.append(metrics) or True)
    made.close()
    numbers = [metrics for metrics in reported if metrics]
    assert len(numbers) == 2
    names = {"loss/policy", "loss/value", "entropy", "kl", "learning_rate"}
    assert all(metrics.keys() == names for metrics in numbers)


def test_it_stops_at_once():
    made = trainer(SORT)
    made.learn(256, lambda steps, episodes, metrics=None: steps < 6)
    assert made._envs.steps == 6
    made.close()


def test_a_run_goes_on_where_it_was():
    run(CARTPOLE, 1024)
    outcome = resume("run", steps=2048, allow=ALLOW)
    assert outcome.steps == 2048


def test_its_state_is_all_that_it_needs():
    first, second = trainer(SORT), trainer(SORT)
    accept = lambda steps, episodes, metrics=None: True  # noqa: E731
    first.learn(128, accept)
    state = copy.deepcopy(first.state())
    for made in (first, second):
        made.restore(copy.deepcopy(state), 128)  # optimizers keep what they are given
        made.learn(256, accept)
        made.close()
    after = second.model.state_dict()
    assert all(torch.equal(value, after[n]) for n, value in first.model.state_dict().items())


def test_memory_is_trained_and_normalisers_count():
    spec = """
version: 1
environment: environments.recall_env:Recall-v0
normalize: [place]
policy: {template: {memory: {block: gru, hidden_units: 8}}, action_mask: {action: legal}}
critic: {normalize_value: true, template: {}}
"""
    made = trainer(spec, seq_length=32)
    made.learn(256, lambda steps, episodes, metrics=None: True)
    (normalizer,) = made.model.policy.observer.normalizers.values()
    assert int(normalizer.count) == 2 * 64 * 2 + 2  # and once the step after
    assert int(made.model.critic.value_normalizer.count) > 0
    made.close()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"horizon": 3}, "'horizon' is not a setting of ppo; did you mean 'horizon_length'?"),
        (
            {"horizon_length": 8, "minibatch_size": 5},
            "'minibatch_size' must divide the 16 steps between two updates (horizon_length times --envs), got 5",
        ),
    ],
)
def test_settings_are_checked_before_anything_is_made(settings, problem):
    with pytest.raises(TrainingError) as caught:
        run(SORT, 64, envs=2, settings=settings)
    assert str(caught.value) == problem
    assert os.listdir() == []


def test_actions_of_both_kinds_are_for_another_trainer():
    both = spaces.Dict(move=spaces.Discrete(2), steer=spaces.Box(-1, 1, (2,)))
    model = composer.compose(
        {"version": 1, "policy": {"template": {}}, "critic": {"template": {}}},
        observation_space=spaces.Box(-1, 1, (3,)), action_space=both,
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot train") as caught:
        RlGamesTrainer(Task(spec="", environment="CartPole-v1"), model)
    assert str(caught.value) == (
        "ppo of rl_games cannot train this model:\n"
        "  it learns choices, but 'steer' is Box(-1.0, 1.0, (2,), float32); use the trainer sb3"
    )


@pytest.mark.full
def test_environments_may_have_processes():
    assert run(CARTPOLE, 512, envs=2, subprocess=True).steps == 512
