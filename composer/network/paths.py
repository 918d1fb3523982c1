"""What a path such as ``policy/screen`` means in a model: the modules, parameters and saved tensors below a node.

``policy`` and ``critic`` are whole networks, ``policy/<node>`` is a node, ``policy/<network>/<node>`` a node of one of
several networks. Copies of a network (an ensemble, networks that are ``separate``) answer to the same path together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import unquote

from torch import nn

from composer.network.groups import SeparateNetworks
from composer.network.module import NetworkModule
from composer.network.registries import RegistryView
from composer.network.structured import StructuredModule
from composer.spec.keys import PARTS
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.graph.wiring import module_name
from perception_blocks.inference import InferenceBlock
from perception_blocks.words import few_of, listing, near_name, suggest

__all__ = ["ENSEMBLE", "ModelPart", "Parts", "PathError", "nodes_of_tensors"]
__all__ += ["part_at", "parts_by_path"]

ENSEMBLE = "ensemble"  # the name of the copies of a whole network
CONTAINERS = ("heads", "distributions", "normalizers")  # of nodes, in a network


class PathError(ValueError):
    """A path that names nothing in a model."""


@dataclass
class ModelPart:
    """What a path names. ``tensors`` are names in the model's state_dict by the names below the path.

    Of copies there are several names for one. ``modules`` also has those that are no children of another: what the
    copies of an ensemble compute.
    """

    path: str
    modules: list[nn.Module] = field(default_factory=list)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    tensors: dict[str, list[str]] = field(default_factory=dict)

    def add(self, other: ModelPart) -> None:
        """Add ``other``, which lies below this part."""
        below = other.path[len(self.path) :].strip("/").replace("/", ".")
        self.modules += other.modules
        self.parameters |= other.parameters
        for name, stored in other.tensors.items():
            self.tensors.setdefault(".".join(filter(None, (below, name))), []).extend(stored)


class Parts(dict[str, ModelPart]):
    """Parts by their paths, each with what belongs to it and to nothing below it."""

    @cached_property
    def _in_order(self) -> list[tuple[str, int]]:
        return sorted((path, place) for place, path in enumerate(self))

    def below(self, path: str) -> list[ModelPart]:
        """The parts below ``path``; not all are looked at, as there may be as many paths as parts."""
        first, end = (bisect_left(self._in_order, (path + sign,)) for sign in "/0")  # neighbours
        paths = sorted(self._in_order[first:end], key=lambda each: each[1])
        return [self[each] for each, _ in paths]


def parts_by_path(model: nn.Module) -> Parts:
    """Every path of ``model``."""
    parts = Parts()
    for name in PARTS:
        module = model._modules.get(name)
        for part in () if module is None else _walk(module, name, name):
            parts.setdefault(part.path, ModelPart(part.path)).add(part)
    return parts


def part_at(model: nn.Module, path: str, parts: Parts | None = None) -> ModelPart:
    """All that ``path`` names in ``model``; ``parts`` are its `parts_by_path`, where they are known.

    Raises PathError, with the nearest path, where there is no such part.
    """
    parts = parts_by_path(model) if parts is None else parts
    if path not in parts:
        raise PathError(f"the model has no part {path!r}" + _near(path, parts))
    whole = ModelPart(path)
    for part in (parts[path], *parts.below(path)):
        whole.add(part)
    return whole


def _near(path: str, parts: Iterable[str]) -> str:
    """The end of a message about a ``path`` that is none of ``parts``: the near one, or what there is beside it."""
    parts, names = set(parts), path.split("/")
    deepest = min(len(names), 1 + max((part.count("/") for part in parts), default=0))
    depth = next((i for i in range(deepest, 0, -1) if "/".join(names[:i]) in parts), 0)
    parent = "/".join(names[:depth])
    inside = f"{parent}/" if parent else ""
    beside = [p[len(inside) :] for p in parts if p.startswith(inside)]
    known = sorted({name for name in beside if "/" not in name})
    near = near_name(names[depth], known)
    if near:
        return suggest(path, "/".join([*names[:depth], near, *names[depth + 1 :]]))
    return (
        f"; {parent!r} has {few_of(known) or 'none'}" if parent else f"; there is {listing(known)}"
    )


def _walk(module: nn.Module, path: str, name: str) -> Iterator[ModelPart]:
    """The parts of ``module``, which is called ``name`` in the state_dict."""
    yield _own(module, path, name)
    origin = module._origin if isinstance(module, RegistryView) else None
    if origin is not None and not isinstance(module, StructuredModule):
        yield ModelPart(path, [origin])
    if isinstance(module, StructuredModule):
        for group in module.groups:
            alone = group.name is None
            below = path if alone else f"{path}/{group.name}"
            inner = name if alone else f"{name}.{module_name(str(group.name))}"
            yield from _walk(group.module, below, inner)
    elif isinstance(module, SeparateNetworks):
        if module.ensemble is not None:
            yield from _stack(module.ensemble, path, name, name)
        for index, member in enumerate(module.members):
            yield from _walk(member, path, f"{name}.{index}")
    elif isinstance(module, EnsembleBlock):
        if module.why_looped is None:
            yield from _stack(module, path, name, name)
        for index, network in module._modules.items():  # those that run one by one
            if network is not None:
                yield from _walk(network, path, f"{name}.{index}")
    else:
        yield from _children(module, path, name)


def _children(module: nn.Module, path: str, name: str) -> Iterator[ModelPart]:
    for key, child in module._modules.items():
        if child is None or (isinstance(child, NetworkModule) and child.stays_in_eval):
            continue  # the target of a critic, which is not trained
        whole = key == ENSEMBLE and isinstance(child, EnsembleBlock) and _is_whole(module)
        yield from _walk(child, path if whole else f"{path}/{unquote(key)}", f"{name}.{key}")


def _is_whole(module: nn.Module) -> bool:
    """Whether an ensemble in ``module`` is its only node: copies of the whole network."""
    network = module._origin if isinstance(module, RegistryView) else module
    return not isinstance(network, InferenceBlock) or len(network.nodes) == 1


def _own(module: nn.Module, path: str, name: str) -> ModelPart:
    """What belongs to ``module`` and to none of its children; the tensors of stacks are added by `_stack`."""
    part = ModelPart(path, [module])
    if isinstance(module, (EnsembleBlock, StructuredModule, SeparateNetworks)):
        return part
    for key, parameter in module._parameters.items():
        if parameter is not None:
            part.parameters[f"{name}.{key}"] = parameter
            part.tensors[key] = [f"{name}.{key}"]
    for key, buffer in module._buffers.items():
        if buffer is not None and key not in module._non_persistent_buffers_set:
            part.tensors[key] = [f"{name}.{key}"]
    return part


def _stack(ensemble: EnsembleBlock, path: str, name: str, owner: str) -> Iterator[ModelPart]:
    """The parts of the copies of an ``ensemble``, whose weights are stacked."""
    for form in ensemble.forms:
        for inner, module in form.named_modules():
            yield ModelPart(_below(path, inner), [module])
    saved = set(ensemble.network.state_dict())
    for inner, key in ensemble.keys.items():
        at, _, tensor = inner.rpartition(".")
        part = ModelPart(_below(path, at))
        if key in ensemble._parameters:
            part.parameters[f"{owner}.{key}"] = ensemble._parameters[key]  # type: ignore[assignment]
        if inner in saved:
            part.tensors[tensor] = [f"{name}.{i}.{inner}" for i in range(ensemble.copies)]
        yield part


def _below(path: str, inner: str) -> str:
    return "/".join([path, *map(unquote, filter(None, inner.split(".")))])


def nodes_of_tensors(model: nn.Module) -> dict[str, str]:
    """The path of the node that each tensor of the state_dict of ``model`` belongs to."""
    parts = parts_by_path(model)
    nodes = {path for path in parts if _is_node(path, parts)}
    owners: dict[str, str] = {}
    for path, part in parts.items():
        node = path
        while node not in nodes and "/" in node:
            node = node.rpartition("/")[0]
        owners |= {name: node for names in part.tensors.values() for name in names}
    return owners


def _is_node(path: str, parts: dict[str, ModelPart]) -> bool:
    """Whether a path is a node of a graph, a child of a user's class, or one of a network's heads and the like."""
    parent, _, name = path.rpartition("/")
    above, _, container = parent.rpartition("/")
    if container in CONTAINERS and above in parts:
        return True
    holders = parts[parent].modules if parent in parts else []
    return name not in CONTAINERS and any(
        isinstance(module, (InferenceBlock, RegistryView)) for module in holders
    )
