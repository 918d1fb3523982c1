"""A module over the registries of another: the same parameters, buffers and children, under the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

from torch import Tensor, nn

from composer.network.sharded import refuse_sharded
from perception_blocks.inference import submodule_at

__all__ = ["REGISTRIES", "TENSORS", "RegistryView"]

# Where nn.Module keeps what belongs to it.
TENSORS = ("_parameters", "_buffers", "_non_persistent_buffers_set")
REGISTRIES = (*TENSORS, "_modules")


class RegistryView(nn.Module):
    """A module that may hold the very registries of another, its origin, which is no child of it.

    What is registered in one is registered in the other. Moving and the mode go through the origin, as its class may do
    more than torch's. Children have names that others chose: setting an attribute of such a name leaves the child.
    """

    _origin: nn.Module | None = None
    stays_in_eval = False

    def view(self, origin: nn.Module, registries: Iterable[str] = REGISTRIES) -> None:
        """Hold the ``registries`` of ``origin`` from now on."""
        object.__setattr__(self, "_origin", origin)
        for registry in registries:
            object.__setattr__(self, registry, getattr(origin, registry))

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_sharded(self, "a copy")
        return super().__reduce_ex__(protocol)

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        refuse_sharded(self, "load_state_dict()")
        return super().load_state_dict(*arguments, **keywords)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is None or isinstance(value, nn.Module | Tensor):
            super().__setattr__(name, value)  # type: ignore[arg-type]
        else:
            object.__setattr__(self, name, value)

    def train(self, mode: bool = True) -> Self:
        mode = mode and not self.stays_in_eval
        if self._origin is None:
            return super().train(mode)
        self._origin.train(mode)
        if self._modules is not self._origin._modules:
            return super().train(mode)
        self.training = mode  # the children have it by the origin
        return self

    def get_submodule(self, target: str) -> nn.Module:
        return submodule_at(self, target)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._origin is None:
            return super()._apply(fn, recurse)
        self._origin._apply(fn, recurse)
        return self
