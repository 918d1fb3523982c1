"""What a model consists of for those who spread it: its tensors, what of it is called, its nodes and its layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from composer.critic.targets import Targeted
from composer.model import Model
from composer.network.groups import SeparateNetworks
from composer.network.module import StatefulModule
from composer.network.network import EnsembleNetwork
from composer.network.structured import StructuredModule
from composer.parallel.tensor import is_body
from perception_blocks.base_block import PerceptionBlock, block_name
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.inference import InferenceBlock

__all__ = ["Places", "layers_in", "modules_below", "named_tensors", "nodes_in", "places_of"]
__all__ += ["roots_of", "whole_tensor"]

LAYERED = ("transformer_encoder", "decoder")  # blocks whose `layers` are units
Places: TypeAlias = dict[
    str, tuple[str, int | None]
]  # of a state_dict: the tensor, and its row in a stack


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and the persistent buffers of ``model``, each once, by the names of ``named_parameters``."""
    unsaved = {
        id(module._buffers[name])
        for module in model.modules()
        for name in module._non_persistent_buffers_set
    }
    buffers = {name: t for name, t in model.named_buffers() if id(t) not in unsaved}
    return {**dict(model.named_parameters()), **buffers}


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of ``tensor``; of a sharded one every process has to ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def places_of(model: nn.Module) -> Places:
    """Where each tensor of the state_dict is among the `named_tensors`: stacks hold one for each copy."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    places: Places = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in names:
            places[key] = (names[id(tensor)], None)
        else:
            stack = tensor._base
            assert stack is not None
            places[key] = (names[id(stack)], tensor.storage_offset() // max(1, stack.stride(0)))
    return places


def _holders(part: nn.Module) -> Iterator[Any]:
    """The policies or critics of one network each in ``part``, or several whose networks are stacked; targets first."""
    if isinstance(part, Targeted) and part.has_target:
        yield from _holders(part.target)
    if isinstance(part, StructuredModule):
        for group in part.groups:
            yield from _holders(group.module)
    elif isinstance(part, SeparateNetworks) and part.ensemble is None:
        for member in part.members:
            yield from _holders(member)
    else:
        yield part


def _called(holder: Any) -> nn.Module:
    """What runs when ``holder`` is used."""
    if isinstance(holder, SeparateNetworks):
        assert holder.ensemble is not None
        return holder.ensemble
    network = holder.network
    return network.ensemble if isinstance(network, EnsembleNetwork) else network.module


def roots_of(module: Any) -> list[nn.Module]:
    """The modules in ``module`` that are called from outside, each once; those of targets before their critics'.

    A module that is no model, policy or critic may have ``parallel_roots()``; else it is called itself.
    """
    if isinstance(module, Model):
        parts = [module.policy] if module.critic is None else [module.policy, module.critic]
        roots = [root for part in parts for root in roots_of(part)]
    elif isinstance(module, StatefulModule):
        roots = [_called(holder) for holder in _holders(module)]
    else:
        roots = module.parallel_roots() if hasattr(module, "parallel_roots") else [module]
    return list({id(root): root for root in roots}.values())


def modules_below(module: nn.Module) -> list[nn.Module]:
    """All modules in ``module``, inner ones before those that hold them; nothing of what is in an ensemble."""
    if isinstance(module, EnsembleBlock):
        return [module]
    inner = [part for child in module.children() for part in modules_below(child)]
    return list({id(part): part for part in [*inner, module]}.values())


def nodes_in(module: nn.Module) -> Iterator[int]:
    """The ids of the modules of all nodes of a graph, and of the graphs in it."""
    if isinstance(module, InferenceBlock):
        for node in module.nodes:
            inner = module.module_of(node)
            yield from nodes_in(inner) if isinstance(inner, InferenceBlock) else (id(inner),)


def layers_in(roots: list[nn.Module], units: tuple[str, ...]) -> dict[int, Any]:
    """By its id each layer that is sharded by itself, and the body of transformers that it is of (or None)."""
    parts = [part for root in roots for part in modules_below(root) if part is not root]
    layers: dict[int, Any] = {}
    bodies: list[Any] = [part for part in (*parts, *roots) if is_body(part)]
    for body in bodies:
        kinds = set(body._no_split_modules)
        inside: set[int] = set()  # mamba names what is in its layers too
        for part in body.modules():
            if type(part).__name__ in kinds and id(part) not in inside:
                layers.setdefault(id(part), body)
                inside |= {id(inner) for inner in part.modules()}
    for part in parts:
        if isinstance(part, PerceptionBlock) and block_name(part) in LAYERED:
            layers |= {id(layer): None for layer in part.layers}  # type: ignore[union-attr, arg-type]
        if type(part).__name__ in units:
            layers.setdefault(id(part), None)
    return layers
