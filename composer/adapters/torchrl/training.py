"""`composer train --trainer torchrl`: collectors and losses of TorchRL in loops of our own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from composer.adapters.needs import refuse
from composer.model import Model
from composer.policy.structured import one_policy
from composer.training.environment import environment_maker
from composer.training.evaluation import greedy
from composer.training.trainer import (
    Episode,
    Phase,
    Report,
    Task,
    TrainerState,
    no_phase,
    setting_problems,
)
from perception_blocks.registry import missing_extra

try:
    from tensordict import TensorDictBase
    from torchrl.collectors import Collector
    from torchrl.envs import (
        Compose,
        EnvBase,
        GymWrapper,
        ParallelEnv,
        RewardSum,
        SerialEnv,
        StepCounter,
        TransformedEnv,
    )

    from composer.adapters.torchrl.algorithm import Algorithm
    from composer.adapters.torchrl.fields import fields_of
    from composer.adapters.torchrl.models import primers
    from composer.adapters.torchrl.off_policy import Dqn, Sac
    from composer.adapters.torchrl.on_policy import A2c, Ppo
except ImportError as error:
    raise missing_extra("composer train --trainer torchrl", error, "torchrl") from error

__all__ = ["TorchrlTrainer"]

ALGORITHMS: dict[str, Any] = {"ppo": Ppo, "a2c": A2c, "dqn": Dqn, "sac": Sac}
MASK = "action_mask"  # the observation that is taken for the mask
TOTAL, LENGTH = "episode_reward", "step_count"  # what the transforms call them


class TorchrlTrainer:
    """A composed model in a loop of TorchRL's parts: it collects steps, then learns from them."""

    algorithms: ClassVar[Sequence[str]] = tuple(ALGORITHMS)

    def __init__(self, task: Task, model: Model) -> None:
        refuse(model, task.algorithm, "torchrl")
        torch.manual_seed(task.seed)
        self.model = model.to(task.device)
        self._task = task
        self._steps = 0
        algorithm = ALGORITHMS[task.algorithm]
        settings = algorithm.settings_type(**task.settings)
        self._env = _environment(task, model)
        try:
            self._algorithm: Algorithm = algorithm(model, self._env, settings)
        except BaseException:
            self._env.close()
            raise
        self._frames = math.ceil(settings.frames_per_batch / task.envs) * task.envs
        # A mask that the spec does not name applies too, as it does while exploring.
        policy = one_policy(model.policy)
        self._is_masked = not policy.masks and MASK in self._algorithm.explorer.in_keys
        self._act = greedy(policy, masked=self._is_masked)

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words."""
        kind = ALGORITHMS[task.algorithm].settings_type
        return setting_problems(kind, task)

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until ``steps`` steps have been made; the last batch may go beyond."""
        device = self._task.device if _is_cast(self._task) else None
        collector = Collector(
            self._env, self._algorithm.explorer, frames_per_batch=self._frames, total_frames=-1,
            env_device=self._env.device, policy_device=device, storing_device=device,
        )  # fmt: skip
        try:
            phase("collecting")
            for batch in collector:
                self._steps += batch.numel()
                phase("updating")
                self._algorithm.learn(batch, self._steps)
                self._count(batch)
                goes_on = report(self._steps, _episodes(batch), self._algorithm.metrics())
                if not goes_on or self._steps >= steps:
                    return
                phase("collecting")
        finally:
            collector.shutdown(close_env=False)

    def act(
        self, observation: Any, state: object, first: bool, mask: object
    ) -> tuple[object, object]:
        return self._act(observation, state, first, observation[MASK] if self._is_masked else None)

    def state(self) -> TrainerState:
        return {"model": self.model.state_dict(), **self._algorithm.state()}

    def restore(self, state: TrainerState, steps: int) -> None:
        self.model.load_state_dict(state["model"])
        self._algorithm.restore(state, steps)
        self._steps = steps
        torch.manual_seed(self._task.seed + steps)  # else the first episodes would come again
        self._env.set_seed(self._task.seed + steps)

    def close(self) -> None:
        self._env.close(raise_if_closed=False)  # the collector closes it where an error ends it

    def _count(self, batch: TensorDictBase) -> None:
        """Update the statistics of the spec's ``normalize`` with a batch, after learning from it."""
        observer = one_policy(self.model.policy).observer
        if observer.keys:
            fields = fields_of(observer.tree, observer.counted, encoding="categorical")
            seen = {name: batch[field.key] for name, field in fields.items()}
            self.model.update_normalizers(seen)


def _is_cast(task: Task) -> bool:
    """Whether steps go from one device to another; TorchRL casts each, which takes time, if devices are named."""
    return torch.device(task.device).type != "cpu"


def _environment(task: Task, model: Model) -> EnvBase:
    """``task.envs`` environments on the CPU, with memory carried and episodes summed up."""

    def make() -> EnvBase:
        return GymWrapper(maker(), categorical_action_encoding=True)

    maker = environment_maker(task)
    env = (ParallelEnv if task.subprocess else SerialEnv)(
        task.envs, create_env_fn=[make] * task.envs, device="cpu" if _is_cast(task) else None
    )
    env.set_seed(task.seed)
    total = RewardSum(in_keys=["reward"], out_keys=[TOTAL])
    transforms = [total, StepCounter(), primers(model)]
    return TransformedEnv(env, Compose(*transforms))


def _episodes(batch: TensorDictBase) -> list[Episode]:
    ended = batch["next", "done"].squeeze(-1)
    totals, lengths = (batch["next", key].squeeze(-1)[ended] for key in (TOTAL, LENGTH))
    ends = zip(totals.tolist(), lengths.tolist(), strict=True)
    return [Episode(total, length) for total, length in ends]
