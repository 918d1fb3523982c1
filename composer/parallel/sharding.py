"""A model's parameters spread over processes by FSDP2: what is sharded by itself, in which order, and what is not.

The root of FSDP2 is the module of a network, which every use of a policy or critic calls; a policy itself is passed by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from composer.checkpoint.container import CheckpointError, write_file
from composer.checkpoint.file import record_of
from composer.critic.targets import Targeted
from composer.distributions.joint import ActionDistributions
from composer.errors import Problems
from composer.model import Model
from composer.network.registries import RegistryView
from composer.network.sharded import mark_sharded
from composer.parallel.calls import recomputed, return_no_views, returning_no_views
from composer.parallel.launch import Mesh, start
from composer.parallel.layout import (
    layers_in,
    modules_below,
    named_tensors,
    nodes_in,
    places_of,
    roots_of,
    whole_tensor,
)
from composer.parallel.plan import Given, Plan, place, plan_of
from composer.parallel.tensor import bodies_of, split_layer, why_not_split
from composer.source.load import Source
from perception_blocks.blocks.scale import NormalizeBlock
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.inference import InferenceBlock
from perception_blocks.words import hint

__all__ = ["Sharder", "Sharding", "optimizer", "refuse_together", "shard", "write_whole"]

M = TypeVar("M", bound=nn.Module)
METHODS = ("generate", "predict_tokens", "packed")  # ways to use a module that are no call of it


def shard(model: M, mesh: Mesh | None = None, plan: Given = None) -> M:
    """Spread the parameters of ``model``, which has weights, over the processes; in place.

    Every process calls this with the same model; the weights are those of the first process. ``plan`` is what
    ``parallel:`` in a spec is, and by default that of the model's spec. In a process that torchrun has not started the
    model stays whole. Raises SpecError for a plan that fits neither the processes nor the model.
    """
    mesh = mesh or start()
    sharder = Sharder(model, mesh, plan)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "this model has no weights yet; call model.materialize() first, or use composer.parallel.compose"
        )
    model.to(mesh.device)
    if mesh.backend is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.contiguous()  # a stack may lie transposed
            dist.broadcast(tensor.data, 0)
    sharder.finish()
    return model


def optimizer(model: nn.Module, cls: Callable[..., Optimizer], **settings: Any) -> Optimizer:
    """``cls`` over the parameters of ``model`` as they lie on this process; frozen ones are left out."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = [[p for p in trained if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    # One group for each kind: an optimizer computes the parameters of a group together, and these do not mix.
    return cls([{"params": group} for group in kinds if group], **settings)


# --- sharding ---------------------------------------------------------------------------------------------------------


class Sharder:
    """Shards the parts of ``model`` one by one, and at last what is left.

    Raises SpecError where ``plan`` does not fit the processes or the model.
    """

    def __init__(self, model: Any, mesh: Mesh, plan: Given = None) -> None:
        source: Source | None = None
        if getattr(model, "_sharding", None) is not None:
            raise ValueError("this model is sharded already")
        if plan is None and hasattr(model, "spec"):  # a Model, or an action model
            source, plan = model.source, model.spec.parallel
        self.model, self.mesh = model, mesh
        self.plan = plan_of(plan, mesh.size, source)
        self._survey()
        _check(model, self.plan, self._layers, Problems(source))
        self._whole = {
            parameter
            for module in model.modules()
            if isinstance(module, ActionDistributions)
            for parameter in module.parameters()
        }
        self._sharding = None
        if mesh.backend is not None:
            self._sharding = Sharding(model, mesh, self.plan)

    def _survey(self) -> None:
        """Look where the roots, the layers and the nodes are."""
        self.roots = roots_of(self.model)
        self._layers = layers_in(self.roots, self.plan.units)
        self._nodes = {node for root in self.roots for node in nodes_in(root)}

    @property
    def layers(self) -> list[nn.Module]:
        """The layers that are sharded by themselves, inner ones first."""
        below = [part for root in self.roots for part in modules_below(root)]
        return [part for part in below if id(part) in self._layers]

    def shard_in(self, module: nn.Module) -> None:
        """Shard the units in ``module``, itself included; those that are sharded already stay."""
        for part in modules_below(module):
            is_layer = id(part) in self._layers
            if isinstance(part, FSDPModule) or not (is_layer or id(part) in self._nodes):
                continue  # an inner part of a unit, or one that was sharded as it got its weights
            if is_layer:
                self._prepare_layer(part)
            if self._sharding is not None and next(part.parameters(), None) is not None:
                self._shard(part, self._precision(part, is_inner=is_layer))

    def _prepare_layer(self, layer: nn.Module) -> None:
        """What comes before a layer is sharded."""
        body = self._layers[id(layer)]
        if self.plan.gradient_checkpointing:
            vars(layer)["forward"] = recomputed(layer.forward)
        if self.plan.tensor > 1 and body is not None and not why_not_split(body, self.plan.tensor):
            split_layer(body, layer, self._grid["tensor"])

    def finish(self) -> None:
        """Shard what is left, roots last."""
        self._survey()  # with weights there are new targets, and new modules in a user's class
        for root in self.roots:
            self._finish_root(root)
        if self._sharding is None:
            return
        self._average_whole()
        for module in self.model.modules():
            if isinstance(module, NormalizeBlock):
                module.group = self._grid["data"].get_group()  # the others have the same values
            if isinstance(module, RegistryView) or hasattr(module, "checkpoint_about"):
                mark_sharded(module)
        if hasattr(self.model, "checkpoint_about"):
            vars(self.model)["_sharding"] = self._sharding

    def _finish_root(self, root: nn.Module) -> None:
        targets = {
            id(module._modules["target"])
            for module in self.model.modules()
            if isinstance(module, Targeted) and module.has_target
        }
        children = dict(root._modules)
        # A target is a root of its own, called before and after this one: it is away while this root looks for parts.
        for name, child in children.items():
            if id(child) in targets:
                del root._modules[name]
        self.shard_in(root)
        if self._sharding is not None:
            if not isinstance(root, FSDPModule):
                self._shard(root, self._precision_of_root(root))
            root._get_fsdp_state()._lazy_init()  # type: ignore[operator]
        root._modules.clear()
        root._modules.update(children)

    @property
    def _grid(self) -> DeviceMesh:
        return self.mesh.grid(self.plan.data, self.plan.tensor)

    def _shard(self, module: nn.Module, precision: MixedPrecisionPolicy) -> None:
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor) and not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
        offload = self.plan.offload and self.mesh.device.type == "cuda"
        module.register_forward_hook(return_no_views)  # comes before what fully_shard registers
        fully_shard(
            module,
            mesh=self._grid["data"],
            reshard_after_forward=True,  # else parameters() gives whole tensors after a call, which no step changes
            mp_policy=precision,
            offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy(),
            ignored_params=self._whole,
        )
        for name in METHODS:
            if hasattr(type(module), name):
                vars(module)[name] = returning_no_views(getattr(module, name))
                register_fsdp_forward_method(module, name)

    def _precision(self, module: nn.Module, *, is_inner: bool = False) -> MixedPrecisionPolicy:
        """Of a unit; what a node gives is of the model's dtype, what goes from layer to layer is not."""
        narrow = self.plan.param_dtype
        if narrow is None or any(isinstance(part, EnsembleBlock) for part in module.modules()):
            return MixedPrecisionPolicy()  # nothing casts the inputs of a network in a stack
        dtype = None if is_inner else self._dtype
        return MixedPrecisionPolicy(narrow, self.plan.reduce_dtype, dtype)

    def _precision_of_root(self, root: nn.Module) -> MixedPrecisionPolicy:
        is_graph = isinstance(root, InferenceBlock)  # its nodes have all parameters
        return MixedPrecisionPolicy() if is_graph else self._precision(root)

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.policy.dtype if isinstance(self.model, Model) else torch.float32

    def _average_whole(self) -> None:
        """Average the gradients of parameters that stay whole: few, and read outside of any call."""
        if self.plan.data == 1:
            return
        group = self._grid["data"].get_group()

        def average(parameter: Tensor) -> None:
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad.div_(self.plan.data)

        for parameter in self.model.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.register_post_accumulate_grad_hook(average)


class Sharding:
    """What is known of a sharded model: its ``mesh``, its ``plan``, and what a checkpoint of it says.

    ``places`` says of each tensor of the state_dict where its numbers are.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, plan: Plan) -> None:
        self.model, self.mesh, self.plan = model, mesh, plan
        self.places = places_of(model)
        self._record = _record_of(model)

    @property
    def record(self) -> Mapping[str, Any]:
        """Raises CheckpointError if something in the spec has no name by which it can be loaded."""
        if isinstance(self._record, CheckpointError):
            raise self._record
        return self._record

    def save(self, path: str | Path) -> None:
        """Write what `Model.save` writes: gathered, by the first process."""
        record = self.record
        whole: dict[str, Tensor] = {}
        for name, tensor in named_tensors(self.model).items():
            gathered = whole_tensor(tensor)
            if self.mesh.is_first:
                whole[name] = gathered.cpu()
        failed = None
        if self.mesh.is_first:
            try:
                write_whole(path, whole, self.places, record)
            except CheckpointError as error:
                failed = error
        refuse_together(
            self.mesh, failed, f"{str(path)!r} could not be written by the first process"
        )


def _record_of(model: nn.Module) -> Mapping[str, Any] | CheckpointError:
    if not hasattr(model, "checkpoint_about"):
        return {}
    try:
        return record_of(model, **model.checkpoint_about())  # type: ignore[operator]
    except CheckpointError as error:
        return error


def write_whole(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    places: Mapping[str, tuple[str, int | None]],
    record: Mapping[str, Any],
) -> None:
    """The file that `Model.save` writes, from the `named_tensors` of a model."""
    state: dict[str, Tensor] = {}
    first: dict[tuple[str, int | None], str] = {}
    tied: dict[str, str] = {}
    for key, (name, row) in places.items():
        stored = first.setdefault((name, row), key)
        if stored == key:
            state[key] = tensors[name] if row is None else tensors[name][row]
        else:
            tied[key] = stored
    write_file(path, state, {**record, "tied": tied})


def refuse_together(mesh: Mesh, failed: Exception | None, elsewhere: str) -> None:
    """Raise ``failed`` here, and CheckpointError, which says what happened ``elsewhere``, on the other processes."""
    (any_failed,) = mesh.largest([float(failed is not None)])
    if failed is not None:
        raise failed
    if any_failed:
        raise CheckpointError(elsewhere)


# --- what a plan asks of a model --------------------------------------------------------------------------------------


def _check(model: nn.Module, plan: Plan, layers: Mapping[int, Any], problems: Problems) -> None:
    """Raise SpecError with everything in ``plan`` that ``model`` cannot do."""
    known = {
        type(part).__name__ for part in model.modules() if next(part.parameters(), None) is not None
    }
    for index, name in enumerate(plan.units):
        if name not in known:
            near = hint(name, sorted(known))
            problems.add(place("units", index), f"no module of this model is a {name!r}{near}")
    if plan.tensor > 1:
        bodies = {id(body): body for body in bodies_of(model)}.values()
        reasons = [why_not_split(body, plan.tensor) for body in bodies]
        if not bodies:
            reasons = ["there is no body of transformers in this model"]
        if all(reasons):
            shown = "; ".join(dict.fromkeys(filter(None, reasons)))
            problems.add(
                place("tensor"), f"'tensor' splits the layers of llama and its like: {shown}"
            )
    if plan.gradient_checkpointing and not layers:
        message = (
            "there are no layers in this model to recompute; name classes of layers in 'units'"
        )
        problems.add(place("gradient_checkpointing"), message)
    problems.raise_if_any()
