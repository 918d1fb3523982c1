"""Products beyond the range of float16: above 65504 they are infinite, and later operations make NaN of that.

Blocks whose product is large though their output is not (a softmax, a sine) compute it in float32. Without float16 the
operations are unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["autocast_to_float16", "wide_product"]


def autocast_to_float16(x: Tensor) -> bool:
    """Whether autocast makes float16 of products on the device of ``x``."""
    device = x.device.type
    if device == "meta":  # which has no autocast; shapes are measured on it
        return False
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def wide_product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y``, in float32 where it would be in float16."""
    if autocast_to_float16(x):
        with torch.autocast(x.device.type, enabled=False):
            return x.float() @ y.float()
    if x.dtype == torch.float16:
        return x.float() @ y.float()
    return x @ y
