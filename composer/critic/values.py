"""The heads of critics as numbers: which of them give quantiles or bins, and what the critic says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from composer.network.network import Tensors
from perception_blocks.blocks.heads import ValueHead
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Port, Shape

__all__ = ["RAW_NAMES", "ValueReader", "ValueRequirements", "scalar_shape", "value_block"]

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


class ValueReader:
    """Outputs of a network as values: ``names`` are those that are values.

    One that comes as quantiles or bins becomes their mean, with what came beside it: ``value`` (..., 1) and
    ``value_quantiles`` or ``value_logits``. With a ``normalizer`` values are on the scale of the returns that it has
    seen, and ``normalized_value`` is what the network gives.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self.blocks: dict[str, ValueHead | None] = {
            name: value_block(module, name) for name in names
        }

    def ports(self, out_ports: Mapping[str, Port], *, normalized: bool) -> dict[str, Port]:
        """The Ports of what a network with these ``out_ports`` becomes."""
        ports: dict[str, Port] = {}
        for name, port in out_ports.items():
            block = self.blocks.get(name)
            ports[name] = port if block is None else Port(scalar_shape(block, port.shape))
            if block is not None and block.raw_name is not None:
                ports[f"{name}_{block.raw_name}"] = port
            if normalized and name in self.blocks:
                ports[f"normalized_{name}"] = ports[name]
        return ports

    def notes(self, *, normalized: bool) -> dict[str, str]:
        """By name what a value is made of, where that is more than a number."""
        means = {"quantiles": "mean of its quantiles", "logits": "mean of its bins"}
        scale = "on the scale of returns" if normalized else ""
        raw = {name: block and block.raw_name for name, block in self.blocks.items()}
        return {
            n: ", ".join(filter(None, [means.get(kind or ""), scale])) for n, kind in raw.items()
        }

    def __call__(self, outputs: Tensors, normalizer: NormalizeBlock | None = None) -> Tensors:
        values: Tensors = {}
        for name, output in outputs.items():
            if name not in self.blocks:
                values[name] = output
                continue
            block = self.blocks[name]
            value = output if block is None else block.to_scalar(output)
            values[name] = value if normalizer is None else normalizer.denormalize(value)
            if block is not None and block.raw_name is not None:
                values[f"{name}_{block.raw_name}"] = output
            if normalizer is not None:
                values[f"normalized_{name}"] = value
        return values


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
