"""The task of a run of training, and the interface of trainers. It imports no trainer's library."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.errors import RefusedError
from composer.model import Model
from perception_blocks.registry import Registry
from perception_blocks.settings import check_settings

__all__ = ["TRAINERS", "Episode", "Phase", "Report", "Task", "Trainer"]
__all__ += [
    "MOST_COUNTED",
    "RunningEpisodes",
    "StoppedError",
    "TrainerState",
    "TrainingError",
    "no_phase",
    "refuse_other_state",
    "restore_optimizer",
]
__all__ += ["refuse_other_steps", "setting_problems"]

MOST_COUNTED = 2**40  # of steps and updates

TRAINERS = Registry("trainer")
"""Trainers of `composer train` by name."""
TRAINERS.register("sb3", "composer.adapters.sb3.training:Sb3Trainer", extra="sb3")
TRAINERS.register("torchrl", "composer.adapters.torchrl.training:TorchrlTrainer", extra="torchrl")
TRAINERS.register("rsl_rl", "composer.adapters.rsl_rl.training:RslRlTrainer", extra="rsl-rl")
TRAINERS.register("skrl", "composer.adapters.skrl.training:SkrlTrainer", extra="skrl")
TRAINERS.register(
    "tianshou", "composer.adapters.tianshou.training:TianshouTrainer", extra="tianshou"
)
TRAINERS.register("rllib", "composer.adapters.rllib.training:RllibTrainer", extra="rllib")
TRAINERS.register("composer", "composer.training.actors.trainer:ActorsTrainer")
TRAINERS.register(
    "rl_games", "composer.adapters.rl_games.training:RlGamesTrainer", extra="rl-games"
)


class TrainingError(RefusedError):
    """A run that cannot start or continue; the message says why and what to do."""


class StoppedError(Exception):
    """Raised by a trainer, out of a loop of its library, where the answer to a report is False."""


class Episode(NamedTuple):
    """A finished training episode: the sum of its rewards, as the environment gave them, and its number of steps."""

    total: float
    length: int


class RunningEpisodes:
    """The rewards and steps of the episodes that run in ``count`` environments side by side."""

    def __init__(self, count: int) -> None:
        self._totals = np.zeros(count)
        self._lengths = np.zeros(count, np.int64)

    def add(self, rewards: np.ndarray, over: np.ndarray) -> list[Episode]:
        """Count a step of all environments, (count,) each; the episodes that are over with it."""
        self._totals += rewards
        self._lengths += 1
        ended = np.flatnonzero(over)
        episodes = [Episode(float(self._totals[i]), int(self._lengths[i])) for i in ended]
        self._totals[ended], self._lengths[ended] = 0.0, 0
        return episodes


TrainerState = dict[str, Any]
"""All that a trainer needs to go on: tensors and plain data."""


class Report(Protocol):
    """What a trainer calls as it goes on; it stops where False is returned."""

    def __call__(
        self, steps: int, episodes: Sequence[Episode], metrics: Mapping[str, float] | None = None
    ) -> bool:
        """``steps`` is the number of steps made, ``episodes`` are those that ended since the last call.

        ``metrics`` are the trainer's numbers of its last update by name, None if there was none since the last call:
        ``loss/policy``, ``loss/value``, ``entropy``, ``kl``, ``clip_fraction``, ``learning_rate``, whatever it has.
        """
        ...


Phase = Callable[[str], None]
"""Given what the trainer does from now on: "collecting" or "updating"."""


def no_phase(name: str) -> None:
    """Ignore what the trainer does."""


@dataclass(frozen=True)
class Task:
    """What a run trains, and how. ``spec`` is the resolved spec as YAML text.

    ``settings`` are the algorithm's own, by the names that the trainer's library gives them. ``env_set`` are arguments
    of the environment; trainers make their environments by `environment.environment_maker`, each in a process of its
    own where ``subprocess`` says so. ``device`` is where the model is trained, ``threads`` are PyTorch's.

    The last six are for the run, not for its trainer: steps between two evaluations, between two numbered checkpoints,
    of which the last ``keep`` stay, and between two probes (0: none, none, all, none), and what else is written.
    """

    spec: str
    environment: str
    trainer: str = "sb3"
    algorithm: str = "ppo"
    steps: int = 0
    seed: int = 0
    envs: int = 1
    eval_episodes: int = 20
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 1
    subprocess: bool = False
    env_set: Mapping[str, Any] = field(default_factory=dict)
    eval_every: int = 0
    checkpoint_every: int = 0
    probe_every: int = 0
    keep: int = 5
    tensorboard: bool = False
    video: bool = False


class Trainer(Protocol):
    """Trains one model on ``task.envs`` copies of an environment, the first of them seeded with ``task.seed``.

    ``algorithms`` are the names it knows, ``model`` what learns: the one given, or a copy of it. Raises ValueError,
    when it is made, with every reason why the algorithm cannot train the model.
    """

    algorithms: ClassVar[Sequence[str]]
    model: Model

    def __init__(self, task: Task, model: Model) -> None: ...

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words, before anything is created."""
        ...

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until all environments together have made ``steps`` steps, including the steps before `restore`."""
        ...

    def act(
        self, observation: object, state: object, first: bool, mask: object
    ) -> tuple[object, object]:
        """The action without exploration and the state after it, as `evaluation.Act` says."""
        ...

    def state(self) -> TrainerState:
        """All that `restore` needs to go on: weights, optimisers, what was collected. Tensors and plain data."""
        ...

    def restore(self, state: TrainerState, steps: int) -> None:
        """Restore ``state``, of a trainer after ``steps`` steps; episodes begin anew."""
        ...

    def close(self) -> None: ...


def setting_problems(kind: type, task: Task) -> list[str]:
    """The errors in the settings of ``task``, some of those of the dataclass ``kind``, in words."""
    problems = check_settings(kind, task.settings, task.algorithm, partial=True, skip=0)
    return [problem.message for problem in problems]


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the ``state`` of an optimiser. Raises ValueError for one with which a later step would fail."""
    optimizer.load_state_dict(state)
    refuse_other_state(optimizer)


def refuse_other_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if an optimiser has restored a state with which a later step would fail."""
    probe = torch.zeros(2, requires_grad=True)
    probe.grad = torch.zeros(2)
    takes = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in takes}
    fresh = type(optimizer)([probe], **settings)
    fresh.step()
    form = fresh.state[probe]
    for parameter, kept in optimizer.state.items():
        if not isinstance(parameter, Tensor) or kept.keys() != form.keys():
            raise ValueError("the optimiser's state is of another optimiser")
        for name, value in kept.items():
            has_shape = isinstance(form[name], Tensor) and form[name].dim() > 0
            if not (_is_shaped(value, parameter) if has_shape else _is_count(value)):
                raise ValueError(f"the optimiser's {name!r} is of another kind or shape")
            # Of squares the root is taken.
            if has_shape and not bool(
                (value.isfinite() & ((value >= 0) | ("sq" not in name))).all()
            ):
                raise ValueError(f"the optimiser's {name!r} holds numbers that no step gives")


def _is_shaped(value: object, parameter: Tensor) -> bool:
    """Whether ``value`` has a number of its own for each of the ``parameter``."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return False
    return value.untyped_storage().nbytes() >= value.nbytes


def _is_count(value: object) -> bool:
    if not isinstance(value, int | float | Tensor) or (isinstance(value, Tensor) and value.dim()):
        return False
    return 0 <= float(value) < MOST_COUNTED


def refuse_other_steps(
    name: str, steps: object, like: Tensor, space: Space | None = None, bounded: bool = False
) -> None:
    """Raise ValueError unless the ``steps`` of a replay buffer are of the form of ``like``, with values of ``space``.

    ``space`` is None for rewards, which are finite. Numbers beyond the bounds of a Box pass unless it is ``bounded``:
    environments give them.
    """
    where = f"{name} in its replay buffer"
    if not isinstance(steps, Tensor) or (steps.shape, steps.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{where} is of another shape or type")
    if steps.untyped_storage().nbytes() < steps.nbytes:
        raise ValueError(f"{where} is shorter than it says")
    if bool(steps.isnan().any()) or (space is None and not bool(steps.isfinite().all())):
        raise ValueError(f"{where} holds NaN or infinite numbers")
    if not _are_in(steps, space, bounded):
        raise ValueError(f"{where} holds values that its space does not have")


def _are_in(values: Tensor, space: Space | None, bounded: bool) -> bool:
    """Whether all ``values`` are choices of ``space``, or within its bounds but for rounding, if ``bounded``."""
    if isinstance(space, spaces.Box) and bounded:
        low, high = (torch.as_tensor(bound) for bound in (space.low, space.high))
        slack = (high - low) * 1e-3
        return bool(((values >= low - slack) & (values <= high + slack)).all())
    if isinstance(space, spaces.MultiBinary):
        return bool(((values == 0) | (values == 1)).all())
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return True
    count = space.n if isinstance(space, spaces.Discrete) else space.nvec
    choices = values - torch.as_tensor(space.start)
    return bool(((choices >= 0) & (choices < torch.as_tensor(count))).all())
