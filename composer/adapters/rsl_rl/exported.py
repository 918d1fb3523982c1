"""The policy as files of rsl_rl's own form: one vector of observations in, actions out, with the state."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from composer.export.checks import model_problems
from composer.export.exporting import ExportError, copied
from composer.network.network import State, Tensors
from composer.policy.policy import Policy

__all__ = ["OnnxPolicy", "traced_policy"]

STEPS = 5
TOLERANCE = 1e-5


class _ExportedPolicy(nn.Module):
    """A copy of the policy over one vector: the observations of the actor's groups, flat, one after the other."""

    def __init__(
        self, policy: Policy, keys: Mapping[str, str], groups: Sequence[str], actions: int
    ) -> None:
        super().__init__()
        tree = policy.observer.tree
        by_group = {group: key for key, group in keys.items()}
        unread = [group for group in groups if group not in by_group]
        if unread:
            raise ExportError(f"the model has no observation of the group {unread[0]!r}")
        self.policy: Policy = copied(policy, None)[0]  # type: ignore[assignment]
        self.is_recurrent = policy.has_memory
        self._keys = [by_group[group] for group in groups]
        self._shapes = [tuple(tree.leaves[key].space.shape or ()) for key in self._keys]
        self._dtypes = [_stored(tree.leaves[key].port.dtype) for key in self._keys]
        self._widths = [math.prod(shape) for shape in self._shapes]
        self.input_size = sum(self._widths)
        self.actions = actions

    def act(self, obs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Actions (n, actions) of ``obs`` (n, input_size), and the state after."""
        policy = self.policy
        parts = zip(
            self._keys, obs.split(self._widths, -1), self._shapes, self._dtypes, strict=True
        )
        seen: Tensors = {
            key: part.reshape(-1, *shape).to(dtype) for key, part, shape, dtype in parts
        }
        inputs = policy.read(seen)
        outputs, after = policy.run(inputs, state, None)
        mode = policy.distribution_of(outputs, inputs, None, 1.0).mode()
        return mode.reshape(-1, self.actions), after


class OnnxPolicy(_ExportedPolicy):
    """What `export_policy_to_onnx` writes: ``obs`` (1, numbers) and states in, ``actions`` and ``next/`` states out."""

    def __init__(
        self, policy: Policy, keys: Mapping[str, str], groups: Sequence[str], actions: int
    ) -> None:
        problems = list(model_problems(policy, None, "policy", ".onnx"))
        if problems:
            raise ExportError("the policy cannot be exported: " + "\n  ".join(problems))
        super().__init__(policy, keys, groups, actions)
        self._names = list(policy.state_shapes)

    def forward(self, obs: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self._names, states, strict=True)) if self._names else None
        action, after = self.act(obs, state)
        return (action, *(after[name] for name in self._names))

    def get_dummy_inputs(self) -> tuple[Tensor, ...]:
        """Zeros of the form of its inputs, for tracing."""
        zeros = self.policy.initial_state(1) if self._names else {}
        return (torch.zeros(1, self.input_size), *(zeros[name] for name in self._names))

    @property
    def input_names(self) -> list[str]:
        return ["obs", *self._names]

    @property
    def output_names(self) -> list[str]:
        return ["actions", *(f"next/{name}" for name in self._names)]


class _JitPolicy(_ExportedPolicy):
    """A policy of one environment that holds its state, as rsl_rl's own files do."""

    def __init__(
        self, policy: Policy, keys: Mapping[str, str], groups: Sequence[str], actions: int
    ) -> None:
        super().__init__(policy, keys, groups, actions)
        self._buffer_of: dict[str, str] = {}
        zeros = self.policy.initial_state(1) if policy.has_memory else {}
        for number, (name, zero) in enumerate(zeros.items()):
            self._buffer_of[name] = f"state_{number}"
            self.register_buffer(f"state_{number}", zero)

    def forward(self, x: Tensor) -> Tensor:
        state = {name: self._buffers[at] for name, at in self._buffer_of.items()}
        action, after = self.act(x, state or None)  # type: ignore[arg-type]
        for name, at in self._buffer_of.items():
            self._buffers[at].copy_(after[name])  # type: ignore[union-attr]
        return action

    def reset(self) -> Tensor:
        for at in self._buffer_of.values():
            self._buffers[at].zero_()  # type: ignore[union-attr]
        return torch.zeros(())  # tracing asks for a result


def traced_policy(
    policy: Policy, keys: Mapping[str, str], groups: Sequence[str], actions: int
) -> nn.Module:
    """The policy as TorchScript with `forward` and `reset`. Raises ExportError where that computes something else."""
    module = _JitPolicy(policy, keys, groups, actions).eval()
    other = copy.deepcopy(module)  # what is traced shares its state with the module
    example = torch.zeros(1, module.input_size)
    try:
        with torch.no_grad():
            traced = torch.jit.trace_module(
                module, {"forward": (example,), "reset": ()}, check_trace=False
            )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"the policy cannot be traced as TorchScript: {reason}; "
            "write model.export('policy.onnx') or model.export('policy.pt2') of runner.alg.actor.model instead"
        ) from error
    worst = _difference(other, traced)
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the policy as TorchScript differs from the model by {worst:.1e}; "
            "write model.export('policy.onnx') or model.export('policy.pt2') of runner.alg.actor.model instead"
        )
    return traced


def _difference(module: _JitPolicy, traced: torch.jit.ScriptModule) -> float:
    """The largest difference over a few random steps, which leave no state behind."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.no_grad():
        traced.reset()  # pyright: ignore[reportCallIssue]
        for _ in range(STEPS):
            x = torch.rand((1, module.input_size), generator=generator)
            worst = max(worst, float((module(x) - traced(x)).abs().max()))
        traced.reset()  # pyright: ignore[reportCallIssue]
    return worst


def _stored(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.int64
