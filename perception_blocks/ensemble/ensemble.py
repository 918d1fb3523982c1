"""Several networks of one form as one: their weights are stacked, and one call computes all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from perception_blocks.base_block import is_traced
from perception_blocks.ensemble.layers import why_not_alike
from perception_blocks.ensemble.network import StackedNetwork
from perception_blocks.port import Port, Shape

__all__ = ["EnsembleBlock"]


class EnsembleBlock(nn.Module):
    """``networks`` (InferenceBlocks of one graph, each with its own weights) as one network.

    It reads what each of them reads; every output, and every part of a state, gains a first axis with one element for
    each copy. Parameters are stacked, one for each of a copy's; the state_dict holds them by copy (``0.latent...``).
    Where networks cannot be batched, or differ in more than the values of their weights, they run one by one, and
    ``why_looped`` says why. Raises ValueError for networks whose inputs, outputs or states have other shapes.

    With ``own_inputs`` each copy reads its own: every input, output, part of a state and ``resets`` has the axis of the
    copies first, before all leading axes, and ports and shapes describe one copy.

    The weights of ``networks`` move into the stack, of which their parameters are views from then on.
    """

    def __init__(self, networks: Sequence[Any], *, own_inputs: bool = False) -> None:
        super().__init__()
        _refuse_other_ports(networks)
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
        # Where the axis of the copies is in outputs and states.
        self._out_dims = {
            name: 0 if own_inputs else -len(port.shape) for name, port in self.out_ports.items()
        }
        self._state_dims = {
            name: 0 if own_inputs else -len(shape) for name, shape in self.state_shapes.items()
        }
        self._networks = StackedNetwork(first)
        self.why_looped = self._networks.why_not or why_not_alike(networks)
        self._lowered: dict[int, Any] = {}
        self.adopt(networks)
        if self.why_looped is None:
            self.train(first.training)

    def adopt(self, networks: Sequence[Any]) -> None:
        """Take the weights of ``networks``, one for each copy."""
        if self.why_looped is not None:
            self._modules.update({str(index): net for index, net in enumerate(networks)})
            return
        tensors = [dict(net.named_parameters()) | dict(net.named_buffers()) for net in networks]
        self._keys = {name: name.replace(".", "/") for name in self._networks.names}
        for name, key in self._keys.items():
            like = tensors[0][name]
            if name in self._networks.common:
                self._buffers[key] = like
                continue
            across = name in self._networks.across
            stacked = _moved_together([copy_tensors[name] for copy_tensors in tensors], across)
            if isinstance(like, nn.Parameter):
                before = self._parameters.get(key)
                trained = like.requires_grad and (before is None or before.requires_grad)
                self._parameters[key] = nn.Parameter(stacked, trained)
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
        goes in and comes out then has an entry for each of these, in their order. Raises ValueError for others.
        """
        if rows is not None:
            self._refuse_rows(rows, inputs)
        if self.why_looped is not None:
            return self._one_by_one(inputs, state, resets, unroll, rows)
        values = {name: inputs[name] for name in self.in_keys}
        if not self.own_inputs:
            values = {n: x.expand(self.copies, *x.shape) for n, x in values.items()}
            resets = None if resets is None else resets.expand(self.copies, *resets.shape)
            state = state and {n: s.movedim(self._state_dims[n], 0) for n, s in state.items()}
        tensors = self._chosen(rows)
        results = self._networks(tensors, values, state, resets, unroll)
        if rows is not None and self.training:
            self._keep_buffers(tensors, rows)
        if state is None:
            return self._placed(results, self._out_dims)
        outputs, after = results
        return self._placed(outputs, self._out_dims), self._placed(after, self._state_dims)

    def copy_of(self, index: int) -> Any:
        """The network of one copy alone, with a copy of its weights."""
        if self.why_looped is not None:
            return copy.deepcopy(self._modules[str(index)])

        def copied(tensor: Tensor) -> Tensor:
            value = tensor[index].detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            return nn.Parameter(value, tensor.requires_grad) if is_parameter else value

        return self._filled(copied)

    def view_of(self, index: int) -> Any:
        """The network of one copy alone; its tensors are views of the stacks, which gradients reach.

        A view is for the moment: moving this module leaves it behind.
        """
        if self.why_looped is not None:
            return self._modules[str(index)]
        with torch.enable_grad():
            return self._filled(lambda tensor: tensor[index])

    def addresses(self) -> list[int]:
        """Where the stacks lie in memory; elsewhere once they were moved or replaced, which leaves views behind."""
        return [self._tensor(key).data_ptr() for key in self._keys.values()]

    def _filled(self, value_of: Callable[[Tensor], Tensor]) -> Any:
        """A network of the copies' form whose tensors are ``value_of`` each stack."""
        network = copy.deepcopy(self._networks.alone)
        for name, key in self._keys.items():
            owner, _, attribute = name.rpartition(".")
            module = network.get_submodule(owner)
            registry = module._parameters if key in self._parameters else module._buffers
            tensor = self._tensor(key)
            registry[attribute] = tensor if name in self._networks.common else value_of(tensor)
        return network.train(self.training)

    @property
    def network(self) -> Any:
        """What each of the copies computes: one of them, without weights (on the meta device)."""
        return self._networks.alone

    @property
    def forms(self) -> tuple[Any, ...]:
        """The networks that compute the copies, without weights: one copy alone, and all of them at once."""
        return self._networks.alone, self._networks.stacked

    @property
    def keys(self) -> dict[str, str]:
        """The name of each of a copy's tensors -> the name of its stack here; empty where copies run one by one."""
        return {} if self.why_looped is not None else dict(self._keys)

    def train(self, mode: bool = True) -> EnsembleBlock:
        self._networks.train(mode)
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.copies} x {self.network}"

    def _tensor(self, key: str) -> Tensor:
        # In the last one are those that others have swapped in.
        for registry in (self._parameters, self._buffers, self.__dict__):
            if key in registry:
                return registry[key]  # type: ignore[return-value]
        # What else took a stack away is a parametrization, whose tensor is another at each call: views of it go stale.
        raise ValueError(
            f"{key!r} of an ensemble is parametrized, which its stacks cannot be; parametrize each network "
            "and make the ensemble of them, whose copies then run one by one"
        )

    def _refuse_rows(self, rows: Sequence[int], inputs: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless each of ``rows`` is a copy, with an entry of every input."""
        if not self.own_inputs:
            raise ValueError("'rows' needs an ensemble with own_inputs=True")
        if not len(rows):
            raise ValueError("'rows' names no copy; leave it out to run all of them")
        for row in rows:
            if not -self.copies <= row < self.copies:
                raise ValueError(
                    f"'rows' names copy {row}; there are {self.copies}, counted from 0"
                )
        for name in self.in_keys:
            if inputs[name].shape[:1] != (len(rows),):
                shape = tuple(inputs[name].shape)
                raise ValueError(
                    f"'rows' is of length {len(rows)}, but {name!r} has the shape {shape}; its first axis "
                    "has an entry for each of the rows"
                )

    def _chosen(self, rows: Sequence[int] | None) -> list[Tensor]:
        """The stacked tensors in the order of a copy's names; with ``rows``, of these copies only."""
        parameters = self._parameters
        tensors: list[Any] = [
            parameters[key] if key in parameters else self._tensor(key)
            for key in self._keys.values()
        ]
        if rows is None:
            return tensors
        chosen = list(rows)
        return [
            t if name in self._networks.common else t[chosen]
            for name, t in zip(self._keys, tensors)
        ]

    def _keep_buffers(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> None:
        """Write back the running statistics of ``rows``, which were updated in a copy."""
        for (name, key), tensor in zip(self._keys.items(), tensors):
            if key in self._buffers and name not in self._networks.common:
                self._tensor(key)[list(rows)] = tensor

    def _placed(self, values: Mapping[str, Tensor], dims: Mapping[str, int]) -> dict[str, Tensor]:
        """``values`` with the axis of the copies, which is the first, where it belongs."""
        if self.own_inputs:
            return dict(values)
        return {name: values[name].movedim(0, dim) for name, dim in dims.items()}

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
            network = self._network_at(row)
            given = {n: inputs[n][place] if self.own_inputs else inputs[n] for n in self.in_keys}
            if state is None:
                results.append(network(given))
                continue
            copy_resets = resets[place] if self.own_inputs and resets is not None else resets
            copy_state = {n: state[n].select(dim, place) for n, dim in self._state_dims.items()}
            results.append(network(given, copy_state, copy_resets, unroll))
        if state is None:
            return _together(results, self._out_dims)
        outputs = _together([out for out, _ in results], self._out_dims)
        return outputs, _together([after for _, after in results], self._state_dims)

    def _network_at(self, row: int) -> Any:
        """The network of one copy, lowered where it can be and nothing is traced."""
        network: Any = self._modules[str(row)]
        if is_traced() or not hasattr(network, "lower"):
            return network
        if row not in self._lowered or self._lowered[row].network is not network:
            self._lowered[row] = network.lower()
        return self._lowered[row]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_lowered": {}}  # generated, and anew when needed

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Tensor], prefix: str, keep_vars: bool
    ) -> None:
        if self.why_looped is not None:
            return
        for index in range(self.copies):
            for name in self._saved_names():
                tensor = self._tensor(self._keys[name])
                value = (tensor if keep_vars else tensor.detach())[index]
                destination[f"{prefix}{index}.{name}"] = value

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: object,
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
                tensor = self._tensor(self._keys[name])[index]
                if key not in state_dict:
                    missing_keys.append(key)
                elif state_dict[key].shape != tensor.shape:
                    error_msgs.append(
                        f"size mismatch for {key}: {tuple(state_dict[key].shape)} in the "
                        f"checkpoint, {tuple(tensor.shape)} in the model"
                    )
                else:
                    with torch.no_grad():
                        tensor.copy_(state_dict[key])
        unexpected_keys += [
            key for key in state_dict if key.startswith(prefix) and key not in known
        ]

    def _saved_names(self) -> list[str]:
        return list(self.network.state_dict())


def _refuse_other_ports(networks: Sequence[Any]) -> None:
    if not networks:
        raise ValueError("an ensemble needs at least one network, got none")
    first, *others = map(_ports, networks)
    for index, other in enumerate(others, start=1):
        for what, ports in first.items():
            if other[what] != ports:
                raise ValueError(
                    f"the networks of an ensemble have the same {what}; network {index} has {other[what]}, "
                    f"network 0 {ports}"
                )


def _ports(network: Any) -> dict[str, object]:
    outputs = {name: port.shape for name, port in network.out_ports.items()}
    return {"inputs": network.in_keys, "outputs": outputs, "states": network.state_shapes}


def _moved_together(tensors: Sequence[Tensor], across: bool) -> Tensor:
    """``tensors`` stacked; each becomes a view of its part of the stack, so that nothing is held twice.

    Weights that are multiplied ``across`` are stored transposed, as they are read: gradients need no copy.
    """
    first = tensors[0].detach()
    if across:
        together = first.new_empty((len(tensors), *first.mT.shape)).mT
    else:
        together = first.new_empty((len(tensors), *first.shape))
    for part, tensor in zip(together, tensors):
        part.copy_(tensor.detach())
        tensor.data = part
    return together


def _together(copies: Sequence[Mapping[str, Tensor]], dims: Mapping[str, int]) -> dict[str, Tensor]:
    return {name: torch.stack([out[name] for out in copies], dim=dim) for name, dim in dims.items()}
