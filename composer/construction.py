"""How a composed model's modules come to be: weights that depend on the seed and on the node's own name only.

Blocks that can draw their weights later are built on the meta device, so that a whole model is checked before a
single weight exists. All other modules (a user's own classes) get their weights from their constructor, which then
runs under a seed of its own; torch's global generator does not move.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from composer.network import REGISTRIES
from composer.tree import listing
from perception_blocks.block import PerceptionBlock, is_built_in
from perception_blocks.construct import Construction
from perception_blocks.init import (
    Rule,
    derive_seed,
    draw_parameters,
    local_generator,
    random_states_kept,
)
from perception_blocks.meta import MetaMode

__all__ = ["SeededConstruction", "chosen_seed", "on_cpu"]

NodePath = tuple[str, ...]


def chosen_seed(seed: Any) -> int:
    """``seed`` as a plain number; None draws one from torch's global generator. Raises ValueError for anything else."""
    if seed is None:
        return int(torch.randint(2**62, (), device="cpu"))
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(f"seed is a whole number or None, got {seed!r}") from None


def on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Tensors are made on the CPU, whatever torch's default device is: there, generators may be others."""
    if torch.get_default_device().type == "cpu":
        return contextlib.nullcontext()  # torch.device slows every call down
    return torch.device("cpu")


class SeededConstruction(Construction):
    """Builds one network, called ``name``, from ``seed``; `materialize` gives it weights.

    With ``meta`` nothing is allocated: users' classes are constructed on the meta device too, where they allow it.
    ``where`` turns a node's path into the words of a note on an exception.
    """

    def __init__(
        self, name: str, seed: int, *, meta: bool, where: Callable[[NodePath], str]
    ) -> None:
        self.name = name
        self.seed = seed
        self.meta = meta
        self._where = where
        self._blocks: dict[NodePath, PerceptionBlock] = {}
        self._others: dict[NodePath, tuple[nn.Module, Callable[[], nn.Module]]] = {}
        self._rules: dict[NodePath, Rule] = {}
        self._copies: list[SeededConstruction] = []
        self._actions: list[Callable[[], None]] = []

    def build(
        self, path: NodePath, factory: Callable[[], nn.Module], *, resettable: bool
    ) -> nn.Module:
        if resettable:
            with MetaMode():
                block = factory()
            assert isinstance(block, PerceptionBlock)
            self._blocks[path] = block
            return block
        module = self._on_meta(path, factory) if self.meta else self._seeded(path, factory)
        self._others[path] = (module, factory)
        return module

    def draw(self, path: NodePath, module: nn.Module, rule: Rule) -> None:
        self._rules[path] = rule
        draw_parameters(module, derive_seed(self.seed, self.name, *path), rule)

    def copy(self, path: NodePath, index: int) -> SeededConstruction:
        """A copy's weights are those of a single network of that name, composed with the seed derived here."""
        seed = derive_seed(self.seed, self.name, *path, index)
        inner = SeededConstruction(
            self.name, seed, meta=self.meta, where=lambda inner: self.where((*path, *inner))
        )
        self._copies.append(inner)
        return inner

    def trial(self) -> SeededConstruction:
        """To build the same network only to see whether it can be built."""
        return SeededConstruction(self.name, self.seed, meta=True, where=self._where)

    def when_weights_exist(self, action: Callable[[], None]) -> None:
        self._actions.append(action)

    def where(self, path: NodePath) -> str:
        return self._where(path)

    def materialize(self, device: torch.device, dtype: torch.dtype) -> None:
        """Give every module weights on ``device``; the objects stay the same."""
        for path, (module, factory) in self._others.items():
            if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
                fresh = self._seeded(path, factory)
                if path in self._rules:
                    self.draw(path, fresh, self._rules[path])
                _take_over(module, fresh.to(device=device, dtype=dtype))
            elif not _is_there(module, device, dtype):  # else a move changes nothing but attributes
                module.to(device=device, dtype=dtype)
        for path, block in self._blocks.items():
            dtypes = _allocate(block, device)
            if not is_built_in(block):  # a user's may forget a parameter; ours are tested for it
                _poison(block)
            block.reset_parameters(local_generator(self.seed, self.name, *path))
            if not is_built_in(block):
                _refuse_undrawn(block, self.where(path))
            if any(kind.is_floating_point and kind != dtype for kind in dtypes):
                block.to(dtype=dtype)
        for inner in self._copies:
            inner.materialize(device, dtype)
        for action in self._actions:
            action()

    def _seeded(self, path: NodePath, factory: Callable[[], nn.Module]) -> nn.Module:
        with random_states_kept(derive_seed(self.seed, self.name, *path)):
            return factory()

    def _on_meta(self, path: NodePath, factory: Callable[[], nn.Module]) -> nn.Module:
        try:
            with random_states_kept(0), torch.device("meta"):
                return factory()
        except Exception:  # a constructor that looks at its weights: it needs real ones
            return self._seeded(path, factory)


def _is_there(module: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    return all(
        tensor.device == device and (tensor.dtype == dtype or not tensor.is_floating_point())
        for tensor in (*module.parameters(), *module.buffers())
    )


def _allocate(block: nn.Module, device: torch.device) -> set[torch.dtype]:
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
    """Make ``module`` what ``fresh`` is, in place: others hold it, and hold its registries."""
    for name, value in vars(fresh).items():
        if name in REGISTRIES:
            vars(module)[name].update(value)
        else:
            vars(module)[name] = value


def _poison(block: PerceptionBlock) -> None:
    """Memory that no one wrote must never become a weight: NaN shows which parameters were not drawn."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(float("nan"))


def _refuse_undrawn(block: PerceptionBlock, where: str) -> None:
    lost = [name for name, tensor in block.named_parameters() if torch.isnan(tensor).any()]
    if lost:
        raise ValueError(f"{where}: reset_parameters does not draw {listing(lost)}")
