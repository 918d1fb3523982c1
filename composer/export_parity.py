"""Whether an exported file computes what the model does: both play the same random steps, each with its own memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer.export_network import ExportedNetwork, Value
from composer.space_samples import SpaceSampler

__all__ = ["BATCHES", "STEPS", "TOLERANCE", "Difference", "largest_difference", "random_inputs"]

STEPS = 50
BATCHES = (1, 2, 7)
TOLERANCE = 1e-4
RESET_RATE = 0.1
Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Difference:
    """How far an output is from the model's, where that is largest: ``size`` is relative for numbers above 1."""

    output: str
    size: float
    step: int
    batch: int


def largest_difference(network: ExportedNetwork, run: Run) -> Difference:
    """Over ``STEPS`` steps with each of the ``BATCHES``, the worst output of ``run``.

    Observations are drawn from the space, the state is fed back and reset now and then. An action that is a choice
    differs by how much less likely it is than the model's own.
    """
    worst = Difference("", -1.0, 0, 0)
    for batch in BATCHES:
        ours, theirs = dict(_zero_state(network, batch)), dict(_zero_state(network, batch))
        for step, inputs in enumerate(random_inputs(network, batch, STEPS)):
            with torch.no_grad():
                expected = network({**inputs, **ours})
                found = run({**inputs, **theirs})
            for name, value in network.outputs.items():
                size = _difference(network, value, expected, found)
                if size > worst.size or size != size:
                    worst = Difference(name, size, step, batch)
            ours, theirs = _state_after(network, expected), _state_after(network, found)
    return worst


def random_inputs(
    network: ExportedNetwork, batch: int, steps: int, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Observations, actions and resets, as many times as ``steps`` says; the first of them begins episodes."""
    seen = SpaceSampler(network.policy.observer.tree, seed)
    acted = SpaceSampler(network.policy.action_tree, seed)
    generator = torch.Generator().manual_seed(seed)
    named = {v.key: name for name, v in network.inputs.items() if v.kind == "observation"}
    taken = {v.key: name for name, v in network.inputs.items() if v.kind == "taken"}
    leading = (batch,) if network.steps is None else (batch, network.steps)
    for step in range(steps):
        drawn = seen.draw(leading, named)
        inputs = {name: _legal(network, key, drawn[key]) for key, name in named.items()}
        inputs |= {taken[key]: action for key, action in acted.draw(leading, taken).items()}
        for name, value in network.inputs.items():
            if value.kind == "resets":
                inputs[name] = (torch.rand(leading, generator=generator) < RESET_RATE) | (step == 0)
        yield inputs


def _legal(network: ExportedNetwork, key: str, value: Tensor) -> Tensor:
    """A mask of actions that allows at least every other choice, and so one of any two."""
    if not network.runs_policy or key not in network.policy.masks.values():
        return value
    allowed = value.clone()
    allowed[..., 0::2] = 1
    return allowed


def _zero_state(network: ExportedNetwork, batch: int) -> Iterator[tuple[str, Tensor]]:
    for name, value in network.inputs.items():
        if value.kind == "state":
            yield name, torch.zeros(batch, *value.axes[1:], dtype=value.dtype)  # type: ignore[arg-type]


def _state_after(network: ExportedNetwork, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    states = (value for value in network.inputs.values() if value.kind == "state")
    return {value.name: outputs[value.next] for value in states}  # type: ignore[index]


def _difference(
    network: ExportedNetwork, value: Value, expected: Mapping[str, Tensor], found: Mapping[str, Any]
) -> float:
    name = value.name
    ours, theirs = expected[name], found[name]
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if value.kind == "action" and not ours.dtype.is_floating_point:
        return 0.0 if torch.equal(ours, theirs) else _less_likely(network, value, expected, theirs)
    ours, theirs = ours.double(), theirs.double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    gaps = torch.where(same, 0.0, (ours - theirs).abs() / ours.abs().clamp_min(1.0))
    return float(gaps.max()) if gaps.numel() else 0.0


def _less_likely(
    network: ExportedNetwork, value: Value, expected: Mapping[str, Tensor], theirs: Tensor
) -> float:
    """How far apart in log-probability two actions are; rounding may decide between those that are equally likely."""
    (logits,) = (n for n, v in network.outputs.items() if (v.kind, v.key) == ("logits", value.key))
    distribution = network.policy.distributions[value.key](expected[logits])
    read = network.policy.action_tree.to_tensors
    chosen = [
        read({value.key: action}, dtype=torch.float32, keys=[value.key])[value.key]
        for action in (expected[value.name], theirs)
    ]
    return float((distribution.log_prob(chosen[0]) - distribution.log_prob(chosen[1])).abs().max())
