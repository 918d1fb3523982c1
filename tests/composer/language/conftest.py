"""The tests of action models find the tiny one of configs/."""

import sys

import pytest

from tests.helpers.paths import CONFIGS

if str(CONFIGS) not in sys.path:
    sys.path.append(str(CONFIGS))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model as transformers saves it, with its processor and value head."""
    import composer
    from tests.helpers.action_models import spec

    path = tmp_path_factory.mktemp("models") / "tiny"
    composer.compose(spec(), seed=0).save_pretrained(path)
    return path
