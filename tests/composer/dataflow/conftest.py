"""What the tests of experiments share."""

import pytest

from composer.dataflow import DATASETS, INTERFACES, LENGTHS
from composer.dataflow.tokenizers import vocabulary_tokenizer


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
