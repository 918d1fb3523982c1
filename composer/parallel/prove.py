"""Whether several processes compute what one does: outputs, gradients, and weights after steps of AdamW.

`prove` starts the processes; each of them runs this module, and compares its shards with the whole model.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from composer.checkpoint.file import foreign_modules
from composer.critic.targets import Targeted
from composer.errors import RefusedError, SpecError
from composer.limits import Limits
from composer.model import Model
from composer.model import compose as compose_whole
from composer.parallel.launch import Mesh, end_with_starter, run_processes, start
from composer.parallel.materialize import compose_by
from composer.parallel.sharding import Sharder, optimizer, whole_tensor
from composer.policy.structured import StructuredPolicy
from composer.spaces.lookup import is_by_actor
from composer.spaces.samples import batch_of, random_values
from composer.trust import allow_beside
from perception_blocks.registry import MissingExtraError, NameTakenError

__all__ = ["TOLERANCE", "Proof", "Task", "Trial", "prove"]

TOLERANCE = 1e-5
ROWS, TIMES = 4, 3  # of each process, and the steps of a sequence
LARGEST = 10.0  # of the numbers in observations
SEED = 0
# Of AdamW: with a smaller epsilon it would enlarge the rounding of gradients that are zero.
RATE, EPSILON = 1e-3, 1e-4
ANSWERS = (SpecError, RefusedError, NameTakenError, MissingExtraError)


@dataclass(frozen=True)
class Task:
    """What is to be proven: a spec, and what the caller allows it."""

    file: str
    environment: str | None = None
    steps: int = 3
    allow: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    folders: tuple[str, ...] = ()  # in which allowed modules may lie


@dataclass(frozen=True)
class Proof:
    """The largest differences between ``processes`` and one, and how many of the parameters were shards."""

    processes: int
    steps: int
    differences: Mapping[str, float]
    shards: int
    parameters: int

    @property
    def holds(self) -> bool:
        """Whether all differences are at most `TOLERANCE`; one that is NaN is not."""
        return all(size <= TOLERANCE for size in self.differences.values())

    def __str__(self) -> str:
        if self.processes == 1:
            verdict = f"1 process {'equals' if self.holds else 'does not equal'}"
        else:
            verdict = f"{self.processes} processes {'equal' if self.holds else 'do not equal'}"
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        lines = [f"{verdict} one, {steps} of AdamW:"]
        lines += [f"  {name:<10} {size:.1e}" for name, size in self.differences.items()]
        lines.append(f"  {self.shards} of {self.parameters} parameters are shards")
        return "\n".join(lines)


class ProofError(RefusedError):
    """A proof that could not be made; the message is that of the process that failed."""


def prove(task: Task, processes: int) -> Proof:
    """Let ``processes`` that torchrun starts do the ``task``. Raises ProofError where one of them fails."""
    with tempfile.TemporaryDirectory(prefix="composer-prove-") as name:
        folder = Path(name)
        (folder / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
        said = run_processes("composer.parallel.prove", [name], processes, folder)
        results = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.result"))]
    problems = [result for result in results if "problem" in result]
    if problems:  # the first one is the cause of the others, whose connections it has closed
        raise ProofError(min(problems, key=lambda problem: problem["time"])["problem"])
    if len(results) < processes:
        raise ProofError(f"a process ended without a result; it said:\n{said}")
    return Proof(**results[0])


# --- in each process --------------------------------------------------------------------------------------------------


def main(folder: str) -> int:
    """Do the task in ``folder`` as one of the processes; what came of it goes to a file there."""
    end_with_starter(Path(folder))
    task = Task(**json.loads((Path(folder) / "task.json").read_text("utf-8")))
    allow_beside(task.folders, task.allow)
    with start() as mesh:
        result = _result(
            task, mesh
        )  # with its time, before the others see that this process has left
        path = Path(folder) / f"{int(os.environ['RANK']):05}.result"
        path.write_text(json.dumps(result), encoding="utf-8")
    return int("problem" in result)


def _result(task: Task, mesh: Mesh) -> dict[str, Any]:
    try:
        return asdict(_proof(task, mesh))
    except ANSWERS as error:
        problem = str(error)
    except Exception:
        problem = traceback.format_exc().strip()
    return {"problem": problem, "time": time.time()}


def _proof(task: Task, mesh: Mesh) -> Proof:
    file = Path(task.file)
    arguments: dict[str, Any] = {
        "env": task.environment,
        "allow": task.allow,
        "overrides": task.overrides,
        "limits": Limits(**task.limits),
        "seed": SEED,
    }
    model = compose_whole(file, **arguments, device="meta")
    plan = Sharder(model, mesh).plan  # what of it does not fit is told with its place
    exact = replace(plan, param_dtype=None, reduce_dtype=None)
    arguments["overrides"] = (*task.overrides, *_in_float32(model))
    # Else rounding may decide on which side of a relu's kink a number is. Classes of others may know float32 only.
    arguments["dtype"] = torch.float32 if foreign_modules(model) else torch.float64
    whole = compose_whole(file, **arguments, device=mesh.device)
    sharded = compose_by(exact, file, **arguments)
    return compare(whole, sharded, mesh, exact.data, task.steps)


def _in_float32(model: Any) -> list[str]:
    """What makes an action model compute in float32: in half precision, rounding alone differs by more."""
    if model.spec.model is None:
        return []
    flash = model.plan.attention.startswith("flash")  # which takes half precision alone
    return ["model.precision=fp32", *(["model.attn_implementation=auto"] if flash else [])]


def compare(whole: Any, sharded: Any, mesh: Mesh, data: int, steps: int) -> Proof:
    """Use both models alike and compare them; of ``data`` shares of a batch ``sharded`` gets that of this process."""
    torch.backends.cudnn.enabled = False  # its recurrent layers have no backward pass in eval mode
    trial_class = trial_of(whole)
    ours = trial_class(whole.eval(), data, None)
    theirs = trial_class(sharded.eval(), data, mesh.rank // (mesh.size // data))
    gaps = _Gaps()
    # Targets are called first, and actions taken before there is an optimizer: both once went wrong in silence.
    gaps.note_all("outputs", map(theirs.share, ours.outputs()), theirs.outputs())
    optimizers = [
        optimizer(trial.model, torch.optim.AdamW, lr=RATE, eps=EPSILON) for trial in (ours, theirs)
    ]
    for _ in range(steps):
        for trial in (ours, theirs):
            trial.loss().backward()
        gaps.note_all("gradients", _gradients(whole, whole), _gradients(sharded, whole))
        for each, trial in zip(optimizers, (ours, theirs), strict=True):
            each.step()
            each.zero_grad()
            trial.follow()
    gaps.note_all("weights", _weights(whole, whole), _weights(sharded, whole))
    gaps.note_all("outputs", map(theirs.share, ours.outputs()), theirs.outputs())
    largest = dict(zip(gaps.sizes, mesh.largest(list(gaps.sizes.values())), strict=True))
    parameters = list(sharded.parameters())
    shards = sum(isinstance(parameter, DTensor) for parameter in parameters)
    return Proof(mesh.size, steps, largest, shards, len(parameters))


class _Gaps:
    """The largest difference of each kind yet, relative to a tensor's largest number where that is above 1."""

    def __init__(self) -> None:
        self.sizes = {"outputs": 0.0, "gradients": 0.0, "weights": 0.0}

    def note_all(self, what: str, ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
        for a, b in zip(ours, theirs, strict=True):
            if a.shape != b.shape:
                self.sizes[what] = float("inf")
            elif a.numel():
                a, b = a.double(), b.double()
                gap = float((a - b).abs().max() / a.abs().max().clamp_min(1.0))
                self.sizes[what] = gap if gap != gap else max(self.sizes[what], gap)


def _weights(model: nn.Module, like: nn.Module) -> Iterator[Tensor]:
    """The whole parameters of ``model``, in the order of another one."""
    named = dict(model.named_parameters())
    for name, _ in like.named_parameters():
        yield whole_tensor(named[name])


def _gradients(model: nn.Module, like: nn.Module) -> Iterator[Tensor]:
    """The whole gradients of the parameters that have one in ``like``."""
    named = dict(model.named_parameters())
    for name, parameter in like.named_parameters():
        if parameter.grad is not None:
            gradient = named[name].grad
            yield parameter.new_zeros(0) if gradient is None else whole_tensor(gradient)


class Trial:
    """A model used on random observations of its spaces: all of a batch, or the share of one of ``data`` processes."""

    def __init__(self, model: Model, data: int, place: int | None) -> None:
        self.model = model
        self._rows = slice(None) if place is None else slice(place * ROWS, (place + 1) * ROWS)
        self._size = data * ROWS if place is None else ROWS
        draw = partial(_drawn, count=data * ROWS, rows=self._rows)
        self.observations = draw(model.observation_space, seed=SEED)
        for key, policy in self._policies():
            _allow_some(self.observations if key is None else self.observations[key], policy)
        self.actions = model.policy.from_environment(draw(model.action_space, seed=SEED + 1))

    def share(self, tensor: Tensor) -> Tensor:
        """Of what all rows gave, that of these."""
        return tensor[self._rows]

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """What every use of the model gives that is a number."""
        policy, critic = self.model.policy, self.model.critic
        results = [self._values(critic.target)] if isinstance(critic, Targeted) else []
        state = self._state(policy)
        results.append(policy.act(self.observations, *state, deterministic=True))
        results.append(self._all())
        if policy.has_memory:
            resets = torch.zeros(self._size, TIMES, dtype=torch.bool, device=policy.device)
            resets[:, 1] = True
            results.append(policy.unroll(_repeated(self.observations), *state, resets))
        return list(_tensors(results))

    def loss(self) -> Tensor:
        """The mean over the rows, in which all outputs and what the distributions learn occur."""
        policy, critic = self.model.policy, self.model.critic
        distribution = policy.distribution(self.observations, *self._state(policy))
        if policy.has_memory:
            distribution, _ = distribution
        pairs = [(distribution, self.actions)]
        if self.model.policy.actors:
            pairs = [(distribution[key], self.actions[key]) for key in distribution]
        terms = [-choice.log_prob(action).mean() for choice, action in pairs]
        values = list(_tensors(self._all()[1]))
        goals: list[Any] = [0.0] * len(values)
        if isinstance(critic, Targeted):
            with torch.no_grad():
                goals = list(_tensors(self._values(critic.target)))
        terms += [(v - goal - 1.0).square().mean() for v, goal in zip(values, goals, strict=True)]
        return torch.stack(terms).sum()

    def follow(self) -> None:
        """What comes after a step of the optimizer."""
        if isinstance(self.model.critic, Targeted):
            self.model.critic.update_targets(0.5)

    def _policies(self) -> Iterator[tuple[Any, Any]]:
        policy = self.model.policy
        if isinstance(policy, StructuredPolicy):
            yield from ((actor.key, policy.policies[actor.name]) for actor in policy.actors)
        else:
            yield None, policy

    def _state(self, part: Any) -> tuple[Any, ...]:
        return (part.initial_state(self._size),) if part.has_memory else ()

    def _all(self) -> Any:
        """(logits, values), and with memory the state after."""
        critic = self.model.critic
        action = self.actions if critic is not None and critic.takes_action else None
        return self.model(self.observations, *self._state(self.model), action=action)

    def _values(self, critic: Any) -> Any:
        keywords: dict[str, Any] = {}
        if critic.has_memory:
            keywords["state"] = critic.initial_state(self._size)
        if critic.shared:
            shared = self.model.policy(self.observations, *self._state(self.model.policy))
            keywords["shared"] = shared[0] if self.model.policy.has_memory else shared
        return critic(self.observations, self.actions, **keywords)


class ActionTrial:
    """An action model used on made images and tasks, alike for every process: padding must be of the same length."""

    def __init__(self, model: Any, data: int, place: int | None) -> None:
        self.model = model
        rows = np.random.default_rng(SEED)
        kinds = model.plan.spec.inputs
        made = model._made_observation()
        count = data * ROWS
        values: dict[str, Any] = {"text": ["pick up the red cup", "put"] * (count // 2)}
        if "image" in kinds:
            shape = np.asarray(made[kinds["image"]][0]).shape
            values["image"] = rows.integers(0, 256, (count, *shape), np.uint8)
        self._rows = slice(None) if place is None else slice(place * ROWS, (place + 1) * ROWS)
        self.observations = {name: values[kind][self._rows] for kind, name in kinds.items()}
        self._acted: Any = None

    def share(self, tensor: Tensor) -> Tensor:
        return tensor[self._rows]

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        actions, self._acted = self.model.predict_action_batch(self.observations, "eval")
        again = self.model(self._acted["forward_inputs"])
        probabilities, values = self._acted["prev_logprobs"], self._acted["prev_values"]
        return list(_tensors([actions, probabilities, values, again]))

    def loss(self) -> Tensor:
        again = self.model(self._acted["forward_inputs"])
        terms = [
            -again["logprobs"].mean(),
            -again["entropy"].mean(),
            again["values"].square().mean(),
        ]
        return torch.stack(terms).sum()

    def follow(self) -> None:
        """Nothing comes after a step of the optimizer."""


def trial_of(model: object) -> Callable[..., Any]:
    """How ``model`` is used in a proof. Raises ProofError where that is not known."""
    if isinstance(model, Model):
        return Trial
    if hasattr(model, "predict_action_batch"):
        return ActionTrial
    raise ProofError(f"it is not known how to use a {type(model).__name__} in a proof")


def _drawn(space: Any, count: int, rows: slice, seed: int) -> Any:
    """Random values of ``space``, or of each actor's, as a batch; of ``count`` of them these ``rows``."""
    if is_by_actor(space):
        return {
            key: _drawn(inner, count, rows, seed + i)
            for i, (key, inner) in enumerate(space.items())
        }
    return _tamed(batch_of(space, random_values(space, count, seed)[rows]))


def _tamed(value: Any) -> Any:
    """Without the huge numbers that a Box of wide bounds holds: no network makes anything of those."""
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        return np.clip(value, -LARGEST, LARGEST)
    return {k: _tamed(v) for k, v in value.items()} if isinstance(value, dict) else value


def _allow_some(observations: Any, policy: Any) -> None:
    """Masks of actions that allow at least every other choice."""
    for key in policy.masks.values():
        mask = observations
        for part in policy.observer.tree.leaves[key].path:
            mask = mask[part]
        mask[..., 0::2] = 1


def _repeated(value: Any) -> Any:
    """Batches (B, ...) as sequences (B, T, ...) of the same."""
    if isinstance(value, Mapping):
        return {key: _repeated(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_repeated, value))
    return np.repeat(np.asarray(value)[:, None], TIMES, axis=1)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors and arrays of numbers in nested dicts, lists and tuples."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield torch.from_numpy(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
