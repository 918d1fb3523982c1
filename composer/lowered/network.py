"""What runs a policy's or critic's network as straight-line code, and everything around it as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from composer.network.autoregressive import AutoregressiveNetwork
from composer.network.module import NetworkModule
from composer.network.network import GraphNetwork, Network, ToldNetwork
from perception_blocks.base_block import is_traced
from perception_blocks.inference import InferenceBlock

__all__ = ["LoweredGraph", "WithTwin", "follow", "twin_of"]

M = TypeVar("M", bound=NetworkModule)


class LoweredGraph(Network):
    """A graph of blocks, lowered."""

    def __init__(self, network: GraphNetwork, block: InferenceBlock) -> None:
        self.original = network
        self.module = block
        self.in_ports = block.in_ports
        self.out_ports = block.out_ports
        self.state_shapes = block.state_shapes
        self.lowered = block.lower()

    def require_weights(self) -> None:
        self.original.require_weights()

    @property
    def call(self) -> Callable[..., Any]:
        return self.lowered


class LoweredStages(AutoregressiveNetwork):
    """A network whose heads read actions, each of its stages lowered."""

    def __init__(self, network: AutoregressiveNetwork) -> None:
        vars(self).update(vars(network))
        self.original = network
        self.stages = [stage.lower() for stage in network.stages]

    def require_weights(self) -> None:
        self.original.require_weights()


def twin_of(module: M) -> M | None:
    """``module`` over the same weights, children and hooks, its network lowered; None where that is no graph."""
    network = module.network
    of_all = network.network if type(network) is ToldNetwork else network
    lowered = _lowered(of_all)
    if lowered is None:
        return None
    twin = copy.copy(module)
    lowered = ToldNetwork(lowered, network.index) if type(network) is ToldNetwork else lowered
    object.__setattr__(twin, "network", lowered)
    return twin


def _lowered(network: Network) -> Network | None:
    block = network.module
    if type(network) is AutoregressiveNetwork:
        return LoweredStages(network)
    if type(network) is GraphNetwork and type(block) is InferenceBlock:
        return LoweredGraph(network, block)
    return None


def follow(twin: NetworkModule, module: NetworkModule) -> None:
    """Let ``twin`` know where ``module`` is now and in which mode: all that is not in what they share."""
    attributes, others = vars(twin), vars(module)  # setting attributes of a module is slow
    attributes["_dtype"], attributes["_device"] = module.dtype, module.device
    attributes["training"] = others["training"]


class WithTwin(Generic[M]):
    """A policy or critic that hosts call, with its twin; it is no child of theirs."""

    def __init__(self, module: M) -> None:
        self.module = module
        self._twin = twin_of(module)

    def now(self) -> M:
        """What to call: the twin, but the module itself where it has none and where a compiler makes its own code."""
        if self._twin is None or is_traced():
            return self.module
        follow(self._twin, self.module)
        return self._twin
