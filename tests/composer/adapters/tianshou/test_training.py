"""composer train --trainer tianshou: what it learns, keeps, writes and refuses."""

import copy
import os

import pytest
import torch
from gymnasium import spaces

import composer
from composer.adapters.tianshou.training import TianshouTrainer
from composer.training.session import resume, train
from composer.training.trainer import Task, TrainingError
from tests.helpers.training_runs import ALLOW, CARTPOLE, FORGETFUL, SORT

pytestmark = pytest.mark.usefixtures("run_folder")
SETTINGS = {
    "collection_step_num_env_steps": 128, "update_step_num_repetitions": 4, "lr": 3e-3, "gamma": 0.5,
}  # fmt: skip
AIM = """
version: 1
environment: training_envs:Aim-v0
normalize: [observation]
policy: {template: {trunk: {block: dense, hidden_units: [32]}}}
critic: {template: {trunk: {block: dense, hidden_units: [32]}}}
"""


def run(spec, steps, algorithm="ppo", **options):
    options = {"envs": 8, "settings": SETTINGS, "allow": ALLOW, "eval_episodes": 5, **options}
    return train(spec, "run", trainer="tianshou", algorithm=algorithm, steps=steps, **options)


def trainer(spec, envs=2, steps=256, algorithm="ppo", **settings):
    model = composer.compose(spec, allow=ALLOW, seed=0)
    task = Task(
        spec="", environment=model.spec.environment, trainer="tianshou", algorithm=algorithm, steps=steps,
        envs=envs, settings={**SETTINGS, **settings},
    )  # fmt: skip
    return TianshouTrainer(task, model)


def accept(steps, episodes, metrics=None):
    return True


@pytest.mark.parametrize(
    ("spec", "algorithm", "steps", "least"),
    [(SORT, "ppo", 3072, 8.0), (SORT, "a2c", 6144, 6.0), (AIM, "ppo", 6144, -3.0)],
    ids=["choices", "a2c", "numbers"],  # guessing is worth 3.3, and costs 6.7
)
def test_it_learns(spec, algorithm, steps, least):
    assert run(spec, steps, algorithm).evaluation.mean > least
    assert sorted(os.listdir()) == ["run"]


def test_masks_hold():
    run(FORGETFUL, 256)  # StrictRecall raises for what is not legal


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_numbers_of_every_update_are_reported(algorithm):
    made, reported = trainer(SORT, algorithm=algorithm), []
    made.learn(256, lambda steps, episodes, metrics=None: reported.append(metrics) or True)
    made.close()
    numbers = [metrics for metrics in reported if metrics]
    assert len(numbers) == 2
    names = {"loss/policy", "loss/value", "entropy", "learning_rate"}
    assert all(metrics.keys() == names for metrics in numbers)


def test_episodes_are_those_of_the_environment():
    model = composer.compose(
        AIM.replace("training_envs:Aim-v0", "Pendulum-v1"), env="Pendulum-v1", seed=0
    )
    made = TianshouTrainer(
        Task(
            "", "Pendulum-v1", "tianshou", envs=2, settings={"collection_step_num_env_steps": 250}
        ),
        model,
    )
    episodes = []
    made.learn(500, lambda _, ended, metrics=None: episodes.extend(ended) or True)
    made.close()
    assert [each.length for each in episodes] == [200, 200]
    assert all(each.total < -100 for each in episodes)
    (normalizer,) = model.policy.observer.normalizers.values()
    assert int(normalizer.count) == 500  # the last rollout is counted too


def test_it_stops_at_once_and_begins_anew():
    made = trainer(AIM)
    made.learn(256, lambda steps, episodes, metrics=None: steps < 6)
    assert made._steps == 6
    made.learn(134, accept)
    assert made._steps == 134
    (normalizer,) = made.model.policy.observer.normalizers.values()
    assert int(normalizer.count) == 128
    made.close()


def test_a_run_goes_on_where_it_was():
    run(CARTPOLE, 1024)
    assert resume("run", steps=2048, allow=ALLOW).steps == 2048


def test_its_state_is_all_that_it_needs():
    first, second = trainer(AIM), trainer(AIM)
    first.learn(128, accept)
    state = copy.deepcopy(first.state())
    for made in (first, second):
        made.restore(copy.deepcopy(state), 128)  # optimizers keep what they are given
        made.learn(256, accept)
        made.close()
    after = second.model.state_dict()
    assert all(torch.equal(value, after[n]) for n, value in first.model.state_dict().items())
    before = state["model"]
    assert all(not torch.equal(v, before[n]) for n, v in first.model.named_parameters())


def test_environments_may_have_processes():
    assert run(CARTPOLE, 128, envs=2, subprocess=True).steps == 128


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"gama": 0.9}, "'gama' is not a setting of ppo; did you mean 'gamma'?"),
        (
            {"collection_step_num_env_steps": 5},
            "'collection_step_num_env_steps' must be a multiple of the 2 environments (--envs), got 5; write 6",
        ),
        (
            {"batch_size": 1},
            "'advantage_normalization' divides by the deviation within a batch, and batches here have one step; give "
            "'batch_size' and 'collection_step_num_env_steps' at least 2, or write advantage_normalization=false",
        ),
    ],
)
def test_settings_are_checked_before_anything_is_made(settings, problem):
    with pytest.raises(TrainingError) as caught:
        run(SORT, 64, envs=2, settings=settings)
    assert str(caught.value) == problem
    assert os.listdir() == []


def test_what_these_settings_advise_is_taken():
    for settings in (
        {"collection_step_num_env_steps": 6},
        {"batch_size": 2},
        {"batch_size": 1, "advantage_normalization": False},
    ):
        made = trainer(SORT, **settings)
        assert TianshouTrainer.wrong_settings(made._task) == []
        made.close()
    assert TianshouTrainer.wrong_settings(Task("", "CartPole-v1", "tianshou", envs=3)) == []


def test_everything_against_a_model_is_told_at_once():
    several = spaces.Dict(move=spaces.Discrete(2), steer=spaces.Box(-1, 1, (2,)))
    model = composer.compose(
        {"version": 1, "policy": {"template": {"memory": {"block": "gru", "hidden_units": 4}}}},
        observation_space=spaces.Box(-1, 1, (3,)), action_space=several,
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot train") as caught:
        TianshouTrainer(Task("", "CartPole-v1", "tianshou", "a2c"), model)
    assert str(caught.value) == (
        "a2c of Tianshou cannot train this model:\n"
        "  it has memory, which Tianshou's on-policy algorithms do not carry through an update; "
        "use the trainer rl_games, or recurrent_ppo of the trainer sb3\n"
        "  it stores actions as one array, got Dict('move': Discrete(2), 'steer': Box(-1.0, 1.0, (2,), float32)); "
        "use the trainer sb3\n"
        "  a2c needs the value of a state; add a critic such as critic: {kind: state, template: {}}"
    )
