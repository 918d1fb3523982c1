"""What is known of a node once it is built, and what its module follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from perception_blocks.graph.graph import Node
from perception_blocks.lowering.program import Step
from perception_blocks.port import Port, Shape

__all__ = ["BuiltModule", "BuiltNode", "ModuleKey"]


@dataclass(slots=True)  # not frozen: there is one for each node
class BuiltNode:
    """A node and what is known of it now; its module is found at ``step.module`` below the network."""

    node: Node
    label: str  # the block's registered name, class name or function name
    settings: Mapping[str, object]  # as given, with what the Ports filled in
    in_ports: tuple[Port, ...]
    out_ports: Mapping[str, Port]
    step: Step
    state_shapes: Mapping[str, Shape]  # by name in the network: "node/h"


class BuiltModule(NamedTuple):
    """A node with its module: a network that could not be built has no modules to be found by their path."""

    node: BuiltNode
    module: nn.Module


class ModuleKey(NamedTuple):
    """What a module follows from: those of equal keys differ in nothing but their weights.

    ``settings`` are as the constructor takes them, with what the Ports filled in.
    """

    block: type[nn.Module]
    settings: Mapping[str, object]
    init: object
    ports: tuple[Port, ...]
