"""`composer train --trainer composer`: PPO for all actors of a parallel environment of PettingZoo together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from composer.model import Model
from composer.training.actors.passes import ModelPass
from composer.training.actors.rollout import Collector, Rollout
from composer.training.actors.settings import KINDS, Settings, refuse, wrong_settings
from composer.training.actors.updates import update
from composer.training.environment import JointEnvironment, environment_maker
from composer.training.trainer import (
    Episode,
    Phase,
    Report,
    Task,
    TrainerState,
    TrainingError,
    no_phase,
    restore_optimizer,
)

__all__ = ["ActorsTrainer"]


class ActorsTrainer:
    """PPO with one value of all actors (MAPPO) or a value of each (IPPO), as the kind of the critic says.

    It collects ``n_steps`` of each environment, estimates advantages, makes ``n_epochs`` over the rollout in
    minibatches, and then counts the observations into the statistics of ``normalize``. An `Episode` is of all actors:
    its total is the sum of their rewards.
    """

    algorithms: ClassVar[Sequence[str]] = tuple(KINDS)
    takes_actors: ClassVar[bool] = True

    def __init__(self, task: Task, model: Model) -> None:
        refuse(model, task.algorithm)
        torch.manual_seed(task.seed)
        self.model = model.to(task.device)
        self._task = task
        self._steps = 0
        self._settings = Settings(**task.settings)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.Adam(weights, lr=self._settings.learning_rate, eps=1e-5)
        model.prepare_optimizer(self._optimizer)
        self._environments: list[JointEnvironment] = []
        try:
            for _ in range(task.envs):
                self._environments.append(_environment(task))
            self._pass = ModelPass(model)
            self._collector = Collector(self._pass, self._environments, task.seed)
        except BaseException:
            self.close()
            raise

    @classmethod
    def wrong_settings(cls, task: Task) -> list[str]:
        """The errors in the settings of the task's algorithm, in words."""
        problems = wrong_settings(task)
        if task.subprocess:
            problems.append(
                "--subprocess: the environments of several agents run in this process; leave it out"
            )
        return problems

    def learn(self, steps: int, report: Report, phase: Phase = no_phase) -> None:
        """Train until ``steps`` steps have been made; the last rollout may go beyond."""

        def made(count: int, episodes: Sequence[Episode]) -> bool:
            self._steps += count
            metrics, self._metrics = self._metrics, None
            return report(self._steps, episodes, metrics)

        settings = self._settings
        self._metrics: dict[str, float] | None = None
        while self._steps < steps:
            phase("collecting")
            rollout = self._collector.collect(
                settings.n_steps, settings.sequence_length or settings.n_steps, made,
                gamma=settings.gamma, gae_lambda=settings.gae_lambda,
            )  # fmt: skip
            if rollout is None:
                return
            phase("updating")
            self._metrics = update(self._pass, rollout, settings, self._optimizer)
            self._count(rollout)
        report(self._steps, (), self._metrics)

    def act(
        self, observation: Any, state: Any, first: bool, mask: object
    ) -> tuple[dict[Any, Any], object]:
        """The modes of the actions of all who are there; those who are there again begin with a new memory."""
        policy = self._pass.policy
        if not policy.has_memory:
            return policy.act(observation, deterministic=True), None
        carried, before = (policy.initial_state(), frozenset()) if state is None else state
        resets = {actor: first or actor not in before for actor in observation}
        actions, after = policy.act(observation, carried, resets, deterministic=True)
        return actions, (after, frozenset(observation))

    def state(self) -> TrainerState:
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: TrainerState, steps: int) -> None:
        self.model.load_state_dict(state["model"])
        restore_optimizer(self._optimizer, state["optimizer"])
        self._steps = steps
        seed = self._task.seed + steps  # else the first episodes would come again
        torch.manual_seed(seed)
        self._collector.begin(seed)

    def close(self) -> None:
        for env in self._environments:
            env.close()

    def _count(self, rollout: Rollout) -> None:
        """Update the statistics of the spec's ``normalize`` with a rollout, after learning from it."""
        policies = self._pass.policy.policies
        seen = {
            name: {key: value[rollout.present[name]] for key, value in values.items()}
            for name, values in rollout.observations.items()
            if policies[name].observer.keys and bool(rollout.present[name].any())
        }
        if any(policy.observer.keys for policy in policies.values()):
            self.model.update_normalizers(seen)


def _environment(task: Task) -> JointEnvironment:
    env = environment_maker(task)()
    if not isinstance(env, JointEnvironment):
        env.close()
        raise TrainingError(
            f"{task.environment!r} is no environment of PettingZoo, and only those are trained here, such as "
            "pettingzoo:mpe/simple_spread_v3"
        )
    return env
