"""What a call of a module that is sharded by itself does beside what FSDP2 does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed", "return_no_views", "returning_no_views"]

Function = Callable[..., Any]


def recomputed(forward: Function) -> Function:
    """``forward`` without what it would keep for the backward pass."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        return checkpoint(forward, *arguments, use_reentrant=False, **keywords)

    return call


def return_no_views(module: nn.Module, inputs: object, output: Any) -> Any:
    """A forward hook: no tensor in ``output`` is a view, so an operation in place drops none of FSDP2's hooks."""
    return _without_views(output)


def returning_no_views(method: Function) -> Function:
    """The same for a ``method`` that is used in the place of a call."""

    @functools.wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        return _without_views(method(*arguments, **keywords))

    return call


def _without_views(output: Any) -> Any:
    if not torch.is_grad_enabled():  # then there are no such hooks
        return output
    return tree_map_only(Tensor, _alias_of_view, output, is_leaf=_is_leaf)


def _is_leaf(part: object) -> bool:
    """Other containers, such as the cache of a model of transformers, stay the objects that they are."""
    return not isinstance(part, dict | list | tuple)


def _alias_of_view(tensor: Tensor) -> Any:
    return _Alias.apply(tensor) if tensor.requires_grad and tensor._base is not None else tensor


class _Alias(torch.autograd.Function):
    """The same numbers in the same memory, as a tensor that is no view."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
