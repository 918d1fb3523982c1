"""Integers into features: one-hot and learned vectors.

An integer input has one number of values for all its elements (Discrete), or one for each (MultiDiscrete); the graph
knows which from the space. An index outside its range is not looked for when the network runs (a policy looks at what
is not yet a tensor): one_hot gives zeros; where embedding fails on the CPU, the network says what it got.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from perception_blocks.base_block import PerceptionBlock, one_input
from perception_blocks.port import InputShapeError, Port, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import OneOrMany, PositiveInt, SettingProblem, SettingsError

__all__ = ["EmbeddingBlock", "OneHotBlock", "refuse_too_few"]

Counts: TypeAlias = int | list[int]


class IntegerBlock(PerceptionBlock):
    """What one_hot and embedding share: an input of integers, whose number of values the space knows."""

    takes = "integer"
    keeps_mask = True
    from_ports = ("num_embeddings",)
    num_embeddings: Counts

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        refuse_too_few(self.num_embeddings, in_ports)
        return super().out_ports(in_ports)


@BLOCKS.register("one_hot")
class OneHotBlock(IntegerBlock):
    """One-hot vectors of integers: ``()`` -> ``(num_embeddings,)``, ``(k,)`` -> ``(k, num_embeddings)``.

    With one number of values per element the codes are concatenated: ``(k,)`` -> ``(sum(num_embeddings),)``.

    >>> OneHotBlock([(2,)], num_embeddings=[3, 2])(torch.tensor([2, 0])).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0]
    """

    values: Tensor
    elements: Tensor | None
    unit: Tensor

    def __init__(self, in_shapes: Shapes, *, num_embeddings: OneOrMany) -> None:
        shape = one_input(in_shapes, "one_hot")
        counts = value_counts(shape, num_embeddings, "one_hot")
        side_by_side = isinstance(counts, list)
        out_shape: Shape = (sum(counts),) if side_by_side else (*shape, counts)
        super().__init__(in_shapes, out_shapes=[out_shape])
        self.num_embeddings = counts
        self.rank = len(shape)
        size = sum(counts) if side_by_side else counts
        self.register_buffer("values", torch.zeros(size, dtype=torch.int64), persistent=False)
        elements = torch.zeros(size, dtype=torch.int64) if side_by_side else None
        self.register_buffer("elements", elements, persistent=False)  # which element a place codes
        self.register_buffer("unit", torch.ones(()), persistent=False)  # knows the model's dtype
        self.fill_constants()

    def fill_constants(self) -> None:
        if self.values.is_meta:
            return  # checking allocates nothing, however many values there are
        counts = self.num_embeddings
        with torch.device("cpu"):
            if self.elements is None or isinstance(counts, int):
                self.values.copy_(torch.arange(self.values.numel()))
                return
            self.values.copy_(torch.cat([torch.arange(count) for count in counts]))
            places = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
            self.elements.copy_(places)

    def forward(self, x: Tensor) -> Tensor:
        if self.elements is None:
            return (x.unsqueeze(-1) == self.values).to(self.unit.dtype)
        x = x.flatten(-self.rank).index_select(-1, self.elements)
        return (x == self.values).to(self.unit.dtype)


@BLOCKS.register("embedding")
class EmbeddingBlock(IntegerBlock):
    """A learned vector for each value: ``(...,)`` -> ``(..., embedding_dim)``.

    With one number of values per element each element has separate vectors.

    >>> EmbeddingBlock([(2,)], num_embeddings=[3, 2], embedding_dim=8).out_shapes
    [(2, 8)]
    """

    starts: Tensor | None

    def __init__(
        self, in_shapes: Shapes, *, num_embeddings: OneOrMany, embedding_dim: PositiveInt
    ) -> None:
        shape = one_input(in_shapes, "embedding")
        counts = value_counts(shape, num_embeddings, "embedding")
        super().__init__(in_shapes, out_shapes=[(*shape, embedding_dim)])
        self.num_embeddings = counts
        rows = sum(counts) if isinstance(counts, list) else counts
        self.table = nn.Embedding(rows, embedding_dim)
        starts = torch.zeros(shape, dtype=torch.int64) if isinstance(counts, list) else None  # type: ignore[arg-type]
        self.register_buffer("starts", starts, persistent=False)  # each element's first row
        self.fill_constants()

    def fill_constants(self) -> None:
        if self.starts is not None:
            counts = torch.tensor(self.num_embeddings, device="cpu")
            self.starts.copy_((counts.cumsum(0) - counts).reshape(self.starts.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x if self.starts is None else x + self.starts)


def refuse_too_few(
    counts: Counts, in_ports: Sequence[Port], setting: str = "num_embeddings"
) -> None:
    """Raise SettingsError where the input is known to have more values than ``counts``, the ``setting``."""
    (port,) = in_ports
    needed = port.cardinality
    if needed is None:
        return
    if isinstance(counts, int) and not isinstance(needed, int):
        needed = max(needed)  # one number for all elements
    size = max(len(value) for value in (counts, needed, ()) if not isinstance(value, int)) or 1
    given, least = ([v] * size if isinstance(v, int) else v for v in (counts, needed))
    if any(n < m for n, m in zip(given, least)):
        message = f"{setting!r} must be at least {needed}, the number of values of the input"
        advice = "leave it out to take it from the space"
        problem = SettingProblem(setting, f"{message}, got {counts}; {advice}")
        raise SettingsError([problem])


def value_counts(shape: Shape, num_embeddings: int | Sequence[int], name: str) -> Counts:
    """The number of values of all elements, or one for each, as many as ``shape`` has."""
    if not isinstance(num_embeddings, Sequence):
        return int(num_embeddings)
    elements = -1 if None in shape else math.prod(shape)  # type: ignore[arg-type]
    if elements != len(num_embeddings):
        rule = f"{name} has {len(num_embeddings)} num_embeddings, one for each integer it reads"
        raise InputShapeError(rule, {0: shape}, "give as many, or one number for all")
    return [int(count) for count in num_embeddings]
