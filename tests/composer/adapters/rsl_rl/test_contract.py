"""The contract of all trainers, for rsl_rl's PPO."""

import contextlib
import io
from functools import reduce
from operator import getitem

import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict

from composer.adapters.rsl_rl import vector_env
from tests.helpers.trainer_contract import BATCH, Driver, Forward, TrainerContract

ENVS, STEPS = 4, 24


class RslRlDriver(Driver):
    """A runner; the config is rsl_rl's, whose actor has the spec as text."""

    cases = (
        "numbers", "bounded numbers", "shared layers for numbers", "nested observations for numbers",
        "memory of the policy", "memory of numbers", "shared memory", "a critic that sees more",
    )  # fmt: skip

    def make_config(self):
        case = self.case
        groups = list(case.model().policy.observer.tree.leaves)
        return {
            "num_steps_per_env": STEPS,
            "save_interval": 100,
            "obs_groups": {"actor": [g for g in groups if g != "state"], "critic": groups},
            "algorithm": {
                "class_name": "PPO", "schedule": "fixed", "num_mini_batches": 2, "num_learning_epochs": 2,
            },
            "actor": {
                "class_name": "composer.adapters.rsl_rl:Actor", "spec": case.spec, "seed": 0,
                "observation_space": case.observation_space, "action_space": case.action_space,
            },
            "critic": {"class_name": "composer.adapters.rsl_rl:Critic"},
        }  # fmt: skip

    def build(self, learning_rate):
        torch.manual_seed(0)
        envs = SyncVectorEnv([self.case.make_env] * ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
        algorithm = {**self.config["algorithm"], "learning_rate": learning_rate}
        with contextlib.redirect_stdout(io.StringIO()):
            self.runner = OnPolicyRunner(
                vector_env(envs, seed=0), {**self.config, "algorithm": algorithm}
            )

    @property
    def actor(self):
        return self.runner.alg.actor

    @property
    def model(self):
        return self.actor.model

    def forward(self, observations):
        tree = self.model.policy.observer.tree
        seen = {
            key: torch.as_tensor(reduce(getitem, leaf.path, observations))
            for key, leaf in tree.leaves.items()
        }
        obs = TensorDict(seen, batch_size=[BATCH])
        actor, critic = self.actor, self.runner.alg.critic
        actor.reset()
        critic.reset()
        with torch.no_grad():
            action, value = actor(obs), critic(obs).squeeze(-1)
            log_prob = actor.get_output_log_prob(action)
        actor.reset()
        critic.reset()
        return Forward(self.model.to_environment(action), log_prob, value)

    def differences(self):
        """Recorded where the host hands a minibatch to the actor."""
        storage, actor = self.runner.alg.storage, self.actor
        log_prob, seen, differences = actor.get_output_log_prob, [], []

        def noted(generator):
            def batches(*arguments):
                for batch in generator(*arguments):
                    seen.append(batch)
                    yield batch

            return batches

        for name in ("mini_batch_generator", "recurrent_mini_batch_generator"):
            setattr(storage, name, noted(getattr(storage, name)))

        def of_actions(actions):
            new = log_prob(actions)
            if torch.is_grad_enabled():
                old = seen[-1].old_actions_log_prob.squeeze(-1)
                differences.append((new - old).abs().detach().flatten())
            return new

        actor.get_output_log_prob = of_actions
        self.runner.learn(1)
        return torch.cat(differences)

    def optimizers(self):
        return [self.runner.alg.optimizer]

    def train(self):
        self.runner.learn(3)

    def save(self, folder):
        self.runner.save(str(folder / "runner.pt"))

    @classmethod
    def rebuilt(cls, case, folder):
        driver = cls(case)
        driver.runner.load(str(folder / "runner.pt"))
        return driver


class TestPpo(TrainerContract):
    driver = RslRlDriver
