"""composer train goes on where it was interrupted, and leaves nothing half done."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import composer
from composer.checkpoint import container as checkpoint_file
from composer.cli.commands import main
from composer.source.load import load_source
from composer.training.curve import LearningCurve
from composer.training.folder import RunFolder
from composer.training.interruption import interruption_noted
from composer.training.session import resume
from composer.training.trainer import TRAINERS, Task
from tests.helpers.paths import ROOT
from tests.helpers.training_runs import (
    ALLOW,
    CARTPOLE,
    CONFIGS,
    FILES,
    SHORT,
    SORT,
    both,
    learn,
    run,
)

pytestmark = pytest.mark.usefixtures("run_folder")


HEARD = (
    "{name} received: the run stops when the current step ({phase}) is complete, and is saved; "
    "a second one stops it at once, without saving\n"
)


@both
def test_an_interrupted_run_keeps_what_it_had_and_goes_on(trainer, monkeypatch, capfd):
    monkeypatch.setattr("training_envs.Interrupting.steps", 0)
    spec = SORT.replace("Sort-v0", "Interrupting-v0")
    outcome = learn(spec, trainer, 2048, eval_episodes=3)
    assert (outcome.signal, outcome.evaluation) == (signal.SIGINT, None)
    assert HEARD.format(name="SIGINT", phase="collecting") in capfd.readouterr().err
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
    first.learn(128, lambda *_: True)
    kept = copy.deepcopy(first.state())
    second.restore(kept, 128)
    assert differences(kept, second.state()) == []
    reports = []
    second.learn(256, lambda steps, *_: reports.append(steps) or True)
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, str(CARTPOLE), "--steps", "10000000", "-o", "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        while not Path("run/run.json").exists() and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    phases = ("collecting", "updating", "saving")
    assert err in [HEARD.format(name="SIGTERM", phase=phase) for phase in phases]
    steps = RunFolder.open(Path("run")).load()["steps"]
    assert out == (
        f"interrupted after {steps:,} steps; it is saved in run\n"
        "continue with: composer train --resume run\n"
    )


@pytest.fixture
def _python_ends_by_sigint():
    """A process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_python_ends_by_sigint")
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


@pytest.mark.usefixtures("_python_ends_by_sigint")
def test_a_second_ctrl_c_ends_the_command_in_a_line(monkeypatch, capfd):
    def step(self, action):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("training_envs.Interrupting.step", step)
    Path("sort.yaml").write_text(SORT.replace("Sort-v0", "Interrupting-v0"))
    status = main(["train", "sort.yaml", "--steps", "64", "-o", "run", "--allow", "training_envs"])
    heard = HEARD.format(name="SIGINT", phase="collecting")
    assert (status, capfd.readouterr().err) == (128 + signal.SIGINT, f"{heard}interrupted\n")


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
def test_a_folder_that_cannot_be_filled_is_no_folder(run_folder, limit, reason):
    code = (
        "import resource, sys; from composer.cli.commands import main; import composer.training.session; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"sys.exit(main(['train', {str(CARTPOLE)!r}, '--steps', '9', '-o', 'run']))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, f"composer train: {reason}\n")
    assert list(run_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "writer", "name", "reason"),
    [
        (torch, "save", "trainer.pt", "No space left on device"),
        (checkpoint_file, "_write", "model.safetensors", "No space left on device"),
        (LearningCurve, "draw", "curve.png", "No space left on device"),
    ],
)  # fmt: skip
def test_a_save_that_fails_leaves_what_was_there(capsys, monkeypatch, module, writer, name, reason):
    learn(SORT, "sb3", 512, eval_episodes=1)
    kept = {path.name: path.read_bytes() for path in Path("run").iterdir()}

    def fail(*arguments, **keywords):
        raise OSError(28, reason)

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
