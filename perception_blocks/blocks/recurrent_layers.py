"""Recurrent layers with torch's weights, for one step and for many.

One step is written out in plain operations, so that it takes any leading axes and can be compiled, exported and
vmapped; many steps at once go through torch's fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.base_block import is_traced

__all__ = ["Carry", "GruLayer", "LstmLayer", "RecurrentLayer", "RnnLayer", "check_dropout"]

Carry: TypeAlias = tuple[Tensor, ...]  # (h,) or (h, c) of one layer, each (..., hidden)
Weights: TypeAlias = list[Tensor] | tuple[Tensor, ...]
Linear: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x, weight, bias


class RecurrentLayer(nn.RNNBase):
    """One layer over (..., T, F) from ``carry`` (None: from zero): its outputs, and where it ended.

    Parameters are named as in a torch layer (``weight_ih_l0`` ...), for one direction or both. Not derived from nn.LSTM
    or nn.GRU, which torch.compile does not look into.
    """

    carried: tuple[str, ...]

    def __init__(self, mode: str, features: int, hidden_units: int, bidirectional: bool) -> None:
        super().__init__(
            mode, features, hidden_units, batch_first=True, bidirectional=bidirectional
        )

    def fused(self, x_BTF: Tensor, carry: Carry, weights: Weights) -> tuple[Tensor, Carry]:
        """Torch's kernel: one batch axis, carry (directions, B, hidden), weights of all directions."""
        raise TypeError(f"{type(self).__name__} must define fused(x_BTF, carry, weights)")

    def cell(self, x_F: Tensor, carry: Carry, weights: Weights, linear: Linear) -> Carry:
        """One step of plain operations for any leading axes; ``weights`` as `weights` gives them."""
        raise TypeError(f"{type(self).__name__} must define cell(x_F, carry, weights, linear)")

    def kernel(self, x_BF: Tensor, carry: Carry, weights: Weights) -> Carry:
        """Torch's kernel for one step: one batch axis."""
        raise TypeError(f"{type(self).__name__} must define kernel(x_BF, carry, weights)")

    def step(self, x_F: Tensor, carry: Carry, direction: str = "") -> Carry:
        """One step for any leading axes; torch's kernel for a step is used where it can be."""
        return self.step_with(x_F, carry, self.weights(direction))

    def step_with(self, x_F: Tensor, carry: Carry, weights: Weights) -> Carry:
        """`step` with ``weights`` in place of the layer's."""
        if x_F.dim() == 2 and not is_traced():
            return self.kernel(x_F, carry, weights)
        return self.cell(x_F, carry, weights, functional.linear)

    def forward(self, x_TF: Tensor, carry: Carry | None) -> tuple[Tensor, Carry]:
        if is_traced():
            return self._stepwise(x_TF, carry)
        return self.over(x_TF, carry, self.all_weights_flat())

    def over(self, x_TF: Tensor, carry: Carry | None, weights: Weights) -> tuple[Tensor, Carry]:
        """`forward` by torch's kernel, with ``weights`` in place of the layer's."""
        leading = x_TF.shape[:-2]
        is_batch = len(leading) == 1  # then nothing is reshaped, here and in backward
        x_BTF = x_TF if is_batch else x_TF.reshape(-1, *x_TF.shape[-2:])
        if carry is None:
            directions = 2 if self.bidirectional else 1
            zero = x_TF.new_zeros(directions, x_BTF.shape[0], self.hidden_size)
            flat = (zero,) * len(self.carried)
        else:
            flat = tuple(part.reshape(1, -1, self.hidden_size).contiguous() for part in carry)
        y_BTF, ends = self.fused(x_BTF, flat, weights)
        if is_batch:
            return y_BTF, tuple(end[0] for end in ends)
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
        """All steps in plain operations, which can be compiled, exported and vmapped."""
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

    def fused(self, x_BTF: Tensor, carry: Carry, weights: Weights) -> tuple[Tensor, Carry]:
        both = self.bidirectional
        y, h, c = torch.lstm(x_BTF, carry, weights, True, 1, 0.0, self.training, both, True)
        return y, (h, c)

    def kernel(self, x_BF: Tensor, carry: Carry, weights: Weights) -> Carry:
        return torch.lstm_cell(x_BF, carry, *weights)

    def cell(self, x_F: Tensor, carry: Carry, weights: Weights, linear: Linear) -> Carry:
        h, c = carry
        w_input, w_hidden, b_input, b_hidden = weights
        gates = linear(x_F, w_input, b_input) + linear(h, w_hidden, b_hidden)
        write, keep, content, show = gates.chunk(4, dim=-1)
        c = torch.sigmoid(keep) * c + torch.sigmoid(write) * torch.tanh(content)
        return torch.sigmoid(show) * torch.tanh(c), c


class GruLayer(RecurrentLayer):
    """A layer of gated recurrent units, with torch's weights and order of gates."""

    carried = ("h",)

    def __init__(self, features: int, hidden_units: int, bidirectional: bool = False) -> None:
        super().__init__("GRU", features, hidden_units, bidirectional)

    def fused(self, x_BTF: Tensor, carry: Carry, weights: Weights) -> tuple[Tensor, Carry]:
        both = self.bidirectional
        y, h = torch.gru(x_BTF, carry[0], weights, True, 1, 0.0, self.training, both, True)
        return y, (h,)

    def kernel(self, x_BF: Tensor, carry: Carry, weights: Weights) -> Carry:
        return (torch.gru_cell(x_BF, *carry, *weights),)

    def cell(self, x_F: Tensor, carry: Carry, weights: Weights, linear: Linear) -> Carry:
        (h,) = carry
        w_input, w_hidden, b_input, b_hidden = weights
        from_x = linear(x_F, w_input, b_input).chunk(3, dim=-1)
        from_h = linear(h, w_hidden, b_hidden).chunk(3, dim=-1)
        forget = torch.sigmoid(from_x[0] + from_h[0])
        keep = torch.sigmoid(from_x[1] + from_h[1])
        content = torch.tanh(from_x[2] + forget * from_h[2])
        return (content + keep * (h - content),)


class RnnLayer(RecurrentLayer):
    """A plain recurrent layer, with torch's weights: one activation of input plus state."""

    carried = ("h",)

    def __init__(
        self, nonlinearity: str, features: int, hidden_units: int, bidirectional: bool = False
    ) -> None:
        super().__init__(f"RNN_{nonlinearity.upper()}", features, hidden_units, bidirectional)
        self.relu = nonlinearity == "relu"

    def fused(self, x_BTF: Tensor, carry: Carry, weights: Weights) -> tuple[Tensor, Carry]:
        kernel = torch.rnn_relu if self.relu else torch.rnn_tanh
        both = self.bidirectional
        y, h = kernel(x_BTF, carry[0], weights, True, 1, 0.0, self.training, both, True)
        return y, (h,)

    def kernel(self, x_BF: Tensor, carry: Carry, weights: Weights) -> Carry:
        cell = torch.rnn_relu_cell if self.relu else torch.rnn_tanh_cell
        return (cell(x_BF, *carry, *weights),)

    def cell(self, x_F: Tensor, carry: Carry, weights: Weights, linear: Linear) -> Carry:
        (h,) = carry
        w_input, w_hidden, b_input, b_hidden = weights
        total = linear(x_F, w_input, b_input) + linear(h, w_hidden, b_hidden)
        return (torch.relu(total) if self.relu else torch.tanh(total),)


def check_dropout(name: str, dropout: float, num_layers: int) -> None:
    """Raise ValueError for dropout between the layers of a block that has one layer."""
    if dropout and num_layers == 1:
        raise ValueError(
            f"'dropout' acts between layers, of which {name} has one; raise num_layers or leave it out"
        )
