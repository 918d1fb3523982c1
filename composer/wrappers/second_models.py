"""Wrappers that hold a second model: a target that follows the one in training, a teacher that never changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from composer.checkpoint.blending import Buffers, blend
from composer.wrappers.interface import IModelWrapper, chain, innermost, read_output, wrapper_label
from perception_blocks.settings import PositiveInt, Probability, SettingsError, check_settings

__all__ = ["TargetNetworkWrapper", "TeacherNetworkWrapper"]


class TargetNetworkWrapper(IModelWrapper):
    """A frozen copy of the model, made when it is wrapped, that `update` brings up to date.

    With ``assign`` every ``freq``-th `update` copies; with ``momentum`` each moves the copy by ``theta`` of the way.
    ``buffers`` (statistics of a batch normalisation) are copied, or as `blend` says. ``update_kwargs={"freq": 3}`` does
    what ``freq=3`` does.
    """

    def __init__(
        self,
        model: object,
        *,
        update_type: Literal["assign", "momentum"] = "assign",
        freq: PositiveInt | None = None,
        theta: Probability | None = None,
        buffers: Buffers = "copy",
        update_kwargs: Mapping | None = None,
    ) -> None:
        if not isinstance(innermost(model), nn.Module):
            raise ValueError(
                f"{wrapper_label(self)} copies an nn.Module, got a {type(innermost(model)).__name__}"
            )
        super().__init__(copy.deepcopy(model))
        settings = {"freq": freq, "theta": theta, **(update_kwargs or {})}
        self.update_type = update_type
        self.pace = _pace(update_type, {n: v for n, v in settings.items() if v is not None})
        self.buffers: Buffers = buffers
        self._update_count = 0
        self._module.requires_grad_(False)

    def update(self, state_dict: object, direct: bool = False) -> None:
        """Follow the model with this ``state_dict`` (or the model itself); ``direct`` copies now and counts anew.

        Raises ValueError for one that does not fit; nothing has changed then.
        """
        source = self._source(state_dict)
        if direct:
            blend(self._module, source, 1.0, self.buffers)
            self._update_count = 0
            return
        if self.update_type == "momentum":
            blend(self._module, source, self.pace, self.buffers)
        elif (self._update_count + 1) % self.pace == 0:
            blend(self._module, source, 1.0, self.buffers)
        self._update_count += 1

    def reset(
        self, data_id: object = None, *, target_update_count: int | None = None, **settings: object
    ) -> Any:
        """Hands on down the chain; ``target_update_count`` sets how many updates have been counted."""
        if target_update_count is not None:
            self._update_count = target_update_count
        return super().reset(data_id=data_id, **settings)

    @property
    def _module(self) -> nn.Module:
        return innermost(self)

    def _source(self, given: object) -> nn.Module:
        """A module with the tensors of ``given``."""
        if isinstance(given, nn.Module | IModelWrapper):
            return innermost(given)
        if not isinstance(given, Mapping):
            raise ValueError(
                f"update takes a state_dict or the model itself, got a {type(given).__name__}"
            )
        source = copy.deepcopy(self._module)  # a state_dict may be of any form that it loads
        try:
            source.load_state_dict(given)
        except RuntimeError as error:
            raise ValueError(f"the state_dict does not fit the target: {error}") from None
        return source


class TeacherNetworkWrapper(IModelWrapper):
    """The model, and beside its output the `logit` of a frozen copy of ``teacher``, under `teacher_logit`.

    The teacher runs in eval mode, without gradients, on the same input. It may be wrapped itself, in hidden_state for
    example, and takes those keywords of forward that its wrappers know.
    """

    def __init__(self, model: object, *, teacher: object) -> None:
        super().__init__(model)
        self.teacher: Any = copy.deepcopy(teacher)
        module = innermost(self.teacher)
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()

    def forward(self, *args: object, **kwargs: object) -> dict[str, Any]:
        known = {word for wrapper in chain(self.teacher) for word in wrapper.listens}
        with torch.no_grad():
            taught = self.teacher(*args, **{k: v for k, v in kwargs.items() if k in known})
            logit = read_output(taught, "logit", self)
        return {**self._run(*args, **kwargs), "teacher_logit": logit}

    def reset(self, data_id: object = None, **settings: object) -> Any:
        self.teacher.reset(data_id=data_id)
        return super().reset(data_id=data_id, **settings)


def _pace(update_type: str, settings: Mapping[str, Any]) -> Any:
    """What the way of updating needs: freq of assign, theta of momentum."""
    takes = {"assign": _assign, "momentum": _momentum}[update_type]
    problems = check_settings(takes, settings, f"update_type {update_type!r}", skip=0)
    if problems:
        raise SettingsError(problems)
    return takes(**settings)


def _assign(*, freq: PositiveInt) -> int:
    return freq


def _momentum(*, theta: Probability) -> float:
    return theta
