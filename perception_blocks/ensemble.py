"""Several networks of one form as one: their weights are stacked, and one batched call computes all of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from perception_blocks.measure import probing_tensors, still, with_length
from perception_blocks.port import Port, Shape

__all__ = ["EnsembleBlock"]


class EnsembleBlock(nn.Module):
    """``networks`` (InferenceBlocks of one graph, each with its own weights) as one network.

    It reads what each of them reads; every output, and every part of a state, gains a first axis with one element for
    each copy. Parameters are stacked, one for each of a copy's; the state_dict holds them by copy (``0.latent...``).
    Where a network cannot be batched the copies run one by one, and ``why_looped`` says why.

    With ``own_inputs`` each copy reads its own: every input, output, part of a state and ``resets`` has the axis of the
    copies first, before all leading axes, and ports and shapes are those of one copy.

    The weights of ``networks`` move into the stack, of which their parameters are views from then on.
    """

    def __init__(self, networks: Sequence[Any], *, own_inputs: bool = False) -> None:
        super().__init__()
        first = networks[0]
        self.copies = len(networks)
        self.own_inputs = own_inputs
        axis = () if own_inputs else (self.copies,)
        self.in_keys: list[str] = first.in_keys
        self.out_ports: dict[str, Port] = {
            name: replace(port, shape=(*axis, *port.shape))
            for name, port in first.out_ports.items()
        }
        self.state_shapes: dict[str, Shape] = {
            name: (*axis, *shape) for name, shape in first.state_shapes.items()
        }
        # One copy without weights, which says what to compute. In a tuple, so that it is no child.
        self._template = (copy.deepcopy(first).to("meta"),)
        # Where the axis of the copies is in each value.
        self._in_dims = dict.fromkeys(self.in_keys, 0 if own_inputs else None)
        self._out_dims = {
            name: 0 if own_inputs else -len(port.shape) for name, port in self.out_ports.items()
        }
        self._state_dims = {
            name: 0 if own_inputs else -len(shape) for name, shape in self.state_shapes.items()
        }
        self.why_looped = _why_looped(first)
        self.adopt(networks)

    def adopt(self, networks: Sequence[Any]) -> None:
        """Take the weights of ``networks``, one for each copy."""
        if self.why_looped is not None:
            self._modules.update({str(index): net for index, net in enumerate(networks)})
            return
        tensors = [dict(_named_tensors(net)) for net in networks]
        self._keys = {name: name.replace(".", "/") for name in tensors[0]}
        for name, key in self._keys.items():
            like = tensors[0][name]
            stacked = _moved_together([own[name] for own in tensors])
            if isinstance(like, nn.Parameter):
                self._parameters[key] = nn.Parameter(stacked, like.requires_grad)
            else:
                self._buffers[key] = stacked

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor] | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Any:
        """Outputs (...) + (copies,) + shape; with a ``state``, (outputs, state).

        With ``own_inputs`` outputs are (copies, ...) + shape, and ``rows`` may name the copies that are to run: what
        goes in and comes out then has an entry for each of these, in their order.
        """
        if rows is not None and not self.own_inputs:
            raise ValueError("'rows' needs an ensemble with own_inputs=True")
        if self.why_looped is not None:
            return self._one_by_one(inputs, state, resets, unroll, rows)
        template = self._template[0]

        def run(tensors: dict[str, Tensor], inputs: Any, state: Any, resets: Any) -> Any:
            arguments = (inputs,) if state is None else (inputs, state, resets, unroll)
            return torch.func.functional_call(template, tensors, arguments)

        stacked = {name: self._tensor(key) for name, key in self._keys.items()}
        if rows is not None:
            chosen = list(rows)
            stacked = {name: tensor[chosen] for name, tensor in stacked.items()}
        inputs = {name: inputs[name] for name in self.in_keys}
        state_dims = None if state is None else self._state_dims
        reset_dim = 0 if self.own_inputs and resets is not None else None
        in_dims = (0, self._in_dims, state_dims, reset_dim)
        out_dims: Any = self._out_dims if state is None else (self._out_dims, self._state_dims)
        batched = torch.vmap(run, in_dims=in_dims, out_dims=out_dims, randomness="different")
        return batched(stacked, inputs, state, resets)

    def copy_of(self, index: int) -> Any:
        """The network of one copy alone, with a copy of its weights."""
        if self.why_looped is not None:
            return copy.deepcopy(self._modules[str(index)])
        network = copy.deepcopy(self._template[0])
        for name, key in self._keys.items():
            owner, _, attribute = name.rpartition(".")
            module = network.get_submodule(owner)
            value = self._tensor(key)[index].detach().clone()
            if key in self._parameters:
                module._parameters[attribute] = nn.Parameter(value)
            else:
                module._buffers[attribute] = value
        return network.train(self.training)

    @property
    def network(self) -> Any:
        """What each of the copies computes: one of them, without weights (on the meta device)."""
        return self._template[0]

    def train(self, mode: bool = True) -> EnsembleBlock:
        self._template[0].train(mode)
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.copies} x {self._template[0]}"

    def _tensor(self, key: str) -> Tensor:
        tensor = self._parameters[key] if key in self._parameters else self._buffers[key]
        assert tensor is not None
        return tensor

    def _one_by_one(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor] | None,
        resets: Tensor | None,
        unroll: bool,
        rows: Sequence[int] | None,
    ) -> Any:
        results = []
        for place, row in enumerate(range(self.copies) if rows is None else rows):
            network: Any = self._modules[str(row)]
            own = _share(inputs, self._in_dims, place)
            if state is None:
                results.append(network(own))
                continue
            own_resets = resets[place] if self.own_inputs and resets is not None else resets
            own_state = _share(state, self._state_dims, place)
            results.append(network(own, own_state, own_resets, unroll))
        if state is None:
            return _stacked(results, self._out_dims)
        outputs = _stacked([out for out, _ in results], self._out_dims)
        return outputs, _stacked([after for _, after in results], self._state_dims)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.why_looped is not None:
            return
        for index in range(self.copies):
            for name in self._saved_names():
                tensor = self._tensor(self._keys[name])
                value = (tensor if keep_vars else tensor.detach())[index]
                destination[f"{prefix}{index}.{name}"] = value

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if self.why_looped is not None:
            return
        known = set()
        for index in range(self.copies):
            for name in self._saved_names():
                key = f"{prefix}{index}.{name}"
                known.add(key)
                own = self._tensor(self._keys[name])[index]
                if key not in state_dict:
                    missing_keys.append(key)
                elif state_dict[key].shape != own.shape:
                    error_msgs.append(
                        f"size mismatch for {key}: {tuple(state_dict[key].shape)} in the "
                        f"checkpoint, {tuple(own.shape)} in the model"
                    )
                else:
                    with torch.no_grad():
                        own.copy_(state_dict[key])
        unexpected_keys += [
            key for key in state_dict if key.startswith(prefix) and key not in known
        ]

    def _saved_names(self) -> list[str]:
        return list(self._template[0].state_dict())


def _named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _moved_together(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of all; each of ``tensors`` becomes its part of that, so that nothing is held twice."""
    first = tensors[0].detach()
    together = first.new_empty((len(tensors), *first.shape))
    for part, tensor in zip(together, tensors):
        part.copy_(tensor.detach())
        tensor.data = part
    return together


def _share(values: Mapping[str, Tensor], dims: Mapping[str, int | None], place: int) -> Any:
    """What one copy gets of ``values``."""
    return {
        name: values[name] if dim is None else values[name].select(dim, place)
        for name, dim in dims.items()
    }


def _stacked(copies: Sequence[Mapping[str, Tensor]], dims: Mapping[str, int]) -> dict[str, Tensor]:
    return {name: torch.stack([own[name] for own in copies], dim=dim) for name, dim in dims.items()}


def _why_looped(network: Any) -> str | None:
    """Why copies of ``network`` cannot run as one batched call; None where they can. Nothing is allocated."""
    template = copy.deepcopy(network).to("meta")
    ports = [with_length(port) for port in network.in_ports.values()]
    inputs = dict(zip(network.in_ports, probing_tensors(ports, "meta")))
    stacked = {n: torch.stack([t.detach(), t.detach()]) for n, t in _named_tensors(template)}

    def run(tensors: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(template, tensors, (inputs,))

    try:
        with still(template), torch.device("meta"):
            torch.vmap(run, randomness="different")(stacked)
    except Exception as error:  # in its first sentence: what vmap does not know
        return re.split(r"[.\n](?:\s|$)", str(error).strip())[0] or type(error).__name__
    return None
