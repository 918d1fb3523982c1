"""A model node by node, as data: shapes, parameters, FLOPs, memory, sharing, and places in the spec."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from composer.distributions.base import DISTRIBUTIONS
from composer.network.module import NetworkModule
from composer.network.network import CustomNetwork, EnsembleNetwork, Network
from composer.spec.model_spec import ModelSpec, NetworkSpec
from composer.spec.network_file import NetworkFile
from composer.spec.places import ENSEMBLE, place_of
from composer.summary.flops import count_flops, flops_of
from composer.summary.networks import networks_by_name, served_actors
from perception_blocks.base_block import is_built_in, is_torchs
from perception_blocks.blocks.reshape import DetachBlock
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.graph.assemble import BuiltNode
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Shape, format_shape

__all__ = ["Row", "RowPath", "class_name", "distribution_name", "flops_of_class"]
__all__ += ["flops_of_node", "network_in", "read_rows"]

RowPath = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One node, one network, or one child of a user's class.

    ``parameters`` and ``flops`` (of one observation; None: not known) are those that belong to no other row: a shared
    parameter counts where it is met first, and the row of a network or nested graph leaves out its nodes'.
    """

    path: RowPath
    name: str
    depth: int
    block: str
    in_shapes: tuple[Shape, ...] = ()
    out_shapes: tuple[Shape, ...] = ()
    parameters: int = 0
    share: float = 0.0  # of all parameters
    flops: int | None = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    memory: str = ""  # "carries h (1, 128)", "reads its window, carries nothing"
    same_as: str | None = None  # the node whose module it is
    each: str = ""  # "for each of 4": how often it is applied
    stops_gradient: bool = False
    frozen: bool = False  # has parameters, none of which is trained
    why_looped: str | None = None  # why the copies of an ensemble run one by one
    position: str | None = None  # file:line:column

    @property
    def shapes(self) -> str:
        """``(3, 8, 8) + 4 x (16,) -> (256,)``"""
        return " -> ".join(filter(None, [_joined(self.in_shapes), _joined(self.out_shapes)]))

    @property
    def results(self) -> str:
        """``-> (256,)``"""
        return f"-> {_joined(self.out_shapes)}" if self.out_shapes else ""

    @property
    def notes(self) -> str:
        shared = f"same module as {self.same_as!r}" if self.same_as else ""
        stopped = "no gradient flows back" if self.stops_gradient else ""
        frozen = "frozen" if self.frozen else ""
        return "; ".join(filter(None, [self.each, self.memory, shared, stopped, frozen]))


def _joined(shapes: Iterable[Shape]) -> str:
    runs = ((shape, len(list(run))) for shape, run in itertools.groupby(shapes))
    return " + ".join(
        format_shape(shape) if count == 1 else f"{count} x {format_shape(shape)}"
        for shape, count in runs
    )


def read_rows(net: nn.Module) -> list[Row]:
    """The rows of a Model, a Policy, a Critic, an InferenceBlock or any other module, in the order they run."""
    collector = _RowCollector(_positions(net))
    modules, served = networks_by_name(net), served_actors(net)
    for name, module in modules.items():
        collector.add_network((name,), module, served[name].copies if name in served else 1)
    if not modules:
        collector.add_module(net)
    rows = collector.rows
    total = sum(row.parameters for row in rows) or 1
    return [replace(row, share=row.parameters / total) for row in rows]


def network_in(module: nn.Module) -> tuple[InferenceBlock, int] | None:
    """The network of a nested graph and how many copies there are of it; None for any other module."""
    if isinstance(module, EnsembleBlock):
        return module.network, module.copies
    return (module, 1) if isinstance(module, InferenceBlock) else None


def class_name(module: nn.Module) -> str:
    """``my_nets.Critic``; torch's own without the file they live in: ``torch.nn.Linear``."""
    cls = type(module)
    package = "torch.nn" if cls.__module__.startswith("torch.nn.") else cls.__module__
    return f"{package}.{cls.__qualname__}"


def distribution_name(family: nn.Module) -> str:
    """The registered name of a distribution, else the name of its class."""
    return DISTRIBUTIONS.name_of(type(family)) or type(family).__name__


class _RowCollector:
    """Collects rows; a parameter counts where it is met first."""

    def __init__(self, position: Callable[[RowPath], str | None]) -> None:
        self.rows: list[Row] = []
        self._position = position
        self._seen: set[int] = set()
        self._ours: set[nn.Module] = set()  # what a Policy adds to its network's children
        self._copies = 1  # of the part that is being added
        self._flops: dict[Hashable, int | None] = {}  # what nodes that do the same compute

    def add_network(self, path: RowPath, module: NetworkModule, copies: int = 1) -> None:
        """A policy or critic: its network (one of ``copies``), then the parameters of its distributions."""
        self._copies = copies
        self._ours |= set(module.own_children().values())
        if isinstance(module.network, CustomNetwork):
            self._add_custom(path, module.network)
        elif isinstance(module.network, EnsembleNetwork):
            self._add_copies(path, module.network)
        else:
            self._add(path, path[-1], 0, "graph" if copies == 1 else f"{copies} x graph")
            self._add_nodes(path, module.network.module, 1)  # type: ignore[arg-type]
        for name, meaning in module.output_meanings().items():
            family = meaning.distribution
            if family is not None and any(True for _ in family.parameters()):
                below = ("distributions", name)
                label = distribution_name(family)
                self._add((*path, *below), "/".join(below), 1, label, family.parameters())

    def add_module(self, module: nn.Module) -> None:
        """An InferenceBlock node by node, any other module child by child."""
        if isinstance(module, InferenceBlock):
            self._add_nodes((), module, 0)
            return
        path = (class_name(module),)
        self._add(path, path[0], 0, "module", module.parameters(recurse=False), flops=None)
        self._add_children(path, module, 1, None)

    def _add_nodes(
        self, path: RowPath, net: InferenceBlock, depth: int, times: int = 1, copies: int = 1
    ) -> None:
        """The nodes of ``net``, of which there are ``copies``; each node is applied ``times`` times."""
        for node in net.nodes:
            module = net.module_of(node)
            below = (*path, *node.node.path)
            repeats = times * _repeats(node)
            nested = network_in(module)
            self._add(
                below,
                "/".join(node.node.path),
                depth,
                node.label,
                () if nested else module.parameters(),
                copies,
                in_shapes=tuple(port.shape for port in node.in_ports),
                out_shapes=tuple(port.shape for port in node.out_ports.values()),
                flops=0 if nested else self._node_flops(node, module, repeats),
                settings=node.settings,
                memory="" if nested else _memory(node, module),
                same_as=node.node.same_as,
                each=_each(node),
                stops_gradient=isinstance(module, DetachBlock),
                why_looped=getattr(module, "why_looped", None),
            )
            if nested:
                network, more = nested
                self._add_nodes(below, network, depth + 1, repeats * more, copies * more)

    def _node_flops(self, node: BuiltNode, module: nn.Module, repeats: int) -> int | None:
        """FLOPs of ``repeats`` applications; nodes that do the same are counted once: a deep network has many."""
        key = _same_work(node, module)
        if key is None or key not in self._flops:
            self._flops[key] = _flops_once(node, module)
        flops = self._flops[key]
        return None if flops is None else flops * repeats

    def _add_copies(self, path: RowPath, network: EnsembleNetwork) -> None:
        """The ensemble of a class, of which one copy is listed."""
        ensemble, below = network.ensemble, (*path, ENSEMBLE)
        self._add(path, path[-1], 0, "graph")
        data = {"settings": {"copies": ensemble.copies}, "why_looped": ensemble.why_looped}
        self._add(below, ENSEMBLE, 1, "ensemble", **data, **_shapes(network))
        inner = ensemble.network.network
        self._add_custom((*below, class_name(inner.module)), inner, 2, ensemble.copies)

    def _add_custom(
        self, path: RowPath, network: CustomNetwork, depth: int = 0, copies: int = 1
    ) -> None:
        module = network.module
        flops = _custom_flops(network)
        if flops is not None:
            flops = {name: count * copies for name, count in flops.items()}
        own_flops = 0 if isinstance(module, InferenceBlock) else self._own_flops(module, flops)
        data = {"flops": own_flops, "memory": _carries(network.state_shapes), **_shapes(network)}
        parameters = module.parameters(recurse=False)
        self._add(path, path[-1], depth, class_name(module), parameters, copies, **data)
        if isinstance(module, InferenceBlock):  # a class derived from it
            self._add_nodes(path, module, depth + 1, copies, copies)
        else:
            self._add_children(path, module, depth + 1, flops, copies=copies)

    def _add_children(
        self,
        path: RowPath,
        module: nn.Module,
        depth: int,
        flops: dict[str, int] | None,
        prefix: str = "",
        copies: int = 1,
    ) -> None:
        """A user's class child by child; an InferenceBlock inside is listed node by node."""
        for name, child in module.named_children():
            below = (*path, name)
            if child in self._ours:
                continue
            if isinstance(child, InferenceBlock):
                self._add(below, name, depth, "graph")
                self._add_nodes(below, child, depth + 1, copies, copies)
                continue
            inside = any(isinstance(m, InferenceBlock) for m in child.modules())
            counted = self._own_flops(child, flops, f"{prefix}{name}") if inside else None
            if flops is not None and not inside:
                counted = flops_of(flops, f"{prefix}{name}")
            parameters = child.parameters(recurse=not inside)
            self._add(below, name, depth, class_name(child), parameters, copies, flops=counted)
            if inside:
                below_it = f"{prefix}{name}."
                self._add_children(below, child, depth + 1, flops, below_it, copies)

    def _own_flops(
        self, module: nn.Module, counts: dict[str, int] | None, name: str = ""
    ) -> int | None:
        """The FLOPs of a class outside its children."""
        if counts is None:
            return None
        prefix = f"{name}." if name else ""
        children = [child for child, m in module.named_children() if m not in self._ours]
        inside = sum(flops_of(counts, prefix + child) for child in children)
        return flops_of(counts, name) - inside

    def _add(
        self,
        path: RowPath,
        name: str,
        depth: int,
        block: str,
        parameters: Iterable[nn.Parameter] = (),
        copies: int = 1,
        **data: Any,
    ) -> None:
        fresh = [parameter for parameter in parameters if id(parameter) not in self._seen]
        self._seen |= {id(parameter) for parameter in fresh}
        count = sum(parameter.numel() for parameter in fresh) * copies * self._copies
        data |= {"parameters": count, "position": self._position(path)}
        frozen = bool(fresh) and not any(parameter.requires_grad for parameter in fresh)
        self.rows.append(Row(path, name, depth, block, frozen=frozen, **data))


def _shapes(network: Network) -> dict[str, Any]:
    """The shapes of a network's inputs and outputs, as fields of its Row."""
    ports = {"in_shapes": network.in_ports, "out_shapes": network.out_ports}
    return {name: tuple(port.shape for port in by_key.values()) for name, by_key in ports.items()}


def _same_work(node: BuiltNode, module: nn.Module) -> Hashable:
    """A key that is equal for nodes with equal FLOPs; None if only the module itself could tell."""
    is_built = isinstance(node.node.block, str | type)  # so all that matters is in its settings
    if not (is_built and (is_built_in(module) or is_torchs(module))):
        return None
    inputs = [(port.shape, port.dtype, port.cardinality) for port in node.in_ports]
    settings = sorted((name, repr(value)) for name, value in node.settings.items())
    return type(module), repr(settings), repr(inputs), node.node.each, node.step.arguments


def flops_of_node(node: BuiltNode, module: nn.Module) -> int | None:
    """The FLOPs of a node, whose ``module`` it is, for one observation; None where they are not known.

    They are of all its applications (`each`) and copies, and of the nodes of a nested graph. A multiply-add counts as
    two; nothing is allocated.
    """
    nested = network_in(module)
    if nested is None:
        flops, copies = _flops_once(node, module), 1
    else:
        network, copies = nested
        counts = [flops_of_node(inner, network.module_of(inner)) for inner in network.nodes]
        flops = None if None in counts else sum(count for count in counts if count is not None)
    return None if flops is None else flops * copies * _repeats(node)


def _flops_once(node: BuiltNode, module: nn.Module) -> int | None:
    ports = [replace(port, shape=port.shape[node.node.each :]) for port in node.in_ports]
    names = node.step.arguments

    def call(trial: nn.Module, *tensors: Tensor) -> object:
        if names is None:
            return trial(*tensors)
        return trial(**dict(zip(names, tensors, strict=True)))

    counts = count_flops(module, ports, call)
    return None if counts is None else counts[""]


def flops_of_class(network: CustomNetwork) -> int | None:
    """The FLOPs of a user's class for one observation; None where they are not known."""
    counts = _custom_flops(network)
    return None if counts is None else counts[""]


def _custom_flops(network: CustomNetwork) -> dict[str, int] | None:
    def call(trial: nn.Module, *tensors: Tensor) -> object:
        twin = CustomNetwork(trial, network.in_ports, network.out_ports)
        return twin.run(dict(zip(network.in_ports, tensors, strict=True)))

    return count_flops(network.module, list(network.in_ports.values()), call)


def _repeats(node: BuiltNode) -> int:
    """The number of applications of a block with `each`; a varying axis counts as one."""
    axes = node.in_ports[0].shape[: node.node.each] if node.in_ports else ()
    return math.prod(size or 1 for size in axes)


def _each(node: BuiltNode) -> str:
    """``for each of 4 x 2``; nothing where the block takes its input whole."""
    if not node.node.each or not node.in_ports:
        return ""
    sizes = node.in_ports[0].shape[: node.node.each]
    return (
        f"for each of {' x '.join('any number' if size is None else str(size) for size in sizes)}"
    )


def _memory(node: BuiltNode, module: nn.Module) -> str:
    if getattr(module, "reads_window", False):
        return "reads its window, carries nothing"
    return _carries({name: node.state_shapes[key] for name, key in node.step.state})


def _carries(shapes: Mapping[str, Shape]) -> str:
    states = ", ".join(f"{name} {format_shape(shape)}" for name, shape in shapes.items())
    return f"carries {states}" if states else ""


def _positions(net: nn.Module) -> Callable[[RowPath], str | None]:
    """The place in the spec of a row's node; None for a model that was not composed from a spec."""
    spec = getattr(net, "spec", None)
    if not isinstance(spec, ModelSpec | NetworkFile):
        return lambda path: None
    networks, source = _networks_of(spec), getattr(net, "source", spec.source)

    def position(path: RowPath) -> str | None:
        network = networks.get(path[0]) or networks.get(path[0].rpartition("/")[0])
        if network is None or source is None:
            return None
        if network.target is not None:
            place = source.position((*network.path, "_target_"))
        else:
            place = source.position(place_of(network, path[1:]))
        return None if place is None else str(place)

    return position


def _networks_of(spec: ModelSpec | NetworkFile) -> dict[str, NetworkSpec]:
    """The networks of a spec by the first part of a row's path."""
    if isinstance(spec, NetworkFile):
        return {"network": spec.network}
    return {
        name if key is None else f"{name}/{key}": network
        for name, part in (("policy", spec.policy), ("critic", spec.critic))
        for key, network in (part.networks if part else {}).items()
    }
