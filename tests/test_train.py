"""composer train: what it writes, that it learns, that it goes on where it was interrupted, and what it refuses."""

import copy
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from training_runs import ALLOW, CONFIGS, FORGETFUL, SHORT, SORT, TESTS, learn

import composer
from composer import checkpoint
from composer.cli import main
from composer.source import load_source
from composer.training.curve import LearningCurve
from composer.training.evaluation import evaluate, greedy
from composer.training.folder import RunFolder
from composer.training.interruption import interruption_noted
from composer.training.session import resume
from composer.training.trainer import TRAINERS, Episode, Task

CARTPOLE = CONFIGS / "cartpole.yaml"
FILES = {"run.json", "trainer.pt", "model.safetensors", "curve.csv", "curve.png", "evaluation.json"}
# TorchRL's own modules warn of each other when they are imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*WeightUpdaterBase is deprecated:DeprecationWarning")
]
both = pytest.mark.parametrize("trainer", ["sb3", "torchrl"])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = (CONFIGS, TESTS, TESTS.parent / "benchmarks")
    monkeypatch.setattr(sys, "path", [*map(str, folders), *sys.path])
    return tmp_path


def cartpole(trainer, steps, **options):
    """The benchmark's run, of as many steps."""
    settings = importlib.import_module("train_cartpole").SETTINGS[trainer]
    return learn(CARTPOLE, trainer, steps, settings=settings, **options)


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of `composer train`."""
    status = main(["train", *map(str, arguments)])
    return status, *capsys.readouterr()


# --- what it writes ---


@both
def test_a_run_is_a_folder_with_a_checkpoint_a_curve_and_an_evaluation(trainer):
    outcome = learn(SORT, trainer, 1024, eval_episodes=5)
    assert {path.name for path in Path("run").iterdir()} == FILES
    assert outcome.steps == 1024
    assert Path("run/curve.png").read_bytes().startswith(b"\x89PNG")
    head, *rows = Path("run/curve.csv").read_text().splitlines()
    assert head == "step,episodes,return_mean,return_min,return_max,length_mean"
    assert 900 < int(rows[-1].split(",")[0]) <= 1024
    assert all(row.endswith(",10.0") for row in rows)
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
        "wrote runs/a: model.safetensors, curve.csv, curve.png, evaluation.json\n"
    )
    run_record = json.loads(Path("runs/a/run.json").read_text())
    assert "hidden_units: [8, 64]" in run_record.pop("spec")
    assert run_record == {
        "format": "composer-run", "version": 1, "environment": "CartPole-v1", "trainer": "sb3",
        "algorithm": "ppo", "steps": 256, "seed": 0, "envs": 1, "eval_episodes": 2,
        "settings": {"n_steps": 256},
    }  # fmt: skip


def test_rows_of_a_curve_have_enough_steps_and_lose_no_episode():
    curve = LearningCurve(every=10)
    curve.add(4, [Episode(1.0, 2)])
    curve.add(11, [Episode(3.0, 4)])
    curve.add(15, [Episode(5.0, 6)])
    curve.add(30, [])
    curve.add(32, [Episode(7.0, 1)])
    curve.close_row(33)
    rows = [(11, 2, 2.0, 1.0, 3.0, 3.0), (30, 1, 5.0, 5.0, 5.0, 6.0), (33, 1, 7.0, 7.0, 7.0, 1.0)]
    assert curve.rows == rows
    assert LearningCurve(10, [list(row) for row in rows]).rows == rows


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


# --- that it goes on ---


@both
def test_an_interrupted_run_keeps_what_it_had_and_goes_on(trainer, monkeypatch):
    monkeypatch.setattr("training_envs.Interrupting.steps", 0)
    spec = SORT.replace("Sort-v0", "Interrupting-v0")
    outcome = learn(spec, trainer, 2048, eval_episodes=3)
    assert (outcome.signal, outcome.evaluation) == (signal.SIGINT, None)
    assert 300 <= outcome.steps <= 512
    assert {path.name for path in Path("run").iterdir()} == FILES - {"evaluation.json"}
    assert composer.load("run/model.safetensors", ALLOW).seed == 0
    before = Path("run/curve.csv").read_text()
    resumed = resume("run", allow=ALLOW)
    assert resumed.signal is None
    assert 2048 <= resumed.steps <= 2560
    assert len(resumed.evaluation.returns) == 3
    assert {path.name for path in Path("run").iterdir()} == FILES
    assert Path("run/curve.csv").read_text().startswith(before)
    steps = [row[0] for row in RunFolder.open(Path("run")).load()["curve"]]
    assert steps == sorted(set(steps))
    assert steps[-1] > 2000


def test_a_finished_run_goes_on_to_more_steps(capsys):
    learn(SORT, "sb3", 512)
    command = ["--resume", "run", "--allow", "training_envs", "--steps", "1024"]
    assert run(capsys, *command)[0] == 0
    assert json.loads(Path("run/run.json").read_text())["steps"] == 1024
    assert json.loads(Path("run/evaluation.json").read_text())["steps"] == 1024


WHOLE = {
    "sb3": ["ppo", "a2c", "recurrent_ppo", "dqn", "sac", "td3"],
    "torchrl": ["ppo", "a2c", "dqn", "sac"],
}
SPECS = {
    "ppo": "cartpole", "a2c": "cartpole", "recurrent_ppo": "masked_recurrent", "dqn": "double_dqn",
    "sac": "twin_q", "td3": "twin_q",
}  # fmt: skip
OTHERS = {
    "a2c": {},
    "dqn": {"learning_starts": 32},
    "sac": {"learning_starts": 32},
    "td3": {"learning_starts": 32, "action_noise": 0.1},
}


@pytest.mark.parametrize(
    ("trainer", "algorithm"), [(name, each) for name, known in WHOLE.items() for each in known]
)
def test_what_is_restored_is_all_that_was_learned(trainer, algorithm):
    data = load_source(CONFIGS / f"{SPECS[algorithm]}.yaml").data
    if algorithm == "td3":
        data["distributions"] = [{"action": "action", "distribution": "deterministic"}]
    settings = OTHERS.get(algorithm, SHORT[trainer])
    if algorithm == "dqn":
        del data["critic"]
    task = Task(
        spec="", environment=data["environment"], algorithm=algorithm, settings=settings,
        steps=128, envs=2,
    )  # fmt: skip
    trainers = []
    for seed in (0, 1):
        model = composer.compose(data, allow=ALLOW, seed=seed)
        trainers.append(TRAINERS.get(trainer)(task, model))
    first, second = trainers
    first.learn(128, lambda steps, episodes: True)
    kept = copy.deepcopy(first.state())
    second.restore(kept, 128)
    assert differences(kept, second.state()) == []
    reports = []
    second.learn(256, lambda steps, episodes: reports.append(steps) or True)
    assert reports[0] > 128
    assert differences(kept, second.state()) != []
    for each in trainers:
        each.close()


def differences(first, second, path=()):
    """Where two nested values differ."""
    if isinstance(first, dict):
        keys = dict.fromkeys([*first, *second])
        return [d for k in keys for d in differences(first.get(k), second.get(k), (*path, k))]
    if isinstance(first, (list, tuple)):
        parts = enumerate(zip(first, second, strict=True))
        return [d for k, (a, b) in parts for d in differences(a, b, (*path, k))]
    same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if same else [path]


def test_a_process_that_is_terminated_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "composer", "train"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen(
        [*command, str(CARTPOLE), "--steps", "10000000", "-o", "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        while not Path("run/run.json").exists() and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    steps = RunFolder.open(Path("run")).load()["steps"]
    assert out == (
        f"interrupted after {steps:,} steps; what it had is in run\n"
        "go on with: composer train --resume run\n"
    )


def test_a_second_signal_ends_the_process_as_ever():
    before = signal.getsignal(signal.SIGTERM)
    with interruption_noted() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    thread_result = []
    thread = threading.Thread(target=lambda: thread_result.append(noted_in_a_thread()))
    thread.start()
    thread.join()
    assert thread_result == [None]


def noted_in_a_thread():
    with interruption_noted() as interruption:
        return interruption.signal


# --- that nothing is left half done ---


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (20_000, "'run/trainer.pt' cannot be written: File too large"),
        (200, "'run/run.json' cannot be written: File too large"),
    ],
)
def test_a_folder_that_cannot_be_filled_is_no_folder(folder, limit, reason):
    code = (
        "import resource, sys; from composer.cli import main; import composer.training.session; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"sys.exit(main(['train', {str(CARTPOLE)!r}, '--steps', '9', '-o', 'run']))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, f"composer train: {reason}\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "writer", "name", "reason"),
    [
        (torch, "save", "trainer.pt", "No space left on device"),
        (
            checkpoint, "save_file", "model.safetensors",
            "I/O error: No space left on device (os error 28)",
        ),
        (LearningCurve, "draw", "curve.png", "No space left on device"),
    ],
)  # fmt: skip
def test_a_save_that_fails_leaves_what_was_there(capsys, monkeypatch, module, writer, name, reason):
    learn(SORT, "sb3", 512, eval_episodes=1)
    kept = {path.name: path.read_bytes() for path in Path("run").iterdir()}

    def fail(*arguments, **keywords):
        raise SafetensorError(reason) if module is checkpoint else OSError(28, reason)

    command = ["--resume", "run", "--steps", "1024", "--allow", "training_envs"]
    with monkeypatch.context() as patch:
        patch.setattr(module, writer, fail)
        status, out, err = run(capsys, *command)
    assert (status, out) == (1, "")
    assert err == (
        f"composer train: 'run/{name}' cannot be written: {reason}; "
        "the run is as it was saved before: --resume run\n"
    )
    left = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert left.keys() == kept.keys() - {"evaluation.json"}
    assert left[name] == kept[name]
    assert RunFolder.open(Path("run")).load()["steps"] in (512, 1024)
    composer.load("run/model.safetensors", ALLOW)


# --- what is refused ---

BAD_OPTIONS = {
    "steps": (["--steps", "0"], "--steps must be a positive integer, got 0"),
    "several at once": (
        ["--steps", "-5", "--envs", "0", "--eval-episodes", "0", "--seed", "-1", "--trainer", "sb"],
        "--steps must be a positive integer, got -5\n"
        "  --envs must be a positive integer, got 0\n"
        "  --eval-episodes must be a positive integer, got 0\n"
        "  --seed must be an integer of 0 or more, got -1\n"
        "  unknown trainer 'sb'; did you mean 'sb3'?",
    ),
    "algorithm": (
        ["--algorithm", "poo"],
        "trainer 'sb3' has no algorithm 'poo'; did you mean 'ppo'?",
    ),
    "setting": (
        ["--set-algorithm", "gama=0.9", "--set-algorithm", "learning_rate=fast"],
        "'gama' is not a setting of ppo; did you mean 'gamma'?\n"
        "  'learning_rate' must be a number, got 'fast'",
    ),
    "setting of torchrl": (
        ["--trainer", "torchrl", "--set-algorithm", "epoch=2", "--set-algorithm", "gamma=2"],
        "'epoch' is not a setting of ppo; did you mean 'epochs'?\n"
        "  'gamma' must be a number between 0 and 1, got 2",
    ),
    "no value": (["--set-algorithm", "gamma"], "--set-algorithm takes key=value, got 'gamma'"),
    "no YAML": (
        ["--set-algorithm", "gamma=[1"],
        "--set-algorithm gamma=[1: a ',' or the closing ']' is missing before this; "
        "the bracket was opened at line 1, column 8",
    ),
    "what the library itself refuses": (
        ["--set-algorithm", "batch_size=1"],
        "PPO of Stable-Baselines3: `batch_size` must be greater than 1. "
        "See https://github.com/DLR-RM/stable-baselines3/issues/440",
    ),
    "algorithm for the spec": (
        ["--algorithm", "sac"],
        "sac cannot train this model:\n"
        "  it needs Box actions, but 'action' is Discrete(2); use ppo or dqn\n"
        "  sac needs the value of an action, but the critic is of kind 'state'; "
        "write kind: state_action, and ensemble: 2",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_wrong_options_are_answered_in_words_and_leave_no_folder(capsys, options, message, folder):
    status, out, err = run(capsys, CARTPOLE, "--steps", "10", "-o", "run", *options)
    assert (status, out, err) == (1, "", f"composer train: {message}\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "double_dqn", ["--trainer", "torchrl"],
            "ppo of torchrl cannot train this model:\n  ppo needs the value of a state, but the "
            "critic is of kind 'state_action'; write kind: state",
        ),
        (
            "wrapped_recurrent", [],
            "ppo cannot train this model:\n  it has memory, which only recurrent_ppo of sb3-contrib "
            "carries from step to step; use that",
        ),
        (
            "pick_place", ["--allow", "pick_place_env"],
            "one policy of one agent is trained here, but the spec is of several steps or agents: "
            "'pick', 'place'",
        ),
    ],
)  # fmt: skip
def test_a_spec_that_a_trainer_cannot_train_is_refused(capsys, folder, name, options, message):
    spec = CONFIGS / f"{name}.yaml"
    status, out, err = run(capsys, spec, "--steps", "10", "-o", "run", *options)
    assert (status, out, err) == (1, "", f"composer train: {message}\n")
    assert list(folder.iterdir()) == []


def test_another_environment_than_the_checkpoints_is_refused(capsys):
    composer.compose(CARTPOLE, seed=0).save("agent.safetensors")
    command = ["agent.safetensors", "--env", "Acrobot-v1", "--steps", "10", "-o", "run"]
    status, out, err = run(capsys, *command)
    assert (status, out) == (1, "")
    head, *differences = err.splitlines()
    assert head == (
        "composer train: 'agent.safetensors' is a model for other spaces than the environment's:"
    )
    assert len(differences) == 2
    assert not Path("run").exists()


def test_a_run_whose_environment_has_become_another_is_not_resumed(capsys, monkeypatch):
    learn(SORT, "sb3", 512, eval_episodes=1)
    monkeypatch.setattr("training_envs.Sort.action_space", gymnasium.spaces.Discrete(4))
    command = ["--resume", "run", "--steps", "1024", "--allow", "training_envs"]
    status, out, err = run(capsys, *command)
    assert (status, out) == (1, "")
    assert err == (
        "composer train: 'run/model.safetensors' is a model for other spaces than the "
        "environment's:\n  'action': n is 4, expected 3\n"
    )
    assert json.loads(Path("run/evaluation.json").read_text())["steps"] == 512


def test_an_environment_that_does_not_fit_the_spec_is_a_mistake_in_the_spec(capsys):
    Path("agent.yaml").write_text(SORT)
    status, out, err = run(
        capsys, "agent.yaml", "--allow", "training_envs", "--env", "CartPole-v1", "--steps", "10", "-o", "run"
    )  # fmt: skip
    assert (status, out) == (1, "")
    assert err.splitlines()[0] == (
        "agent.yaml:6:34: 'numbers' reads 'pair', which is neither an input nor a node's output; "
        "there is 'observation', 'latent'"
    )
    assert not Path("run").exists()


def test_what_is_there_is_not_touched(capsys):
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    status, _, err = run(capsys, CARTPOLE, "--steps", "10", "-o", "run")
    message = "'run' is there already; remove it or choose another folder"
    assert (status, err) == (1, f"composer train: {message}\n")
    assert [path.name for path in Path("run").iterdir()] == ["notes.txt"]
    Path("run/run.json").write_text("{}")
    message = (
        "there is a run in 'run' already; go on with it by --resume run, or choose another folder"
    )
    assert run(capsys, CARTPOLE, "--steps", "10", "-o", "run")[2] == f"composer train: {message}\n"


def test_a_folder_that_cannot_be_made_is_answered_in_words(capsys):
    Path("file").write_text("")
    status, _, err = run(capsys, CARTPOLE, "--steps", "10", "-o", "file/run")
    assert (status, err) == (1, "composer train: 'file/run' cannot be made: Not a directory\n")


def test_wrong_usage_has_its_own_status(capsys):
    for options, message in (
        ([CARTPOLE], "give SPEC, --steps N and -o DIR, or --resume DIR"),
        (["--resume", "run", "-o", "run"], "give -o DIR for a new run, or --resume DIR, not both"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(capsys, *options)
        assert caught.value.code == 2
        assert f"composer train: error: {message}\n" in capsys.readouterr().err


def test_a_run_is_resumed_as_the_one_it_is(capsys):
    learn(SORT, "sb3", 512)
    Path("other.yaml").write_text(
        SORT.replace("[64, 64], activation: tanh}\n  heads", "[8]}\n  heads")
    )
    given = ["--seed", "3", "--trainer", "torchrl", "--env", "CartPole-v1", "--steps", "600"]
    status, _, err = run(
        capsys, "other.yaml", "--resume", "run", "--allow", "training_envs", *given
    )
    assert (status, err) == (
        1,
        "composer train: the run in 'run' is another one:\n"
        "  --trainer is 'torchrl' here, but 'sb3' in the run\n"
        "  --seed is 3 here, but 0 in the run\n"
        "  --env is 'CartPole-v1' here, but 'training_envs:Sort-v0' in the run\n"
        "  the spec differs: ~ policy.graph.latent.hidden_units: [64, 64] -> [8]\n"
        "  the spec differs: - policy.graph.latent.activation: 'tanh'\n",
    )
    status, _, err = run(capsys, "--resume", "run", "--steps", "600")
    message = (
        "the environment 'training_envs:Sort-v0' would run code: 'training_envs' is outside the "
        "allowed modules (none); pass allow=['training_envs'] or --allow training_envs if you trust it"
    )
    assert (status, err) == (1, f"{message}\n")
    status, _, err = run(capsys, "--resume", "run", "--allow", "training_envs")
    message = "the run in 'run' has made its 512 steps; to go on, say how many there shall be in all: --steps"
    assert (status, err) == (1, f"composer train: {message}\n")


def test_a_folder_that_holds_no_run_is_not_resumed(capsys):
    def answer(*options):
        status, _, err = run(capsys, "--resume", "run", *options)
        assert status == 1
        return err.removeprefix("composer train: ").removesuffix("\n")

    assert answer() == "there is no folder 'run' to resume"
    Path("run").mkdir()
    assert answer() == "there is no run in 'run': it has no run.json"
    Path("run/run.json").write_text("[1, 2")
    assert answer().startswith("run.json in 'run' cannot be read: ")
    Path("run/run.json").write_text('{"format": "composer-run", "version": 2}')
    assert answer() == "run.json in 'run' cannot be read: it is of another version"
    Path("run").rename("away")
    learn(CARTPOLE, "sb3", 512, eval_episodes=1)
    Path("run/trainer.pt").write_bytes(b"half of it")
    assert answer() == "'run/trainer.pt' is damaged and cannot be resumed"
    Path("run/trainer.pt").unlink()
    assert answer() == "there is no run in 'run': it has no trainer.pt"


@pytest.mark.parametrize(
    ("library", "module", "options", "what", "extra"),
    [
        ("matplotlib", "composer.training.curve", [], "composer train", "train"),
        ("tqdm", "composer.training.progress", [], "composer train", "train"),
        ("stable_baselines3", "composer.adapters.sb3_training", [], "composer.adapters.sb3", "sb3"),
        (
            "torchrl", "composer.adapters.torchrl_training", ["--trainer", "torchrl"],
            "composer train --trainer torchrl", "torchrl",
        ),
    ],
)  # fmt: skip
def test_a_missing_library_names_its_extra(folder, library, module, options, what, extra):
    code = (
        f"import sys; sys.modules[{library!r}] = None; from composer.cli import main; "
        f"sys.exit(main(['train', {str(CARTPOLE)!r}, '--steps', '9', '-o', 'run', *{options!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )  # fmt: skip
    message = (
        f'{what} needs {library!r}; install it with: pip install "perception-composer[{extra}]"'
    )
    assert (done.returncode, done.stderr) == (1, f"composer train: {message}\n")
    assert list(folder.iterdir()) == []
