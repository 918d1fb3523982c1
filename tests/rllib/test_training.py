"""`composer train --trainer rllib`: what it learns, keeps, reports and refuses."""

import copy
import os
import re
from contextlib import closing
from dataclasses import asdict

import gymnasium
import pytest
import torch
from gymnasium import spaces
from ray.rllib.algorithms.ppo import PPOConfig

import composer
from composer.adapters.rllib.training import PpoSettings, RllibTrainer
from composer.cli.commands import main
from composer.training.session import resume, train
from composer.training.trainer import Task, TrainingError
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.training_runs import ALLOW, CARTPOLE, FORGETFUL, SORT
from tests.rllib.running import start_ray

pytestmark = pytest.mark.usefixtures("run_folder", "one_ray")
SETTINGS = {
    "train_batch_size_per_learner": 128, "minibatch_size": 64, "num_epochs": 4, "lr": 3e-3, "gamma": 0.9,
}  # fmt: skip
MEMORY = """
version: 1
environment: environments.recall_env:Recall-v0
policy:
  graph:
    code: {block: one_hot, in: sign}
    seen: {block: concat, in: [code, place]}
    memory: {block: gru, in: seen, hidden_units: 16}
  heads: {in: memory}
  action_mask: {action: legal}
  shares: [memory]
critic:
  graph: {value: {block: linear_output, in: memory, output_units: 1}}
"""
PENDULUM = "version: 1\nenvironment: Pendulum-v1\npolicy: {template: {}}\ncritic: {template: {}}\n"
PARTS = """
version: 1
environment: CartPole-v1
freeze: [policy/eyes]
learning_rate_scale: {policy/body: 0.1}
policy:
  graph:
    eyes: {block: dense, in: observation, hidden_units: [8]}
    body: {block: dense, in: eyes, hidden_units: [8]}
  heads: {in: body}
critic: {template: {}}
"""


@pytest.fixture
def one_ray():
    """Runs share a Ray: to start one takes seconds."""
    start_ray()


def trainer_of(spec, envs=2, steps=256, seed=0, **settings):
    model = composer.compose(spec, allow=ALLOW, seed=seed)
    task = Task(
        spec="", environment=model.spec.environment, trainer="rllib", steps=steps, envs=envs,
        settings={**SETTINGS, **settings},
    )  # fmt: skip
    return RllibTrainer(task, model)


def run(spec, steps, **options):
    options = {"envs": 4, "settings": SETTINGS, "allow": ALLOW, "eval_episodes": 3, **options}
    return train(spec, "run", trainer="rllib", steps=steps, **options)


def accept(steps, episodes, metrics=None):
    return True


def test_it_learns_cartpole_and_goes_on():
    settings = {
        **SETTINGS, "train_batch_size_per_learner": 512, "num_epochs": 8, "lr": 1e-3, "gamma": 0.98,
        "vf_clip_param": 1e4,
    }  # fmt: skip
    outcome = run(CARTPOLE, 6144, settings=settings, checkpoint_every=3000)
    assert outcome.evaluation.mean > 100  # at first it is 9 to 30
    assert len(os.listdir("run/checkpoints")) == 2
    model = composer.load("run/model.safetensors")
    first = composer.compose(CARTPOLE, seed=0)
    pairs = zip(model.parameters(), first.parameters(), strict=True)
    assert not any(torch.equal(learned, drawn) for learned, drawn in pairs)
    assert resume("run", steps=6656).steps >= 6656
    assert sorted(os.listdir()) == ["run"]


@pytest.mark.parametrize("spec", [SORT, MEMORY, PENDULUM], ids=["choices", "memory", "numbers"])
def test_its_state_is_all_that_it_needs(spec):
    reported = []
    with closing(trainer_of(spec)) as trainer:
        trainer.learn(128, lambda *report: reported.append(report) or True)
        state = copy.deepcopy(trainer.state())
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.restore(copy.deepcopy(state), 128)
        trainer.learn(256, accept)
        after = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        assert not any(
            torch.equal(after[n], before[n]) for n, _ in trainer.model.named_parameters()
        )
    with closing(trainer_of(spec, seed=1)) as another:
        another.restore(state, 128)
        another.learn(256, accept)
        assert all(torch.equal(v, after[n]) for n, v in another.model.state_dict().items())
    counted = [steps for steps, episodes, *metrics in reported if not episodes and not metrics]
    assert counted == list(range(1, len(counted) + 1))
    (numbers,) = [report[2] for report in reported if len(report) > 2]
    names = {"loss/policy", "loss/value", "entropy", "kl", "learning_rate", "explained_variance"}
    assert names - {"explained_variance"} <= numbers.keys() <= names
    assert numbers["learning_rate"] == pytest.approx(3e-3)


@pytest.mark.parametrize("runners", [0, 2])
def test_episodes_are_those_of_the_environment(runners):
    settings = {"train_batch_size_per_learner": 250, "num_env_runners": runners, "num_epochs": 1}
    episodes, metrics = [], []

    def report(steps, ended, numbers=None):
        episodes.extend(ended)
        metrics.append(numbers)
        return True

    with closing(trainer_of(PENDULUM, **settings)) as trainer:
        trainer.learn(500, report)
    assert [each.length for each in episodes] == [200, 200]
    assert all(-2000 < each.total < -100 for each in episodes)
    assert len(list(filter(None, metrics))) == 2


def test_masks_hold():
    run(FORGETFUL, 256)  # StrictRecall raises for what is not legal


def test_it_stops_at_once_and_begins_anew():
    with closing(trainer_of(MEMORY)) as trainer:
        trainer.learn(256, lambda steps, *_: steps < 7)
        assert trainer._reporter.steps == 7
        trainer.learn(134, accept)
        assert 135 <= trainer._reporter.steps <= 137


def test_environments_may_have_processes():
    assert run(CARTPOLE, 128, envs=2, subprocess=True).steps >= 128


def test_what_is_frozen_stays_and_learning_rates_have_their_factors():
    with closing(trainer_of(PARTS)) as trainer:
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer.learn(128, accept)
        moved = {n: (v - before[n]).abs().max() for n, v in trainer.model.named_parameters()}
        optimizer = trainer._optimizer
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in trainer.model.named_parameters():
            is_frozen = ".eyes." in name
            assert (id(parameter) in held) is not is_frozen
            assert (moved[name] == 0) == is_frozen
        optimizer.state.clear()
        start = {name: value.clone() for name, value in trainer.model.named_parameters()}
        for parameter in trainer.model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        for name, value in trainer.model.named_parameters():
            rate = 0 if ".eyes." in name else 3e-4 if ".body." in name else 3e-3
            step = (start[name] - value.detach()).mean()
            torch.testing.assert_close(
                step, torch.tensor(rate), rtol=1e-2, atol=1e-6, check_dtype=False
            )


def test_previous_actions_and_rewards_are_seen():
    spec = {
        "version": 1, "environment": "CartPole-v1", "previous": ["action", "reward"],
        "policy": {"template": {}}, "critic": {"template": {}},
    }  # fmt: skip
    assert run(spec, 128, envs=2).steps >= 128


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"settings": {"lamda": 0.9}},
            "'lamda' is not a setting of ppo; did you mean 'lambda_'?",
        ),
        (
            {"settings": {"minibatch_size": 9000}},
            "'minibatch_size' must be at most 'train_batch_size_per_learner', which is 4,000, got 9,000",
        ),
        (
            {"settings": {"num_env_runners": 3}},
            "'num_env_runners' must divide the 4 environments (--envs), got 3; write --envs 6",
        ),
        (
            {"settings": {"num_env_runners": 2}, "subprocess": True},
            "'num_env_runners' are processes of RLlib, which --subprocess would add others to; leave out one of the two",
        ),
        (
            {"settings": {"num_env_runners": 40}, "envs": 80},
            "'num_env_runners' is 40, but Ray has 2 processors free; give at most that",
        ),
    ],
)  # fmt: skip
def test_settings_are_checked_before_anything_is_made(options, problem):
    with pytest.raises(TrainingError) as caught:
        run(SORT, 64, **options)
    assert re.sub(r"Ray has \d+ pro", "Ray has 2 pro", str(caught.value)) == problem
    assert os.listdir() == []


def test_what_these_settings_advise_is_taken():
    for envs, subprocess, settings in (
        (6, False, {"num_env_runners": 3}),
        (4, False, {"num_env_runners": 2}),
        (4, True, {}),
        (4, False, {"minibatch_size": 4000, "lambda_": 0.9}),
    ):
        task = Task("", "CartPole-v1", "rllib", envs=envs, subprocess=subprocess, settings=settings)
        assert RllibTrainer.wrong_settings(task) == []


def test_the_defaults_are_those_of_rllib():
    config, ours = PPOConfig(), asdict(PpoSettings())
    del ours["num_env_runners"]  # RLlib starts two processes
    del ours["max_seq_len"]  # of its modules
    assert ours.pop("train_batch_size_per_learner") == config.train_batch_size
    assert ours == {name: getattr(config, name) for name in ours}


def test_everything_against_a_model_is_told_at_once():
    spec = {"version": 1, "normalize": ["observation"], "policy": {"template": {}}}
    model = composer.compose(spec, env="CartPole-v1")
    with pytest.raises(ValueError, match="cannot train") as caught:
        RllibTrainer(Task("", "CartPole-v1", "rllib"), model)
    assert str(caught.value) == (
        "ppo of RLlib cannot train this model:\n"
        "  ppo needs the value of a state; add a critic such as critic: {kind: state, template: {}}\n"
        "  it counts no statistics, so that 'normalize' has nothing to do; leave it out, and wrap the environment in "
        "gymnasium.wrappers.NormalizeObservation"
    )


def test_several_agents_are_left_to_the_trainer_that_takes_them():
    spec = "pettingzoo:mpe/simple_spread_v3"
    with pytest.raises(TrainingError) as caught:
        run({"version": 1, "policy": {"template": {}}, "critic": {"template": {}}}, 64, env=spec)
    assert str(caught.value) == (
        "one policy of one agent is trained here, but the spec is of several steps or agents: 'agent_0', 'agent_1', "
        "'agent_2'; use --trainer composer"
    )


@pytest.mark.parametrize("runners", [0, 1])
def test_an_environment_that_fails_ends_the_run_with_its_own_words(runners):
    class Failing(gymnasium.Env):
        observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            if runners:
                raise RuntimeError("the robot fell over")
            return self.observation_space.sample(), "much", False, False, {}

    gymnasium.register("Failing-v0", lambda: Failing())
    spec = PENDULUM.replace("Pendulum-v1", "Failing-v0")
    try:
        with pytest.raises(TrainingError) as caught:
            run(spec, 64, envs=1, settings={**SETTINGS, "num_env_runners": runners})
    finally:
        del gymnasium.registry["Failing-v0"]
    assert str(caught.value) == (
        "an environment in another process raised RuntimeError: the robot fell over; without num_env_runners the "
        "traceback shows where"
        if runners
        else "the environment 'Failing-v0' gave the reward the text 'much'; a reward must be a finite number"
    )


def test_the_command_trains_by_the_config_that_is_shipped(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    config = str(CONFIGS / "trainers" / "rllib_cartpole.yaml")
    short = ["--steps", "128", "--envs", "2", "--eval-episodes", "1", "-o", str(tmp_path / "run")]
    fewer = ["num_epochs=1", "train_batch_size_per_learner=128"]
    short += [word for setting in fewer for word in ("--set-algorithm", setting)]
    assert main(["train", "--config", config, *short]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("trained for 1")
    assert printed.endswith(
        "run: model.safetensors, curve.csv, curve.png, progress.csv, evaluation.json\n"
    )
