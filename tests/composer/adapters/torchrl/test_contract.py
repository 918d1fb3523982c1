"""The contract of all trainers, for the algorithms that `composer train --trainer torchrl` has."""

from abc import abstractmethod
from dataclasses import replace
from zlib import crc32

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import CompositeDistribution
from torchrl.envs import GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode

import composer
from composer.adapters.torchrl.fields import fields_of
from composer.adapters.torchrl.functions import state_specs
from composer.adapters.torchrl.training import TorchrlTrainer
from composer.training.trainer import Task
from tests.helpers.trainer_contract import BATCH, CASES, Driver, Forward, TrainerContract

ENVS, STEPS = 2, 32
NO_RATIO = {
    "the_ratio_of_the_first_update_is_1": "it learns from a replay buffer, which holds no log-probabilities",
}
COPIES = {
    "every_parameter_is_once_in_the_optimizers": "SACLoss trains copies of the critic's weights, which are written "
    "into the model after each batch; that they move, the next line says",
}


class TorchrlDriver(Driver):
    """The trainer of `composer train`; the config is the `Task`."""

    algorithm: str
    settings: dict = {"frames_per_batch": STEPS * ENVS, "learning_rate": 0.05}

    def make_config(self):
        name = f"Wander{crc32(repr(self.case).encode())}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(name, self.case.make_env)
        return Task(
            spec=self.case.spec, environment=name, trainer="torchrl", algorithm=self.algorithm, envs=ENVS,
            settings=self.settings,
        )  # fmt: skip

    def build(self, learning_rate):
        settings = {**self.config.settings, "learning_rate": learning_rate}
        self.trainer = TorchrlTrainer(replace(self.config, settings=settings), self.case.model())

    @property
    def model(self):
        return self.trainer.model

    @property
    def modules(self):
        return self.trainer._algorithm.modules

    def data(self, observations):
        """The batch as TorchRL has it, each the first step of its episode."""
        env = GymWrapper(self.case.make_env(), categorical_action_encoding=True)
        rows = [TensorDict(env.read_obs(row_of(observations, i))) for i in range(BATCH)]
        data = torch.stack(rows).to_tensordict()
        data["is_init"] = torch.ones(BATCH, 1, dtype=torch.bool)
        for part in filter(None, (self.model.policy, self.model.critic)):
            for key, spec in state_specs(part).items():
                data[key] = spec.zero((BATCH,))
        return data

    def forward(self, observations):
        self.model.eval()
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            return self.answer(self.data(observations))

    @abstractmethod
    def answer(self, data):
        """`Forward` to TorchRL's data."""

    def taken(self, data):
        """The action in ``data``, cast as the environment has it."""
        tree = self.model.policy.action_tree
        fields = fields_of(tree, tree.leaves, encoding="categorical")
        actions = {name: data[field.key] for name, field in fields.items()}
        action = actions if len(actions) > 1 else next(iter(actions.values()))
        return self.model.to_environment(self.model.from_environment(action))

    def optimizers(self):
        return [self.trainer._algorithm._optimizer]

    def train(self):
        self.trainer.learn(self.trainer._steps + 2 * STEPS * ENVS, lambda *report: True)

    def save(self, folder):
        torch.save(self.trainer.state(), folder / "trainer.pt")
        self.model.save(folder / "model.safetensors")

    @classmethod
    def rebuilt(cls, case, folder):
        driver = cls(case)
        state = torch.load(folder / "trainer.pt", weights_only=True)
        driver.trainer.restore(state, 2 * STEPS * ENVS)
        saved = composer.load(folder / "model.safetensors").state_dict()
        assert all(torch.equal(value, saved[n]) for n, value in driver.model.state_dict().items())
        return driver


def row_of(observations, index):
    if isinstance(observations, dict):
        return {key: row_of(part, index) for key, part in observations.items()}
    return np.asarray(observations)[index]


def log_prob_of(dist, data):
    """Of the actions in ``data``, those of several actions together."""
    if isinstance(dist, CompositeDistribution):
        log_prob = dist.log_prob(data)
        return log_prob if isinstance(log_prob, torch.Tensor) else recorded(log_prob)
    return dist.log_prob(data["action"])


def recorded(data):
    """The log-probability in ``data``, that of several actions together."""
    keys = data.keys(True, True)
    names = [
        key for key in keys if (key if isinstance(key, str) else key[-1]).endswith("_log_prob")
    ]
    return sum(data[name] for name in names if "next" not in name)


class PpoDriver(TorchrlDriver):
    algorithm = "ppo"
    settings = {**TorchrlDriver.settings, "epochs": 2}
    cases = (
        "choices", "several choices", "numbers", "bounded numbers", "shared layers", "masks", "nested observations",
        "nested actions", "frozen layers", "memory", "memory of the policy", "memory of the critic", "shared memory",
        "memory of numbers", "a critic that sees more", "memory and masks",
    )  # fmt: skip

    def answer(self, data):
        self.modules.actor_inference(data)
        self.modules.critic_inference(data)
        log_prob = log_prob_of(self.modules.actor_inference.get_dist(data), data)
        return Forward(self.taken(data), log_prob, data["state_value"].squeeze(-1))

    def differences(self):
        """Recorded where the loss is given its steps."""
        algorithm, differences = self.trainer._algorithm, []
        update = algorithm._update

        def compared(data):
            with set_recurrent_mode(True), torch.no_grad():
                dist = self.modules.actor_training.get_dist(data.copy())
            differences.append((log_prob_of(dist, data) - recorded(data)).abs().reshape(-1))
            update(data)

        algorithm._update = compared
        self.trainer.learn(STEPS * ENVS, lambda *report: True)
        return torch.cat(differences)


class A2cDriver(PpoDriver):
    """What it shares with PPO is tried there."""

    algorithm = "a2c"
    settings = TorchrlDriver.settings
    cases = ("choices", "masks", "shared memory")


class OffPolicyDriver(TorchrlDriver):
    settings = {"frames_per_batch": 32, "learning_starts": 32, "updates": 1, "batch_size": 64}
    without = NO_RATIO

    def differences(self):
        raise NotImplementedError(NO_RATIO)

    def states_of(self, model, part):
        """The states of a part of ``model`` at the first step, as its calls take them."""
        state = model.initial_state(BATCH) if model.has_memory else {}
        begin = f"{part}/"
        inside = {n.removeprefix(begin): v for n, v in state.items() if n.startswith(begin)}
        return [inside] if inside else []


class DqnDriver(OffPolicyDriver):
    algorithm = "dqn"
    cases = ("values of choices", "remembered values of choices")

    def answer(self, data):
        self.modules.q_actor(data)
        return Forward(self.taken(data), None, data["action_value"])

    def expected(self, model, observations):
        state = [model.policy.initial_state(BATCH)] if model.has_memory else []
        with torch.no_grad():
            result = model.policy(observations, *state)
        logits = (result[0] if state else result)["action"]
        return Forward(model.to_environment(logits.argmax(-1)), None, logits)


class SacDriver(OffPolicyDriver):
    algorithm = "sac"
    without = NO_RATIO | COPIES
    cases = ("values of actions", "remembered values of actions")

    def answer(self, data):
        self.modules.actor_inference(data)
        self.modules.critic_inference(data)
        return Forward(self.taken(data), None, data["state_action_value"])

    def expected(self, model, observations):
        policy, critic = (self.states_of(model, part) for part in ("policy", "critic"))
        with torch.no_grad():
            result = model.policy.distribution(observations, *policy)
            action = (result[0] if policy else result).mode()
            seen = model.from_environment(model.to_environment(action))
            values = model.critic(observations, seen, *critic)
        values = values[0] if critic else values
        return Forward(model.to_environment(action), None, values["q_value"])


class TestPpo(TrainerContract):
    driver = PpoDriver


class TestA2c(TrainerContract):
    driver = A2cDriver


class TestDqn(TrainerContract):
    driver = DqnDriver


class TestSac(TrainerContract):
    driver = SacDriver


def test_every_algorithm_is_held_to_the_contract():
    drivers = {PpoDriver, A2cDriver, DqnDriver, SacDriver}
    assert {driver.algorithm for driver in drivers} == set(TorchrlTrainer.algorithms)
    assert all(name in CASES for driver in drivers for name in driver.cases)
