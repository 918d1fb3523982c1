"""What `freeze` and `learning_rate_scale` of a spec mean for optimisers: what they leave out, and rates in groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from composer.network.paths import part_at, parts_by_path

__all__ = ["nothing_to_train", "parameter_groups", "prepare_optimizer", "scales_of"]


def scales_of(model: nn.Module, scales: Mapping[str, float]) -> dict[int, float]:
    """The factor of the learning rate of each parameter that has one, by id; an inner path goes before an outer one."""
    known = parts_by_path(model) if scales else None
    by_parameter: dict[int, float] = {}
    for path in sorted(scales, key=lambda path: path.count("/")):
        for parameter in part_at(model, path, known).parameters.values():
            by_parameter[id(parameter)] = scales[path]
    return by_parameter


def parameter_groups(
    parameters: Iterable[nn.Parameter], scales: Mapping[int, float], learning_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser, of the ``parameters`` that are trained, with their learning rates."""
    return [
        {"params": members, "lr": learning_rate * scale}
        for scale, members in _by_scale(parameters, scales).items()
    ]


def _by_scale(
    parameters: Iterable[nn.Parameter], scales: Mapping[int, float]
) -> dict[float, list[nn.Parameter]]:
    """The parameters that are trained by the factor of their learning rate; those without one come first."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    return {scale: members for scale, members in groups.items() if members}


def prepare_optimizer(optimizer: torch.optim.Optimizer, scales: Mapping[int, float]) -> None:
    """Take frozen parameters out of ``optimizer``, and let its steps scale the learning rates of the others.

    Groups and their ``lr`` stay what they are, before scaling: what sets the rates of all groups, as schedules of
    trainers do, keeps the ratios, and the optimiser's state_dict does not depend on ``scales``.
    """
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    if any(id(p) in scales for group in optimizer.param_groups for p in group["params"]):
        steps = _ScaledSteps(scales)
        optimizer.register_step_pre_hook(steps.begin)
        optimizer.register_step_post_hook(steps.end)


class _ScaledSteps:
    """Splits the groups of an optimiser for the time of a step."""

    def __init__(self, scales: Mapping[int, float]) -> None:
        self._scales = scales
        self._groups: list[dict[str, Any]] | None = None

    def begin(self, optimizer: torch.optim.Optimizer, *call: object) -> None:
        if self._groups is None:  # else the step before has ended in an error
            self._groups = optimizer.param_groups
        optimizer.param_groups = [
            {**group, "params": members, "lr": group["lr"] * scale}
            for group in self._groups
            for scale, members in _by_scale(group["params"], self._scales).items()
        ]

    def end(self, optimizer: torch.optim.Optimizer, *call: object) -> None:
        if self._groups is not None:
            optimizer.param_groups, self._groups = self._groups, None


def nothing_to_train(model: nn.Module) -> Iterator[str]:
    """Why no algorithm can train ``model``: where all of it is frozen."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        yield "all its parameters are frozen, so there is nothing to train; take a part of it out of 'freeze'"
