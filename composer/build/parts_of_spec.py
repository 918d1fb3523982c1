"""What a spec says of parts of its model by their paths, `freeze`, `weights` and `learning_rate_scale`, carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from composer.errors import Path, Problems
from composer.network.frozen import freeze
from composer.network.paths import ModelPart, PathError, part_at, parts_by_path
from composer.spec.model_spec import ModelSpec
from perception_blocks.words import hint

__all__ = ["prepare_parts"]


def prepare_parts(model: Any, spec: ModelSpec, problems: Problems) -> None:
    """Freeze the parts of ``model`` that ``spec`` names, and name its states; its weights need not exist yet.

    Raises SpecError with every path that names nothing, and every name of a state that is taken.
    """
    if spec.state_names:
        _name_states(model, spec.state_names, problems)
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


def _name_states(model: Any, names: Mapping[str, str], problems: Problems) -> None:
    """Give the states their names, which hosts and exported files have for them."""
    states = model.state_shapes
    policy = model.policy
    policies = getattr(policy, "policies", {None: policy}).values()
    observed = {key for each in policies for key in each.observer.tree.leaves}
    taken = dict.fromkeys(observed, "an observation") | {"resets": "the flags of first steps"}
    for path, name in names.items():
        if path not in states:
            known = hint(path, states, "its states are") if states else "; nothing in it has memory"
            message = f"the model has no state {path!r}{known}"
            problems.add(("state_names", path), message, key=True)
        elif name in taken or (name in states and name != path):
            whose = taken.get(name, "another state")
            problems.add(("state_names", path), f"{name!r} is the name of {whose}; choose another")
    problems.raise_if_any()
    for part, module in (("policy", model.policy), ("critic", model.critic)):
        if module is not None:
            begins = f"{part}/"
            module.state_names = {
                path.removeprefix(begins): name
                for path, name in names.items()
                if path.startswith(begins)
            }


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
