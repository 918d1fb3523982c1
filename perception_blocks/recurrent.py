"""LSTM and GRU: memory carried from step to step on a vector, a window read from a zero state on (time, features).

One step is written out in plain operations, so that it takes any leading axes and can be compiled,
exported and vmapped; many steps at once go through torch's fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.block import MemoryBlock, State, is_traced, one_input
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveInt, Probability

__all__ = ["GruBlock", "LstmBlock", "LstmLastStepBlock", "RecurrentBlock", "RecurrentLayer"]

Carry: TypeAlias = tuple[Tensor, ...]  # (h,) or (h, c) of one layer, each (..., hidden)


class RecurrentLayer(nn.RNNBase):
    """One layer over (..., T, F) from ``carry`` (None: from zero): its outputs, and where it ended.

    Parameters are those of a torch layer (``weight_ih_l0`` ...), of one direction or of both. Not derived from nn.LSTM
    or nn.GRU, which torch.compile does not look into.
    """

    carried: tuple[str, ...]

    def __init__(self, mode: str, features: int, hidden_units: int, bidirectional: bool) -> None:
        super().__init__(
            mode, features, hidden_units, batch_first=True, bidirectional=bidirectional
        )

    def fused(self, x_BTF: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Torch's kernel: one batch axis, carry (directions, B, hidden)."""
        raise TypeError(f"{type(self).__name__} must define fused(x_BTF, carry)")

    def step(self, x_F: Tensor, carry: Carry, direction: str = "") -> Carry:
        """One step for any leading axes; torch's kernel for a step is used where it can be."""
        raise TypeError(f"{type(self).__name__} must define step(x_F, carry, direction)")

    def forward(self, x_TF: Tensor, carry: Carry | None) -> tuple[Tensor, Carry]:
        if is_traced():
            return self._stepwise(x_TF, carry)
        leading = x_TF.shape[:-2]
        x_BTF = x_TF.reshape(-1, *x_TF.shape[-2:])
        if carry is None:
            directions = 2 if self.bidirectional else 1
            zero = x_TF.new_zeros(directions, x_BTF.shape[0], self.hidden_size)
            flat = (zero,) * len(self.carried)
        else:
            flat = tuple(part.reshape(1, -1, self.hidden_size).contiguous() for part in carry)
        y_BTF, ends = self.fused(x_BTF, flat)
        carry = tuple(end[0].reshape(*leading, self.hidden_size) for end in ends)
        return y_BTF.reshape(*leading, *y_BTF.shape[1:]), carry

    def weights(self, direction: str = "") -> list[Tensor]:
        """Input and hidden weights, then biases; of ``"_reverse"`` for the way back."""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        if direction:
            names = tuple(name + direction for name in names)
        return [getattr(self, name) for name in names]

    def all_weights_flat(self) -> list[Tensor]:
        return [*self.weights(), *(self.weights("_reverse") if self.bidirectional else ())]

    def _stepwise(self, x_TF: Tensor, carry: Carry | None) -> tuple[Tensor, Carry]:
        """The same in plain operations, which can be compiled, exported and vmapped."""
        zero = x_TF.new_zeros((*x_TF.shape[:-2], self.hidden_size))
        start = carry or (zero,) * len(self.carried)
        steps = x_TF.unbind(-2)
        y_TF, carry = self._pass(steps, start, "")
        if self.bidirectional:
            back_TF, _ = self._pass(steps[::-1], start, "_reverse")
            y_TF = torch.cat([y_TF, back_TF.flip(-2)], dim=-1)
        return y_TF, carry

    def _pass(self, steps: Sequence[Tensor], carry: Carry, direction: str) -> tuple[Tensor, Carry]:
        outputs = []
        for x_F in steps:
            carry = self.step(x_F, carry, direction)
            outputs.append(carry[0])
        return torch.stack(outputs, dim=-2), carry


class LstmLayer(RecurrentLayer):
    """A layer of long short-term memory, with torch's weights and order of gates."""

    carried = ("h", "c")

    def __init__(self, features: int, hidden_units: int, bidirectional: bool = False) -> None:
        super().__init__("LSTM", features, hidden_units, bidirectional)

    def fused(self, x_BTF: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        weights = self.all_weights_flat()
        both = self.bidirectional
        y, h, c = torch.lstm(x_BTF, carry, weights, True, 1, 0.0, self.training, both, True)
        return y, (h, c)

    def step(self, x_F: Tensor, carry: Carry, direction: str = "") -> Carry:
        if x_F.dim() == 2 and not is_traced():
            return torch.lstm_cell(x_F, carry, *self.weights(direction))
        h, c = carry
        w_input, w_hidden, b_input, b_hidden = self.weights(direction)
        gates = functional.linear(x_F, w_input, b_input) + functional.linear(h, w_hidden, b_hidden)
        write, keep, content, show = gates.chunk(4, dim=-1)
        c = torch.sigmoid(keep) * c + torch.sigmoid(write) * torch.tanh(content)
        return torch.sigmoid(show) * torch.tanh(c), c


class GruLayer(RecurrentLayer):
    """A layer of gated recurrent units, with torch's weights and order of gates."""

    carried = ("h",)

    def __init__(self, features: int, hidden_units: int, bidirectional: bool = False) -> None:
        super().__init__("GRU", features, hidden_units, bidirectional)

    def fused(self, x_BTF: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        weights = self.all_weights_flat()
        both = self.bidirectional
        y, h = torch.gru(x_BTF, carry[0], weights, True, 1, 0.0, self.training, both, True)
        return y, (h,)

    def step(self, x_F: Tensor, carry: Carry, direction: str = "") -> Carry:
        (h,) = carry
        if x_F.dim() == 2 and not is_traced():
            return (torch.gru_cell(x_F, h, *self.weights(direction)),)
        w_input, w_hidden, b_input, b_hidden = self.weights(direction)
        from_x = functional.linear(x_F, w_input, b_input).chunk(3, dim=-1)
        from_h = functional.linear(h, w_hidden, b_hidden).chunk(3, dim=-1)
        forget = torch.sigmoid(from_x[0] + from_h[0])
        keep = torch.sigmoid(from_x[1] + from_h[1])
        content = torch.tanh(from_x[2] + forget * from_h[2])
        return (content + keep * (h - content),)


class RecurrentBlock(MemoryBlock):
    """What lstm and gru share: layers with a norm after and dropout between them.

    A subclass names its layers' class and its state. Parameters are called ``layers.0.weight_ih_l0`` and so on.
    """

    layer: Callable[[int, int, bool], RecurrentLayer]
    carried: tuple[str, ...]

    def __init__(
        self,
        in_shapes: Shapes,
        name: str,
        *,
        hidden_units: int,
        num_layers: int,
        dropout: float,
        layer_norm: bool,
        bidirectional: bool,
    ) -> None:
        shape = recurrent_shape(in_shapes, name)
        self._check(name, shape, num_layers, dropout, bidirectional)
        width = hidden_units * (2 if bidirectional else 1)
        super().__init__(in_shapes, out_shapes=[(*shape[:-1], width)])
        sizes: list[Any] = [shape[-1], *[width] * (num_layers - 1)]
        self.layers = nn.ModuleList(self.layer(size, hidden_units, bidirectional) for size in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sizes) if layer_norm else None
        self.hidden_units = hidden_units
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.reads_window = len(shape) == 2
        if not self.reads_window:
            self.state_shapes = dict.fromkeys(self.carried, (num_layers, hidden_units))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> Any:
        if self.reads_window:
            return self._normed(-1, self._layers_over(x, None)[0])
        return super().forward(x, state, resets, unroll)

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
        """What layer ``index`` reads of the one before."""
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

    @staticmethod
    def _check(
        name: str, shape: Shape, num_layers: int, dropout: float, bidirectional: bool
    ) -> None:
        if dropout and num_layers == 1:
            raise ValueError(
                f"'dropout' acts between layers, of which {name} has one; raise num_layers or leave it out"
            )
        if bidirectional and len(shape) == 1:
            rule = f"{name} cannot be bidirectional step by step"
            advice = "give it a window (time, features), or leave bidirectional out"
            raise InputShapeError(rule, {0: shape}, advice)


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

    layer = LstmLayer
    carried = LstmLayer.carried

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        num_layers: PositiveInt = 1,
        dropout: Probability = 0.0,
        layer_norm: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            in_shapes,
            "lstm",
            hidden_units=hidden_units,
            num_layers=num_layers,
            dropout=dropout,
            layer_norm=layer_norm,
            bidirectional=bidirectional,
        )


@BLOCKS.register("gru")
class GruBlock(RecurrentBlock):
    """Gated recurrent unit (2014): ``(F,)`` -> ``(hidden_units,)``, carrying ``h`` from step to step.

    On a window ``(T, F)`` it starts from zero, carries nothing and gives ``(T, hidden_units)``, or twice as many
    features where it is ``bidirectional``. ``dropout`` acts between layers, ``layer_norm`` on each layer's output.

    >>> GruBlock([(3,)], hidden_units=4, num_layers=2).state_shapes
    {'h': (2, 4)}
    """

    layer = GruLayer
    carried = GruLayer.carried

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        num_layers: PositiveInt = 1,
        dropout: Probability = 0.0,
        layer_norm: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            in_shapes,
            "gru",
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

    layer = LstmLayer
    carried = LstmLayer.carried

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        hidden_units: PositiveInt,
        num_layers: PositiveInt = 1,
        dropout: Probability = 0.0,
        layer_norm: bool = False,
        bidirectional: bool = False,
    ) -> None:
        shape = recurrent_shape(in_shapes, "lstm_last_step")
        if len(shape) != 2:
            rule = "lstm_last_step takes a window (time, features)"
            raise InputShapeError(rule, {0: shape}, "an lstm block takes one step at a time")
        super().__init__(
            in_shapes,
            "lstm_last_step",
            hidden_units=hidden_units,
            num_layers=num_layers,
            dropout=dropout,
            layer_norm=layer_norm,
            bidirectional=bidirectional,
        )
        self._out_shapes = [self.out_shapes[0][1:]]

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> Tensor:
        y_TF, _ = self._layers_over(x, None)
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
