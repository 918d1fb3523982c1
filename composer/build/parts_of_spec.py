"""What a spec says of parts of its model by their paths, carried out: `freeze`, `weights`, `learning_rate_scale`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from composer.checkpoint.container import CheckpointError
from composer.checkpoint.first_weights import INSIDE, FirstWeights, match_weights, read_weights
from composer.errors import Path, Problems
from composer.network.frozen import freeze
from composer.network.paths import ModelPart, PathError, part_at, parts_by_path
from composer.spec.model_spec import ModelSpec
from perception_blocks.words import hint

__all__ = ["finish_parts", "prepare_parts"]


def prepare_parts(model: Any, spec: ModelSpec, problems: Problems, *, reads: bool = False) -> None:
    """Freeze the parts of ``model`` that ``spec`` names, and name its states; its weights need not exist yet.

    Raises SpecError with every path that names nothing, every name of a state that is taken, and if it ``reads``
    the files of `weights`, with what is wrong with them.
    """
    if spec.state_names:
        _name_states(model, spec.state_names, problems)
    if not (spec.freeze or spec.weights or spec.learning_rate_scale):
        return
    known = parts_by_path(model)
    places: list[tuple[str, Path]] = [(p, ("freeze", i)) for i, p in enumerate(spec.freeze)]
    places += [(path, ("weights", path)) for path in spec.weights]
    places += [(path, ("learning_rate_scale", path)) for path in spec.learning_rate_scale]
    parts: dict[str, ModelPart] = {}
    for path, place in places:
        try:
            parts[path] = part_at(model, path, known)
        except PathError as error:
            problems.add(place, str(error), key=place[0] != "freeze")
    problems.raise_if_any()
    for path in spec.freeze:
        freeze(parts[path])
    if reads:
        _matched(model, spec, parts, problems)


def finish_parts(model: nn.Module, spec: ModelSpec, problems: Problems) -> tuple[FirstWeights, ...]:
    """Give the parts of ``model`` their first weights, and freeze again what classes have made anew.

    Raises SpecError with everything that is wrong with the files; nothing is copied then.
    """
    prepare_parts(model, spec, problems)
    parts = {path: part_at(model, path) for path in spec.weights}
    given = _matched(model, spec, parts, problems)
    for each in given:
        each.fill(model)
    return tuple(replace(each, tensors={}) for each in given)


def _matched(
    model: nn.Module, spec: ModelSpec, parts: dict[str, ModelPart], problems: Problems
) -> list[FirstWeights]:
    """What the files of ``spec`` have for the parts, an inner part after what holds it."""
    if not spec.weights or spec.source.is_stored:  # the weights are in the checkpoint
        return []
    state = model.state_dict(keep_vars=True)
    given = []
    for path in sorted(spec.weights, key=lambda path: path.count("/")):
        file, _, inside = spec.weights[path].partition(INSIDE)
        try:
            tensors = read_weights(spec.source.find_file(file))
            given.append(match_weights(parts[path], state, tensors, file, inside))
        except (CheckpointError, ValueError) as error:
            problems.add(("weights", path), str(error))
    problems.raise_if_any()
    return given


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
            message = f"the model has no state {path!r}" + known
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
