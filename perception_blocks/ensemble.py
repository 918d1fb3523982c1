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
    """

    def __init__(self, networks: Sequence[Any]) -> None:
        super().__init__()
        first = networks[0]
        self.copies = len(networks)
        self.in_keys: list[str] = first.in_keys
        self.out_ports: dict[str, Port] = {
            name: replace(port, shape=(self.copies, *port.shape))
            for name, port in first.out_ports.items()
        }
        self.state_shapes: dict[str, Shape] = {
            name: (self.copies, *shape) for name, shape in first.state_shapes.items()
        }
        # One copy without weights, which says what to compute. In a tuple, so that it is no child.
        self._template = (copy.deepcopy(first).to("meta"),)
        self._out_dims = {name: -len(port.shape) for name, port in self.out_ports.items()}
        self._state_dims = {name: -len(shape) for name, shape in self.state_shapes.items()}
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
            stacked = torch.stack([own[name].detach() for own in tensors])
            if isinstance(tensors[0][name], nn.Parameter):
                self._parameters[key] = nn.Parameter(stacked, tensors[0][name].requires_grad)
            else:
                self._buffers[key] = stacked

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor] | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> Any:
        """Outputs (...) + (copies,) + shape; with a ``state``, (outputs, state)."""
        if self.why_looped is not None:
            return self._one_by_one(inputs, state, resets, unroll)
        template = self._template[0]

        def run(tensors: dict[str, Tensor], own: Mapping[str, Tensor] | None) -> Any:
            arguments = (inputs,) if own is None else (inputs, own, resets, unroll)
            return torch.func.functional_call(template, tensors, arguments)

        stacked = {name: self._tensor(key) for name, key in self._keys.items()}
        dims = (0, None if state is None else self._state_dims)
        out_dims: Any = self._out_dims if state is None else (self._out_dims, self._state_dims)
        return torch.vmap(run, in_dims=dims, out_dims=out_dims, randomness="different")(
            stacked, state
        )

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
    ) -> Any:
        networks = [self._modules[str(index)] for index in range(self.copies)]
        if state is None:
            return _stacked([net(inputs) for net in networks], self._out_dims)  # type: ignore[misc]
        states = [
            {n: value.select(self._state_dims[n], i) for n, value in state.items()}
            for i in range(self.copies)
        ]
        results = [net(inputs, own, resets, unroll) for net, own in zip(networks, states)]  # type: ignore[misc]
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
