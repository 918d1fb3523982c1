"""LSTM, GRU and plain RNN: memory from step to step on a vector, a window read from a zero state on (time, F)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.base_block import MemoryBlock, State, block_name, one_input
from perception_blocks.blocks.recurrent_layers import (
    Carry,
    GruLayer,
    LstmLayer,
    RecurrentLayer,
    RnnLayer,
    check_dropout,
)
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import LayerCount, PositiveInt, Probability

__all__ = ["GruBlock", "LstmBlock", "LstmLastStepBlock", "RecurrentBlock", "RnnBlock"]


class RecurrentBlock(MemoryBlock):
    """What lstm, gru and rnn share: layers with a norm after and dropout between them. `MemoryBlock` handles resets.

    A subclass names its state and the ``layer`` that it makes from (features, hidden_units, bidirectional).
    Parameters are called ``layers.0.weight_ih_l0`` and so on.
    """

    carried: tuple[str, ...]
    layer: Callable[[int, int, bool], RecurrentLayer]

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        num_layers: LayerCount = 1,
        dropout: Probability = 0.0,
        layer_norm: bool = False,
        bidirectional: bool = False,
    ) -> None:
        name = block_name(self)
        shape = recurrent_shape(in_shapes, name)
        check_dropout(name, dropout, num_layers)
        if bidirectional and len(shape) == 1:
            rule = f"{name} cannot be bidirectional step by step"
            advice = "give it a window (time, features), or leave bidirectional out"
            raise InputShapeError(rule, {0: shape}, advice)
        width = hidden_units * (2 if bidirectional else 1)
        out_shape = self.out_shape(shape, width)
        super().__init__(in_shapes, out_shapes=[out_shape])
        sizes = [shape[-1], *[width] * (num_layers - 1)]
        self.layers = nn.ModuleList(self.layer(size, hidden_units, bidirectional) for size in sizes)
        for layer in list(self.layers)[:-1]:
            vars(layer)["gives_hidden"] = True  # what the last one gives is the block's output
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sizes) if layer_norm else None
        self.hidden_units = hidden_units
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.reads_window = len(shape) == 2
        # Padding at the end reaches no step before it.
        self.keeps_mask = len(out_shape) == len(shape) and not bidirectional
        if not self.reads_window:
            self.state_shapes = dict.fromkeys(self.carried, (num_layers, hidden_units))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> Tensor | tuple[Tensor, State]:
        return (
            self.read_window(x) if self.reads_window else super().forward(x, state, resets, unroll)
        )

    def out_shape(self, shape: Shape, width: int) -> Shape:
        """The shape of the output for an input of ``shape``. Raises InputShapeError where that is not taken."""
        return (*shape[:-1], width)

    def read_window(self, x_TF: Tensor) -> Tensor:
        """The output for a window, from a zero state."""
        return self._normed(-1, self._layers_over(x_TF, None)[0])

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        carries = []
        for index, layer in enumerate(self.layers):
            if index:
                x = self._between(index, x)
            carry = tuple(state[name].select(-2, index) for name in self.carried)
            carry = layer.step(x, carry)  # type: ignore[operator]
            carries.append(carry)
            x = carry[0]
        return self._normed(-1, x), self._packed(carries)

    def scan(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, carries = self._layers_over(x, state)
        return self._normed(-1, y), self._packed(carries)

    def _layers_over(self, x_TF: Tensor, state: State | None) -> tuple[Tensor, list[Carry]]:
        """All layers over (..., T, F), one after the other: the last one's outputs, and where each ended."""
        carries = []
        for index, layer in enumerate(self.layers):
            if index:
                x_TF = self._between(index, x_TF)
            carry = None
            if state is not None:
                carry = tuple(state[name].select(-2, index) for name in self.carried)
            x_TF, carry = layer(x_TF, carry)
            carries.append(carry)
        return x_TF, carries

    def _between(self, index: int, x: Tensor) -> Tensor:
        """The input of layer ``index``: the normed output of the layer before, after dropout."""
        return functional.dropout(self._normed(index - 1, x), self.dropout, self.training)

    def _normed(self, index: int, x: Tensor) -> Tensor:
        return x if self.norms is None else self.norms[index](x)

    def _packed(self, carries: Sequence[Carry]) -> dict[str, Tensor]:
        """Each layer's end as one state: (..., layers, hidden)."""
        if len(carries) == 1:
            return {name: part.unsqueeze(-2) for name, part in zip(self.carried, carries[0])}
        return {
            name: torch.stack(parts, dim=-2) for name, parts in zip(self.carried, zip(*carries))
        }


@BLOCKS.register("lstm")
class LstmBlock(RecurrentBlock):
    """Long short-term memory (1997): ``(F,)`` -> ``(hidden_units,)``, carrying ``h`` and ``c`` from step to step.

    On a window ``(T, F)`` it starts from zero, carries nothing and gives ``(T, hidden_units)``, or twice as many
    features where it is ``bidirectional``. ``dropout`` acts between layers, ``layer_norm`` on each layer's output.

    >>> LstmBlock([(3,)], hidden_units=4).state_shapes
    {'h': (1, 4), 'c': (1, 4)}
    >>> LstmBlock([(10, 3)], hidden_units=4).out_shapes
    [(10, 4)]
    """

    carried = LstmLayer.carried
    layer = LstmLayer


@BLOCKS.register("gru")
class GruBlock(RecurrentBlock):
    """Gated recurrent unit (2014): ``(F,)`` -> ``(hidden_units,)``, carrying ``h`` from step to step.

    On a window ``(T, F)`` it starts from zero, carries nothing and gives ``(T, hidden_units)``, or twice as many
    features where it is ``bidirectional``. ``dropout`` acts between layers, ``layer_norm`` on each layer's output.

    >>> GruBlock([(3,)], hidden_units=4, num_layers=2).state_shapes
    {'h': (2, 4)}
    """

    carried = GruLayer.carried
    layer = GruLayer


@BLOCKS.register("rnn")
class RnnBlock(RecurrentBlock):
    """Plain recurrent layers (Elman, 1990): ``(F,)`` -> ``(hidden_units,)``, carrying ``h`` from step to step.

    On a window ``(T, F)`` it starts from zero, carries nothing and gives ``(T, hidden_units)``, or twice as many
    features where it is ``bidirectional``. ``dropout`` acts between layers, ``layer_norm`` on each layer's output.

    >>> RnnBlock([(3,)], hidden_units=4).state_shapes
    {'h': (1, 4)}
    """

    carried = RnnLayer.carried

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        num_layers: LayerCount = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        dropout: Probability = 0.0,
        layer_norm: bool = False,
        bidirectional: bool = False,
    ) -> None:
        self.layer = functools.partial(RnnLayer, nonlinearity)
        super().__init__(
            in_shapes,
            hidden_units=hidden_units,
            num_layers=num_layers,
            dropout=dropout,
            layer_norm=layer_norm,
            bidirectional=bidirectional,
        )


@BLOCKS.register("lstm_last_step")
class LstmLastStepBlock(RecurrentBlock):
    """The last output of an LSTM over a window: ``(T, F)`` -> ``(hidden_units,)``, from a zero state each time.

    ``bidirectional`` adds the backward layer's own last output, which belongs to the window's first step.

    >>> LstmLastStepBlock([(10, 3)], hidden_units=4).out_shapes
    [(4,)]
    """

    carried = LstmLayer.carried
    layer = LstmLayer

    def out_shape(self, shape: Shape, width: int) -> Shape:
        if len(shape) != 2:
            rule = "lstm_last_step takes a window (time, features)"
            raise InputShapeError(rule, {0: shape}, "an lstm block takes one step at a time")
        return (width,)

    def read_window(self, x_TF: Tensor) -> Tensor:
        y_TF, _ = self._layers_over(x_TF, None)
        last_F = y_TF[..., -1, : self.hidden_units]
        if self.bidirectional:
            last_F = torch.cat([last_F, y_TF[..., 0, self.hidden_units :]], dim=-1)
        return self._normed(-1, last_F)


def recurrent_shape(in_shapes: Shapes, name: str) -> Shape:
    """``(features,)`` or ``(time, features)``; only the time may vary."""
    shape = one_input(in_shapes, name)
    if len(shape) not in (1, 2):
        rule = f"{name} takes one step (features,) or a window (time, features)"
        raise InputShapeError(rule, {0: shape}, "put a flatten block before it")
    if shape[-1] is None:
        raise InputShapeError(f"{name} needs to know how many features it reads", {0: shape})
    if shape[0] == 0:
        raise InputShapeError(f"{name} needs at least one step", {0: shape})
    return shape
