"""The contract of all trainers, for the algorithms of Stable-Baselines3 and sb3-contrib."""

from abc import abstractmethod

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv

from composer.adapters import sb3
from tests.helpers.trainer_contract import BATCH, Driver, Forward, TrainerContract

ENVS = 2
ON_POLICY = (
    "choices", "several choices", "numbers", "bounded numbers", "shared layers", "masks",
    "nested observations", "nested actions", "frozen layers",
)  # fmt: skip
NO_RATIO = {
    "the_ratio_of_the_first_update_is_1": "it learns from a replay buffer, which holds no log-probabilities"
}


class Sb3Driver(Driver):
    """An agent of `sb3.agent`; the config is its ``policy_kwargs``, with which the host makes the policy anew."""

    algorithm: type
    settings: dict = {"n_steps": 32, "batch_size": 16, "n_epochs": 2}

    def make_config(self):
        model = self.case.model()
        agent = sb3.agent(self.algorithm, model, self._envs(), seed=0, **self.settings)
        return agent.policy_kwargs

    def build(self, learning_rate):
        policy = sb3.POLICIES[self.algorithm.__name__]
        self.agent = self.algorithm(
            policy, self._envs(), policy_kwargs=self.config, learning_rate=learning_rate,
            seed=0, device="cpu", **self.settings,
        )  # fmt: skip

    def _envs(self):
        return DummyVecEnv([lambda: sb3.wrap(self.case.make_env(), self.case.model())] * ENVS)

    @property
    def policy(self):
        return self.agent.policy

    @property
    def model(self):
        return self.policy.model

    def forward(self, observations):
        seen = obs_as_tensor(self.flat(observations), self.policy.device)
        self.policy.set_training_mode(False)
        with torch.no_grad():
            return self.answer(seen)

    def flat(self, observations):
        """The batch as the host's wrapper of the environment makes it."""
        host = self.policy.observations
        if not host.is_flat:
            return observations
        rows = [host.flat(row_of(observations, i)) for i in range(BATCH)]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    @abstractmethod
    def answer(self, seen):
        """`Forward` to the host's tensors."""

    def taken(self, actions):
        """The host's actions, numbers clipped as it does, as the environment takes them."""
        array = actions.numpy()
        if not self.policy.actions.is_flat:
            return self.model.to_environment(self.model.from_environment(array))
        return self.policy.actions.to_environment(array)

    def optimizers(self):
        return [self.policy.optimizer]

    def train(self):
        self.agent.learn(3 * 32 * ENVS)

    def save(self, folder):
        self.agent.save(folder / "agent.zip")

    @classmethod
    def rebuilt(cls, case, folder):
        driver = cls.__new__(cls)
        driver.case = case
        driver.agent = cls.algorithm.load(folder / "agent.zip", device="cpu")
        return driver


def row_of(observations, index):
    if isinstance(observations, dict):
        return {key: row_of(part, index) for key, part in observations.items()}
    return observations[index]


class PpoDriver(Sb3Driver):
    algorithm = PPO
    cases = ON_POLICY

    def answer(self, seen):
        actions, values, log_prob = self.policy(seen, deterministic=True)
        return Forward(self.taken(actions), log_prob, values.squeeze(-1))

    def differences(self):
        """Recorded where the host hands a minibatch to the policy."""
        self.agent._setup_learn(0, None)
        policy, buffer = self.agent.policy, self.agent.rollout_buffer
        minibatches, evaluate = buffer.get, policy.evaluate_actions
        seen, differences = [], []

        def get(batch_size=None):
            for minibatch in minibatches(batch_size):
                seen.append(minibatch)
                yield minibatch

        def evaluate_actions(*arguments, **keywords):
            result = evaluate(*arguments, **keywords)
            differences.append(self.learned(seen[-1], (seen[-1].old_log_prob - result[1]).abs()))
            return result

        buffer.get, policy.evaluate_actions = get, evaluate_actions
        self.train()
        return torch.cat(differences).detach()

    def learned(self, data, differences):
        return differences


class A2cDriver(PpoDriver):
    algorithm = A2C
    settings = {"n_steps": 32}


class MaskableDriver(PpoDriver):
    algorithm = MaskablePPO
    cases = ("choices", "several choices", "shared layers", "masks", "frozen layers")

    def train(self):
        self.agent.learn(3 * 32 * ENVS, use_masking=False)  # the spec's masks are the model's own


class RecurrentDriver(PpoDriver):
    algorithm = RecurrentPPO
    cases = (
        "memory", "memory of the policy", "memory of the critic", "shared memory",
        "memory and masks",
    )  # fmt: skip

    def answer(self, seen):
        width = self.policy.lstm_hidden_state_shape[-1]
        zeros = (torch.zeros(1, BATCH, width), torch.zeros(1, BATCH, width))
        states, starts = RNNStates(zeros, zeros), torch.ones(BATCH)
        actions, values, log_prob, _ = self.policy(seen, states, starts, deterministic=True)
        return Forward(self.taken(actions), log_prob, values.squeeze(-1))

    def learned(self, data, differences):
        return differences[data.mask > 1e-8]  # without padding


class OffPolicyDriver(Sb3Driver):
    settings = {"learning_starts": 16, "buffer_size": 400, "batch_size": 16}
    without = NO_RATIO

    def differences(self):
        raise NotImplementedError(NO_RATIO)


class DqnDriver(OffPolicyDriver):
    algorithm = DQN
    cases = ("values of choices",)

    def answer(self, seen):
        return Forward(self.taken(self.policy(seen)), None, self.policy.q_net(seen))

    def expected(self, model, observations):
        with torch.no_grad():
            logits = model.policy(observations)["action"]
        return Forward(model.to_environment(logits.argmax(-1)), None, logits)


class SacDriver(OffPolicyDriver):
    algorithm = SAC
    cases = ("values of actions",)

    def answer(self, seen):
        action = self.policy(seen, deterministic=True)
        values = torch.cat(self.policy.critic(seen, torch.zeros(BATCH, 2)), -1)
        return Forward(self.taken(action), None, values)

    def expected(self, model, observations):
        space = model.action_space
        middle = torch.as_tensor((space.low + space.high) / 2).expand(BATCH, -1)
        with torch.no_grad():
            mode = model.policy.distribution(observations).mode()
            values = model.critic(observations, middle)["q_value"].squeeze(-1)
        return Forward(model.to_environment(mode), None, values)

    def optimizers(self):
        others = [self.agent.ent_coef_optimizer] if self.algorithm is SAC else []
        return [self.policy.actor.optimizer, self.policy.critic.optimizer, *others]


class Td3Driver(SacDriver):
    algorithm = TD3
    cases = ("a deterministic policy",)


class TestPpo(TrainerContract):
    driver = PpoDriver


class TestA2c(TrainerContract):
    driver = A2cDriver


class TestMaskablePpo(TrainerContract):
    driver = MaskableDriver


class TestRecurrentPpo(TrainerContract):
    driver = RecurrentDriver


class TestDqn(TrainerContract):
    driver = DqnDriver


class TestSac(TrainerContract):
    driver = SacDriver


class TestTd3(TrainerContract):
    driver = Td3Driver


# --- the contract sees what is wrong ---


class Forgetful(RecurrentDriver):
    """It learns from sequences as if no episode began in them."""

    def build(self, learning_rate):
        super().build(learning_rate)
        evaluate = self.policy.evaluate_actions
        self.policy.evaluate_actions = lambda obs, actions, states, starts: evaluate(
            obs, actions, states, torch.zeros_like(starts)
        )


class Unmasked(PpoDriver):
    """It leaves the masks out when it learns."""

    def build(self, learning_rate):
        super().build(learning_rate)
        host, evaluate = self.policy.observations, self.policy.evaluate_actions
        read = host.read

        def unmasked(*arguments):
            flat = read(*arguments)
            return {**flat, "legal": torch.ones_like(flat["legal"])}

        def evaluate_actions(*arguments):
            host.read = unmasked
            result = evaluate(*arguments)
            host.read = read
            return result

        self.policy.evaluate_actions = evaluate_actions


class Redrawn(PpoDriver):
    """It begins with weights of its own."""

    def build(self, learning_rate):
        super().build(learning_rate)
        self.policy.init_weights(self.model.policy.get_submodule("latent.linears.0"))


class Twice(PpoDriver):
    """A weight is stepped twice."""

    def build(self, learning_rate):
        super().build(learning_rate)
        self.again = torch.optim.SGD([next(self.model.parameters())], lr=learning_rate)

    def optimizers(self):
        return [*super().optimizers(), self.again]


class Untrained(PpoDriver):
    """One weight does not learn, though it is not frozen."""

    def build(self, learning_rate):
        super().build(learning_rate)
        del self.policy.optimizer.param_groups[0]["params"][0]


FAULTS = {
    Forgetful: ("the_ratio_of_the_first_update_is_1", "memory"),
    Unmasked: ("the_ratio_of_the_first_update_is_1", "masks"),
    Redrawn: ("the_weights_are_as_composed", "choices"),
    Twice: ("every_parameter_is_once_in_the_optimizers", "choices"),
    Untrained: ("gradients_reach_every_parameter_that_is_not_frozen", "choices"),
}


@pytest.mark.parametrize("driver", FAULTS)
def test_a_fault_breaks_the_contract(driver):
    line, name = FAULTS[driver]
    contract = TrainerContract()
    contract.driver = driver
    with pytest.raises(AssertionError):
        getattr(contract, f"test_{line}")(name)
