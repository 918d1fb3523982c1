"""composer train says in one line what a damaged run, a second process or a wrong environment is, and leaves it whole."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer.training import trainer as trainers
from composer.training.environment import CheckedEnvironment
from composer.training.exclusive import LOCK, in_use
from composer.training.folder import RunFolder
from composer.training.session import resume, train
from composer.training.stored import NEWER
from composer.training.trainer import Task, TrainingError
from tests.helpers.paths import ROOT
from tests.helpers.training_runs import CARTPOLE, FILES, SORT, both, run

pytestmark = pytest.mark.usefixtures("run_folder")
NAMES = FILES - {"evaluation.json", "curve.png"}
SMALL = {"steps": 128, "settings": {"n_steps": 64}, "eval_episodes": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of CartPole with what it left, to be copied."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train(CARTPOLE, path, **SMALL)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def put_run(finished, path="run"):
    Path(path).mkdir()
    for name, content in finished.items():
        Path(path, name).write_bytes(content)


def contents(path="run"):
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


# --- one process at a time ---


def test_a_run_is_used_by_one_process_and_the_other_is_told_which(capsys, finished):
    put_run(finished)
    code = (
        "import sys; from pathlib import Path; from composer.training.exclusive import in_use\n"
        "with in_use(Path('run')): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "locked\n"
        before = contents()
        status, out, err = run(capsys, "--resume", "run", "--steps", "256")
        assert (status, out) == (1, "")
        assert err == (
            f"composer train: the run in 'run' is in use by process {process.pid} on {os.uname().nodename}; "
            "wait for it to end, or stop it\n"
        )
        assert contents() == before
        process.kill()
    assert Path("run", LOCK).exists()  # the killed process left it, and nobody holds it
    assert resume("run", steps=256).steps == 256
    assert not Path("run", LOCK).exists()


def test_a_thread_that_uses_a_run_keeps_itself_out_too(finished):
    put_run(finished)
    with (
        in_use(Path("run")),
        pytest.raises(TrainingError, match=f"in use by process {os.getpid()} on "),
    ):
        resume("run", steps=256)


def test_a_new_run_is_in_use_from_the_beginning(monkeypatch):
    tried = []

    def evaluate(*_, **__):
        with pytest.raises(TrainingError, match="the run in 'run' is in use by process "):
            resume("run")
        with pytest.raises(TrainingError, match="there is a run in 'run' already"):
            train(CARTPOLE, "run", **SMALL)
        tried.append(True)

    monkeypatch.setattr("composer.training.recorder.evaluate", evaluate)
    train(CARTPOLE, "run", **SMALL)
    assert tried == [True]


def test_what_a_process_that_was_killed_while_it_made_a_folder_left_is_removed(run_folder):
    code = (
        "import os, signal, composer.training.folder as folder\n"
        "folder.RunFolder.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from composer.training.session import train\n"
        f"train({str(CARTPOLE)!r}, 'run', steps=64)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert len(list(run_folder.glob(".composer-run-*"))) == 1
    train(CARTPOLE, "run", **SMALL)
    assert [path.name for path in run_folder.iterdir()] == ["run"]


def test_an_unlocked_folder_of_a_killed_process_is_removed_and_one_of_a_living_process_is_not(
    run_folder,
):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    for process in (killed.pid, os.getpid()):
        (run_folder / f".composer-run-{process}-0000.tmp").mkdir()
    train(CARTPOLE, "run", **SMALL)
    left = sorted(path.name for path in run_folder.iterdir())
    assert left == [f".composer-run-{os.getpid()}-0000.tmp", "run"]


# --- damaged and crafted files ---


def text_of(change):
    """run.json with a field changed."""
    return lambda content: json.dumps({**json.loads(content), **change}).encode()


def without(field):
    def change(content):
        record = json.loads(content)
        del record[field]
        return json.dumps(record).encode()

    return change


TASKS = {
    "empty": (lambda content: b"", "Expecting value: line 1 column 1 (char 0)"),
    "half": (lambda content: content[:20], "Unterminated string starting at: line 2 column 13"),
    "bytes": (lambda content: b"\xff\xfe", "'utf-8' codec can't decode byte 0xff"),
    "list": (lambda content: b"[1]", "it does not describe a run"),
    "nothing": (lambda content: b"null", "it does not describe a run"),
    "nested": (lambda content: b"[" * 200_000, "it is nested too deeply"),
    "version": (text_of({"version": [2]}), "it is of another version"),
    "spec as a list": (text_of({"spec": ["a"]}), "'spec' must be a text"),
    "no environment": (text_of({"environment": None}), "'environment' must be a text"),
    "trainer": (text_of({"trainer": {}}), "'trainer' must be a text"),
    "steps": (text_of({"steps": "9"}), "'steps' must be an integer"),
    "truth": (text_of({"seed": True}), "'seed' must be an integer"),
    "float": (text_of({"envs": 1e400}), "'envs' must be an integer"),
    "settings": (text_of({"settings": []}), "'settings' must be a mapping"),
    "subprocess": (text_of({"subprocess": 1}), "'subprocess' must be true or false"),
    "missing": (without("algorithm"), "it has no 'algorithm'"),
    "unknown": (text_of({"more": 1}), "'more' is not a field of a run"),
    "digits": (
        lambda content: b'{"steps": ' + b"9" * 5000 + b"}",
        "Exceeds the limit (4300 digits)",
    ),
}


@pytest.mark.parametrize(("change", "reason"), TASKS.values(), ids=TASKS)
def test_a_wrong_run_json_is_refused_in_a_line(capsys, finished, change, reason):
    put_run({**finished, "run.json": change(finished["run.json"])})
    assert refused(capsys).startswith(f"run.json in 'run' cannot be read: {reason}")


def test_a_run_of_an_older_version_is_resumed(capsys, finished):
    record = json.loads(finished["run.json"])
    older = {key: value for key, value in record.items() if key not in NEWER}
    put_run({**finished, "run.json": json.dumps(older).encode()})
    assert RunFolder.open(Path("run")).task == Task(
        **{key: value for key, value in older.items() if key not in ("format", "version", "about")}
    )
    assert run(capsys, "--resume", "run", "--steps", "192")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"spec": "other.yaml"},
            "run/run.json, its spec:1:1: a spec must be a mapping of keys to values, got ",
        ),
        ({"spec": "extends: other.yaml"}, "run/run.json, its spec:1:"),
        ({"environment": "os:X-v0"}, "the environment 'os:X-v0' would run code"),
        ({"environment": "NoSuch-v0"}, "the environment 'NoSuch-v0' cannot be made"),
        ({"trainer": "x" * 9}, "unknown trainer 'xxxxxxxxx'"),
        ({"algorithm": "poo"}, "trainer 'sb3' has no algorithm 'poo'"),
        (
            {"settings": {"n_steps": 10**12}},
            "'n_steps' must be at most 2,147,483,647, got 1000000000000",
        ),
        ({"envs": 10**6}, "--envs must be at most 10,000, got 1000000"),
        ({"seed": -1}, "--seed must be an integer of 0 or more, got -1"),
    ],
)
def test_what_a_run_json_names_is_no_path_and_has_limits(capsys, finished, change, message):
    Path("other.yaml").write_text("secret: 1\n")
    put_run({**finished, "run.json": text_of(change)(finished["run.json"])})
    said = refused(capsys)
    assert said.startswith(message)
    assert "secret" not in said


def saved_as(change):
    """trainer.pt with what it holds changed."""

    def changed(content):
        Path("before").write_bytes(content)
        state = torch.load("before", weights_only=True)
        torch.save(change(state), "after")
        return Path("after").read_bytes()

    return changed


def inner(path, value):
    """The state with another value at ``path``; None removes it."""

    def change(state):
        at = state
        for key in path[:-1]:
            at = at[key]
        if value is None:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return state

    return saved_as(change)


class Made:
    """Whatever this is, it is unpickled as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def twice(content):
    """With two parts of one name, but for the case: torch takes one of them, and zipfile the other."""
    Path("zip").write_bytes(content)
    with zipfile.ZipFile("zip", "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        archive.writestr(name.replace("data.pkl", "DATA.PKL"), archive.read(name))
    return Path("zip").read_bytes()


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harmed",))


def flipped(content):
    """A bit of a tensor is another."""
    Path("zip").write_bytes(content)
    with zipfile.ZipFile("zip") as archive:
        name = max(archive.infolist(), key=lambda entry: entry.file_size)
    at = name.header_offset + 200
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGED = "'run/trainer.pt' is damaged and cannot be resumed"
OTHER = "what is in 'run' does not fit the run: "
PARAMETERS = ("trainer", "parameters", "policy")
TRAINERS = {
    "empty": (lambda content: b"", DAMAGED),
    "half": (lambda content: content[: len(content) // 2], DAMAGED),
    "text": (lambda content: b"not torch's", DAMAGED),
    "flipped": (flipped, DAMAGED),
    "code": (saved_as(lambda state: Harmful()), DAMAGED),
    "two states": (twice, DAMAGED),
    **{
        f"much memory, {made[0].__name__}": (inner(["trainer", "updates"], Made(*made)), DAMAGED)
        for made in ((bytearray, 10**8), (torch.FloatTensor, 10**8), (torch.Tensor, 10**8), (Counter, "a"))
    },
    "list": (saved_as(lambda state: [1]), DAMAGED),
    "no trainer": (inner(["trainer"], None), DAMAGED),
    "no steps": (inner(["steps"], None), DAMAGED),
    "steps": (inner(["steps"], -5), DAMAGED),
    "many steps": (inner(["steps"], 10**30), DAMAGED),
    "curve": (inner(["curve"], [["a"] * 6]), DAMAGED),
    "curve of infinities": (inner(["curve"], [[torch.inf] * 7]), DAMAGED),
    "curve of large numbers": (inner(["curve"], [[64, 1, 10**400, 1, 1, 1, 1]]), DAMAGED),
    "curve beyond the run": (inner(["curve"], [[10**9, 1, 1.0, 1.0, 1.0, 1.0, 1.0]]), DAMAGED),
    "curve of no episodes": (inner(["curve"], [[64, -1, 1.0, 1.0, 1.0, 1.0, 1.0]]), DAMAGED),
    "curve of short episodes": (inner(["curve"], [[64, 1, 1.0, 1.0, 1.0, -1.0, 1.0]]), DAMAGED),
    "evaluation beyond the run": (inner(["evaluations"], [[10**9, 1, 1.0, 0.0, 1.0, 1.0, 1.0]]), DAMAGED),
    "evaluations backwards": (inner(["evaluations"], [[64, 1, 1.0, 0.0, 1.0, 1.0, 1.0], [32, 1, 1.0, 0.0, 1.0, 1.0, 1.0]]), DAMAGED),
    "progress beyond the run": (inner(["progress"], [{"step": 10**30, "seconds": 1.0, "steps_per_second": 1.0}]), DAMAGED),
    "recent of NaN": (inner(["recent"], [torch.nan]), DAMAGED),
    "short rows": (inner(["curve"], [[1, 2]]), DAMAGED),
    "recent": (inner(["recent"], "abc"), DAMAGED),
    "parameters": (inner(["trainer", "parameters"], None), f"{OTHER}the trainer differs in 'parameters'"),
    "updates": (inner(["trainer", "updates"], "many"), f"{OTHER}updates is a str, not a int"),
    "negative updates": (inner(["trainer", "updates"], -3), f"{OTHER}it has made -3 updates"),
    "many updates": (inner(["trainer", "updates"], 10**30), f"{OTHER}it has made "),
    "weights of NaN": (
        inner([*PARAMETERS, "model.policy.latent.linears.0.bias"], torch.full((64,), torch.nan)),
        f"{OTHER}parameters/policy/model.policy.latent.linears.0.bias is NaN or infinite",
    ),
    "negative rate": (
        inner(["trainer", "parameters", "policy.optimizer", "param_groups", 0, "lr"], -1.0),
        f"{OTHER}parameters/policy.optimizer/param_groups/0/lr is -1.0, not 0.0003",
    ),
    "betas": (
        inner(["trainer", "parameters", "policy.optimizer", "param_groups", 0, "betas"], (0.9, 5.0)),
        f"{OTHER}parameters/policy.optimizer/param_groups/0/betas/1 is 5.0, not 0.999",
    ),
    "weights": (
        inner([*PARAMETERS, "model.policy.latent.linear_0.weight"], torch.zeros(3)), OTHER
    ),
    "kind": (inner(["trainer", "tensors"], [1]), f"{OTHER}tensors is a list, not a dict"),
    "rate": (
        inner(["trainer", "parameters", "policy.optimizer", "param_groups", 0, "lr"], "fast"),
        f"{OTHER}parameters/policy.optimizer/param_groups/0/lr is a str, not a float",
    ),
}  # fmt: skip

OPTIMIZER = (*PARAMETERS[:2], "policy.optimizer", "state", 0)
KEPT = {  # what no optimiser keeps, by the name under which it is kept
    "short step": ("step", torch.zeros(3)),
    "negative step": ("step", torch.tensor(-1.0)),
    "short mean": ("exp_avg", torch.zeros(3)),
    "expanded mean": ("exp_avg", torch.zeros(1).expand(64, 4)),
    "many steps": ("step", torch.tensor(1e30)),
    "mean of NaN": ("exp_avg", torch.full((64, 4), torch.nan)),
    "infinite mean": ("exp_avg", torch.full((64, 4), torch.inf)),
    "negative squares": ("exp_avg_sq", torch.full((64, 4), -1.0)),
    "text": ("exp_avg_sq", "many"),
    "nothing": ("exp_avg", None),
}
TRAINERS |= {
    f"optimiser: {name}": (inner([*OPTIMIZER, key], value), OTHER)
    for name, (key, value) in KEPT.items()
}


@pytest.mark.parametrize(("change", "message"), TRAINERS.values(), ids=TRAINERS)
def test_a_wrong_trainer_pt_is_refused_in_a_line(capsys, finished, change, message):
    put_run({**finished, "trainer.pt": change(finished["trainer.pt"])})
    assert refused(capsys).startswith(message)
    assert not Path("harmed").exists()


REPLAY = {
    "a place far beyond": ("sb3 dqn", ["at"], 10**12),
    "a place before": ("sb3 dqn", ["at"], -5),
    "a place after what is there": ("sb3 dqn", ["at"], 400),
    "no place": ("sb3 dqn", ["at"], "x"),
    "a number for full": ("sb3 dqn", ["full"], 1),
    "full of less": ("sb3 dqn", ["full"], True),
    "actions that there are not": ("sb3 dqn", ["arrays", "actions"], torch.full((128, 1, 1), 10**9)),
    "actions of another type": ("sb3 dqn", ["arrays", "actions"], torch.zeros(128, 1, 1)),
    "no numbers": ("sb3 dqn", ["arrays", "observations"], torch.full((128, 1, 4), torch.nan)),
    "infinite rewards": ("sb3 dqn", ["arrays", "rewards"], torch.full((128, 1), torch.inf)),
    "ends of seven": ("sb3 dqn", ["arrays", "dones"], torch.full((128, 1), 7.0)),
    "ends of NaN": ("sb3 dqn", ["arrays", "timeouts"], torch.full((128, 1), torch.nan)),
    "short": ("sb3 dqn", ["arrays", "rewards"], torch.zeros(3)),
    "expanded": ("sb3 dqn", ["arrays", "rewards"], torch.zeros(1).expand(128, 1)),
    "without rewards": ("sb3 dqn", ["arrays", "rewards"], None),
    "another array": ("sb3 dqn", ["arrays", "more"], torch.zeros(128, 1)),
    "sac: actions beyond their scale": ("sb3 sac", ["arrays", "actions"], torch.full((128, 1, 1), 9.0)),
    "sac: infinite actions": ("sb3 sac", ["arrays", "actions"], torch.full((128, 1, 1), torch.inf)),
    "torchrl: actions that there are not": ("torchrl dqn", ["action"], torch.full((128,), 2)),
    "torchrl: negative actions": ("torchrl dqn", ["action"], torch.full((128,), -1)),
    "torchrl: actions of another type": ("torchrl dqn", ["action"], torch.zeros(128)),
    "torchrl: no numbers": ("torchrl dqn", ["observation"], torch.full((128, 4), torch.nan)),
    "torchrl: no rewards": ("torchrl dqn", [("next", "reward")], torch.full((128, 1), torch.nan)),
    "torchrl: infinite rewards": ("torchrl dqn", [("next", "reward")], torch.full((128, 1), torch.inf)),
    "torchrl: short": ("torchrl dqn", [("next", "reward")], torch.zeros(3)),
    "torchrl: without ends": ("torchrl dqn", [("next", "done")], None),
    "torchrl: more": ("torchrl dqn", ["more"], torch.zeros(128)),
    "torchrl: sac: actions beyond their bounds": ("torchrl sac", ["action"], torch.full((128, 1), 9.0)),
}  # fmt: skip
CONTINUOUS = """
version: 1
environment: Pendulum-v1
distributions: [{action: action, distribution: squashed_gaussian}]
policy:
  graph: {body: {block: dense, in: observation, hidden_units: 8}}
  heads: {in: body}
critic:
  kind: state_action
  ensemble: 2
  graph:
    both: {block: concat, in: [observation, action/action]}
    body: {block: dense, in: both, hidden_units: 8}
"""


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Runs with a replay buffer, each trained once."""

    @functools.cache
    def trained(trainer, algorithm):
        path = tmp_path_factory.mktemp("replayed") / "run"
        settings = {"buffer_size": 500, "learning_starts": 100}
        if trainer == "torchrl":
            settings = {**settings, "learning_starts": 1000, "frames_per_batch": 64}
        spec, overrides = (CARTPOLE, [("critic", None)]) if algorithm == "dqn" else (CONTINUOUS, [])
        train(
            spec, path, steps=128, trainer=trainer, algorithm=algorithm, settings=settings, eval_episodes=1,
            overrides=overrides,
        )  # fmt: skip
        return {file.name: file.read_bytes() for file in path.iterdir()}

    return trained


@pytest.mark.parametrize(("kind", "path", "value"), REPLAY.values(), ids=REPLAY)
def test_a_wrong_replay_buffer_is_refused_in_a_line(capsys, replayed, kind, path, value):
    put_run(replayed(*kind.split()))
    changed = inner(["trainer", "buffer", *path], value)(Path("run/trainer.pt").read_bytes())
    Path("run/trainer.pt").write_bytes(changed)
    assert refused(capsys).startswith(OTHER)


@pytest.mark.parametrize("kind", ["sb3 dqn", "sb3 sac", "torchrl dqn", "torchrl sac"])
def test_a_replay_buffer_as_it_was_saved_is_resumed(capsys, replayed, kind):
    put_run(replayed(*kind.split()))
    assert run(capsys, "--resume", "run", "--steps", "192")[0] == 0


@pytest.mark.parametrize("value", [-1.0, 2.0, torch.nan])
def test_a_probability_that_is_none_is_refused_in_a_line(capsys, replayed, value):
    put_run(replayed("torchrl", "dqn"))
    changed = inner(["trainer", "eps"], value)(Path("run/trainer.pt").read_bytes())
    Path("run/trainer.pt").write_bytes(changed)
    message = f"{OTHER}its probability of a random action is {value}\n"
    assert refused(capsys) == message


@pytest.mark.parametrize("name", ["run.json", "trainer.pt"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_what_is_no_file_is_not_read(capsys, finished, name, kind):
    """Else a pipe would be waited for, and a device read, for ever."""
    put_run({key: value for key, value in finished.items() if key != name})
    path = Path("run", name)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else name)
    message = "cannot be read: " if name == "run.json" else DAMAGED
    assert (message if kind != "device" else "is a link that leads out") in refused(capsys)


@pytest.mark.parametrize("name", [*sorted(FILES), LOCK])
def test_no_file_of_a_run_leads_out_of_its_folder(capsys, finished, name):
    """Else whoever resumes a stranger's run writes what a stranger chose where a stranger chose."""
    put_run({key: value for key, value in finished.items() if key != name})
    Path("precious").write_bytes(finished.get(name, b"mine"))
    Path("run", name).symlink_to("../precious")
    message = refused(capsys)
    if name == LOCK:
        assert message.startswith("the run in 'run' cannot be locked: ")
    else:
        assert message == (
            f"'run/{name}' is a link that leads out of the run's folder; put the file itself there\n"
        )
    assert Path("precious").read_bytes() == finished.get(name, b"mine")


def test_the_files_of_a_run_may_be_links_within_it_and_its_folder_one_too(capsys, finished):
    put_run(finished, "real")
    Path("real/curve.csv").rename("real/kept.csv")
    Path("real/curve.csv").symlink_to("kept.csv")
    Path("run").symlink_to("real")
    assert run(capsys, "--resume", "run", "--steps", "192")[0] == 0


def test_a_hidden_folder_that_is_a_link_is_left_alone(finished):
    Path("other").mkdir()
    Path("other", LOCK).write_text("of another program")
    Path(".composer-run-1.tmp").symlink_to("other")
    train(CARTPOLE, "run", **SMALL)
    assert Path("other", LOCK).read_text() == "of another program"


def refused(capsys):
    """What `composer train --resume` says; the run is as it was."""
    before = {path.name for path in Path("run").iterdir()}
    status, out, err = run(capsys, "--resume", "run", "--steps", "256")
    assert (status, out) == (1, "")
    assert "Traceback" not in err
    assert err.count("\n") == 1 or "its spec:" in err or "cannot be made" in err, err
    assert {path.name for path in Path("run").iterdir()} == before
    return err.removeprefix("composer train: ")


# --- names, sizes, and folders that come and go ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300, f"'{'x' * 197}...' cannot be made: File name too long"),
        ("a\0b", "'a\\x00b' cannot be made: embedded null byte"),
        ("file/run", "'file/run' cannot be made: Not a directory"),
    ],
)
def test_a_folder_that_cannot_be_is_refused_in_a_line(capsys, name, message):
    Path("file").write_text("")
    status, _, err = run(capsys, CARTPOLE, "--steps", "9", "-o", name)
    assert (status, err) == (1, f"composer train: {message}\n")
    status, _, err = run(capsys, "--resume", name)
    assert (status, err.count("\n")) == (1, 1)
    assert "to resume" in err


def test_a_folder_may_have_as_long_a_name_as_any(run_folder):
    name = "x" * 250
    train(CARTPOLE, name, **SMALL)
    assert [path.name for path in run_folder.iterdir()] == [name]


@pytest.mark.parametrize(
    ("trainer", "setting"), [("sb3", "n_steps"), ("torchrl", "frames_per_batch")]
)
def test_settings_beyond_all_measure_are_refused(capsys, run_folder, trainer, setting):
    options = ["--trainer", trainer, "--steps", "9", "-o", "run", "--set-algorithm"]
    status, _, err = run(capsys, CARTPOLE, *options, f"{setting}={10**12}")
    message = f"'{setting}' must be at most 2,147,483,647, got 1000000000000"
    assert (status, err) == (1, f"composer train: {message}\n")
    assert list(run_folder.iterdir()) == []


def test_memory_that_is_not_there_is_said(capsys, monkeypatch, run_folder):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 29.8 GiB for an array")

    monkeypatch.setattr("stable_baselines3.common.buffers.RolloutBuffer.reset", fail)
    status, _, err = run(capsys, CARTPOLE, "--steps", "9", "-o", "run")
    assert (status, err) == (
        1,
        "composer train: there is not enough memory (Unable to allocate 29.8 GiB for an array); "
        "choose fewer --envs, or smaller settings of the algorithm\n",
    )
    assert list(run_folder.iterdir()) == []


def test_a_folder_that_appears_meanwhile_is_left_alone(capsys, monkeypatch, run_folder):
    save = RunFolder.save

    def appear(self, *arguments):
        save(self, *arguments)
        Path("run").mkdir()
        Path("run/mine").write_text("")

    monkeypatch.setattr(RunFolder, "save", appear)
    status, _, err = run(capsys, CARTPOLE, "--steps", "9", "-o", "run")
    message = "'run' is there already; remove it or choose another folder"
    assert (status, err) == (1, f"composer train: {message}\n")
    assert [str(path) for path in Path().rglob("*")] == ["run", "run/mine"]


def test_a_folder_that_vanishes_meanwhile_ends_the_run_in_a_line(capsys, monkeypatch):
    save = RunFolder.save

    def vanish(self, *arguments):
        if self.path == Path("run"):
            Path("run").rename("elsewhere")
        save(self, *arguments)

    monkeypatch.setattr(RunFolder, "save", vanish)
    options = ["--steps", "64", "--set-algorithm", "n_steps=64"]
    status, _, err = run(capsys, CARTPOLE, *options, "-o", "run")
    assert (status, err) == (
        1,
        "composer train: 'run/trainer.pt' cannot be written: there is no folder 'run': what was trained is lost\n",
    )
    assert {path.name for path in Path("elsewhere").iterdir()} >= NAMES


# --- failures at every call ---

CALLS = {
    "os": ("lstat", "mkdir", "rename", "unlink", "open", "fsync", "replace"),
    "path": ("mkdir", "rename", "unlink", "write_text"),
}


class Quick:
    """A trainer that has learned at once."""

    algorithms = ("ppo",)

    def __init__(self, task, model):
        self.model = model

    @classmethod
    def wrong_settings(cls, task):
        return []

    def learn(self, steps, report, phase):
        report(steps, [])

    def act(self, observation, state, first, mask):
        return 0, None

    def state(self):
        return {"weights": self.model.state_dict()}

    def restore(self, state, steps):
        self.model.load_state_dict(state["weights"])

    def close(self):
        pass


def failing_at(monkeypatch, call, number):
    """From now on the ``call``-th call that changes a file fails; how many there were is in what is returned."""
    count = [0]

    def wrapped(function):
        def attempt(*arguments, **keywords):
            count[0] += 1
            if count[0] == call:
                raise OSError(number, os.strerror(number))
            return function(*arguments, **keywords)

        return attempt

    for name in ("fsync", "replace", "mkdir", "rename", "unlink"):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    return count


@pytest.mark.parametrize("number", [28, 5, 13])  # no space, a broken disk, no permission
@pytest.mark.parametrize("resumed", [False, True])
def test_after_a_failure_at_any_call_a_run_is_whole_or_not_there(
    capsys, monkeypatch, run_folder, resumed, number
):
    trainers.TRAINERS.register("sb3", Quick, replace=True)
    old = [CARTPOLE, "--steps", "9", "--eval-episodes", "1", "-o", "run"]
    if resumed:
        assert run(capsys, *old)[0] == 0
    command = ["--resume", "run", "--steps", "{}"] if resumed else old
    failures, call = [], 0
    while True:
        call += 1
        with monkeypatch.context() as patch:
            count = failing_at(patch, call, number)
            arguments = [str(each).format(9 + call) for each in command]
            status, _, err = run(capsys, *arguments)
        left = [path.name for path in run_folder.iterdir()]
        assert left in ([], ["run"])
        if left:
            names = {path.name for path in Path("run").iterdir()}
            assert names >= NAMES - {"curve.png"}
            assert not [name for name in names if name.endswith(".tmp")]
            Task(**{**vars(RunFolder.open(Path("run")).task)})
            assert RunFolder.open(Path("run")).load()["steps"] >= 0
            composer.load("run/model.safetensors")
        if status:
            failures.append(err)
        if count[0] < call:
            break
        if left and not resumed:
            for path in Path("run").iterdir():
                path.unlink()
            Path("run").rmdir()
    assert len(failures) >= 5
    for err in failures:
        assert err.startswith("composer train: ")
        assert err.count("\n") == 1
        assert os.strerror(number) in err


# --- environments that give what they should not ---

PAIR = "Box(-1.0, 1.0, (2,), float32)"
STEP = "step() of the environment 'Sort' returned "
WRONG = {
    "shape": (
        {"observation": {"pair": np.zeros(3, np.float32), "third": np.zeros(1, np.float32)}},
        f"{STEP}an array of shape (3,) and dtype float32 for the observation 'pair'; its space is {PAIR}",
    ),
    "text": (
        {"observation": {"pair": "left", "third": np.zeros(1, np.float32)}},
        f"{STEP}the text 'left' for the observation 'pair'; its space is {PAIR}",
    ),
    "None in it": (
        {"observation": {"pair": None, "third": np.zeros(1, np.float32)}},
        f"{STEP}None for the observation 'pair'; its space is {PAIR}",
    ),
    "complex": (
        {"observation": {"pair": np.zeros(2, complex), "third": np.zeros(1, np.float32)}},
        f"{STEP}an array of shape (2,) and dtype complex128 for the observation 'pair'; its space is {PAIR}",
    ),
    "None": (
        {"observation": None},
        f"{STEP}None; its space is Dict('pair': {PAIR}, 'third': Box(-1.0, 1.0, (1,), float32))",
    ),
    "a key less": (
        {"observation": {"pair": np.zeros(2, np.float32)}},
        f"{STEP}a dict of ['pair']; its space is Dict('pair': {PAIR}, 'third': Box(-1.0, 1.0, (1,), float32))",
    ),
    "reward of text": (
        {"reward": "1.0"},
        "the environment 'Sort' gave the reward the text '1.0'; a reward must be a finite number",
    ),
    "reward of an array": (
        {"reward": np.ones(1)},
        "the environment 'Sort' gave the reward an array of shape (1,) and dtype float64; "
        "a reward must be a finite number",
    ),
    "no reward": (
        {"reward": None},
        "the environment 'Sort' gave the reward None; a reward must be a finite number",
    ),
    "infinite reward": (
        {"reward": np.float32(np.inf)},
        "the environment 'Sort' gave the reward inf; a reward must be a finite number",
    ),
    "end": ({"terminated": None}, f"{STEP}as 'terminated' None; it must be true or false"),
    "info": ({"info": None}, f"{STEP}as the info None; it must be a dict"),
}  # fmt: skip


class Wrong(gymnasium.Env):
    """An environment whose fifth step gives something else."""

    observation_space = spaces.Dict(
        pair=spaces.Box(-1, 1, (2,), np.float32), third=spaces.Box(-1, 1, (1,), np.float32)
    )
    action_space = spaces.Discrete(3)

    def __init__(self, changes=None):
        self.changes, self.steps = changes or {}, 0
        self.seen = {"pair": np.zeros(2, np.float32), "third": np.zeros(1, np.float32)}

    def reset(self, *, seed=None, options=None):
        return self.seen, {}

    def step(self, action):
        self.steps += 1
        result = {
            "observation": self.seen, "reward": 0.0, "terminated": False, "truncated": False,
            "info": {},
        }  # fmt: skip
        return tuple({**result, **(self.changes if self.steps == 5 else {})}.values())


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_an_environment_gives_wrongly_is_told_with_key_and_space(changes, message):
    checked = CheckedEnvironment(Wrong(changes), "Sort")
    checked.reset(seed=0)
    for _ in range(4):
        checked.step(0)
    with pytest.raises(TrainingError) as caught:
        checked.step(0)
    assert str(caught.value) == message


def test_what_gymnasium_allows_passes():
    changes = {
        "observation": {"pair": [9, -9], "third": np.zeros(1)},  # beyond the bounds, of other types
        "reward": np.float32(1), "terminated": np.bool_(False), "truncated": 0,
    }  # fmt: skip
    checked = CheckedEnvironment(Wrong(changes), "Sort")
    checked.reset(seed=0)
    for _ in range(5):
        checked.step(0)


def test_every_kind_of_space_is_checked():
    space = spaces.Dict(
        both=spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]),
        word=spaces.Text(4), many=spaces.Sequence(spaces.Discrete(2)),
    )  # fmt: skip
    env = Wrong()
    env.observation_space = space
    space.seed(0)
    checked = CheckedEnvironment(env, "Sort")
    good = env.seen = space.sample()
    checked.reset()
    for key, value in {"both": (5, good["both"][1]), "word": "too long", "many": (7,)}.items():
        env.seen = {**good, key: value}
        with pytest.raises(TrainingError, match=f"for the observation '{key}"):
            checked.reset()


@both
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shape", f"returned an array of shape (3,) and dtype float32 for the observation 'pair'; its space is {PAIR}"),
        ("text", f"returned the text 'left' for the observation 'pair'; its space is {PAIR}"),
        ("none", "returned None; its space is Dict("),
        ("reward-array", "gave the reward an array of shape (1,) and dtype float64; a reward must be a finite number"),
        ("four", "returned a tuple of 4; it returns (observation, reward, terminated, truncated, info)"),
        ("reset", "reset() of the environment 'training_envs:Broken-reset-v0' returned a dict of "),
    ],
)  # fmt: skip
def test_every_trainer_tells_what_an_environment_gives_wrongly(capsys, trainer, how, message):
    Path("agent.yaml").write_text(SORT + "ignore: [legal]\n")
    rollout = "n_steps" if trainer == "sb3" else "frames_per_batch"
    status, _, err = run(
        capsys, "agent.yaml", "--env", f"training_envs:Broken-{how}-v0", "--allow", "training_envs",
        "--trainer", trainer, "--set-algorithm", f"{rollout}=64", "--steps", "64", "-o", "run",
    )  # fmt: skip
    last = err.splitlines()[-1]
    assert status == 1
    assert last.startswith("composer train: ")
    assert f"the environment 'training_envs:Broken-{how}-v0' " in last
    assert message in last
    assert "Traceback" not in err


def test_the_check_costs_next_to_nothing():
    checked = CheckedEnvironment(Wrong(), "Sort")
    started = time.perf_counter()
    for _ in range(10_000):
        checked.step(0)
    assert time.perf_counter() - started < 1  # 100 microseconds a step; it takes about 3
