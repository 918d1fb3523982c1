"""Convolutions of PyTorch Geometric over edge lists: all graphs of a batch as one graph, in one call for each layer.

Nodes of different graphs get different numbers. An edge that is masked, or touches a masked node, is moved to an extra
node without edges to others: it starts and ends there, whatever the convolution makes of its edges.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perception_blocks.activations import make_activation, make_activations
from perception_blocks.base_block import PerceptionBlock, is_traced, seed_from
from perception_blocks.blocks.dense import unit_list
from perception_blocks.blocks.masks import as_bool, check_mask, same_shape, shapes_of
from perception_blocks.blocks.precision import autocast_to_float16
from perception_blocks.init import (
    Rule,
    derive_seed,
    draw_in_a_copy,
    draw_parameters,
    linear_layer,
    local_generator,
)
from perception_blocks.port import InputShapeError, Port, Shape, Shapes
from perception_blocks.registry import BLOCKS, UnknownNameError
from perception_blocks.settings import (
    Activation,
    OneOrMany,
    Setting,
    SettingProblem,
    SettingsError,
    mismatch,
    settings_of,
)
from perception_blocks.words import hint

with warnings.catch_warnings():  # it scripts functions when it is imported, which torch deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.nn import conv as convolutions

__all__ = ["CONVOLUTIONS", "ROOTS", "MessagePassingBlock"]

_NAMES = """
    AGNNConv APPNP ARMAConv CGConv EGConv EdgeConv FeaStConv FiLMConv GATConv GATv2Conv GCNConv GENConv GINConv GINEConv
    GMMConv GatedGraphConv GeneralConv GraphConv LEConv LGConv MFConv NNConv PDNConv ResGatedGraphConv SAGEConv SGConv
    SSGConv TAGConv TransformerConv
"""
# Convolutions that read nodes and edges alone, and whose result for one big graph joins the results for its parts.
CONVOLUTIONS = tuple(_NAMES.split())
NEED_FEATURES = ("GINEConv", "GMMConv", "NNConv", "PDNConv")  # of edges
# These divide by the square root of the sum of a node's weights.
ROOTS = ("APPNP", "ARMAConv", "GCNConv", "LGConv", "SGConv", "SSGConv", "TAGConv")
EDGE_SIZES = ("edge_dim", "in_edge_channels", "dim")  # the arguments for their number
AGGREGATIONS = ("add", "sum", "mean", "min", "max", "mul", "softmax", "powermean", "std", "var")
_FROM_SHAPES = "it follows from the inputs and 'hidden_units'"
# Arguments of convolutions that are no settings here, and why.
WITHHELD = {
    **dict.fromkeys(("in_channels", "out_channels", "channels", *EDGE_SIZES, "nn"), _FROM_SHAPES),
    "cached": "the graphs differ from call to call",
    "num_relations": "all edges are of one kind",
    "aggr_kwargs": "'aggr' takes no settings",
    "decomposed_layers": "it does not change the result",
    "node_dim": "nodes have an axis of their own",
}


@BLOCKS.register("message_passing")
class MessagePassingBlock(PerceptionBlock):
    """Convolutions of PyTorch Geometric: nodes ``(N, F)``, node numbers ``(E, 2)`` -> ``(N, hidden_units[-1])``.

    ``conv`` is the name of its class, such as ``GATv2Conv``, and ``settings`` are that class's own; the sizes are
    filled in. An edge ``[source, target]`` carries from source to target; ``directed: false`` lets it carry both ways.
    A third input ``(E, D)`` holds features of the edges, or weights ``(E, 1)``, for convolutions that take them. Masks
    ``node_mask`` ``(N,)`` and ``edge_mask`` ``(E,)`` follow, true for what exists; nodes that do not come out as zeros.
    Weights below 0 are an error for convolutions that divide by roots of sums of weights, such as ``GCNConv``, which
    would give NaN; on an accelerator, and inside of compiled or exported code, they are not looked at.

    >>> MessagePassingBlock([(5, 3), (None, 2)], conv="GATConv", hidden_units=[8, 4], settings={"heads": 2}).out_shapes
    [(5, 4)]
    """

    takes = "any"
    mask_of = {"node_mask": 0, "edge_mask": 1}
    keeps_mask = True
    limits = {
        "vmap": "some convolutions pick self-loops out of the edges, whose number vmap cannot follow",
        "cuda_graph": "some convolutions pick self-loops out of the edges, and wait for their number",
    }

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        conv: str,
        hidden_units: OneOrMany,
        settings: Mapping[str, object] | None = None,
        activation: Activation = "relu",
        last_activation: Activation | None = None,
        directed: bool = True,
    ) -> None:
        nodes, features, edges = graph_shapes(in_shapes)
        convolution = Convolution(conv, settings or {}, edges)
        units = unit_list(hidden_units, "message_passing")
        super().__init__(in_shapes, out_shapes=[(nodes, units[-1])])
        sizes = zip([features, *units], units)
        self.convs = nn.ModuleList(convolution.layer(n, m) for n, m in sizes)
        self.activations = make_activations(activation, len(units), last_activation)
        self.edge_argument = None if edges is None else convolution.edge_argument
        self.takes_roots = self.edge_argument == "edge_weight" and convolution.takes_roots
        self.conv = conv
        self.directed = directed

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        """Nodes and features of edges are numbers, edges are integers, masks are truth values."""
        name = "message_passing"
        for index, port in enumerate(in_ports[:3]):
            if index == 1 and not port.is_integer:
                raise InputShapeError(f"{name} takes an edge list of integers second", {1: port})
            if index == 2 and len(port.shape) == 1:
                if port.dtype != torch.bool and port.cardinality != 2:
                    rule = f"{name} takes weights of edges as (edges, 1), and masks of truth values"
                    advice = "put a flatten block with 'each: 1' before it"
                    raise InputShapeError(rule, {2: port}, advice)
            elif index != 1 and (port.is_integer or port.dtype == torch.uint8):
                rule = f"{name} takes numbers as features"
                raise InputShapeError(rule, {index: port}, "put an embedding block before it")

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        seed = seed_from(generator)
        draw_parameters(self, seed, self.initializer)
        for index, conv in enumerate(self.convs):
            draw_convolution(conv, derive_seed(seed, "convs", index), self.initializer)

    def forward(
        self,
        nodes: Tensor,
        edge_links: Tensor,
        edges: Tensor | None = None,
        node_mask: Tensor | None = None,
        edge_mask: Tensor | None = None,
    ) -> Tensor:
        if self.edge_argument is None and edges is not None:  # by position: there are masks only
            edges, node_mask, edge_mask = None, edges, node_mask
        if autocast_to_float16(nodes):  # the sum of a node's neighbours may have no number there
            edges = None if edges is None else edges.float()
            with torch.autocast(nodes.device.type, enabled=False):
                return self._passed(nodes.float(), edge_links, edges, node_mask, edge_mask)
        return self._passed(nodes, edge_links, edges, node_mask, edge_mask)

    def _passed(
        self,
        nodes: Tensor,
        edge_links: Tensor,
        edges: Tensor | None,
        node_mask: Tensor | None,
        edge_mask: Tensor | None,
    ) -> Tensor:
        x = nodes.flatten(0, -2)
        exists = x.new_ones(x.shape[:1], dtype=torch.bool)
        if node_mask is not None:
            exists = as_bool(node_mask).flatten()
        carries = None if edge_mask is None else as_bool(edge_mask).flatten()
        links = joined(edge_links.long(), nodes.shape[-2])
        exists, links, carries = routed(exists, links, carries)
        given = {} if edges is None else self._given(edges.flatten(0, -2), carries)
        if not self.directed:
            links = torch.cat([links, links.flip(0)], dim=1)
        missing = ~exists.unsqueeze(-1)
        x = torch.cat([x, x.new_zeros(1, x.shape[-1])]).masked_fill(missing, 0.0)
        for conv, activation in zip(self.convs, self.activations):
            x = activation(conv(x, links, **given)).masked_fill(missing, 0.0)
        return x[:-1].unflatten(0, nodes.shape[:-1])

    def _given(self, edges: Tensor, carries: Tensor) -> dict[str, Tensor]:
        """The edge argument of a convolution (edges, D), with neutral values for edges that do not carry."""
        is_weight = self.edge_argument == "edge_weight"
        edges = edges.masked_fill(~carries.unsqueeze(-1), 1.0 if is_weight else 0.0)
        if self.takes_roots and edges.is_cpu and not is_traced() and bool((edges < 0).any()):
            raise ValueError(
                f"message_passing got a weight of {edges.min().item():g}, but {self.conv!r} divides by the root of the "
                "sum of a node's weights, which must be 0 or more; 'GraphConv' and 'LEConv' take any"
            )
        if not self.directed:
            edges = torch.cat([edges, edges])
        assert self.edge_argument is not None
        return {self.edge_argument: edges.squeeze(-1) if is_weight else edges}


def joined(edge_links: Tensor, count: int) -> Tensor:
    """Edge lists (..., E, 2) of graphs with ``count`` nodes each as the one (2, edges) of all of them."""
    leading = edge_links.shape[:-2]
    first = torch.arange(math.prod(leading), device=edge_links.device) * count
    return (edge_links + first.reshape(*leading, 1, 1)).flatten(0, -2).transpose(0, 1)


def routed(exists: Tensor, links: Tensor, carries: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """One more node that does not exist, and every edge moved there that is masked or touches such a node.

    ``exists`` (nodes,), ``links`` (2, edges) and ``carries`` (edges,), true for edges that exist, and so they return.
    """
    nowhere = exists.shape[0]
    exists = torch.cat([exists, exists.new_zeros(1)])
    if carries is not None:
        links = links.masked_fill(~carries, nowhere)
    carries = exists[links].all(dim=0)
    return exists, links.masked_fill(~carries, nowhere), carries


def draw_convolution(conv: nn.Module, seed: int, rule: Rule | None) -> None:
    """Draw all weights of a layer as its library does, from ``seed`` alone; matrices follow ``rule`` where given."""

    def draw(twin: Any) -> None:
        twin.reset_parameters()
        for name, tensor in twin.named_parameters():
            if rule is not None and name.endswith("weight") and tensor.dim() == 2:
                rule(tensor, local_generator(seed, name))

    draw_in_a_copy(conv, seed, draw)


class Convolution:
    """A class of PyTorch Geometric by its name, and how its layers are made.

    Raises UnknownNameError for an unknown name, SettingsError for settings that it does not take, and InputShapeError
    where it takes no features of edges of the shape ``edges`` (None without any), or needs some.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], edges: Shape | None) -> None:
        if name not in CONVOLUTIONS:
            near = hint(name, CONVOLUTIONS, "known are")
            raise UnknownNameError(f"unknown convolution {name!r}" + near)
        self.name = name
        self.cls: Any = getattr(convolutions, name)
        self.arguments = arguments_of(self.cls)
        self.edges = edges
        self.edge_size = 0 if edges is None else edges[1]
        taken = inspect.signature(self.cls.forward).parameters
        self.edge_argument = next((a for a in ("edge_weight", "edge_attr") if a in taken), None)
        self.takes_roots = name in ROOTS and settings.get("normalize", True)
        self.settings = dict(settings)
        problems = list(self._setting_problems())
        if problems:
            raise SettingsError(SettingProblem("settings", problem) for problem in problems)
        if isinstance(settings.get("act"), (str, Mapping)):
            self.settings["act"] = make_activation(settings["act"])
        self._check_edges()

    def layer(self, features: int, units: int) -> nn.Module:
        """One layer from ``features`` to ``units``. Raises ValueError where it cannot be made."""
        sizes = self._sizes(features, units)
        try:
            conv = self.cls(**sizes, **self.settings)
        except Exception as error:  # whatever the library says of values that only it knows
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"convolution {self.name!r} cannot be built with settings={self.settings!r}: {reason}"
            ) from error
        if any(isinstance(part, nn.modules.batchnorm._NormBase) for part in conv.modules()):
            raise ValueError(
                f"convolution {self.name!r} with settings={self.settings!r} normalises over the nodes of all graphs of "
                "a batch and their padding; choose another norm, such as 'layer'"
            )
        return conv

    def _sizes(self, features: int, units: int) -> dict[str, object]:
        """The arguments that follow from the sizes of nodes and edges."""
        known: dict[str, object] = {"in_channels": features, "channels": features}
        known["out_channels"] = self._channels(units)
        if self.edges is not None:
            known |= dict.fromkeys(EDGE_SIZES, self.edge_size)
        if not {"out_channels", "nn"} & self.arguments.keys() and features != units:
            raise ValueError(
                f"convolution {self.name!r} keeps the {features} features of a node, got {units} in 'hidden_units'"
            )
        if self.name == "GatedGraphConv" and features > units:
            raise ValueError(
                f"convolution {self.name!r} cannot make the {features} features of a node fewer, got {units} in "
                "'hidden_units'"
            )
        if "nn" in self.arguments and self.arguments["nn"].required:
            known["nn"] = self._perceptron(features, units)
        return {name: value for name, value in known.items() if name in self.arguments}

    def _channels(self, units: int) -> int:
        """Output channels of each head: concatenated heads share the units."""
        if not {"heads", "concat"} <= self.arguments.keys():
            return units
        heads, concat = (
            self.settings.get(name, self.arguments[name].default) for name in ("heads", "concat")
        )
        if heads < 1 or (concat and units % heads):
            raise ValueError(
                f"convolution {self.name!r} shares its units among its heads, got {units} in 'hidden_units' and "
                f"{heads} 'heads'"
            )
        return units // heads if concat else units

    def _perceptron(self, features: int, units: int) -> nn.Sequential:
        """The network that a convolution applies to each node, pair of nodes or edge."""
        reads, gives = {
            "EdgeConv": (2 * features, units),
            "NNConv": (self.edge_size, features * units),
        }.get(self.name, (features, units))
        return nn.Sequential(linear_layer(reads, units), nn.ReLU(), linear_layer(units, gives))

    def _setting_problems(self) -> Iterator[str]:
        label = f"convolution {self.name!r}"
        known = {name: setting for name, setting in self.arguments.items() if name not in WITHHELD}
        for name, value in self.settings.items():
            if name in WITHHELD and name in self.arguments:
                yield f"{name!r} of {label} cannot be set: {WITHHELD[name]}"
            elif name not in known:
                near = hint(name, known, "it has")
                yield f"{name!r} is not a setting of {label}" + near
            elif name == "aggr":
                if value not in AGGREGATIONS:
                    names = ", ".join(map(repr, AGGREGATIONS))
                    yield f"'aggr' of {label} must be one of {names}, got {value!r}"
            elif wrong := mismatch(known[name].annotation, value):
                yield f"{name!r} of {label} {wrong}"
        for name, setting in known.items():
            if setting.required and name not in self.settings:
                yield f"{label} needs the setting {name!r}"

    def _check_edges(self) -> None:
        if self.edges is None:
            if self.name in NEED_FEATURES:
                rule = f"convolution {self.name!r} needs features of the edges (edges, features) as third input"
                raise InputShapeError(rule, {})
        elif self.edge_argument is None:
            rule = f"convolution {self.name!r} takes no features of edges"
            advice = (
                "leave them out, or choose one that takes them, such as 'GATv2Conv' or 'GINEConv'"
            )
            raise InputShapeError(rule, {2: self.edges}, advice)
        elif self.edge_argument == "edge_weight" and self.edge_size != 1:
            rule = f"convolution {self.name!r} takes one weight for each edge (edges, 1)"
            advice = "choose one that takes features, such as 'GATv2Conv' or 'GINEConv'"
            raise InputShapeError(rule, {2: self.edges}, advice)


def arguments_of(cls: type) -> dict[str, Setting]:
    """The arguments of a convolution's class, and of the bases that it passes further keywords to."""
    arguments: dict[str, Setting] = {}
    for base in cls.__mro__:
        settings, hands_on = settings_of(base, 0)
        arguments = {**settings, **arguments}
        if not hands_on:
            break
    return arguments


def graph_shapes(in_shapes: Shapes) -> tuple[int | None, int, Shape | None]:
    """How many nodes, the features of each, and the shape of the edges' features, None where there are none."""
    name = "message_passing"
    takes = "nodes (N, features), edges (E, 2) and optionally features of the edges and masks"
    shapes = shapes_of(in_shapes, name, 2, 5, takes)
    nodes, links = shapes[:2]
    if len(nodes) != 2:
        raise InputShapeError(f"{name} takes nodes (N, features) first", {0: nodes})
    if nodes[1] is None:
        raise InputShapeError(f"{name} needs to know how many features a node has", {0: nodes})
    if len(links) != 2 or links[1] != 2:
        rule = f"{name} takes an edge list (edges, 2) of node numbers second"
        raise InputShapeError(rule, {1: links})
    edges = edge_features(shapes)
    first = 2 if edges is None else 3
    if len(shapes) > first + 2:
        rule = f"{name} takes features of edges (edges, features) before the masks"
        raise InputShapeError(rule, {2: shapes[2]})
    both = len(shapes) == first + 2
    check_mask(name, shapes, first, [nodes[:1]] if both else [nodes[:1], links[:1]])
    check_mask(name, shapes, first + 1, [links[:1]])
    return nodes[0], nodes[1], edges


def edge_features(shapes: Sequence[Shape]) -> Shape | None:
    """The shape of the third input, the features of edges; None where that is a mask or missing."""
    if len(shapes) < 3 or len(shapes[2]) == 1:
        return None
    edges, count = shapes[2], shapes[1][0]
    if len(edges) != 2 or edges[1] is None or not same_shape(edges[:1], (count,)):
        rule = "message_passing takes features of edges (edges, features), one row for each edge"
        raise InputShapeError(rule, {1: shapes[1], 2: edges})
    return edges
