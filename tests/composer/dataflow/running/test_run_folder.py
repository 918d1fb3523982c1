"""The folder of a run appears whole, is read as data, and refused in a line where it is damaged."""

import csv
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from composer.checkpoint.container import CheckpointError
from composer.dataflow.running.run_folder import RunFolder, RunRecord
from composer.dataflow.running.run_log import RunLog
from composer.dataflow.running.schedule import RunError
from composer.training.trainer import TrainingError

TEXT = "version: 1\n"
LOG = RunLog([{"train/loss": 0.1 + 0.2, "rew/reward": 1.0}, {"train/loss": math.nan}])


def models(folder):
    (Path(folder) / "actor").mkdir()
    (Path(folder) / "actor" / "weights").write_text("1")


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "run", RunRecord("ppo", ["/data"]), TEXT) as folder:
        yield folder


def test_a_folder_is_read_back_as_it_was_written(run):
    assert run.latest() is None
    run.save(LOG, models)
    run.write_log(LOG)
    run.draw(LOG)
    again = RunFolder.open(run.path)
    assert (again.record, again.text) == (run.record, TEXT)
    latest = again.latest()
    assert latest.iteration == 2
    assert latest.rows[0] == LOG.rows[0]
    assert math.isnan(latest.rows[1]["train/loss"])
    assert (latest.path / "actor" / "weights").read_text() == "1"
    rows = list(csv.DictReader((run.path / "log.csv").read_text().splitlines()))
    assert float(rows[0]["train/loss"]) == 0.1 + 0.2
    assert rows[1] == {"iteration": "1", "train/loss": "nan", "rew/reward": ""}
    assert (run.path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_new_checkpoint_takes_the_place_of_the_one_before(run):
    run.save(RunLog(LOG.rows[:1]), models)
    run.save(LOG, models)
    assert sorted(p.name for p in run.path.glob("checkpoint*")) == ["checkpoint-00000002"]
    run.save(LOG, models)
    assert run.latest().iteration == 2


def test_checkpoints_are_in_the_order_of_their_numbers(run):
    run.save(LOG, models)
    (run.path / "checkpoint-000000010").mkdir()
    with pytest.raises(RunError, match=r"checkpoint-000000010/log.json"):
        run.latest()


def test_a_second_process_is_told_who_uses_the_run(run):
    code = "import sys; from composer.training.exclusive import in_use; from pathlib import Path\n"
    code += "with in_use(Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(run.path)]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    assert f"is in use by process {os.getpid()} on" in said


def test_there_is_no_folder_where_there_is_one_already(run):
    with (
        pytest.raises(
            TrainingError, match=r"there is a run in .* already; continue it with --resume"
        ),
        RunFolder.create(run.path, run.record, TEXT),
    ):
        raise AssertionError


@pytest.mark.parametrize("fault", ["models", "log", "csv"])
def test_a_full_disk_is_told_and_leaves_what_was_saved_before(run, fault, monkeypatch):
    run.save(RunLog(LOG.rows[:1]), models)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def cannot(folder):
        try:
            full()
        except OSError as error:
            raise CheckpointError("'weights' cannot be written") from error

    if fault != "models":
        monkeypatch.setattr("composer.atomic.os.fsync", full)
    write = {
        "models": lambda: run.save(LOG, cannot),
        "log": lambda: run.save(LOG, models),
        "csv": lambda: run.write_log(LOG),
    }[fault]
    with pytest.raises(RunError) as error:
        write()
    monkeypatch.undo()
    name = run.path / ("log.csv" if fault == "csv" else "checkpoint-00000002")
    assert str(error.value) == (
        f"{str(name)!r} cannot be written: No space left on device; the run is as it was saved before: "
        f"--resume {run.path}"
    )
    assert run.latest().iteration == 1
    assert {p.name for p in run.path.iterdir()} == {
        ".lock", "run.json", "experiment.yaml", "checkpoint-00000001"
    }  # fmt: skip


RECORD = {"format": "composer-experiment", "version": 1, "name": "ppo", "folders": []}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "'{run}' is damaged: 'run.json' cannot be read; take a copy of the folder"),
        ("[" * 100_000, "'{run}' is damaged: 'run.json' cannot be read; take a copy of the folder"),
        ("[]", "'{run}' is no run of an experiment"),
        ('{"format": "composer-run"}', "'{run}' is a run of composer train: composer train --resume {run}"),
        ({**RECORD, "version": 2}, "'{run}/run.json' is of another version"),
        ({**RECORD, "folders": [1]}, "'{run}' is damaged: 'run.json' is not as it was saved; take a copy of the folder"),
        ({**RECORD, "more": 1}, "'{run}' is damaged: 'run.json' is not as it was saved; take a copy of the folder"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused_in_a_line(run, record, message):
    text = record if isinstance(record, str) else json.dumps(record)
    (run.path / "run.json").write_text(text)
    with pytest.raises(RunError) as error:
        RunFolder.open(run.path)
    assert str(error.value) == message.format(run=run.path)


STATES = [
    "", "[]", "{}", '{"iteration": 2, "rows": []}', '{"iteration": 1, "rows": [{}]}', "[" * 100_000,
    '{"iteration": 2, "rows": [{"a": "b"}, {}]}', '{"iteration": 2, "rows": [{"a": NaN}, {}]}',
    '{"iteration": 2, "rows": [{"a": 1e999}, {}]}', '{"iteration": 2, "rows": [{"a": true}, {}]}',
]  # fmt: skip


@pytest.mark.parametrize("text", STATES)
def test_a_damaged_log_is_refused_in_a_line(run, text):
    run.save(LOG, models)
    (run.path / "checkpoint-00000002" / "log.json").write_text(text)
    with pytest.raises(RunError) as error:
        run.latest()
    assert str(error.value) == (
        f"'{run.path}/checkpoint-00000002' is damaged: 'log.json' is not as it was saved; take a copy of the folder"
    )


@pytest.mark.parametrize("odd", ["link", "pipe", "folder"])
def test_a_checkpoint_has_files_of_its_own_only(run, odd, tmp_path):
    run.save(LOG, models)
    place = run.path / "checkpoint-00000002" / "actor" / "weights"
    place.unlink()
    if odd == "link":
        place.symlink_to(tmp_path)
    elif odd == "pipe":
        os.mkfifo(place)
    else:
        (run.path / "checkpoint-00000002").rename(tmp_path / "elsewhere")
        (run.path / "checkpoint-00000002").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is neither a file nor a folder; take a copy of the folder"):
        run.latest()


@pytest.mark.parametrize(
    "name", ["run.json", "experiment.yaml", "log.csv", "curve.png", "actor.safetensors"]
)
def test_a_file_of_a_run_that_leads_elsewhere_is_refused(run, tmp_path, name):
    """It would be read, or written, there."""
    (tmp_path / "elsewhere").write_text(TEXT)
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrainingError, match="is a link that leads out of the run's folder"):
        RunFolder.open(run.path)


def test_the_log_has_the_numbers_of_a_name_and_their_mean():
    log = RunLog([{"a/x": 1.0}, {"a/x": 2.0, "b/y": 4.0}])
    assert log.names == ["a/x", "b/y"]
    assert (log.numbers("a/x"), log.mean("a/x"), log.numbers("b/y")) == ([1.0, 2.0], 1.5, [4.0])


@pytest.mark.parametrize("name", ["\x1b[31mred\nlines", "日本", "x" * 5000, "$a$ _b^"])
def test_a_curve_is_drawn_whatever_names_are(tmp_path, name):
    RunLog([{name: 1.0}, {name: 2.0}]).draw(tmp_path / "curve.png", name)
    assert (tmp_path / "curve.png").stat().st_size < 200_000
