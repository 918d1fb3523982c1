"""A network in which heads read what other heads have drawn: it runs in stages, with draws between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from composer.network.network import Network, Tensors
from perception_blocks.graph.assemble import BuiltNode
from perception_blocks.inference import InferenceBlock

__all__ = ["AutoregressiveNetwork", "levels_of"]

T = TypeVar("T")


def levels_of(nodes: Sequence[BuiltNode], drawn: Mapping[str, str]) -> dict[str, int]:
    """Of each value that the ``nodes`` write, how many draws come before it, one after another.

    ``nodes`` stand in order; ``drawn`` maps the values of heads to the inputs that their actions are.
    """
    levels: dict[str, int] = {}
    for node in nodes:
        level = _level(node, levels)
        for value in filter(None, node.step.outputs):
            levels[value] = level
            if value in drawn:
                levels[drawn[value]] = level + 1
    return levels


class AutoregressiveNetwork(Network):
    """A network of blocks whose later heads read actions of earlier ones, as vectors ``action/<name>``.

    `run` and `advance` are its first stage: they return the logits of the heads that read no action, shared values, and
    the values that later stages go on from (``carried``: output name -> value of the graph). `start` and `advanced`
    compute the others. All its memory is in the first stage. Each node runs once.
    """

    def __init__(self, block: InferenceBlock, drawn: Mapping[str, str]) -> None:
        """``drawn`` maps the values of heads in ``block`` to the inputs that their actions are."""
        self.module = block
        inputs = {value: name for value, name in drawn.items() if name in block.in_ports}
        self.drawn = inputs
        self.in_ports = {n: p for n, p in block.in_ports.items() if n not in inputs.values()}
        self.out_ports = block.out_ports
        self.state_shapes = block.state_shapes
        levels = levels_of(block.nodes, inputs)
        heads = {name: value for name, value in block.outputs.items() if value in drawn}
        last = max(levels[value] for value in heads.values())
        # Heads by the stage in which they are drawn, and their actions that are read.
        stages = _by_stage(heads, lambda name: levels[heads[name]], last)
        self.heads = tuple(map(tuple, stages))
        self.read = {name: inputs[value] for name, value in heads.items() if value in inputs}
        self._values = heads
        self.after = _after(block.nodes, heads, self.read)
        self._split(block, levels)

    def _split(self, block: InferenceBlock, levels: Mapping[str, int]) -> None:
        """Make the stages of ``block``."""
        last, logits = len(self.heads) - 1, {*self._values.values()}
        at = _by_stage(block.nodes, lambda node: _level(node, levels), last)
        until = {
            n: stage for stage, nodes in enumerate(at) for node in nodes for n in node.step.inputs
        }
        later = [name for nodes in at[1:] for node in nodes for name in node.step.inputs]
        carried = [v for v in dict.fromkeys(later) if levels.get(v, 0) == 0]
        first = {n: v for n, v in block.outputs.items() if levels.get(v, 0) == 0}
        self.carried = {_unused(value, block.outputs, first): value for value in carried}
        self.stages: list[Any] = [block.part(at[0], first | self.carried)]
        for stage in range(1, last + 1):
            written = [name for node in at[stage] for name in filter(None, node.step.outputs)]
            kept = [name for name in written if until.get(name, 0) > stage or name in logits]
            self.stages.append(block.part(at[stage], {name: name for name in kept}))
        self._first = {**first, **self.carried}
        self._ranks = {name: len(p.shape) for name, p in self.stages[0].out_ports.items()}

    @property
    def call(self) -> Callable[..., Any]:
        return self.stages[0]

    def start(self, outputs: Mapping[str, Tensor]) -> Tensors:
        """The values of the graph that later stages begin with, from what `run` returned."""
        return {value: outputs[name] for name, value in self._first.items()}

    def advanced(self, stage: int, values: Tensors) -> Tensors:
        """``values``, which hold the actions that it reads, and those that ``stage`` computes."""
        return values | self.stages[stage](values)

    def logits(self, head: str, values: Mapping[str, Tensor]) -> Tensor:
        """The logits of ``head``, once its stage is computed."""
        return values[self._values[head]]

    def expanded(self, values: Mapping[str, Tensor], leading: Sequence[int]) -> Tensors:
        """``values`` of the first stage, with the ``leading`` axes that theirs broadcast to."""
        expanded = {}
        for name, value in self._first.items():
            tensor, axes = values[value], self._ranks[name]
            expanded[value] = tensor.expand(*leading, *tensor.shape[tensor.dim() - axes :])
        return expanded

    def __repr__(self) -> str:
        return f"AutoregressiveNetwork({' -> '.join(map(str, self.heads))})"


def _after(
    nodes: Sequence[BuiltNode], heads: Mapping[str, str], read: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Of each head that depends on actions, the heads that draw them; ``heads`` have their values, ``read`` inputs."""
    names = {name: head for head, name in read.items()}
    of: dict[str, set[str]] = {}  # value -> heads
    for node in nodes:
        before = {names[n] for n in node.step.inputs if n in names}
        before |= {head for n in node.step.inputs for head in of.get(n, ())}
        of |= dict.fromkeys(filter(None, node.step.outputs), before)
    return {
        head: tuple(other for other in read if other in of[value])
        for head, value in heads.items()
        if of[value]
    }


def _by_stage(things: Iterable[T], stage_of: Callable[[T], int], last: int) -> list[list[T]]:
    """The things of each stage up to the ``last``; those of later ones are in none."""
    stages: list[list[T]] = [[] for _ in range(last + 1)]
    for thing in things:
        if (stage := stage_of(thing)) <= last:
            stages[stage].append(thing)
    return stages


def _level(node: BuiltNode, levels: Mapping[str, int]) -> int:
    return max((levels.get(name, 0) for name in node.step.inputs), default=0)


def _unused(value: str, *taken: Mapping[str, object]) -> str:
    """A name for ``value`` among outputs; a node may be called as an action is."""
    while any(value in names and names[value] != value for names in taken):
        value += "_"
    return value
