"""Whether an exported file computes what the model does: both play the same random steps, each with its own memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from composer.export.network import ExportedNetwork
from composer.export.values import Value
from composer.spaces.samples import SpaceSampler

__all__ = ["BATCHES", "STEPS", "TOLERANCE", "Difference", "largest_difference", "random_inputs"]
__all__ += ["zero_state"]

STEPS = 50
BATCHES = (1, 2, 7)
AGENTS: dict[int, int] = dict(zip(BATCHES, (2, 1, 3), strict=True))  # where they are not counted
TOLERANCE = 1e-4
RESET_RATE = 0.1
PRESENCE_RATE = 0.7
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
        ours, theirs = dict(zero_state(network, batch)), dict(zero_state(network, batch))
        for step, inputs in enumerate(random_inputs(network, batch, STEPS)):
            with torch.no_grad():
                expected = network({**inputs, **ours})
                computed = run({**inputs, **theirs})
            for name, value in network.outputs.items():
                size = _difference(network, value, expected, computed)
                if size > worst.size or size != size:
                    worst = Difference(name, size, step, batch)
            ours, theirs = _state_after(network, expected), _state_after(network, computed)
    return worst


def random_inputs(
    network: ExportedNetwork, batch: int, steps: int, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Observations, actions, resets and presence, ``steps`` times; the first step begins episodes.

    Axes that have one name are padded to the longest.
    """
    policies = network.actors.policies.items()
    samplers = [
        (kind, actor, SpaceSampler(tree, seed + place))
        for place, (actor, policy) in enumerate(policies)
        for kind, tree in (("observation", policy.observer.tree), ("taken", policy.action_tree))
    ]
    generator = torch.Generator().manual_seed(seed)
    values, longest = network.inputs.values(), network.longest_episode
    for step in range(steps):
        inputs: dict[str, Tensor] = {}
        for kind, actor, sampler in samplers:
            by_key = {v.key: v for v in values if (v.kind, v.actor) == (kind, actor)}
            leading = _sizes(network.actors.leading(actor, network.steps), batch)
            for key, drawn in sampler.draw(leading, by_key).items() if by_key else ():
                inputs[by_key[key].name] = _legal(network, by_key[key], drawn)
        for value in values:
            rate = {"resets": RESET_RATE, "present": PRESENCE_RATE}.get(value.kind)
            if rate is not None:
                drawn = torch.rand(_sizes(value.axes, batch), generator=generator) < rate
                inputs[value.name] = drawn | (step == 0)
            if value.kind == "resets" and longest is not None:
                inputs[value.name] |= _steps_of(network, step) % longest == 0
        yield _equally_long(network, inputs)


def _steps_of(network: ExportedNetwork, call: int) -> Tensor:
    """The numbers of the steps that a call runs: (T,), or a single one."""
    if network.steps is None:
        return torch.tensor(call)
    return call * network.steps + torch.arange(network.steps)


def _sizes(axes: Iterable[int | str], batch: int) -> tuple[int, ...]:
    """Axes as numbers; a name that is not the batch is a number of agents."""
    agents = AGENTS.get(batch, batch)
    named = {"batch": batch}
    return tuple(axis if isinstance(axis, int) else named.get(axis, agents) for axis in axes)


def _equally_long(network: ExportedNetwork, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``inputs``, padded with zeros to the longest along axes of one name."""
    longest: dict[str, int] = {}
    for name, value in inputs.items():
        for axis, size in zip(network.inputs[name].axes, value.shape, strict=True):
            longest[str(axis)] = max(size, longest.get(str(axis), 0))
    padded = {}
    for name, value in inputs.items():
        wanted = [longest[str(axis)] for axis in network.inputs[name].axes]
        missing = [want - size for want, size in zip(wanted, value.shape, strict=True)]
        padded[name] = functional.pad(value, [n for size in reversed(missing) for n in (0, size)])
    return padded


def _legal(network: ExportedNetwork, value: Value, drawn: Tensor) -> Tensor:
    """``drawn``; a mask of actions, whatever space it has, is 0 or 1 and allows at least every other choice."""
    masks = network.actors.policies[value.actor].masks.values()
    if value.kind != "observation" or not network.runs_policy or value.key not in masks:
        return drawn
    allowed = (drawn > 0.5).to(drawn.dtype)
    allowed[..., 0::2] = 1
    return allowed


def zero_state(network: ExportedNetwork, batch: int) -> Iterator[tuple[str, Tensor]]:
    """The state before the first episode, by name."""
    for name, value in network.inputs.items():
        if value.kind == "state":
            yield name, torch.zeros(_sizes(value.axes, batch), dtype=value.dtype)


def _state_after(network: ExportedNetwork, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    states = (value for value in network.inputs.values() if value.kind == "state")
    return {value.name: outputs[value.next] for value in states}  # type: ignore[index]


def _difference(
    network: ExportedNetwork,
    value: Value,
    expected: Mapping[str, Tensor],
    computed: Mapping[str, Tensor],
) -> float:
    name = value.name
    ours, theirs = expected[name], computed[name]
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
    """The difference in log-probability of two actions; rounding may decide between equally likely ones."""
    place = ("logits", value.actor, value.key)
    (logits,) = (name for name, v in network.outputs.items() if v.place == place)
    policy, key = network.actors.policies[value.actor], value.key
    distribution = policy.distributions[key](expected[logits])
    read = policy.action_tree.to_tensors
    chosen = [
        read({key: action}, dtype=torch.float32, keys=[key])[key]
        for action in (expected[value.name], theirs)
    ]
    return float((distribution.log_prob(chosen[0]) - distribution.log_prob(chosen[1])).abs().max())
