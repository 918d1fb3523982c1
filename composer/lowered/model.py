"""A whole model over straight-line code: what ``model.lower()`` returns."""

from __future__ import annotations

import copy
from typing import Any

from composer.lowered.network import follow, twin_of
from composer.network.module import NetworkModule

__all__ = ["LoweredModel"]


class LoweredModel:
    """``model`` (a Model), called like it for (logits, values), with its ``step`` and ``value``.

    ``policy`` is its policy for acting, lowered.

    It computes the same with the model's current parameters, as `LoweredNetwork` does. Other networks than graphs,
    such as a user's network class, run unchanged.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._prepare()

    def __call__(self, *arguments: object, **keywords: object) -> Any:
        """As the model: (logits, values), and with memory (logits, values, state)."""
        return self._following()(*arguments, **keywords)

    def step(self, *arguments: Any, **keywords: Any) -> Any:
        """As `Model.step`."""
        return self._following().step(*arguments, **keywords)

    def value(self, *arguments: Any, **keywords: Any) -> Any:
        """As `Model.value`."""
        return self._following().value(*arguments, **keywords)

    def _following(self) -> Any:
        """The model over lowered networks, as the model is now."""
        if any(self.model._modules[name] is not part for name, (part, _) in self._parts.items()):
            self._prepare()
        for part, twin in self._parts.values():
            follow(twin, part)
        return self._twin

    def initial_state(self, *arguments: object, **keywords: object) -> Any:
        return self.model.initial_state(*arguments, **keywords)

    @property
    def policy(self) -> Any:
        """The policy lowered, with ``act``; a policy of several actors as it is."""
        return self.model.policy.lower()

    def __repr__(self) -> str:
        return f"LoweredModel({type(self.model.policy).__name__})"

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    def _prepare(self) -> None:
        """The model again with its policy and critic over lowered networks, sharing all else."""
        self._twin = copy.copy(self.model)
        self._twin._modules = dict(self.model._modules)
        self._parts: dict[str, tuple[NetworkModule, NetworkModule]] = {}
        for name, part in self.model._modules.items():
            twin = twin_of(part) if isinstance(part, NetworkModule) else None
            if twin is not None:
                self._twin._modules[name] = twin
                self._parts[name] = (part, twin)
