"""What the tests of experiments share."""

import os

import pytest

from composer.dataflow import DATASETS, INTERFACES, LENGTHS
from composer.dataflow.data.tokenizers import vocabulary_tokenizer
from composer.dataflow.running.cluster import connect


@pytest.fixture(scope="session")
def letters(tmp_path_factory):
    """A tokenizer of a, b, c and blanks: 0 to 3, then 4 for padding and 5 for the end."""
    file = tmp_path_factory.mktemp("letters") / "tokens.txt"
    file.write_text("a\nb\nc\n \n")
    return vocabulary_tokenizer(file)


@pytest.fixture
def registries(monkeypatch):
    """What a test registers is gone after it."""
    for registry in (DATASETS, INTERFACES, LENGTHS):
        for part in ("_entries", "_names"):
            monkeypatch.setattr(registry, part, dict(getattr(registry, part)))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The one Ray of all tests. It was started in a folder with modules that no worker may import: its address."""
    import ray

    folder = tmp_path_factory.mktemp("started_here")
    for name in ("torch", "composer", "perception_blocks"):
        (folder / f"{name}.py").write_text("raise ImportError('this is the wrong one')\n")
    before = os.getcwd()
    os.chdir(folder)
    try:
        end = connect(None, 2)
    finally:
        os.chdir(before)
    yield ray.get_runtime_context().gcs_address
    end()
