"""What all tests share: few threads, and property tests that try the same examples in every run."""

import logging
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.helpers.registries import registries

torch.set_num_threads(1)
pytest.register_assert_rewrite("tests.helpers.trainer_contract")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

# Collecting doctests would import them: a package that is installed by its test and registers a block, and
# environments that need the folder of the configs on the path.
collect_ignore = [
    "helpers/sample_plugin",
    "helpers/training_envs.py",
    "helpers/action_models.py",
    "helpers/sharded_action_model.py",
    "helpers/killed_folders.py",  # these four are run as processes
    "helpers/killed_runs.py",
    "helpers/killed_saves.py",
    "helpers/sharded_models.py",
]

# Where a file may take long; the rest takes seconds. With several processes these are started first, so that all of
# them end together.
LONG = [
    "tests/whole/test_docs.py",
    "tests/whole",
    *(f"tests/composer/{room}" for room in ("export", "adapters", "parallel", "dataflow", "training", "cli")),
    "tests",
]  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order in which files are handed to processes, each file whole (``--dist loadfile``)."""
    long = [config.rootpath / path for path in LONG]
    rank = {
        path: next((n for n, p in enumerate(long) if path.is_relative_to(p)), len(long))
        for path in {item.path for item in items}
    }
    items.sort(key=lambda item: rank[item.path])


REGISTRIES = registries()


@pytest.fixture(autouse=True)
def _registries_as_before():
    """What a test registers is gone after it: tests run in any order, in any process."""
    before = [(vars(r), {name: _copied(v) for name, v in vars(r).items()}) for r in REGISTRIES]
    yield
    for state, kept in before:
        state.update(kept)


@pytest.fixture(autouse=True)
def _settings_of_torch_as_before():
    """Trainers change them for the whole process: rl_games how torch prints and how many threads it has.

    TorchRL sets the threads when one of its environments is collected, which may be in the middle of a compilation.
    """
    torch.set_printoptions(profile="default")
    yield
    torch.set_printoptions(profile="default")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_lines_of_progress(monkeypatch):
    """They depend on the time; a test of them enables them."""
    monkeypatch.setattr(logging.getLogger("composer.progress"), "disabled", True)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A current folder for runs of training, from which environments of configs and tests are found."""
    tests = Path(__file__).parent
    folders = [tests / "helpers", tests.parent / "configs", tests.parent / "benchmarks"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*map(str, folders), *sys.path])
    return tmp_path


def _copied(value):
    return dict(value) if isinstance(value, dict) else value
