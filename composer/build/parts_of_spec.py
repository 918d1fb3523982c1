"""What a spec says of parts of its model by their paths, `freeze`, `weights` and `learning_rate_scale`, carried out."""

from __future__ import annotations

from torch import nn

from composer.errors import Path, Problems
from composer.network.frozen import freeze
from composer.network.paths import ModelPart, PathError, part_at, parts_by_path
from composer.spec.model_spec import ModelSpec

__all__ = ["prepare_parts"]


def prepare_parts(model: nn.Module, spec: ModelSpec, problems: Problems) -> None:
    """Freeze the parts of ``model`` that ``spec`` names; its weights need not exist yet.

    Raises SpecError with every path that names nothing.
    """
    if not (spec.freeze or spec.weights or spec.learning_rate_scale):
        return
    parts = parts_by_path(model)
    frozen = [_part(model, p, ("freeze", i), parts, problems) for i, p in enumerate(spec.freeze)]
    for key, paths in (
        ("weights", spec.weights),
        ("learning_rate_scale", spec.learning_rate_scale),
    ):
        for path in paths:
            _part(model, path, (key, path), parts, problems, key=True)
    problems.raise_if_any()
    for part in frozen:
        if part is not None:
            freeze(part)


def _part(
    model: nn.Module,
    path: str,
    place: Path,
    parts: dict[str, ModelPart],
    problems: Problems,
    *,
    key: bool = False,
) -> ModelPart | None:
    try:
        return part_at(model, path, parts)
    except PathError as error:
        problems.add(place, str(error), key=key)
        return None
