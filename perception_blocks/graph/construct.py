"""From a node's block and settings to its module, with the blame put where it belongs.

A wrong setting or shape is the user's and is gathered; an exception inside a user's own class passes through whole.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from perception_blocks.base_block import (
    MemoryBlock,
    PerceptionBlock,
    block_label,
    block_name,
    is_built_in,
    is_torchs,
)
from perception_blocks.blocks.custom import FunctionalBlock
from perception_blocks.graph.built import BuiltModule, ModuleKey
from perception_blocks.graph.graph import Block, BlockSource, Node
from perception_blocks.graph.wiring import CombinedNodeError, LeftOutError, NodeError, refused_call
from perception_blocks.init import Rule, draw_parameters, initializer
from perception_blocks.measure import initialize_lazy, measure, measure_lengths, output_shapes
from perception_blocks.port import InputShapeError, Port, format_shape
from perception_blocks.reading import without_lost_files
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import SettingsError, check_settings
from perception_blocks.words import did_you_mean

__all__ = [
    "Construction",
    "NodeConstruction",
    "construct",
    "outputs_of",
    "resolve_block",
    "add_place",
]

T = TypeVar("T")
_LIBRARIES = ("composer", "perception_blocks", "torch")


class Construction:
    """How modules come to be. The default constructs them as torch does; composer has one that draws from a seed."""

    def build(
        self,
        path: tuple[str, ...],
        factory: Callable[[], nn.Module],
        *,
        resettable: bool,
        key: ModuleKey,
    ) -> nn.Module:
        """The module of the node at ``path``; ``resettable`` ones can draw their weights later by themselves.

        ``key`` is what it follows from: a module that was built for an equal key would do as well.
        """
        return factory()

    def measured(self, path: tuple[str, ...], key: object, measure: Callable[[], T]) -> T:
        """What ``measure`` finds out of the module at ``path``: the same wherever ``key`` is equal."""
        return measure()

    def note(self, path: tuple[str, ...], built: BuiltModule) -> None:
        """Called once the node at ``path`` is built, whether or not the network will be."""

    def draw(self, path: tuple[str, ...], module: nn.Module, rule: Rule) -> None:
        """Draw the weights of a module that is not ours, because its node has an ``init``."""
        draw_parameters(module, int(torch.randint(2**62, ())), rule)

    def copy(self, path: tuple[str, ...], index: int) -> Construction:
        """What constructs one copy of the ensemble at ``path``; its nodes' paths begin anew."""
        return self

    def when_weights_exist(self, action: Callable[[], None]) -> None:
        """Called after the copies of an ensemble were constructed; here they have their weights already."""

    def where(self, path: tuple[str, ...]) -> str:
        """How notes on a user's own exceptions name the node."""
        return f"node {'/'.join(path)!r}"


@dataclass(slots=True)  # not frozen: there is one for each node
class NodeConstruction:
    """All that is needed to make the module of one node; ``ports`` are its inputs as the block sees them."""

    path: tuple[str, ...]
    block: Any  # an nn.Module class or a ready module
    settings: Mapping[str, object]
    ports: Sequence[Port]
    arguments: tuple[str, ...] | None  # names of what forward takes, where not positional
    construction: Construction
    init: object = None

    def call(self, module: nn.Module, *tensors: Tensor) -> object:
        """How the network calls ``module``."""
        if self.arguments is None:
            return module(*tensors)
        return module(**dict(zip(self.arguments, tensors, strict=True)))

    @property
    def key(self) -> ModuleKey:
        """What the module follows from."""
        return ModuleKey(self.block, self.settings, self.init, tuple(self.ports))

    def note(self, error: Exception) -> None:
        """Add a note to ``error`` that says where it happened."""
        where = f"{self.construction.where(self.path)} ({block_label(self.block)})"
        add_place(error, where, self.block)


def add_place(error: Exception, where: str, block: object) -> None:
    """Add a note to an ``error`` of a user's class: where that is used, and the line of Python that raised it."""
    cls = block if isinstance(block, type) else type(block)
    frames = [
        (frame.f_globals.get("__name__", ""), f"{frame.f_code.co_filename}:{line}")
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    lines = [line for name, line in frames if name == cls.__module__]
    lines = lines or [line for name, line in frames if name.partition(".")[0] not in _LIBRARIES]
    error.add_note(f"in {where}{f', raised at {lines[-1]}' if lines else ''}")


def resolve_block(
    block: BlockSource, settings: Mapping[str, object]
) -> tuple[Block, Mapping[str, object]]:
    """The class or ready module that a node names, and its settings; a function becomes a functional block.

    Raises NodeError for an unknown name; dotted text stands for ``torch.nn`` classes only.
    """
    if isinstance(block, str):
        return _by_name(block), settings
    if isinstance(block, LeftOutError):
        raise block
    if isinstance(block, Exception):  # why there is none
        raise NodeError("block", str(block))
    if isinstance(block, nn.Module) or (isinstance(block, type) and issubclass(block, nn.Module)):
        return block, settings
    if callable(block) and not isinstance(block, type):
        return FunctionalBlock, {"function": block, **settings}
    what = "a block is a name, an nn.Module class, a module or a function"
    raise NodeError("block", f"{what}, got {block!r}")


def construct(site: NodeConstruction, node: Node) -> nn.Module:
    """The module of ``node``, its weights drawn by the node's ``init`` if it has one."""
    rule = _rule(node)
    if isinstance(site.block, nn.Module):
        module = _ready(site)
    elif issubclass(site.block, PerceptionBlock):
        module = _block(site)
    else:
        module = _foreign(site)
    if rule is not None and isinstance(module, PerceptionBlock):
        module.take_initializer(rule)
        if not any(parameter.is_meta for parameter in module.parameters()):
            module.reset_parameters()
    elif rule is not None:
        site.construction.draw(site.path, module, rule)
    return module


def outputs_of(site: NodeConstruction, module: nn.Module) -> tuple[list[Port], bool]:
    """Ports of the outputs, and whether the module returns a bare tensor."""
    if isinstance(module, PerceptionBlock):
        outs = module.out_ports(site.ports)
        return outs, len(outs) == 1

    try:
        results = measure_lengths(module, site.ports, site.call)
    except Exception as error:
        if not is_torchs(site.block):
            site.note(error)
            raise
        rule = f"{block_name(module)} fails: {_reason(error)}"
        raise InputShapeError(rule, dict(enumerate(site.ports))) from error
    try:
        shapes, single = output_shapes(results, block_label(module))
    except ValueError as error:
        raise NodeError("in", str(error)) from error
    return [Port(shape) for shape in shapes], single


def _by_name(name: str) -> type[nn.Module]:
    if name in BLOCKS:
        return BLOCKS.get(name)
    if "." not in name:
        raise NodeError("block", f"unknown block {name!r}" + BLOCKS.hint(name))
    if not re.fullmatch(r"torch\.nn(\.modules)?(\.\w+)*\.\w+", name):
        hint = "from Python, give the class itself"
        raise NodeError("block", f"{name!r} is no registered block; {hint}")
    home, _, attribute = name.rpartition(".")
    with contextlib.suppress(ImportError, AttributeError):
        cls = getattr(importlib.import_module(home), attribute)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            return cls
    classes = [known for known, value in vars(torch.nn).items() if isinstance(value, type)]
    near = did_you_mean(attribute, classes)
    raise NodeError("block", f"{home!r} has no module class {attribute!r}" + near)


def _rule(node: Node) -> Rule | None:
    try:
        return initializer(node.init)
    except ValueError as error:
        raise NodeError("init", str(error)) from error


def _ready(site: NodeConstruction) -> nn.Module:
    if site.settings:
        first = min(site.settings)
        raise NodeError(first, f"a ready module takes no settings, got {first!r}", True)
    _refuse_call(site, site.block)
    return site.block


def _block(site: NodeConstruction) -> nn.Module:
    cls: type[PerceptionBlock] = site.block
    _check(site)
    built_in = is_built_in(cls)
    try:
        module = site.construction.build(
            site.path,
            _factory(site, partial(cls, [port.shape for port in site.ports])),
            resettable=built_in or "reset_parameters" in vars(cls),
            key=site.key,
        )
        module.out_shapes  # noqa: B018 - measured now, so that a failure names this node
        if isinstance(module, MemoryBlock) and not built_in:
            _check_memory(site, module)
    except (InputShapeError, NodeError, SettingsError):
        raise
    except ValueError as error:
        raise NodeError(_setting_named_in(str(error), site), str(error)) from error
    except (RuntimeError, TypeError, OverflowError) as error:
        if not built_in:
            site.note(error)
            raise
        raise NodeError(None, f"{block_label(cls)} cannot be built: {_reason(error)}") from error
    except Exception as error:
        site.note(error)
        raise
    return module


def _factory(site: NodeConstruction, make: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    """What makes the module of ``site``, with weights in its lazy layers, which its first call gives them."""

    def make_module(**settings: object) -> nn.Module:
        module = make(**settings)
        if not is_built_in(module):
            _refuse_call(site, module)
            initialize_lazy(module, site.ports, site.call)
        return module

    return without_lost_files(site.block, make_module, site.settings)


def _refuse_call(site: NodeConstruction, module: nn.Module) -> None:
    """Raise NodeError where a module that is not ours does not take what the node hands it."""
    problem = None if is_built_in(module) else refused_call(module, site.ports, site.arguments)
    if problem:
        advice = "'in' names its inputs, in order or as {argument: value}"
        raise NodeError("in", f"{block_label(module)}: {problem}; {advice}")


def _check_memory(site: NodeConstruction, block: MemoryBlock) -> None:
    """Raise NodeError unless a user's block returns the state that it declares."""
    label = block_label(block)
    if not block.state_shapes:
        return  # it read a window, and carries nothing
    _, after = measure(block, site.ports, lambda trial, x: trial(x, trial.zero_state(x)))
    if after.keys() != block.state_shapes.keys():
        declared, got = (", ".join(map(repr, keys)) for keys in (block.state_shapes, after))
        raise NodeError(None, f"{label} declares the state {declared}, but returns {got}")
    for name, shape in block.state_shapes.items():
        got = tuple(after[name].shape[1:])
        if got != tuple(shape):
            shown = f"{format_shape(shape)}, but returns {format_shape(got)}"
            raise NodeError(None, f"{label} declares the state {name!r} as {shown}")


def _check(site: NodeConstruction) -> None:
    """Inputs against what the block takes. Where they are wrong, settings that are wrong too are reported with them.

    Else the block itself checks its settings.
    """
    cls: type[PerceptionBlock] = site.block
    try:
        cls.check_ports(site.ports)
    except InputShapeError as error:
        problems = check_settings(cls, site.settings, block_label(cls))
        filled_in = set(cls.from_ports) - set(site.settings)  # the right input would bring them
        problems = [problem for problem in problems if problem.setting not in filled_in]
        raise CombinedNodeError(
            [error, SettingsError(problems)] if problems else [error]
        ) from error


def _setting_named_in(message: str, site: NodeConstruction) -> str | None:
    """The setting that a block's own message is about, by its name or its value."""
    named = [word for word in re.findall(r"\w+", message) if word in site.settings]
    shown = [name for name, value in site.settings.items() if repr(value) in message]
    return next(iter([*named, *shown]), None)


def _foreign(site: NodeConstruction) -> nn.Module:
    problems = check_settings(site.block, site.settings, block_label(site.block), skip=0)
    wrong = [p for p in problems if p.misspelt or p.setting not in site.settings]
    if wrong:
        raise SettingsError(wrong)
    try:
        factory = _factory(site, site.block)
        return site.construction.build(site.path, factory, resettable=False, key=site.key)
    except NodeError:
        raise
    except Exception as error:
        if problems:  # its annotations are right after all
            raise SettingsError(problems) from error
        if not is_torchs(site.block):  # whose own class has a bug to be seen whole
            site.note(error)
            raise
        message = f"{block_label(site.block)} cannot be built: {_reason(error)}"
        raise NodeError(None, message) from error


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].strip() or type(error).__name__
