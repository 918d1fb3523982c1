"""Work on the meta device, where tensors have a shape and no values, without what torch does there in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

__all__ = ["MetaMode"]

# They change values only, and there are none.
_DRAWS = {
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.constant_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
}
# They keep the shape. To find that out, torch works in Python on means and variances, and imports its compiler for it.
_NORMS = {functional.layer_norm, functional.rms_norm}


class MetaMode(TorchFunctionMode):
    """As ``with torch.device("meta")``, where weights are not drawn and norms cost nothing.

    ``made`` is called with every tensor that a constructor of torch makes.
    """

    def __init__(self, made: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self._made = made

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        elif func in _NORMS:
            normed = _normed(*args, **kwargs)
            if normed is not None:
                return normed
        elif func in _device_constructors():
            if kwargs.get("device") is None:
                kwargs["device"] = "meta"
            tensor = func(*args, **kwargs)
            if self._made is not None:
                self._made(tensor)
            return tensor
        return func(*args, **kwargs)


def _normed(x: Tensor, normalized_shape: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """What a norm gives for ``x``; None where torch has something to say about it, or values to compute."""
    sizes = tuple(normalized_shape)
    if not x.is_meta or tuple(x.shape[x.dim() - len(sizes) :]) != sizes:
        return None
    return torch.empty(x.shape, dtype=x.dtype, device="meta")
