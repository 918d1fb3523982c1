"""How a composed model's modules come to be: weights that depend on the seed and on the node's own name only.

Blocks that can draw their weights later are built on the meta device, so that a whole model is checked before a
single weight exists. All other modules (a user's own classes) get their weights from their constructor, which then
runs under a seed of its own; torch's global generator does not move.
"""

from __future__ import annotations

import contextlib
import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from composer.build.budget import Budget, CountingMode, LimitReached, not_allocated, too_large
from composer.errors import Path as SpecPath
from composer.network.network import Network
from composer.network.registries import REGISTRIES
from composer.spec.places import NodePath
from perception_blocks.base_block import PerceptionBlock, is_built_in
from perception_blocks.graph.built import BuiltModule, ModuleKey
from perception_blocks.graph.construct import Construction
from perception_blocks.graph.wiring import NodeError
from perception_blocks.init import Rule, derive_seed, draw_parameters, local_generator
from perception_blocks.measure import MetaMode
from perception_blocks.random_states import random_states_kept
from perception_blocks.words import listing

__all__ = ["BuiltNetwork", "SeededConstruction", "Stages", "allocate", "chosen_seed", "on_cpu"]
__all__ += ["refuse_too_large"]


def chosen_seed(seed: Any) -> int:
    """``seed`` as a plain number; None draws one from torch's global generator. Raises ValueError for anything else."""
    if seed is None:
        return int(torch.randint(2**62, (), device="cpu"))
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(f"seed is a whole number or None, got {seed!r}") from None


def on_cpu() -> contextlib.AbstractContextManager[object]:
    """Tensors are made on the CPU, whatever torch's default device is: there, generators may be others."""
    if torch.get_default_device().type == "cpu":
        return contextlib.nullcontext()  # torch.device slows every call down
    return torch.device("cpu")


OnBuilt: TypeAlias = Callable[[SpecPath, NodePath, BuiltModule], None]


class Stages(Protocol):
    """What follows as the modules of a network get their weights, one after the other."""

    def draws(self, block: PerceptionBlock, generator: torch.Generator) -> bool:
        """Whether it gave ``block`` weights itself, drawn from ``generator`` as they would have been."""
        ...

    def ready(self, module: nn.Module) -> None:
        """Called once ``module``, that of a node or a user's network, has its weights."""
        ...


class SeededConstruction(Construction):
    """Builds one network, called ``name``, from ``seed``; `materialize` gives it weights.

    With ``meta`` nothing is allocated: users' classes are constructed on the meta device too, where they allow it.
    ``where`` turns a node's path into the words of a note on an exception, ``place`` into its path in the spec;
    ``on_built`` gets each node that is built, with that path and the one below the model.
    Raises LimitReached where there is more to be built than ``budget`` allows.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        *,
        meta: bool,
        where: Callable[[NodePath], str],
        place: Callable[[NodePath], SpecPath],
        budget: Budget,
        on_built: OnBuilt | None = None,
    ) -> None:
        self.name = name
        self.seed = seed
        self.meta = meta
        self.budget = budget
        self._where = where
        self._place = place
        self._on_built = on_built
        self._blocks: dict[NodePath, PerceptionBlock] = {}
        self._others: dict[NodePath, tuple[nn.Module, Callable[[], nn.Module]]] = {}
        self._rules: dict[NodePath, Rule] = {}
        self._copies: list[SeededConstruction] = []
        self._actions: list[Callable[[], None]] = []

    def build(
        self,
        path: NodePath,
        factory: Callable[[], nn.Module],
        *,
        resettable: bool,
        key: ModuleKey,
    ) -> nn.Module:
        try:
            self.budget.add_node()
            if resettable:
                with MetaMode(self.budget.add_tensor):
                    block = factory()
                assert isinstance(block, PerceptionBlock)
                self._blocks[path] = block
                return block
            make = self._on_meta if self.meta else self._seeded
            module = make(path, factory, self.budget)
            self._others[path] = (module, factory)
            return module
        except LimitReached as reached:
            raise reached.at(self._named(path), self._place(path)) from None

    def note(self, path: NodePath, built: BuiltModule) -> None:
        if self._on_built is not None:
            self._on_built(self._place(path), (self.name, *path), built)

    def draw(self, path: NodePath, module: nn.Module, rule: Rule) -> None:
        self._rules[path] = rule
        draw_parameters(module, derive_seed(self.seed, self.name, *path), rule)

    def copy(self, path: NodePath, index: int) -> SeededConstruction:
        """A copy's weights are those of a single network of that name, composed with the seed derived here."""
        inner = self._again(
            seed=derive_seed(self.seed, self.name, *path, index),
            where=lambda inner: self.where((*path, *inner)),
            place=lambda inner: self._place((*path, *inner)),
            on_built=self._on_built if index == 0 else None,
        )
        self._copies.append(inner)
        return inner

    def trial(self) -> SeededConstruction:
        """To build the same network only to see whether it can be built."""
        return self._again(meta=True)

    def _again(self, **changes: Any) -> SeededConstruction:
        """A construction of nothing yet, with ``changes`` to the arguments of this one."""
        return type(self)(**{**self._arguments(), **changes})

    def _arguments(self) -> dict[str, Any]:
        return {
            "name": self.name, "seed": self.seed, "meta": self.meta,
            "where": self._where, "place": self._place, "budget": self.budget,
            "on_built": self._on_built,
        }  # fmt: skip

    def when_weights_exist(self, action: Callable[[], None]) -> None:
        self._actions.append(action)

    def where(self, path: NodePath) -> str:
        return self._where(path)

    def materialize(
        self, device: torch.device, dtype: torch.dtype, stages: Stages | None = None
    ) -> None:
        """Give every module weights on ``device``; the objects stay the same. ``stages`` follow node by node."""
        for path, (module, factory) in self._others.items():
            if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
                fresh = self._seeded(path, factory, Budget(self.budget.limits))
                if path in self._rules:
                    self.draw(path, fresh, self._rules[path])
                _take_over(module, fresh.to(device=device, dtype=dtype))
            elif not _is_there(module, device, dtype):  # else a move changes nothing but attributes
                module.to(device=device, dtype=dtype)
            if stages is not None:
                stages.ready(module)
        for path, block in self._blocks.items():
            generator = local_generator(self.seed, self.name, *path)
            if stages is None or not stages.draws(block, generator):
                self._draw(path, block, generator, device, dtype)
            if stages is not None:
                stages.ready(block)
        for inner in self._copies:
            inner.materialize(device, dtype)
        for action in self._actions:
            action()

    def _draw(
        self,
        path: NodePath,
        block: PerceptionBlock,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        dtypes = self._allocated(path, block, device)
        if not is_built_in(block):  # a user's may forget a parameter; ours are tested for it
            _poison(block)
        block.reset_parameters(generator)
        if not is_built_in(block):
            _refuse_undrawn(block, self.where(path))
        if any(kind.is_floating_point and kind != dtype for kind in dtypes):
            block.to(dtype=dtype)

    def _allocated(
        self, path: NodePath, block: PerceptionBlock, device: torch.device
    ) -> set[torch.dtype]:
        try:
            return allocate(block, device)
        except (RuntimeError, MemoryError) as error:
            reached = not_allocated(sum(tensor.nbytes for tensor in block.parameters()))
            raise reached.at(self._named(path), self._place(path)) from error

    def sizes(self, dtype: torch.dtype) -> Iterator[tuple[int, str, SpecPath]]:
        """How many bytes each node will take that has no weights yet, its name, and its place in the spec."""
        others = {path: module for path, (module, _) in self._others.items()}
        for path, module in {**self._blocks, **others}.items():
            tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_meta]
            floating = dtype.itemsize
            size = sum(
                t.numel() * (floating if t.is_floating_point() else t.itemsize) for t in tensors
            )
            yield size, self._named(path), self._place(path)
        for inner in self._copies:
            yield from inner.sizes(dtype)

    def _named(self, path: NodePath) -> str:
        return "/".join((self.name, *path))

    def _seeded(
        self, path: NodePath, factory: Callable[[], nn.Module], budget: Budget
    ) -> nn.Module:
        counting = CountingMode(budget, budget.memory_of(torch.device("cpu")))
        with random_states_kept(derive_seed(self.seed, self.name, *path)), counting:
            return factory()

    def _on_meta(
        self, path: NodePath, factory: Callable[[], nn.Module], budget: Budget
    ) -> nn.Module:
        try:
            with (
                random_states_kept(0),
                CountingMode(budget),
                torch.device("meta"),
                _silent_loading(),
            ):
                return factory()
        except (NodeError, Warning):  # which have nothing to do with its weights
            raise
        except Exception:  # a constructor that looks at its weights: it needs real ones
            return self._seeded(path, factory, budget)


BuiltNetwork: TypeAlias = tuple[Network, SeededConstruction]


def refuse_too_large(
    constructions: Sequence[SeededConstruction], device: torch.device, dtype: torch.dtype
) -> None:
    """Raise LimitReached unless the weights of all nodes fit into the memory of ``device``."""
    budget = constructions[0].budget
    memory = budget.memory_of(device)
    if memory is None or 2 * budget.bytes <= memory:  # the sizes of all tensors take time to add up
        return
    nodes = [node for construction in constructions for node in construction.sizes(dtype)]
    needed = sum(size for size, _, _ in nodes)
    if needed > memory:
        size, name, place = max(nodes)
        raise too_large(size, memory, needed).at(name, place)


class _LoadedInVain(threading.local):
    """The pattern of a filter of warnings, which matches only in threads that construct on the meta device.

    There, torch warns of each weight that a constructor loads, as it is not kept. Once there are weights it is.
    """

    active = False

    def match(self, text: str) -> bool:
        return self.active and "copying from a non-meta parameter" in text


_LOADED_IN_VAIN = _LoadedInVain()
_FILTER: Any = ("ignore", _LOADED_IN_VAIN, UserWarning, None, 0)


@contextlib.contextmanager
def _silent_loading() -> Iterator[None]:
    """No warnings about weights that are loaded on the meta device; the filter stays and is idle outside.

    `warnings.catch_warnings` would replace the filters of all threads.
    """
    if _FILTER not in warnings.filters:
        warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
    before, _LOADED_IN_VAIN.active = _LOADED_IN_VAIN.active, True
    try:
        yield
    finally:
        _LOADED_IN_VAIN.active = before


def _is_there(module: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    return all(
        tensor.device == device and (tensor.dtype == dtype or not tensor.is_floating_point())
        for tensor in (*module.parameters(), *module.buffers())
    )


def allocate(block: nn.Module, device: torch.device) -> set[torch.dtype]:
    """Memory for all tensors of ``block``, and their dtypes: what torch's ``to_empty`` does in three times the time.

    Modules that have something to add to a move (``_apply``) are asked to.
    """
    dtypes = set()

    def memory(t: Tensor) -> Tensor:
        dtypes.add(t.dtype)
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)

    for module in reversed(list(block.modules())):  # inner ones before those that hold them
        if type(module)._apply is not nn.Module._apply:
            module._apply(memory, recurse=False)
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = nn.Parameter(memory(parameter), parameter.requires_grad)
                module._parameters[name] = fresh
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = memory(buffer)
    return dtypes


def _take_over(module: nn.Module, fresh: nn.Module) -> None:
    """Make ``module`` what ``fresh`` is, in place: others hold it, and hold its registries. What is frozen stays so."""
    frozen = {name for name, tensor in module.named_parameters() if not tensor.requires_grad}
    for name, value in vars(fresh).items():
        if name in REGISTRIES:
            vars(module)[name].update(value)
        else:
            vars(module)[name] = value
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def _poison(block: PerceptionBlock) -> None:
    """Memory that no one wrote must never become a weight: NaN shows which parameters were not drawn."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(float("nan"))


def _refuse_undrawn(block: PerceptionBlock, where: str) -> None:
    lost = [name for name, tensor in block.named_parameters() if torch.isnan(tensor).any()]
    if lost:
        raise ValueError(f"{where}: reset_parameters does not draw {listing(lost)}")
