"""An editor shows of every bad spec what `composer.compose` says, and nothing else."""

import dataclasses
from pathlib import Path

import pytest

from composer.editor.analysis import Analyser
from composer.editor.environments import MadeSpaces, SpaceKeeper
from composer.errors import SpecError
from composer.spaces.lookup import made_spaces
from tests.whole.test_bad_specs import FOLDER, SPACES, SPECS, directives

OTHERWISE = {
    "environment_unknown_given",  # what the editor names is no mistake of the file
    "environment_module_not_allowed",
    "allow_names_file",  # nothing is allowed by that, which is said too
    "path_looks_allowed",  # the allowed module is not there, which is said too
}
NAMES = [
    name for name, path in SPECS.items() if "set" not in directives(path) and name not in OTHERWISE
]
SHORT = NAMES[::10]


class Keeper(SpaceKeeper):
    """The spaces of bad specs, without a process."""

    def of_environment(self, environment, allow, path, position):
        if environment in SPACES:
            return MadeSpaces(SPACES[environment])
        try:
            return MadeSpaces(*made_spaces(environment, path))
        except SpecError as error:
            placed = [dataclasses.replace(p, position=position) for p in error.problems]
            raise SpecError(placed) from error


ANALYSER = Analyser(Keeper())


def refuse_wrong_answer(name, monkeypatch):
    monkeypatch.chdir(SPECS[name].parent)
    monkeypatch.syspath_prepend(FOLDER)
    path = Path(f"{name}.yaml")
    says = directives(path)
    environment = (says.get("spaces") or says.get("env") or [None])[0]
    text = path.read_bytes().decode("utf-8", "replace")
    allow = says.get("allow", ())
    analysis = ANALYSER.analyse(text, str(path), allow=allow, environment=environment)
    assert str(SpecError(analysis.problems)) + "\n" == Path(f"{name}.txt").read_text()


@pytest.mark.parametrize("name", SHORT)
def test_the_answer_is_that_of_compose(name, monkeypatch):
    refuse_wrong_answer(name, monkeypatch)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SHORT])
def test_every_answer_is_that_of_compose(name, monkeypatch):
    refuse_wrong_answer(name, monkeypatch)
