"""A configuration of another system as a spec."""

from __future__ import annotations

import os

from composer.errors import Position, Problem, SpecError
from composer.importing.document import Document
from composer.importing.imported import Imported
from composer.importing.kinds import KINDS, Kind
from composer.importing.sb3_statistics import add_statistics
from composer.source.files import no_file
from perception_blocks.registry import UnknownNameError

__all__ = ["import_config"]


def import_config(
    path: str | os.PathLike[str],
    kind: str | None = None,
    name: str | None = None,
    *,
    statistics: str | os.PathLike[str] | None = None,
) -> Imported:
    """The networks that the configuration at ``path`` describes, as a spec, and what of it is not in the spec.

    ``kind`` is one of `composer.importing.KINDS`; without, it is recognised from the file. ``name`` chooses a class, an
    environment or a behaviour where the file has several. ``statistics`` is a file that VecNormalize of
    Stable-Baselines3 saved: the spec then normalises what it did. Nothing of the files is executed.

    Raises SpecError, with every key that no spec can say, and the reason.
    """
    document = Document(path)
    problem = no_file(document.path)
    if problem:
        raise SpecError([Problem(problem)])
    if kind is None:
        kind = _recognized(document)
    try:
        reader: Kind = KINDS.get(kind)
    except UnknownNameError as error:
        raise SpecError([Problem(str(error))]) from None
    imported = _read(reader, document, name)
    imported.kind, imported.file = kind, document.name
    if statistics is not None:
        add_statistics(imported, statistics)
    return imported


def _read(reader: Kind, document: Document, name: str | None) -> Imported:
    """What ``reader`` makes of the file. Raises SpecError with all that it refuses."""
    refusals = document.refusals
    try:
        imported = reader.read(document, name)
    except SpecError as error:  # beyond which nothing can be read
        for problem in error.problems:
            refusals.note(problem)
        refusals.raise_if_any()
        raise
    refusals.raise_if_any()
    return imported


def _recognized(document: Document) -> str:
    """The first kind that recognizes the file. Raises SpecError with a listing of all."""
    for name in KINDS:
        if KINDS.get(name).recognizes(document):
            return name
    kinds = "\n".join(f"{name}: {KINDS.get(name).files}" for name in KINDS)
    message = f"this is no configuration of a known kind; say which with --from, or kind=:\n{kinds}"
    raise SpecError([Problem(message, (), Position(document.name, 1, 1))])
