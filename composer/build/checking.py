"""A spec that is checked: its structure, and blocks and settings of the nodes whose structure is good."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from composer.build.construction import on_cpu
from composer.build.untouched import faults_of_untouched
from composer.errors import Problem, Problems
from composer.limits import Limits
from composer.source.load import Source
from composer.spaces.lookup import find_spaces
from composer.spec.model_spec import ModelSpec
from composer.spec.read import may_hide_faults, read_structure
from perception_blocks.reading import files_found

__all__ = ["checked_spec"]


def checked_spec(
    source: Source,
    given: tuple[Any, Any, Any],
    makes_environment: bool,
    allow: tuple[str, ...],
    limits: Limits,
) -> ModelSpec:
    """The typed spec, for the environment or the spaces that are ``given``.

    Raises SpecError with what is wrong with its structure and, then, with settings and blocks of the other nodes.
    """
    spec, structure = read_structure(
        source, allow, makes_environment=makes_environment, limits=limits
    )
    if len(structure) and may_hide_faults(spec, structure):
        assert spec is not None
        faults = _hidden_faults(spec, structure, given, allow, limits)
        structure = Problems(source, [*structure, *faults])
    structure.raise_if_any()
    assert spec is not None
    return spec


def _hidden_faults(
    spec: ModelSpec,
    structure: Iterable[Problem],
    given: tuple[Any, Any, Any],
    allow: tuple[str, ...],
    limits: Limits,
) -> list[Problem]:
    """What is wrong with settings and blocks in a spec with a wrong ``structure``, if its spaces can be had."""
    try:
        spaces = find_spaces(spec, *given, limits)
    except Exception:  # which is not said before the structure is right
        return []
    source = spec.source
    with on_cpu(), files_found(source.find_file, has_weights=source.is_stored):
        return faults_of_untouched(spec, list(structure), spaces, allow, limits)
