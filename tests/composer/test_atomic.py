"""Files appear whole or not at all, whatever fails and whenever the process is killed; and nothing is left behind."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import composer
from composer import atomic
from composer.atomic import WriteError, replace_with, temporary_folder
from composer.checkpoint.container import CheckpointError
from composer.cli.commands import main
from composer.diagram.drawing import DrawError
from composer.export.exporting import ExportError
from composer.training.curve import LearningCurve
from composer.training.evaluation import Evaluation
from composer.training.folder import RunFolder
from composer.training.records import EvaluationLog, ProgressLog, Records
from composer.training.trainer import Episode, Task, TrainingError

SPEC = {
    "version": 1,
    "environment": "CartPole-v1",
    "policy": {
        "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [4]}},
        "heads": {"in": "latent"},
    },
}


def put(text):
    return lambda name: Path(name).write_text(text)


# --- what is replaced ---


def test_a_new_file_has_the_mode_of_all_new_files(tmp_path):
    (tmp_path / "other").write_text("")
    replace_with(tmp_path / "new", put("text"))
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_keeps_its_mode_and_a_private_one_is_private_while_it_is_written(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    seen = []

    def write(name):
        seen.append(stat.S_IMODE(os.stat(name).st_mode))
        put("new")(name)

    replace_with(path, write)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode), seen) == ("new", mode, [mode])


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path, exists):
    folder, link = tmp_path / "elsewhere", tmp_path / "link"
    folder.mkdir()
    link.symlink_to("elsewhere/file")
    if exists:
        (folder / "file").write_text("old")
    replace_with(link, put("new"))
    assert link.is_symlink()
    assert (folder / "file").read_text() == "new"


def test_what_cannot_be_a_file_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("loop", "loop")
    Path("protected").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("protected"))
    refused = {
        "pipe": "it is not a regular file",
        "folder": "it is a folder",
        "": "it is a folder",
        "loop": "Too many levels of symbolic links",
        "protected": "it is write-protected",
        "none/file": "there is no folder 'none'",
        "x" * 300: "File name too long",
        "a\0b": "a name holds no null character",
    }
    for path, reason in refused.items():
        with pytest.raises(WriteError) as caught:
            replace_with(path, put("new"))
        assert str(caught.value) == f"{path!r} cannot be written: {reason}"
    assert sorted(os.listdir()) == ["folder", "loop", "pipe", "protected"]


def test_other_exceptions_of_the_writer_pass_through_and_leave_nothing(tmp_path):
    def fail(name):
        put("half")(name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_with(tmp_path / "file", fail)
    assert os.listdir(tmp_path) == []


# --- temporary files of others ---


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    others = ["file", ".composer-notes", "x.tmp", ".composer-1.txt"]
    for name in [*others, ".composer-00ff.tmp", ".composer-live.tmp"]:
        (tmp_path / name).write_text("")
    (tmp_path / ".composer-folder.tmp").mkdir()
    with open(tmp_path / ".composer-live.tmp") as live:
        fcntl.flock(live, fcntl.LOCK_EX)  # as a process that still writes it has it
        replace_with(tmp_path / "file", put("new"))
    kept = {*others, ".composer-live.tmp", ".composer-folder.tmp"}
    assert set(os.listdir(tmp_path)) == kept


def test_many_threads_may_write_into_one_folder(tmp_path):
    failures = []

    def save(name):
        try:
            for index in range(30):
                replace_with(tmp_path / name, put(f"{name}{index}"))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(name,)) for name in "aabbcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    texts = {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)}
    assert texts == {name: f"{name}29" for name in "abcd"}


def test_a_file_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path, monkeypatch
):
    real, taken = os.open, []

    def open_and_lose(name, *arguments):
        handle = real(name, *arguments)
        if not taken and str(name).endswith(".tmp"):
            taken.append(name)
            os.unlink(name)
        return handle

    monkeypatch.setattr(atomic.os, "open", open_and_lose)
    replace_with(tmp_path / "file", put("new"))
    assert (tmp_path / "file").read_text() == "new"
    assert len(taken) == 1


def test_without_locks_files_are_still_whole(tmp_path, monkeypatch):
    (tmp_path / ".composer-00ff.tmp").write_text("")
    monkeypatch.setattr(atomic, "fcntl", None)
    replace_with(tmp_path / "file", put("new"))
    assert (tmp_path / "file").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == [".composer-00ff.tmp", "file"]


# --- a failure at every call ---


class Trainer:
    def __init__(self, model):
        self.model = model

    def state(self):
        return {"weights": self.model.state_dict()}


def save_run(model, path):
    """The files of a run in the folder ``path``, which is there."""
    curve = LearningCurve(every=1)
    curve.add(4, [Episode(1.0, 2)])
    evaluations, progress = EvaluationLog(), ProgressLog(every=1)
    evaluations.add(4, Evaluation((1.0,), (2,)))
    records = Records(curve, evaluations, progress)
    task = Task("spec", "CartPole-v1", "sb3", "ppo", 8, eval_every=4)
    RunFolder(path.parent, task).save(Trainer(model), records, 4)


WRITERS = {
    "model.safetensors": (lambda model, path: model.save(path), CheckpointError),
    "model.pt2": (lambda model, path: model.export(path), ExportError),
    "model.onnx": (lambda model, path: model.export(path), ExportError),
    "model.svg": (lambda model, path: model.draw(path), DrawError),
    "trainer.pt": (save_run, TrainingError),
}
CALLS = ("open", "fsync", "replace", "chmod", "stat", "fstat", "listdir")


def failing_at(monkeypatch, call, number):
    """From now on the ``call``-th call of these functions raises; returns how many there were."""
    count = [0]

    def wrapped(function):
        def run(*arguments, **keywords):
            count[0] += 1
            if count[0] == call:
                raise OSError(number, os.strerror(number))
            return function(*arguments, **keywords)

        return run

    class Os:
        def __getattr__(self, name):
            function = getattr(os, name)
            return wrapped(function) if name in CALLS else function

    monkeypatch.setattr(atomic, "os", Os())
    return count


FAULTS = [
    *(("model.safetensors", number) for number in (errno.ENOSPC, errno.EIO, errno.EACCES)),
    ("model.svg", errno.ENOSPC),
    ("trainer.pt", errno.EIO),
    pytest.param("model.pt2", errno.ENOSPC, marks=pytest.mark.full),
    pytest.param("model.onnx", errno.EACCES, marks=pytest.mark.full),
]


@pytest.mark.parametrize(("name", "number"), FAULTS)
def test_after_a_failure_at_any_call_the_file_is_whole_and_alone(
    tmp_path, monkeypatch, name, number
):
    write, error = WRITERS[name]
    model = composer.compose(SPEC, seed=0)
    path = tmp_path / name
    path.write_bytes(b"the old one")
    path.chmod(0o600)
    call, failures = 0, []
    monkeypatch.setattr("composer.export.exporting._traced", kept_program())
    while True:
        call += 1
        before = {file: file.read_bytes() for file in tmp_path.iterdir()}
        with monkeypatch.context() as patch:
            count = failing_at(patch, call, number)
            try:
                write(model, path)
            except error as caught:
                failures.append(str(caught))
        files = {file: file.read_bytes() for file in tmp_path.iterdir()}
        assert not [file for file in files if file.name.startswith(".")]
        assert set(files) >= set(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        if count[0] < call:
            break
    assert len(failures) >= 4
    assert all(f" cannot be written: {os.strerror(number)}" in text for text in failures)
    assert not any("\n" in text for text in failures)
    assert path.read_bytes() != b"the old one"


def kept_program():
    """To trace is what takes the time of an export."""
    from composer.export import exporting as export

    trace, programs = export._traced, []

    def traced(network):
        if not programs:
            programs.append(trace(network))
        return programs[0]

    return traced


def test_init_that_cannot_write_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reasons = set()
    for call in range(1, 12):
        with monkeypatch.context() as patch:
            failing_at(patch, call, errno.ENOSPC)
            status = main(["init", "CartPole-v1", "-o", "agent.yaml"])
        err = capsys.readouterr().err
        if status:
            reasons.add(err)
            assert (status, os.listdir()) == (1, [])
        else:
            os.remove("agent.yaml")
            os.remove("spec.schema.json")
    assert reasons == {
        f"composer init: {name!r} cannot be written: No space left on device\n"
        for name in ("agent.yaml", "spec.schema.json")
    }


@pytest.mark.parametrize("command", ["show", "schema"])
def test_output_that_cannot_be_printed_is_said(tmp_path, command):
    (tmp_path / "agent.yaml").write_text(
        "version: 1\nenvironment: CartPole-v1\npolicy:\n  graph:\n"
        "    a: {block: dense, in: observation, hidden_units: 8}\n  heads: {in: a}\n"
    )
    arguments = ["agent.yaml"] if command == "show" else []
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "composer", command, *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )  # fmt: skip
    message = f"composer {command}: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)


# --- killed, and out of space for real ---

# In a child for each place: it is killed at the n-th call, or no file may be larger than n bytes.
CHILDREN = """
import os, resource, signal, sys, warnings
warnings.simplefilter("ignore")
import torch; torch.set_num_threads(1)
import composer, composer.export, composer.diagram
from composer import atomic

spec, name = %r, sys.argv[1]
model, other = composer.compose(spec, seed=0), composer.compose(spec, seed=1)

def write(model):
    {"safetensors": model.save, "pt2": model.export, "dot": model.draw}[name.rpartition(".")[2]](name)

def child(prepare):
    pid = os.fork()
    if pid == 0:
        prepare()
        try:
            write(other)
        except ValueError as error:
            text = str(error)
            sys.stderr.write(text)
            os._exit(3 if "File too large" in text and "\\n" not in text else 4)
        except BaseException:
            os._exit(5)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def kill_at(call):
    count = [0]
    def wrapped(function):
        def run(*arguments, **keywords):
            count[0] += 1
            if count[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)
        return run
    for place in ("open", "fsync", "replace", "unlink", "close"):
        setattr(atomic.os, place, wrapped(getattr(os, place)))

def limit(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

write(model)
old = open(name, "rb").read()
write(other)
new = open(name, "rb").read()
write(model)
killed = 0
for call in range(1, 30):
    code = child(lambda: kill_at(call))
    assert code in (0, -9), code
    content = open(name, "rb").read()
    assert name.endswith("pt2") or content in (old, new), "a half file"
    assert len([n for n in os.listdir() if n != name]) <= 1, os.listdir()
    if code == 0:
        break
    killed += 1
    write(model)
    assert os.listdir() == [name], os.listdir()
assert killed >= 4, killed
write(model)
size = len(new)
for most in sorted({0, 1, 8, 100, size // 3, size // 2, size - 1}):
    code = child(lambda: limit(most))
    assert code == 3, (most, code)
    assert os.listdir() == [name]
    assert name.endswith("pt2") or open(name, "rb").read() == old
print("whole")
"""


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.dot", pytest.param("model.pt2", marks=pytest.mark.full)]
)
def test_after_a_kill_at_any_call_and_on_a_full_disk_the_file_is_whole(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN % (SPEC,), name], cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_a_folder_is_gone_unless_it_was_renamed_and_those_of_killed_processes_too(tmp_path):
    left, live, file = (tmp_path / f".composer-{name}.part" for name in ("1", "2", "3"))
    for folder in (left, live):
        folder.mkdir()
        (folder / "text").write_text("")
    file.write_text("")
    handle = os.open(live, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as a process that still writes it has it
    mine, kept = tmp_path / "sub" / ".composer-4.part", tmp_path / ".composer-5.part"
    with temporary_folder(mine):
        (mine / "text").write_text("")
    with temporary_folder(kept):
        os.rename(kept, tmp_path / "kept")
    os.close(handle)
    assert sorted(os.listdir(tmp_path)) == [live.name, file.name, "kept", "sub"]
    assert os.listdir(mine.parent) == []
    with (
        pytest.raises(WriteError, match="cannot be written: File exists"),
        temporary_folder(file / "x"),
    ):
        pass
