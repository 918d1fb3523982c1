"""Every spec that a test of this folder imports is one that `composer check` reads."""

import dataclasses

import pytest

from composer.importing.kinds import KINDS
from composer.source.load import load_source
from composer.spec.read import read_spec


@pytest.fixture(autouse=True)
def imported_specs_are_checked(monkeypatch):
    get = KINDS.get

    def checked(name):
        kind = get(name)

        def read(document, entry):
            imported = kind.read(document, entry)
            document.refusals.raise_if_any()
            read_spec(load_source(imported.to_yaml()))
            return imported

        return dataclasses.replace(kind, read=read)

    monkeypatch.setattr(KINDS, "get", checked)
