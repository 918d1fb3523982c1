"""A trainer that counts: after n steps every weight is as it began plus n, and its evaluations are made up."""

import torch

from composer.training.evaluation import Evaluation
from composer.training.trainer import TRAINERS, Episode, no_phase

__all__ = ["CountingTrainer", "made_up", "register", "worth"]

CHUNK = 10
RETURNS = {20: 1.0, 40: 5.0, 60: 3.0, 80: 5.0}  # of the evaluations, by step


class CountingTrainer:
    """It reports every 10 steps an episode worth as much as the steps made, and from 20 on a loss."""

    algorithms = ("ppo", "count")

    def __init__(self, task, model):
        self.model, self.task, self.steps = model, task, 0

    @classmethod
    def wrong_settings(cls, task):
        return [f"{name!r} is not a setting of count" for name in task.settings]

    def learn(self, steps, report, phase=no_phase):
        while self.steps < steps:
            phase("collecting")
            self.steps += CHUNK
            phase("updating")
            with torch.no_grad():
                for weight in self.model.parameters():
                    weight += CHUNK
            metrics = None if self.steps < 20 else {"loss/policy": 1 / self.steps}
            if self.steps > 30:
                metrics = {**(metrics or {}), "kl": 0.01}
            if not report(self.steps, [Episode(float(self.steps), 5)], metrics):
                return

    def act(self, observation, state, first, mask):
        return self.model.policy.act(observation, deterministic=True), None

    def state(self):
        return {"weights": self.model.state_dict()}

    def restore(self, state, steps):
        self.model.load_state_dict(state["weights"])
        self.steps = steps

    def close(self):
        pass


def register():
    TRAINERS.register("counting", CountingTrainer, replace=True)


def worth(model, start):
    """How many steps ``model`` has been trained for, from the weights of ``start`` on."""
    steps = {
        float((new - old).detach().mean().round())
        for new, old in zip(model.parameters(), start.parameters(), strict=True)
    }
    (steps,) = steps
    return steps


def made_up(act, environment, episodes, seed=0, stop=lambda: False):
    """A stand-in of `evaluate`."""
    value = RETURNS.get(act.__self__.steps, 0.0)
    return None if stop() else Evaluation((value - 1, value + 1), (5, 7))
