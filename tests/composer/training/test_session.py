"""composer train: what it writes, and that it learns."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import composer
from composer.source.load import load_source
from composer.training.curve import LearningCurve
from composer.training.evaluation import evaluate, greedy
from composer.training.folder import RunFolder
from composer.training.progress import ProgressBar
from composer.training.session import resume, threads, train
from composer.training.trainer import TRAINERS, Episode, Task
from tests.helpers.training_runs import (
    ALLOW,
    CARTPOLE,
    CONFIGS,
    FILES,
    FORGETFUL,
    SHORT,
    SORT,
    both,
    learn,
    run,
)

pytestmark = pytest.mark.usefixtures("run_folder")


def cartpole(trainer, steps, **options):
    """The benchmark's run, of as many steps."""
    settings = importlib.import_module("train_cartpole").SETTINGS[trainer]
    return learn(CARTPOLE, trainer, steps, settings=settings, **options)


# --- what it writes ---


@both
def test_a_run_is_a_folder_with_a_checkpoint_a_curve_and_an_evaluation(trainer):
    outcome = learn(SORT, trainer, 1024, eval_episodes=5)
    assert {path.name for path in Path("run").iterdir()} == FILES
    assert outcome.steps == 1024
    assert Path("run/curve.png").read_bytes().startswith(b"\x89PNG")
    head, *rows = Path("run/curve.csv").read_text().splitlines()
    assert head == "step,episodes,return_mean,return_min,return_max,length_mean,return_mean_100"
    assert 900 < int(rows[-1].split(",")[0]) <= 1024
    assert all(row.split(",")[5] == "10.0" for row in rows)
    assert sum(int(row.split(",")[1]) for row in rows) == 96  # 8 times 128 steps, 10 each
    record = json.loads(Path("run/evaluation.json").read_text())
    assert (record["steps"], record["episodes"], record["lengths"]) == (1024, 5, [10] * 5)
    assert record["mean"] == np.mean(record["returns"])
    assert record["std"] == pytest.approx(np.std(record["returns"]))


@both
def test_the_checkpoint_is_worth_what_the_evaluation_says(trainer):
    outcome = learn(SORT, trainer, 1024)
    model = composer.load("run/model.safetensors", allow=ALLOW)
    again = evaluate(greedy(model.policy), "training_envs:Sort-v0", 20)
    assert again == outcome.evaluation


@both
def test_the_same_seed_gives_the_same_run(trainer):
    curves = []
    for name in ("first", "second"):
        learn(SORT, trainer, 1024, out=name, eval_episodes=1)
        curves.append(Path(name, "curve.csv").read_text())
    learn(SORT, trainer, 1024, out="other", eval_episodes=1, seed=1)
    assert curves[0] == curves[1] != Path("other", "curve.csv").read_text()


def test_a_run_may_begin_with_a_checkpoint(capsys):
    learn(SORT, "sb3", 4096)
    command = ["run/model.safetensors", "--allow", "training_envs", "-o", "more", "--steps", "512"]
    status, _, err = run(
        capsys, *command, "--set-algorithm", "learning_rate=1e-9", "--set-algorithm", "n_steps=512",
        "--env", "training_envs:Sort-v0",
    )  # fmt: skip
    assert (status, err) == (0, "")
    before, after = (composer.load(f"{name}/model.safetensors", ALLOW) for name in ("run", "more"))
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-6, rtol=0)


def test_the_command_says_what_came_of_it(capsys):
    command = [CARTPOLE, "--trainer", "sb3", "--algorithm", "ppo", "--steps", "256", "-o", "runs/a"]
    options = ["--set-algorithm", "n_steps=256", "--eval-episodes", "2", "--set", "params.width=8"]
    status, out, err = run(capsys, *command, *options)
    record = json.loads(Path("runs/a/evaluation.json").read_text())
    assert (status, err) == (0, "")
    assert out == (
        f"trained for 256 steps; without exploration: mean return {record['mean']:.2f}, "
        f"std {record['std']:.2f}, 2 episodes\n"
        "wrote runs/a: model.safetensors, curve.csv, curve.png, progress.csv, evaluation.json\n"
    )
    run_record = json.loads(Path("runs/a/run.json").read_text())
    assert "hidden_units: [8, 64]" in run_record.pop("spec")
    about = run_record.pop("about")
    assert (about["file"], about["overrides"]) == (str(CARTPOLE), ["params.width=8"])
    assert about["versions"]["torch"] == torch.__version__
    assert about["versions"].keys() >= {"composer", "python", "gymnasium", "stable_baselines3"}
    assert 0 < about["seconds"] < 600
    assert run_record == {
        "format": "composer-run", "version": 1, "environment": "CartPole-v1", "trainer": "sb3",
        "algorithm": "ppo", "steps": 256, "seed": 0, "envs": 1, "eval_episodes": 2,
        "settings": {"n_steps": 256}, "device": "cpu", "threads": 1, "subprocess": False,
        "env_set": {}, "eval_every": 0, "checkpoint_every": 0, "keep": 5, "tensorboard": False,
        "video": False, "probe_every": 0,
    }  # fmt: skip


def test_rows_of_a_curve_have_enough_steps_and_lose_no_episode():
    curve = LearningCurve(every=10)
    curve.add(4, [Episode(1.0, 2)])
    curve.add(11, [Episode(3.0, 4)])
    curve.add(15, [Episode(5.0, 6)])
    curve.add(30, [])
    curve.add(32, [Episode(7.0, 1)])
    curve.close_row(33)
    rows = [
        (11, 2, 2.0, 1.0, 3.0, 3.0, 2.0),
        (30, 1, 5.0, 5.0, 5.0, 6.0, 3.0),
        (33, 1, 7.0, 7.0, 7.0, 1.0, 4.0),
    ]
    assert curve.rows == rows
    assert LearningCurve(10, [list(row) for row in rows]).rows == rows


def test_the_curve_is_a_mean_over_the_last_100_episodes(monkeypatch, tmp_path):
    curve = LearningCurve(every=10)
    curve.add(10, [Episode(float(number), 1) for number in range(150)])
    assert curve.rows[-1].return_mean_100 == curve.recent_mean == np.mean(range(50, 150))
    resumed = LearningCurve(10, [list(row) for row in curve.rows], list(curve.recent))
    resumed.add(20, [Episode(0.0, 1)] * 10)
    assert resumed.rows[-1].return_mean_100 == np.mean([*range(60, 150), *[0.0] * 10])
    plotted = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda axes, *xy, **_: plotted.append(xy))
    resumed.draw(tmp_path / "curve.png", "title")
    assert plotted == [([10, 20], [99.5, resumed.recent_mean])]


def test_a_row_of_an_older_run_has_its_own_mean():
    (row,) = LearningCurve(10, [[11, 2, 2.0, 1.0, 3.0, 3.0]]).rows
    assert row == (11, 2, 2.0, 1.0, 3.0, 3.0, 2.0)


@both
def test_a_trainer_says_what_it_does(trainer):
    phases = []
    settings = SHORT[trainer]
    task = Task("", "training_envs:Sort-v0", trainer, steps=512, settings=settings, envs=2)
    model = composer.compose(SORT, allow=ALLOW, seed=0)
    made = TRAINERS.get(trainer)(task, model)
    made.learn(512, lambda *_: True, phases.append)
    made.close()
    assert set(phases) == {"collecting", "updating"}


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_a_trainer_reports_the_numbers_of_each_update(algorithm):
    reported = []

    def report(steps, episodes, metrics=None):
        reported.append((steps, metrics))
        return True

    settings = {"n_steps": 64} if algorithm == "ppo" else {"learning_starts": 32, "train_freq": 32}
    task = Task("", "training_envs:Sort-v0", "sb3", algorithm, 128, settings=settings)
    spec = load_source(SORT, [("critic", None)] if algorithm == "dqn" else [])
    trainer = TRAINERS.get("sb3")(task, composer.compose(spec, allow=ALLOW, seed=0))
    trainer.learn(128, report)
    trainer.close()
    updates = {steps: metrics for steps, metrics in reported if metrics}
    assert sorted(updates) == ([65, 128] if algorithm == "ppo" else [65, 97, 128])
    names = {
        "ppo": {
            "loss/total", "loss/policy", "loss/value", "entropy", "kl", "clip_fraction",
            "clip_range", "learning_rate", "explained_variance",
        },
        "dqn": {"loss/total", "learning_rate"},
    }  # fmt: skip
    assert all(metrics.keys() == names[algorithm] for metrics in updates.values())
    if algorithm == "ppo":
        assert 0.9 < updates[65]["entropy"] <= np.log(3) + 1e-6


@pytest.mark.parametrize("trainer", ["sb3", pytest.param("torchrl", marks=pytest.mark.full)])
def test_environments_may_have_processes_and_arguments(trainer):
    settings = {"sb3": {"n_steps": 32}, "torchrl": {"frames_per_batch": 64}}[trainer]
    runs = {
        is_apart: train(
            CARTPOLE,
            f"run-{is_apart}",
            trainer=trainer,
            steps=64,
            envs=2,
            settings=settings,
            eval_episodes=2,
            subprocess=is_apart,
            env_set={"max_episode_steps": 7},
        )
        for is_apart in (False, True)
    }
    assert runs[True].evaluation == runs[False].evaluation
    assert runs[True].evaluation.lengths == (7, 7)
    curves = {Path(f"run-{is_apart}/curve.csv").read_text() for is_apart in runs}
    assert len(curves) == 1
    assert RunFolder.open(Path("run-True")).task.env_set == {"max_episode_steps": 7}


def test_arguments_of_an_environment_may_change_its_spaces():
    spec = "version: 1\nenvironment: FrozenLake-v1\npolicy: {template: {}}\ncritic: {template: {}}"
    outcome = train(
        spec,
        "run",
        steps=64,
        settings={"n_steps": 64},
        eval_episodes=1,
        env_set={"map_name": "8x8"},
    )
    assert composer.load("run/model.safetensors").observation_space.n == 64
    assert resume("run", steps=128).steps == 128
    assert outcome.steps == 64


def test_the_number_of_threads_is_as_it_was_after_a_run():
    before = torch.get_num_threads()
    seen = []
    torch.set_num_threads(2)
    try:
        with threads(1):
            seen.append(torch.get_num_threads())
        assert [*seen, torch.get_num_threads()] == [1, 2]
    finally:
        torch.set_num_threads(before)


def test_the_bar_says_what_is_done_now(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("composer.training.progress.SHOWN_EVERY", -1)
    with ProgressBar(100) as bar:
        for phase in ("collecting", "updating", "evaluating"):
            bar.phase(phase)
            assert bar.now == phase
    said = capsys.readouterr().err
    assert [f"{phase}: " in said for phase in ("collecting", "updating", "evaluating")] == [
        True
    ] * 3


# --- that it learns ---


@both
def test_a_dict_of_observations_is_learned(trainer):
    outcome = learn(SORT, trainer, 4096)
    assert outcome.evaluation.mean > 9


@pytest.mark.parametrize(
    ("trainer", "algorithm"), [("sb3", "ppo"), ("sb3", "maskable_ppo"), ("torchrl", "ppo")]
)
def test_a_masked_environment_is_learned_without_one_illegal_action(trainer, algorithm):
    told = FORGETFUL.replace("StrictRecall", "ToldRecall")  # it raises where an action is illegal
    outcome = learn(told, trainer, 6144, algorithm=algorithm)
    assert outcome.evaluation.mean > 0.9


def test_what_only_memory_can_solve_is_solved_with_memory_alone():
    solved = learn(
        CONFIGS / "masked_recurrent.yaml", "sb3", 6144,
        algorithm="recurrent_ppo", env="training_envs:StrictRecall-v0",
    )  # fmt: skip
    assert solved.evaluation.mean > 0.9
    forgetful = learn(FORGETFUL, "sb3", 6144, out="forgetful", eval_episodes=100)
    assert 0.3 < forgetful.evaluation.mean < 0.7  # it must guess where two doors are open


@pytest.mark.full
@both
def test_memory_solves_it_with_both_trainers(trainer):
    algorithm = {"sb3": "recurrent_ppo", "torchrl": "ppo"}[trainer]
    solved = learn(
        CONFIGS / "masked_recurrent.yaml", trainer, 10_240,
        algorithm=algorithm, env="training_envs:StrictRecall-v0", eval_episodes=100,
    )  # fmt: skip
    assert solved.evaluation.mean > 0.93
    forgetful = learn(FORGETFUL, trainer, 20_480, out="forgetful", eval_episodes=100)
    assert forgetful.evaluation.mean < 0.7


@both
def test_cartpole_is_learned_in_a_few_steps(trainer):
    assert cartpole(trainer, 6400, eval_episodes=5).evaluation.mean > 80


@pytest.mark.full
@both
def test_cartpole_is_learned(trainer):
    assert cartpole(trainer, 75_000).evaluation.mean >= 475
