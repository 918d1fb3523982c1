"""Joining the processes that torchrun started; alone there is nothing to join."""

import os
import subprocess
import sys

import pytest
import torch

import composer.parallel
from composer.parallel import launch
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def _not_started(monkeypatch):
    monkeypatch.setattr(launch, "_started", None)


def sockets():
    folder = "/proc/self/fd"
    links = [
        os.readlink(f"{folder}/{name}")
        for name in os.listdir(folder)
        if os.path.exists(f"{folder}/{name}")
    ]
    return sorted(link for link in links if link.startswith("socket:"))


def test_one_process_is_a_mesh_and_makes_no_socket():
    before = sockets()
    mesh = composer.parallel.start()
    assert (mesh.rank, mesh.size, mesh.device, mesh.backend) == (0, 1, torch.device("cpu"), None)
    assert mesh.is_first
    assert (mesh.agreed(7), mesh.largest([1.0, 2.0])) == (7, [1.0, 2.0])
    assert composer.parallel.start() is mesh
    assert sockets() == before
    assert not torch.distributed.is_initialized()
    with mesh:
        pass
    assert composer.parallel.start() is not mesh


WAITS = """
import sys, time
from pathlib import Path
from composer.parallel.launch import end_with_starter
end_with_starter(Path(sys.argv[1]))
print("started", flush=True)
time.sleep(100)
"""


def test_what_a_process_starts_ends_with_it(tmp_path):
    with launch._lock_held(tmp_path):  # which ends with this process, or with this block
        process = subprocess.Popen(
            [sys.executable, "-c", WAITS, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    with process:
        assert process.wait(20) == 1


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'backend'") as error:
        composer.parallel.start("glo")
    assert str(error.value) == (
        "'backend' must be one of 'gloo', 'nccl', got 'glo'; did you mean 'gloo'?"
    )


def test_another_backend_than_at_first_is_refused():
    composer.parallel.start()
    with pytest.raises(
        ValueError, match="the processes have been started with the backend None already"
    ):
        composer.parallel.start("gloo")


def test_incomplete_variables_are_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="torchrun's variables") as error:
        composer.parallel.start()
    assert str(error.value) == (
        "torchrun's variables are incomplete, 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT' is missing; start this program "
        "with torchrun --nproc-per-node 2 script.py"
    )
