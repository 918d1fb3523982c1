"""A copy of a model that tells what its nodes compute. The model itself is not touched: nothing of it changes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from composer.model import Model
from composer.network.groups import SeparateNetworks
from composer.network.module import NetworkModule
from composer.network.structured import StructuredModule
from composer.probing.measure import Activity
from composer.probing.node import OUTPUT, Measured
from perception_blocks.base_block import PerceptionBlock, first_output
from perception_blocks.blocks.conv import ImageBlock
from perception_blocks.blocks.scale import accumulator
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.hidden import Bounds, HiddenRecorder, HiddenValue
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Port
from perception_blocks.trial_copy import trial_copy

__all__ = ["WatchedNode", "Watched", "copied", "measured_layers", "norm_of"]


def copied(model: Model) -> Model:
    """A copy in eval mode with gradients of its own, in which copies of a network run one by one.

    Weights share their memory with those of ``model``; buffers are copies, as a forward may change them.
    """

    def to(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.detach(), tensor.requires_grad)
        return tensor.detach().clone()

    copy = trial_copy(model, to).eval()
    unstacked: set[int] = set()
    while ensembles := [e for e in _ensembles(copy) if id(e) not in unstacked]:
        for ensemble in ensembles:
            unstacked.add(id(ensemble))
            _unstack(ensemble)
    return copy.eval()


def _ensembles(model: nn.Module) -> Iterator[EnsembleBlock]:
    """Those in ``model``, and those over the networks of actors, which are no children of it."""
    for module in model.modules():
        if isinstance(module, EnsembleBlock):
            yield module
        elif isinstance(module, StructuredModule):
            for group in module.groups:
                ensemble = getattr(group.module, "ensemble", None)
                if ensemble is not None:
                    yield from _ensembles(ensemble)


def _unstack(ensemble: EnsembleBlock) -> None:
    """Let the copies of a network run one by one, each with its own modules, in which hooks run."""
    if ensemble.why_looped is None:
        networks = {str(index): ensemble.copy_of(index) for index in range(ensemble.copies)}
        ensemble.why_looped = "each is watched"
        ensemble._modules.update(networks)
    modules = ensemble._modules
    vars(ensemble)["_network_at"] = lambda row: modules[str(row)]  # as it is, not lowered


@dataclass
class WatchedNode:
    """A node, or a network of a user's class as a whole, and the layers in it, each with its `Activity`.

    ``ports`` are those of its outputs; ``network`` is the one that it is a node of, if any.
    """

    path: str
    module: nn.Module
    ports: Mapping[str, Port] = field(default_factory=dict)
    in_ports: Sequence[Port] = ()
    network: InferenceBlock | None = None
    layers: dict[str, Activity] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """How long one step takes, None where that was not measured."""
        return median(self.times) if self.times else None

    def activity(self, layer: str, batches: int, bounds: Bounds | None) -> Activity:
        """That of ``layer``, a new one the first time."""
        if layer not in self.layers:
            self.layers[layer] = Activity(batches, bounds)
        return self.layers[layer]

    def layer(self, name: str) -> nn.Module | None:
        """The module of the layer ``name``; None for a value that no layer gives."""
        if name == OUTPUT:
            return self.module
        module: nn.Module | None = self.module
        for part in name.split("."):
            module = None if module is None else module._modules.get(part)
        return module


class Watched:
    """The nodes of a copied model, in their order. Call `timed` first: what `record` adds takes time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.nodes = list(_nodes_of(model))
        # A module that serves several nodes (same_as) runs for each of them, in their order.
        self._users: dict[int, list[WatchedNode]] = {}
        self._calls: dict[int, int] = {}
        self._inputs: dict[int, Mapping[str, Tensor]] = {}  # by network, in its call that runs
        self._is_asking = False
        for node in self.nodes:
            self._users.setdefault(id(node.module), []).append(node)

    @property
    def weights(self) -> list[nn.Parameter]:
        """All weights of the nodes that are trained, each once."""
        weights = {id(p): p for node in self.nodes for p in node.module.parameters()}
        return [weight for weight in weights.values() if weight.requires_grad]

    def begin(self) -> None:
        """A call of the model begins: the next call of a module is that of its first node."""
        self._calls.clear()

    def timed(self, run: Callable[[], object], times: int) -> None:
        """Note how long each node takes in each of ``times`` calls of ``run``, which makes one step."""
        began: dict[int, float] = {}
        is_cuda = any(p.is_cuda for p in self.model.parameters())

        def now() -> float:
            if is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter()

        def before(module: nn.Module, arguments: object) -> None:
            began[id(module)] = now()

        def after(module: nn.Module, arguments: object, output: object) -> None:
            self._node_called(module).times.append(now() - began[id(module)])

        modules = {id(node.module): node.module for node in self.nodes}.values()
        handles = [module.register_forward_pre_hook(before) for module in modules]
        handles += [module.register_forward_hook(after) for module in modules]
        for _ in range(times):
            self.begin()
            run()
        for handle in handles:
            handle.remove()

    def record(self, batches: int) -> None:
        """From now on note what the nodes and the layers in them give, in ``batches`` calls."""
        for module in {id(node.module): node.module for node in self.nodes}.values():
            recorder = HiddenRecorder(module)
            module.register_forward_hook(self._noted(recorder, batches))
        networks = {id(node.network): node.network for node in self.nodes}.values()
        for network in filter(None, networks):
            network.register_forward_pre_hook(self._called)

    def _called(self, network: nn.Module, arguments: tuple) -> None:
        self._inputs[id(network)] = arguments[0]

    def _masks(self, node: WatchedNode, ports: Iterable[Port]) -> list[Tensor]:
        """What is true for real elements of the values of ``ports``, and false for padding."""
        inputs = self._inputs.get(id(node.network), {})
        names = dict.fromkeys(port.mask for port in ports if port.mask in inputs)
        return [inputs[name].bool() for name in names if name is not None]

    def _node_called(self, module: nn.Module) -> WatchedNode:
        number = self._calls.get(id(module), 0)
        self._calls[id(module)] = number + 1
        users = self._users[id(module)]
        return users[number % len(users)]

    def _noted(self, recorder: HiddenRecorder, batches: int) -> Callable[..., None]:
        def after(module: nn.Module, arguments: tuple, output: Any) -> None:
            if self._is_asking:
                return
            node = self._node_called(module)
            main = first_output(output)
            bounds = None if main is None else recorder.last_bounds(main)
            for name, value, axis, port in _outputs(node, output):
                masks = self._masks(node, [port] if port else [])
                activity = node.activity(name, batches, bounds if value is main else None)
                activity.add(_without_padding(value, axis, masks), axis)
            hidden = recorder.take(main)
            if isinstance(module, PerceptionBlock) and _says_hidden_values(module):
                self._is_asking = True  # it may call the block
                said = module.hidden_values(arguments)
                self._is_asking = False
                hidden = [HiddenValue(layer, value) for layer, value in said.items()]
            masks = self._masks(node, node.in_ports)
            for each in hidden:
                activity = node.activity(each.layer, batches, each.bounds)
                activity.add(_without_padding(each.value, each.axis, masks), each.axis)

        return after


def _says_hidden_values(block: PerceptionBlock) -> bool:
    """Whether the class of a block defines `hidden_values` itself."""
    return type(block).hidden_values is not PerceptionBlock.hidden_values


def _without_padding(value: Tensor, axis: int, masks: Iterable[Tensor]) -> Tensor:
    """The real elements of ``value`` by the first of ``masks`` that covers its leading axes."""
    for mask in masks:
        if mask.dim() <= value.dim() + axis and value.shape[: mask.dim()] == mask.shape:
            return value[mask]
    return value


def _outputs(node: WatchedNode, output: Any) -> Iterator[tuple[str, Tensor, int, Port | None]]:
    """The outputs of a node that are numbers: name, value, the axis of its units, and its Port if that is known."""
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
        output = output[0]  # beside it a state
    if isinstance(output, Mapping):  # a network of a user's class
        named = {f"{OUTPUT} {name}": value for name, value in output.items()}
        ports = {f"{OUTPUT} {name}": port for name, port in node.ports.items()}
    else:
        values = output if isinstance(output, tuple) else (output,)
        names = [OUTPUT, *list(node.ports)[1:]]
        named = dict(zip(names, values))
        ports = dict(zip(names, node.ports.values()))
    for name, value in named.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            port = ports.get(name)
            rank = 1 if port is None else len(port.shape)
            yield name, value if rank else value.unsqueeze(-1), _axis(node.module, rank), port


def _axis(module: nn.Module, rank: int) -> int:
    """The axis of the units of a value: of images and what blocks over images give, the channels, which come first."""
    is_image = rank == 3 or (rank > 1 and isinstance(module, ImageBlock))
    return -rank if is_image else -1


# --- the nodes of a model ---


def _nodes_of(model: Model) -> Iterator[WatchedNode]:
    for part in (model.policy, model.critic):
        if isinstance(part, NetworkModule):
            yield from _nodes(part.part, part, part.network.out_ports)
        elif isinstance(part, StructuredModule):
            for group in part.groups:
                base = part.part if group.name is None else f"{part.part}/{group.name}"
                for path, module in _networks(base, group.module):
                    yield from _nodes(path, module, {})


def _networks(base: str, module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The networks of a group: the one that all its actors share, or one of each, by its number."""
    if not isinstance(module, SeparateNetworks):
        return [(base, module)]
    ensemble = module.ensemble
    members = module.members if ensemble is None else ensemble._modules.values()
    return [(f"{base}/{index}", member) for index, member in enumerate(members)]  # type: ignore[misc]


def _nodes(path: str, module: nn.Module, ports: Mapping[str, Port]) -> Iterator[WatchedNode]:
    """What is watched of a network: its nodes, those of networks in it, and a user's own class as a whole."""
    if isinstance(module, NetworkModule):
        yield from _nodes(path, module.network.module, module.network.out_ports)
    elif isinstance(module, EnsembleBlock):
        for index in range(module.copies):
            yield from _nodes(f"{path}/{index}", module._modules[str(index)], {})  # type: ignore[arg-type]
    elif isinstance(module, InferenceBlock):
        for built in module.nodes:
            inner, below = module.module_of(built), "/".join((path, *built.node.path))
            if isinstance(inner, InferenceBlock | EnsembleBlock):
                yield from _nodes(below, inner, {})
            else:
                yield WatchedNode(below, inner, built.out_ports, built.in_ports, module)
    else:
        networks = list(_inside(module))
        for name, network in networks:
            yield from _nodes(f"{path}/{name}", network, {})
        if not networks:
            yield WatchedNode(path, module, ports)


def _inside(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost networks of blocks in a user's class, by their names."""
    for name, child in module._modules.items():
        if isinstance(child, InferenceBlock | EnsembleBlock):
            yield name, child
        elif child is not None:
            yield from ((f"{name}/{below}", network) for below, network in _inside(child))


def norm_of(tensors: Iterable[Tensor | None]) -> float:
    """The norm of all ``tensors`` together."""
    wide = (t.detach().to(accumulator(t.device)) for t in tensors if t is not None)
    return math.sqrt(sum(float(t.square().sum()) for t in wide))


def measured_layers(node: WatchedNode, tau: float) -> Iterator[tuple[str, Measured]]:
    """The layers of a node with their numbers, its output first."""
    names = sorted(node.layers, key=lambda name: not name.startswith(OUTPUT))
    for name in names:
        measured = node.layers[name].measured(tau)
        if measured is not None:
            yield name, measured
