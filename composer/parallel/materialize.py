"""Compose a model that no process could hold: node by node it gets weights, is sharded, and the rest is let go.

A body of transformers goes layer by layer. A network whose critic has a target, an ensemble and a user's class are
whole for a moment, one after the other. An action model of a folder is read layer by layer; one that draws its weights
is whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from composer.build.construction import allocate, chosen_seed
from composer.build.parts_of_spec import prepare_parts
from composer.critic.targets import Targeted
from composer.errors import Problems
from composer.model import Model
from composer.model import compose as compose_whole
from composer.parallel.launch import Mesh, start
from composer.parallel.layout import modules_below, roots_of
from composer.parallel.plan import Given
from composer.parallel.sharding import Sharder, shard
from perception_blocks.base_block import PerceptionBlock, seed_from

__all__ = ["compose"]


def compose(spec: Any, env: Any = None, **as_compose: Any) -> Model:
    """What `composer.compose` gives with the same arguments, its parameters spread over the processes.

    The key ``parallel:`` of the spec says how. No process holds the whole model. Every process calls this; without a
    ``seed`` it is the first one's. In a process that torchrun has not started the model is whole.
    """
    if "device" in as_compose:
        raise ValueError(
            "the device is that of the processes; composer.parallel.start(backend) chooses it"
        )
    return compose_by(None, spec, env, **as_compose)


def compose_by(plan: Given, spec: Any, env: Any = None, **as_compose: Any) -> Model:
    """`compose` by another ``plan`` than the spec's."""
    mesh = start()
    seed = _common_seed(mesh, as_compose.pop("seed", None))
    model = compose_whole(spec, env, device="meta", seed=seed, **as_compose)
    if model.spec.weights:
        raise ValueError(
            "'weights' are read in one process; compose the model with composer.compose, save it, and load it here "
            "with composer.parallel.load(path)"
        )
    if not isinstance(model, Model):
        return _action_model(model, mesh, plan)
    sharder = Sharder(model, mesh, plan)
    if mesh.backend is None:
        model.materialize(mesh.device)
    else:
        _give_weights(model, mesh.device, sharder)
    sharder.finish()
    return model


def _common_seed(mesh: Mesh, given: Any) -> int:
    """The seed of the first process. Raises ValueError where another one was given here."""
    mine = chosen_seed(given)
    seed = mesh.agreed(mine)
    if given is not None and seed != mine:
        raise ValueError(
            f"the seed is {mine} in process {mesh.rank}, and {seed} in the first; give all of them the same one"
        )
    return seed


def _action_model(model: Any, mesh: Mesh, plan: Given) -> Any:
    """An action model: where its weights are in a folder, each process reads one layer after the other."""
    if mesh.backend is None or not model.prepare_parts():
        return shard(model.materialize(mesh.device), mesh, plan)
    sharder = Sharder(model, mesh, plan)
    for layer in sharder.layers:
        model.materialize_part(layer, mesh.device)
        sharder.shard_in(layer)
    model.materialize_rest(mesh.device)
    sharder.finish()
    return model


def _give_weights(model: Model, device: torch.device, sharder: Sharder) -> None:
    """As `Model.materialize` does, in stages."""
    dtype: torch.dtype = model.policy.dtype
    stages = _ShardingStages(model, device, dtype, sharder)
    for construction in model._constructions:
        construction.materialize(device, dtype, stages)
    model.policy.reset_distributions(model.seed)
    model._constructions = []
    prepare_parts(model, model.spec, Problems(model.source))
    if device.type != "cpu" or dtype != torch.get_default_dtype():
        model.to(device=device, dtype=dtype)


class _ShardingStages:
    """Shards each node as soon as it has weights, where nothing has to read them whole later."""

    def __init__(
        self, model: Model, device: torch.device, dtype: torch.dtype, sharder: Sharder
    ) -> None:
        parts = [part for part in (model.policy, model.critic) if part is not None]
        # A target is a copy that is made of the whole critic.
        free = [p for p in parts if not (isinstance(p, Targeted) and p.has_target)]
        roots = [root for part in free for root in roots_of(part)]
        self._free = {id(module) for root in roots for module in modules_below(root)}
        self._device, self._dtype, self._sharder = device, dtype, sharder

    def draws(self, block: PerceptionBlock, generator: torch.Generator) -> bool:
        """Give a body of transformers its weights layer by layer."""
        if id(block) not in self._free or not hasattr(block, "layer_names"):
            return False
        body: Any = block
        seed, names = seed_from(generator), body.layer_names()
        for name in names:
            layer = body.body.get_submodule(name)
            allocate(layer, self._device)
            body.reset_part(name, seed)
            self._sharder.shard_in(layer.to(dtype=self._dtype))
        with body.without(names):
            allocate(body, self._device)
        body.reset_part("", seed, without=names)
        with body.without(names):
            body.to(dtype=self._dtype)
        return True

    def ready(self, module: nn.Module) -> None:
        if id(module) in self._free:
            self._sharder.shard_in(module)
