"""What critics ask of their networks, which of their heads give quantiles or bins, and returns as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perception_blocks.blocks.heads import ValueHead
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Port, Shape

if TYPE_CHECKING:
    from perception_blocks.blocks.scale import Group

__all__ = ["RAW_NAMES", "ValueRequirements", "as_numbers", "count_returns", "read_returns"]
__all__ += ["scalar_shape", "value_block"]

RAW_NAMES = ("quantiles", "logits")


@dataclass(frozen=True)
class ValueRequirements:
    """What a kind of critic asks of its network: ``heads`` with their shapes, and ``reasons`` that say what for.

    ``actions`` are inputs that the network must read, beside what it observes; ``hidden`` names values that are no
    inputs, and says why. A custom class is constructed with ``injected``, beside the arguments in the spec.
    """

    heads: Mapping[str, tuple[int, ...]]
    reasons: Mapping[str, str]
    actions: Mapping[str, Port] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    injected: Mapping[str, Any] = field(default_factory=dict)


def scalar_shape(block: ValueHead, shape: Shape) -> Shape:
    """The shape of what ``block`` gives once quantiles or bins are numbers."""
    return (*shape[:-1], 1) if block.single else shape[:-1]


def value_block(module: nn.Module, name: str) -> ValueHead | None:
    """The value block that makes an output of a network, in the copies of an ensemble too; None for any other."""
    if not isinstance(module, InferenceBlock) or name not in module.outputs:
        return None
    value = module.outputs[name]
    node = next((node for node in module.nodes if value in node.out_ports), None)
    if node is None:
        return None  # an input as it is
    block = module.module_of(node)
    inner = dict(zip(node.step.outputs, node.step.inner[1])) if node.step.inner else {}
    if isinstance(block, EnsembleBlock):
        return value_block(block.network, inner[value])
    if isinstance(block, InferenceBlock):
        return value_block(block, inner[value])
    return block if isinstance(block, ValueHead) else None


def read_returns(returns: object, device: torch.device) -> Tensor:
    """``returns`` of any shape as rows (n, 1). Raises ValueError for what are no numbers, for NaN and infinite ones."""
    rows = as_numbers(returns, "returns", device).reshape(-1, 1)
    if not bool(rows.isfinite().all()):
        raise ValueError(
            "the returns contain NaN or an infinite number, which the statistics cannot count"
        )
    return rows


def as_numbers(
    values: Any, what: str, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """``values`` as a tensor. Raises ValueError where they are none; ``what`` they are is for the message."""
    try:
        return torch.as_tensor(values, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(values).__name__
        raise ValueError(f"{what} must be numbers or an array of them, got a {kind}") from error


def count_returns(normalizer: NormalizeBlock | None, rows: Sequence[Tensor], group: Group) -> None:
    """Count what `read_returns` gives into ``normalizer``. Raises ValueError where there is none."""
    if normalizer is None:
        raise ValueError(
            "this critic does not normalise its values; write normalize_value: true in it"
        )
    none = normalizer.mean.new_zeros((0, 1))
    normalizer.update(torch.cat([none, *rows]), group)
