"""What is exported of a model: one function from a dict of tensors to a dict of tensors, and the names in both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from composer.network import NetworkModule, State, Tensors, share_of
from composer.policy import Policy
from composer.space_kinds import to_space_value
from composer.space_samples import space_dtype

__all__ = ["ExportedNetwork", "ExportPart", "Value"]

ExportPart = Literal["policy", "critic", "model"]
Kind = Literal["observation", "taken", "state", "resets", "logits", "action", "value"]


@dataclass(frozen=True)
class Value:
    """An input or output: its ``name`` in the file, the ``key`` that the model knows it by, and its form.

    An axis is a number, or the name of one whose size varies. ``next`` is the output that a state becomes. ``taken`` is
    an action, as the environment takes it, that a critic of actions is asked about.
    """

    name: str
    kind: Kind
    key: str
    axes: tuple[int | str, ...]
    dtype: torch.dtype
    next: str | None = None

    def __str__(self) -> str:
        axes = ", ".join(map(str, self.axes)) + ("," if len(self.axes) == 1 else "")
        return f"{self.name} ({axes}) {str(self.dtype).removeprefix('torch.')}"


class ExportedNetwork(nn.Module):
    """A policy, a critic or both, for one step or, with ``unroll``, for that many.

    Observations have their flat keys and the state the names of ``initial_state``; where two would have one name, the
    later one has its kind before it. The inputs are complete: a critic that reads shared values has the policy inside.
    """

    def __init__(
        self,
        policy: Policy,
        critic: NetworkModule | None,
        part: ExportPart,
        unroll: int | None,
    ) -> None:
        super().__init__()
        self.part = part
        self.steps = unroll
        critic = critic if part != "policy" else None
        object.__setattr__(self, "policy", policy)  # no children: see _adopt
        object.__setattr__(self, "critic", critic)
        self.runs_policy = part != "critic" or bool(getattr(critic, "shared", ()))
        self._adopt("policy", policy if self.runs_policy else None)
        self._adopt("critic", critic)
        self._names: set[str] = set()
        observations, taken = self._observations(), self._taken()
        states, resets, self._next = self._states()
        inputs = (*observations, *taken, *states, *resets)
        self.inputs = {value.name: value for value in inputs}
        self.outputs: dict[str, Value] = {}  # filled by the first run

    policy: Policy
    critic: NetworkModule | None

    @property
    def leading(self) -> tuple[int | str, ...]:
        return ("batch",) if self.steps is None else ("batch", self.steps)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Outputs by name; the state after the step comes with them."""
        observations = self._of_kind("observation", inputs)
        state = self._of_kind("state", inputs)
        resets = self._of_kind("resets", inputs).get("resets")
        found: dict[tuple[Kind, str], Tensor] = {}
        shared: Tensors = {}
        if self.runs_policy:
            shared, after = self._run_policy(
                observations, self._own(state, "policy"), resets, found
            )
            found |= {("state", self._state_key("policy", k)): v for k, v in after.items()}
        if self.critic is not None:
            own = self._own(state, "critic")
            taken = self._of_kind("taken", inputs)
            values, after = self._run_critic(observations, taken, own, resets, shared)
            found |= {("value", key): value for key, value in values.items()}
            found |= {("state", self._state_key("critic", k)): v for k, v in after.items()}
        if not self.outputs:
            self._name_outputs(found)
        named = {(value.kind, value.key): name for name, value in self.outputs.items()}
        return {named[key]: value for key, value in found.items()}

    def example(self, batch: int) -> Tensors:
        """Zeros as inputs, for tracing; axes that vary have sizes of their own."""
        sizes: dict[str, int] = {"batch": batch}
        for value in self.inputs.values():
            for axis in value.axes:
                if isinstance(axis, str):
                    sizes.setdefault(axis, batch + len(sizes))
        return {
            name: torch.zeros(
                [a if isinstance(a, int) else sizes[a] for a in value.axes], dtype=value.dtype
            )
            for name, value in self.inputs.items()
        }

    def _run_policy(
        self, observations: Tensors, state: State, resets: Tensor | None, found: dict[Any, Tensor]
    ) -> tuple[Tensors, State]:
        policy = self.policy
        inputs = policy.read(observations)
        unroll = self.steps is not None
        outputs, after = policy.evaluate(inputs, state or None, resets, "policy", unroll)
        if self.part != "critic":
            mode: Any = policy.distribution_of(outputs, inputs, None, 1.0).mode()
            leaves = policy.action_tree.leaves
            modes: Tensors = mode if isinstance(mode, dict) else {next(iter(leaves)): mode}
            found |= {("logits", key): outputs[key] for key in leaves}
            found |= {
                ("action", key): to_space_value(leaf, modes[key]) for key, leaf in leaves.items()
            }
        return outputs, after

    def _run_critic(
        self,
        observations: Tensors,
        taken: Tensors,
        state: State,
        resets: Tensor | None,
        shared: Tensors,
    ) -> tuple[Tensors, State]:
        critic: Any = self.critic
        arguments: list[Any] = [observations]
        if critic.takes_action:
            arguments.append(self.policy.from_environment(taken) if taken else None)
        if not critic.has_memory:
            return critic(*arguments, shared=shared), {}
        call = critic if self.steps is None else critic.unroll
        return call(*arguments, state, resets, shared=shared)

    def _adopt(self, part: str, root: nn.Module | None) -> None:
        """Give the weights of ``root`` addresses of one step: ``weights/policy/latent/linears/0``, and their own name.

        Torch's exporter looks them up as attributes, where a node that is named like a method ("value") is not found.
        """
        for path, module in () if root is None else root.named_modules(prefix=part):
            if module._parameters or module._buffers:
                holder = nn.Module()
                for registry in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
                    object.__setattr__(holder, registry, getattr(module, registry))
                self.add_module(f"weights/{path}".replace(".", "/"), holder)

    # --- names ---

    def _observations(self) -> list[Value]:
        tree = self.policy.observer.tree
        return [
            Value(
                self._unused(key, "observation"),
                "observation",
                key,
                (
                    *self.leading,
                    *(_length(tree.ports, key) if n is None else n for n in leaf.port.shape),
                ),
                space_dtype(leaf),
            )
            for key, leaf in tree.leaves.items()
            if key in self._keys()
        ]

    def _taken(self) -> list[Value]:
        """The action that the critic values; one with a value for each choice needs none."""
        critic: Any = self.critic
        if critic is None or not critic.takes_action or critic.actions.are_choices:
            return []
        tree = self.policy.action_tree
        return [
            Value(
                self._unused("taken" if tree.is_single else f"taken/{key}", "input"),
                "taken",
                key,
                (*self.leading, *leaf.shape),
                space_dtype(leaf),
            )
            for key, leaf in tree.leaves.items()
        ]

    def _keys(self) -> set[str]:
        """The observations that are read, and the masks without which they cannot be."""
        policy, ports = self.policy, self.policy.observer.tree.ports
        keys: set[str] = set()
        if self.runs_policy:
            keys |= {*policy.network.in_ports, *policy.masks.values()}
        if self.critic is not None:
            keys |= self.critic.network.in_ports.keys() & ports.keys()
        masks = {ports[key].mask for key in policy.observer.keys if key in keys}
        return keys | {mask for mask in masks if mask is not None}

    def _states(self) -> tuple[list[Value], list[Value], dict[str, str]]:
        """The state's inputs, ``resets`` if there is a state, and the output that each becomes."""
        parts: dict[str, NetworkModule] = {"policy": self.policy} if self.runs_policy else {}
        if self.critic is not None:
            parts["critic"] = self.critic
        self._prefixed = len(parts) > 1
        states = []
        for part, module in parts.items():
            for key, shape in module.state_shapes.items():
                key = self._state_key(part, key)
                name = self._unused(key, "state")
                after = self._unused(f"next/{name}", "state")
                axes = ("batch", *(int(size) for size in shape))  # type: ignore[arg-type]
                states.append(Value(name, "state", key, axes, self.policy.dtype, after))
        resets = self._unused("resets", "state") if states else None
        reset_values = (
            [Value(resets, "resets", "resets", self.leading, torch.bool)] if resets else []
        )
        return states, reset_values, {value.key: value.next for value in states}  # type: ignore[misc]

    def _name_outputs(self, found: Mapping[tuple[Kind, str], Tensor]) -> None:
        for (kind, key), tensor in found.items():
            name = self._next[key] if kind == "state" else self._output_name(kind, key)
            leading = ("batch",) if kind == "state" else self.leading
            axes = (*leading, *tensor.shape[len(leading) :])
            self.outputs[name] = Value(name, kind, key, axes, tensor.dtype)

    def _output_name(self, kind: Kind, key: str) -> str:
        """``value`` as the critic calls it; ``logits`` and ``action``, followed by which where there are several."""
        if kind == "value":
            return self._unused(key, "output")
        single = self.policy.action_tree.is_single
        return self._unused(kind if single else f"{kind}/{key}", "output")

    def _unused(self, name: str, kind: str) -> str:
        while name in self._names:
            name = f"{kind}/{name}"
        self._names.add(name)
        return name

    def _state_key(self, part: str, key: str) -> str:
        return f"{part}/{key}" if self._prefixed else key

    def _own(self, state: State, part: str) -> State:
        return share_of(part, state) if self._prefixed else state

    def _of_kind(self, kind: Kind, tensors: Mapping[str, Tensor]) -> Tensors:
        return {v.key: tensors[name] for name, v in self.inputs.items() if v.kind == kind}


def _length(ports: Mapping[str, Any], key: str) -> str:
    """What an axis that varies is called: equal for all values that have one mask."""
    return re.sub(r"\W+", "_", ports[key].mask or key).strip("_")
