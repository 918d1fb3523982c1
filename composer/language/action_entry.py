"""Action models as `composer.compose` and `composer.load` need them: without transformers until there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from composer.checkpoint.file import Record, fill, read_tensors, require_whole
from composer.errors import MissingExtraSpecError, Problem
from composer.limits import GivenLimits, limits_from
from composer.source.load import Source, stored_source
from composer.spec.read import read_spec
from composer.trust import import_extensions
from perception_blocks.registry import extra_for

__all__ = ["action_composer", "action_model_of", "load_action_model"]


def action_composer(source: Source) -> Callable[..., Any]:
    """`composer.language.action_model.compose_action_model`, which needs an extra."""
    try:
        from composer.language.action_model import compose_action_model
    except ImportError as error:
        path = ("model",)
        if needs := extra_for(error, "'model'", "llm"):
            raise MissingExtraSpecError(
                [Problem(needs, path, source.position(path, key=True), True)]
            ) from error
        raise
    return compose_action_model


def load_action_model(
    path: str | Path,
    record: Record,
    allow: tuple[str, ...],
    device: torch.device | str,
    strict: bool,
    limits: GivenLimits,
) -> Any:
    """The `composer.language.ActionModel` that is saved at ``path``. Raises as `composer.load` does."""
    require_whole(path, record)
    source = stored_source(record.spec, path)
    model = action_model_of(source, record, allow, device=device, limits=limits)
    model.load_report = fill(model, read_tensors(path, record), strict=strict)
    return model


def action_model_of(
    source: Source,
    record: Record,
    allow: Iterable[str],
    *,
    device: torch.device | str,
    limits: GivenLimits = None,
) -> Any:
    """The `composer.language.ActionModel` of ``record``, its spec read as ``source``, without its saved weights.

    Raises SpecError for a module that is not allowed, and where the spec does not fit.
    """
    import_extensions(source, allow)
    spec = read_spec(source, allow, makes_environment=False, limits=limits)
    return action_composer(source)(
        source,
        spec,
        record.spaces(limits) if record.observation_space else (None, None),
        device=device,
        dtype=getattr(torch, record.dtype),
        seed=record.seed,
        limits=limits_from(limits),
        processor=record.action_model.get("processor"),
    )
