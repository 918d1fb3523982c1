"""LSTM and GRU over many steps as custom operators: one node each in a compiled graph, whatever the number of steps.

What `compare_unrolled.py` measures the library's own loop of cells against. Autograd does not reach into an operator,
so the way back is written out. The loops alone are operators; what needs no loop stays where the compiler fuses it.
Steps come first: x (T, B, F), resets (T, B). ``shares`` say how much each gate's input takes of a gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from perception_blocks.blocks.recurrent import GruBlock, RecurrentBlock

__all__ = ["unroll"]

LIBRARY = torch.library.Library("unrolled", "DEF")
OPERATORS = torch.ops.unrolled


def unroll(
    block: RecurrentBlock, x_BTF: Tensor, state: dict[str, Tensor], resets_BT: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """What ``block.unroll`` returns, of one layer without norm."""
    layer: Any = block.layers[0]
    w_input, w_hidden, b_input, b_hidden = layer.weights()
    resets = None if resets_BT is None else resets_BT.t()
    start = [part.squeeze(-2) for part in state.values()]
    x_TBF = x_BTF.transpose(0, 1)
    if isinstance(block, GruBlock):
        from_x = functional.linear(x_TBF, w_input, b_input).contiguous()
        y, _, _ = OPERATORS.gru(from_x, *start, w_hidden, b_hidden, resets)
        ends = [y[-1]]
    else:
        from_x = functional.linear(x_TBF, w_input, b_input + b_hidden).contiguous()
        y, c, _, _ = OPERATORS.lstm(from_x, *start, w_hidden, resets)
        ends = [y[-1], c]
    after = {name: end.unsqueeze(-2) for name, end in zip(state, ends, strict=True)}
    return y.transpose(0, 1), after


def operator(schema: str, run: Callable[..., Any], like: Callable[..., Any]) -> None:
    name = LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"unrolled::{name}", like, lib=LIBRARY)


def cleared(value: Tensor, resets: Tensor | None) -> Tensor:
    """``value`` (..., H) with zeros where ``resets`` (...) is true."""
    return value if resets is None else value.masked_fill(resets.unsqueeze(-1), 0)


def before(start: Tensor, parts: Tensor, resets: Tensor | None) -> Tensor:
    """What each step began with, of the ``parts`` (T, B, H) that steps ended with."""
    return cleared(torch.cat([start.unsqueeze(0), parts[:-1]]), resets)


def at(resets: Tensor | None, step: int) -> Tensor | None:
    return None if resets is None else resets[step]


# --- LSTM: gates in torch's order, input, forget, content, output ---


def lstm(
    from_x: Tensor, h: Tensor, c: Tensor, weight: Tensor, resets: Tensor | None
) -> tuple[Tensor, ...]:
    """Outputs and the last cell; cells and gates of all steps, for the way back."""
    width = h.shape[-1]
    gates = torch.empty_like(from_x)
    y, cells = from_x.new_empty(2, *from_x.shape[:2], width).unbind(0)
    for step, gate in enumerate(gates.unbind(0)):
        h, c = cleared(h, at(resets, step)), cleared(c, at(resets, step))
        torch.addmm(from_x[step], h, weight.t(), out=gate)
        write, keep, content, show = gate.split(width, dim=-1)
        gate[:, : 2 * width].sigmoid_()
        content.tanh_()
        show.sigmoid_()
        c = torch.mul(keep, c, out=cells[step]).addcmul_(write, content)
        h = torch.mul(show, c.tanh(), out=y[step])
    return y, c.clone(), cells.clone(), gates


def lstm_like(
    from_x: Tensor, h: Tensor, c: Tensor, weight: Tensor, resets: Tensor | None
) -> tuple[Tensor, ...]:
    steps = (*from_x.shape[:2], h.shape[-1])
    new = from_x.new_empty
    return new(steps), new(c.shape), new(steps), torch.empty_like(from_x)


def lstm_back(
    dy: Tensor,
    dc: Tensor,
    shares: Tensor,
    shown: Tensor,
    keep: Tensor,
    weight: Tensor,
    resets: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of what the gates read, of h and of c at the start."""
    width = dy.shape[-1]
    d_gates = torch.empty_like(shares)
    of_cell, of_output = 3 * width, width
    later: Tensor | None = None  # the gradients of the gates one step on, where no episode began
    for step in reversed(range(len(dy))):
        dh = dy[step] if later is None else torch.addmm(dy[step], later, weight)
        dc = torch.addcmul(dc, dh, shown[step])
        share, d_gate = shares[step].split((of_cell, of_output), -1), d_gates[step]
        to_cell = d_gate[:, :of_cell].unflatten(-1, (3, width))
        torch.mul(share[0].unflatten(-1, (3, width)), dc.unsqueeze(1), out=to_cell)
        torch.mul(share[1], dh, out=d_gate[:, of_cell:])
        dc = dc * keep[step]
        later = cleared(d_gate, at(resets, step))
    assert later is not None
    return d_gates, later @ weight, dc


def lstm_back_like(
    dy: Tensor, dc: Tensor, shares: Tensor, shown: Tensor, keep: Tensor, weight: Tensor, resets: Any
) -> tuple[Tensor, ...]:
    return torch.empty_like(shares), torch.empty_like(dc), torch.empty_like(dc)


def lstm_saved(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, h, c, weight, resets = inputs
    y, _, cells, gates = output
    ctx.mark_non_differentiable(cells, gates)
    ctx.save_for_backward(h, c, weight, resets, y, cells, gates)


def lstm_gradients(ctx: Any, dy: Tensor, dc: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    h, c, weight, resets, y, cells, gates = ctx.saved_tensors
    write, keep, content, show = gates.chunk(4, dim=-1)
    bent = cells.tanh()
    shares = [
        content * write * (1 - write),
        before(c, cells, resets) * keep * (1 - keep),
        write * (1 - content.square()),
        bent * show * (1 - show),
    ]
    shown, kept = show * (1 - bent.square()), cleared(keep, resets).contiguous()
    given = (dy.contiguous(), dc.contiguous(), torch.cat(shares, -1), shown, kept, weight, resets)
    d_gates, dh, dc = OPERATORS.lstm_back(*given)
    d_weight = d_gates.flatten(0, 1).t() @ before(h, y, resets).flatten(0, 1)
    return d_gates, dh, dc, d_weight, None


# --- GRU: gates in torch's order, forget, keep, content ---


def gru(
    from_x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, resets: Tensor | None
) -> tuple[Tensor, ...]:
    """Outputs; gates of all steps and what the contents had from the state, for the way back."""
    width = h.shape[-1]
    gates = torch.empty_like(from_x)
    y, contents = from_x.new_empty(2, *from_x.shape[:2], width).unbind(0)
    for step, gate in enumerate(gates.unbind(0)):
        h = cleared(h, at(resets, step))
        forget, keep, content = gate.split(width, dim=-1)
        of_x, of_h = from_x[step], torch.addmm(bias, h, weight.t())
        both, rest = slice(0, 2 * width), slice(2 * width, None)
        torch.add(of_x[:, both], of_h[:, both], out=gate[:, both]).sigmoid_()
        contents[step].copy_(of_h[:, rest])
        torch.addcmul(of_x[:, rest], forget, of_h[:, rest], out=content).tanh_()
        h = torch.lerp(content, h, keep, out=y[step])
    return y, gates, contents.clone()


def gru_like(
    from_x: Tensor, h: Tensor, weight: Tensor, bias: Tensor, resets: Tensor | None
) -> tuple[Tensor, ...]:
    steps = (*from_x.shape[:2], h.shape[-1])
    return from_x.new_empty(steps), torch.empty_like(from_x), from_x.new_empty(steps)


def gru_back(
    dy: Tensor, shares: Tensor, keep: Tensor, weight: Tensor, resets: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of what the gates read of the state, of each step's output, and of h at the start."""
    width = dy.shape[-1]
    d_gates, d_outputs = torch.empty_like(shares), torch.empty_like(dy)
    carried: Tensor | None = None
    for step in reversed(range(len(dy))):
        dh = d_outputs[step]
        torch.add(dy[step], 0 if carried is None else carried, out=dh)
        share, d_gate = shares[step].unflatten(-1, (3, width)), d_gates[step]
        torch.mul(share, dh.unsqueeze(1), out=d_gate.unflatten(-1, (3, width)))
        carried = torch.addmm(dh * keep[step], cleared(d_gate, at(resets, step)), weight)
    assert carried is not None
    return d_gates, d_outputs, carried


def gru_back_like(
    dy: Tensor, shares: Tensor, keep: Tensor, weight: Tensor, resets: Tensor | None
) -> tuple[Tensor, ...]:
    return torch.empty_like(shares), torch.empty_like(dy), dy.new_empty(dy.shape[1:])


def gru_saved(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, h, weight, _, resets = inputs
    y, gates, contents = output
    ctx.mark_non_differentiable(gates, contents)
    ctx.save_for_backward(h, weight, resets, y, gates, contents)


def gru_gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    h, weight, resets, y, gates, contents = ctx.saved_tensors
    forget, keep, content = gates.chunk(3, dim=-1)
    start = before(h, y, resets)
    of_content = (1 - keep) * (1 - content.square())
    shares = [
        of_content * contents * forget * (1 - forget),
        (start - content) * keep * (1 - keep),
        of_content * forget,
    ]
    kept = cleared(keep, resets).contiguous()
    given = (dy.contiguous(), torch.cat(shares, -1), kept, weight, resets)
    d_gates, d_outputs, dh = OPERATORS.gru_back(*given)
    width = h.shape[-1]
    d_from_x = torch.cat([d_gates[..., : 2 * width], d_outputs * of_content], dim=-1)
    flat = d_gates.flatten(0, 1)
    return d_from_x, dh, flat.t() @ start.flatten(0, 1), flat.sum(0), None


three, two = "(Tensor, Tensor, Tensor)", "Tensor weight, Tensor? resets"
operator(
    f"lstm(Tensor x, Tensor h, Tensor c, {two}) -> (Tensor, Tensor, Tensor, Tensor)",
    lstm,
    lstm_like,
)
operator(
    f"lstm_back(Tensor dy, Tensor dc, Tensor shares, Tensor shown, Tensor keep, {two}) -> {three}",
    lstm_back,
    lstm_back_like,
)
operator(
    f"gru(Tensor x, Tensor h, Tensor weight, Tensor bias, Tensor? resets) -> {three}", gru, gru_like
)
operator(
    f"gru_back(Tensor dy, Tensor shares, Tensor keep, {two}) -> {three}", gru_back, gru_back_like
)
register = torch.library.register_autograd
register("unrolled::lstm", lstm_gradients, setup_context=lstm_saved, lib=LIBRARY)
register("unrolled::gru", gru_gradients, setup_context=gru_saved, lib=LIBRARY)
