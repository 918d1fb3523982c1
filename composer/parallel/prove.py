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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from composer.checkpoint.file import foreign_modules
from composer.errors import RefusedError, SpecError
from composer.limits import Limits
from composer.model import Model
from composer.model import compose as compose_whole
from composer.parallel.launch import Mesh, end_with_starter, run_processes, start
from composer.parallel.layout import whole_tensor
from composer.parallel.materialize import compose_by
from composer.parallel.sharding import Sharder, optimizer
from composer.parallel.trials import SEED, ActionTrial, Trial
from composer.trust import allow_beside
from perception_blocks.registry import MissingExtraError, NameTakenError

__all__ = ["TOLERANCE", "Proof", "ProofError", "Task", "prove"]

TOLERANCE = 1e-5
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
        # With its time, before the others see that this process has left.
        result = _result(task, mesh)
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


def trial_of(model: object) -> type[Trial | ActionTrial]:
    """How ``model`` is used in a proof. Raises ProofError where that is not known."""
    if isinstance(model, Model):
        return Trial
    if hasattr(model, "predict_action_batch"):
        return ActionTrial
    raise ProofError(f"it is not known how to use a {type(model).__name__} in a proof")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
