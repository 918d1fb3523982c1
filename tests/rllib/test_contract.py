"""The contract of all trainers, for PPO of RLlib."""

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from ray.tune.registry import register_env

from composer.adapters import rllib
from tests.helpers.trainer_contract import BATCH, Driver, Forward, TrainerContract
from tests.rllib.running import agent, learned, start_ray


class PpoDriver(Driver):
    """The config is the RLModuleSpec, which RLlib copies and sends to its workers."""

    cases = (
        "several choices", "numbers", "bounded numbers", "shared layers", "masks", "nested observations",
        "nested actions", "memory", "shared memory", "memory and masks",
    )  # fmt: skip

    def make_config(self):
        return rllib.module_spec(self.case.spec, seed=0)

    def build(self, learning_rate):
        self.algo = agent(self.case.make_env, self.config, lr=learning_rate)

    @property
    def model(self):
        return learned(self.algo)

    def forward(self, observations):
        module = self.algo.get_module()
        batch = {Columns.OBS: convert_to_torch_tensor(observations)}
        if module.is_stateful():
            batch = {Columns.OBS: convert_to_torch_tensor(with_time(observations))}
            rows = {k: np.stack([v] * BATCH) for k, v in module.get_initial_state().items()}
            batch[Columns.STATE_IN] = convert_to_torch_tensor(rows)
        answer = module.forward_inference(batch)
        with torch.no_grad():
            answer = {**answer, "value": module.compute_values(batch)}
        if module.is_stateful():
            answer = {k: without_time(v) for k, v in answer.items() if k != Columns.STATE_OUT}
        action = answer[Columns.ACTIONS_FOR_ENV]
        return Forward(arrays(action), answer[Columns.ACTION_LOGP], answer["value"])

    def differences(self):
        learner = self.algo.learner_group._learner
        compute, differences = learner.compute_loss_for_module, []

        def computed(*, module_id, config, batch, fwd_out):
            module = learner.module[module_id].unwrapped()
            row = fwd_out[Columns.ACTION_DIST_INPUTS]
            distribution = module.get_train_action_dist_cls().from_logits(row)
            apart = distribution.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP]
            is_step = batch.get(Columns.LOSS_MASK, torch.ones_like(apart)).bool()
            differences.append(apart[is_step].abs().detach())
            return compute(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)

        learner.compute_loss_for_module = computed
        self.algo.train()
        return torch.cat(differences)

    def optimizers(self):
        return list(self.algo.learner_group._learner._named_optimizers.values())

    def train(self):
        for _ in range(2):
            self.algo.train()

    def save(self, folder):
        self.algo.save_to_path(str(folder))

    @classmethod
    def rebuilt(cls, case, folder):
        start_ray()
        register_env("of_a_test", lambda _: case.make_env())
        driver = cls.__new__(cls)
        driver.case = case
        driver.algo = Algorithm.from_checkpoint(str(folder))
        return driver


class TestPpo(TrainerContract):
    driver = PpoDriver


def with_time(observations):
    """Each observation as a sequence of one step."""
    if isinstance(observations, dict):
        return {key: with_time(part) for key, part in observations.items()}
    return observations[:, None]


def without_time(value):
    if isinstance(value, dict):
        return {key: without_time(part) for key, part in value.items()}
    return value[:, 0]


def arrays(action):
    if isinstance(action, dict):
        return {key: arrays(part) for key, part in action.items()}
    return action.numpy()
