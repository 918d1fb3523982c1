"""composer train: evaluations and the best model, numbered checkpoints, progress, events, a video."""

import csv
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import composer
from composer.training.curve import LearningCurve
from composer.training.folder import RunFolder
from composer.training.progress import ProgressBar
from composer.training.records import ProgressLog
from composer.training.session import resume, train
from composer.training.trainer import TrainingError
from tests.helpers import counting_trainer
from tests.helpers.counting_trainer import worth
from tests.helpers.paths import ROOT
from tests.helpers.training_runs import ALLOW, CARTPOLE, SHORT, SORT, learn, run

pytestmark = pytest.mark.usefixtures("run_folder")
COUNT = {"trainer": "counting", "algorithm": "count", "steps": 60}


@pytest.fixture
def _counting(monkeypatch):
    counting_trainer.register()
    monkeypatch.setattr("composer.training.recorder.evaluate", counting_trainer.made_up)
    monkeypatch.setattr(
        LearningCurve, "draw", lambda self, path, title: Path(path).write_bytes(b"-")
    )


@pytest.fixture(scope="module")
def start():
    return composer.compose(CARTPOLE, seed=0)


def rows(name):
    with open(Path("run", name), newline="") as file:
        return list(csv.DictReader(file))


# --- evaluations and checkpoints ---


@pytest.mark.usefixtures("_counting")
def test_the_model_of_the_best_evaluation_is_kept(start):
    outcome = train(CARTPOLE, "run", eval_every=20, **COUNT)
    assert outcome.best == 40
    assert worth(composer.load("run/best.safetensors"), start) == 40
    assert worth(composer.load("run/model.safetensors"), start) == 60
    assert Path("run/evaluations.csv").read_text() == (
        "step,episodes,return_mean,return_std,return_min,return_max,length_mean\n"
        "20,2,1.0,1.0,0.0,2.0,6.0\n40,2,5.0,1.0,4.0,6.0,6.0\n60,2,3.0,1.0,2.0,4.0,6.0\n"
    )
    assert outcome.evaluation.mean == 3
    again = resume("run", steps=100)  # of two alike, the first one
    assert (again.best, again.steps) == (40, 100)
    assert [row["step"] for row in rows("evaluations.csv")] == ["20", "40", "60", "80", "100"]
    assert worth(composer.load("run/best.safetensors"), start) == 40


@pytest.mark.usefixtures("_counting")
def test_without_evaluations_between_there_is_no_best_model():
    assert train(CARTPOLE, "run", **COUNT).best is None
    assert not Path("run/best.safetensors").exists()
    assert not Path("run/evaluations.csv").exists()


@pytest.mark.usefixtures("_counting")
@pytest.mark.parametrize(("keep", "steps"), [(2, [40, 60]), (0, [20, 40, 60]), (5, [20, 40, 60])])
def test_numbered_checkpoints_are_written_and_the_last_ones_stay(start, keep, steps):
    train(CARTPOLE, "run", checkpoint_every=20, keep=keep, **COUNT)
    kept = RunFolder.open(Path("run")).checkpoints()
    assert [step for step, _ in kept] == steps
    assert kept[0][1].name == f"step-{steps[0]:09}.safetensors"
    assert [worth(composer.load(file), start) for _, file in kept] == steps


def test_evaluations_do_not_change_what_is_trained():
    curves = []
    for name, every in (("with", 64), ("without", 0)):
        learn(SORT, "sb3", 256, out=name, envs=2, eval_episodes=1, eval_every=every)
        curves.append(
            (Path(name, "curve.csv").read_text(), composer.load(f"{name}/model.safetensors", ALLOW))
        )
    (first, trained), (second, again) = curves
    assert first == second
    assert all(map(torch.equal, trained.parameters(), again.parameters()))


@pytest.mark.parametrize(
    "stride", [41, pytest.param(1, marks=pytest.mark.full)], ids=["few places", "every place"]
)
def test_a_run_that_is_killed_anywhere_goes_on_as_if_it_had_not_been(stride, run_folder):
    script = ROOT / "tests" / "helpers" / "killed_runs.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(run_folder), "1", str(stride)],
        capture_output=True, text=True, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'configs'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 100 // stride


# --- progress ---


@pytest.mark.usefixtures("_counting")
def test_progress_has_the_numbers_of_the_trainer_in_columns_that_stay_where_they_are():
    train(CARTPOLE, "run", **COUNT)
    head = Path("run/progress.csv").read_text().splitlines()[0]
    assert head == "step,seconds,steps_per_second,loss/policy,kl"
    found = rows("progress.csv")
    assert [row["step"] for row in found] == ["20", "30", "40", "50", "60"]
    assert [row["kl"] for row in found] == ["", "", "0.01", "0.01", "0.01"]
    assert [float(row["loss/policy"]) for row in found[:2]] == [0.05, 0.03333333]
    assert all(float(row["steps_per_second"]) > 0 for row in found)
    resume("run", steps=80)
    more = rows("progress.csv")
    assert more[:5] == found
    assert [row["step"] for row in more[5:]] == ["70", "80"]
    assert float(more[-1]["seconds"]) > float(found[-1]["seconds"])


def test_rows_of_progress_are_means_over_enough_steps():
    log = ProgressLog(every=10)
    log.begin(0, 0.0)
    assert log.add(4, 1.0, 1.0, {"loss": 1.0}) is None
    assert log.add(12, 3.0, 2.0, {"loss": 3.0}) == {
        "step": 12, "seconds": 3.0, "steps_per_second": 6.0, "loss": 2.0,
    }  # fmt: skip
    assert log.add(40, 4.0, 3.0, None) is None  # its numbers come less often than its steps
    assert log.close_row(40, 4.0, 3.0) == {"step": 40, "seconds": 4.0, "steps_per_second": 28.0}
    assert log.close_row(40, 5.0, 4.0) is None
    log.note({"probe/dead": 0.5})  # numbers that come when the row of their step is complete
    assert log.close_row(40, 6.0, 4.0) == {"step": 40, "probe/dead": 0.5}
    assert log.rows[-1] == {
        "step": 40, "seconds": 4.0, "steps_per_second": 28.0, "probe/dead": 0.5,
    }  # fmt: skip
    assert log.close_row(40, 7.0, 4.0) is None


def test_a_trainer_without_numbers_has_rows_of_its_speed():
    log = ProgressLog(every=1)
    log.begin(0, 0.0)
    steps = [row["step"] for step in range(1, 301) if (row := log.add(step, step, step, None))]
    assert steps == [100, 200, 300]


def test_a_rollout_beyond_the_steps_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr("composer.training.progress.LINE_EVERY", 0)
    monkeypatch.setattr(logging.getLogger("composer.progress"), "disabled", False)
    caplog.set_level("INFO", "composer.progress")
    with ProgressBar(100) as bar:
        for done in (50, 120, 170, 400):
            bar.show(done)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "50 %: 50 of 100 steps", "100 %: 120 of 100 steps",
    ]  # fmt: skip


@pytest.mark.usefixtures("_counting")
def test_without_a_terminal_a_line_says_how_far_a_run_is(capsys, monkeypatch):
    monkeypatch.setattr("composer.training.progress.LINE_EVERY", 0)
    monkeypatch.setattr(logging.getLogger("composer.progress"), "disabled", False)
    options = ["--trainer", "counting", "--algorithm", "count", "-o", "run", "--steps", "30"]
    status, _, err = run(capsys, CARTPOLE, *options)
    assert status == 0
    lines = [line.partition(", return")[0] for line in err.splitlines()]
    assert lines == ["33 %: 10 of 30 steps", "66 %: 20 of 30 steps", "100 %: 30 of 30 steps"]
    assert err.splitlines()[1].startswith("66 %: 20 of 30 steps, return 15.0, ")
    assert err.endswith(" steps per second\n")
    assert logging.getLogger("composer.progress").handlers == []


# --- events and the video ---


@pytest.mark.usefixtures("_counting")
def test_events_have_all_numbers_and_a_resumed_run_goes_on_with_them():
    train(CARTPOLE, "run", tensorboard=True, eval_every=20, **COUNT)
    resume("run", steps=80)
    events = EventAccumulator("run/tensorboard").Reload()
    assert set(events.Tags()["scalars"]) == {
        "seconds", "steps_per_second", "loss/policy", "kl", "return_mean_100",
        "evaluation/mean", "evaluation/std", "evaluation/length",
    }  # fmt: skip
    assert [each.step for each in events.Scalars("loss/policy")] == [20, 30, 40, 50, 60, 70, 80]
    assert [each.value for each in events.Scalars("evaluation/mean")] == [1, 5, 3, 5]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of imageio_ffmpeg
@pytest.mark.usefixtures("_counting")
def test_a_video_shows_an_episode_of_the_best_policy():
    import imageio_ffmpeg

    outcome = train(
        CARTPOLE, "run", video=True, eval_every=20, env_set={"max_episode_steps": 9}, **COUNT
    )
    assert "video.mp4" in outcome.files
    frames = imageio_ffmpeg.read_frames("run/video.mp4")
    assert next(frames)["size"] == (600, 400)
    assert 2 <= sum(1 for _ in frames) <= 10
    frames.close()


def test_an_environment_that_gives_no_pictures_is_refused_before_anything_is_made(run_folder):
    with pytest.raises(TrainingError) as caught:
        learn(SORT, "sb3", 64, video=True)
    assert str(caught.value).startswith(
        "--video: the environment 'training_envs:Sort-v0' gives no pictures: "
    )
    assert list(run_folder.iterdir()) == []


# --- a model, and environments in other processes ---


@pytest.mark.usefixtures("_counting")
def test_a_model_is_trained_as_it_is(start):
    model = composer.compose(CARTPOLE, seed=3)
    train(model, "run", **COUNT)
    assert worth(composer.load("run/model.safetensors"), composer.compose(CARTPOLE, seed=3)) == 60
    assert worth(model, composer.compose(CARTPOLE, seed=3)) == 60


def test_a_model_that_could_not_be_resumed_is_refused(run_folder):
    model = composer.compose(CARTPOLE, seed=0)
    model.policy.get_parameter("latent.linears.0.weight").requires_grad_(False)
    with pytest.raises(TrainingError) as caught:
        train(model, "run", steps=64)
    assert str(caught.value) == (
        "'policy.latent.linears.0.weight' of the model is frozen, but not by its spec, so a resumed run would train "
        "it; name it under 'freeze' in the spec"
    )
    with pytest.raises(TrainingError) as caught:
        train(composer.compose(CARTPOLE, seed=0), "run", steps=64, env="Acrobot-v1")
    assert str(caught.value).startswith("the model is for other spaces than the environment's:\n  ")
    assert list(run_folder.iterdir()) == []


def test_an_environment_in_another_process_that_goes_wrong_is_answered_in_words():
    spec = SORT.replace("Sort-v0", "Broken-reward-v0") + "ignore: [legal]\n"
    with pytest.raises(TrainingError) as caught:
        learn(spec, "sb3", 64, envs=1, subprocess=True, settings={"n_steps": 64})
    assert str(caught.value) == (
        "the environment 'training_envs:Broken-reward-v0' gave the reward nan; a reward must be a finite number"
    )


def test_an_environment_that_cannot_be_sent_is_refused(run_folder):
    import gymnasium

    gymnasium.register("Local-v0", lambda: None)
    try:
        with pytest.raises(TrainingError) as caught:
            train(CARTPOLE, "run", steps=64, env="Local-v0", subprocess=True, settings=SHORT["sb3"])
    finally:
        del gymnasium.registry["Local-v0"]
    assert str(caught.value).startswith(
        "--subprocess: the environment 'Local-v0' cannot be sent to another process: "
    )
    assert list(run_folder.iterdir()) == []


def test_other_names_of_algorithms_find_ours(capsys):
    status, _, err = run(capsys, CARTPOLE, "--steps", "9", "-o", "run", "--algorithm", "rppo")
    message = "trainer 'sb3' has no algorithm 'rppo'; did you mean 'recurrent_ppo'?"
    assert (status, err) == (1, f"composer train: {message}\n")
