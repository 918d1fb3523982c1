"""The contract of all trainers, for PPO and A2C of skrl, with their forms for memory."""

import copy

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from skrl.agents.torch.a2c import A2C
from skrl.agents.torch.ppo import PPO
from skrl.envs.wrappers.torch import wrap_env
from skrl.trainers.torch import SequentialTrainer

from composer.adapters.skrl import agent, agents
from tests.helpers.trainer_contract import BATCH, CASES, Driver, Forward, TrainerContract

ENVS, STEPS = 2, 32


class WithState(VectorWrapper):
    """A vector environment whose ``state`` is what skrl calls so."""

    def __init__(self, env):
        super().__init__(env)
        self.state_space = env.single_observation_space["state"]
        self.single_observation_space = env.single_observation_space["observation"]

    @property
    def unwrapped(self):
        return self

    def reset(self, **keywords):
        seen, info = self.env.reset(**keywords)
        return self._split(seen), info

    def step(self, actions):
        seen, *rest = self.env.step(actions)
        return self._split(seen), *rest

    def state(self):
        return self._state

    def _split(self, seen):
        self._state = seen["state"]
        return seen["observation"]


class SkrlDriver(Driver):
    """An agent of `skrl.agent`; the config is skrl's, with the spec beside it."""

    algorithm = PPO
    cases = (
        "choices", "several choices", "numbers", "bounded numbers", "shared layers",
        "nested observations", "frozen layers", "memory", "memory of the policy",
        "memory of the critic", "memory of numbers", "shared memory", "a critic that sees more",
    )  # fmt: skip

    def make_config(self):
        return {"spec": self.case.spec, "rollouts": STEPS, "mini_batches": 2, "learning_epochs": 2}

    def build(self, learning_rate):
        torch.manual_seed(0)
        case, config = self.case, dict(self.config)
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        space = case.observation_space
        vector = SyncVectorEnv([case.make_env] * ENVS, **mode)
        if isinstance(space, spaces.Dict) and "state" in space.spaces:
            vector = WithState(vector)
        self.env = wrap_env(vector, wrapper="gymnasium", verbose=False)
        spec = config.pop("spec")
        # Sequences that begin within the rollout, where skrl's own agents have the state of another step.
        length = {"sequence_length": 16} if case.model().has_memory else {}
        silent = {"write_interval": 0, "checkpoint_interval": 0}
        self.agent = agent(
            self.algorithm, case.model() if case.frozen else spec, self.env, seed=0, **length,
            cfg={**self.settings(config), "learning_rate": learning_rate, "experiment": silent},
        )  # fmt: skip
        self.trainer = SequentialTrainer(
            env=self.env, agents=self.agent,
            cfg={"timesteps": STEPS, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False},
        )  # fmt: skip

    def settings(self, config):
        return config

    @property
    def model(self):
        return self.agent.policy.model

    def forward(self, observations):
        policy = self.agent.policy
        seen = observations if policy.state_space is None else observations["observation"]
        inputs = {"observations": self._vector(self.env.observation_space, seen)}
        if policy.state_space is not None:
            inputs["states"] = torch.as_tensor(observations["state"])
        if self.model.has_memory:
            inputs["rnn"] = [torch.zeros(1, BATCH, self.model.state_width)]
        with torch.no_grad():
            mean = policy.act(inputs, role="policy")[1]["mean_actions"]
            value, _ = policy.act(inputs, role="value")
            log_prob = policy.act({**inputs, "taken_actions": mean}, role="policy")[1]["log_prob"]
        taken = policy._actions.to_environment(mean)
        return Forward(taken, log_prob.squeeze(-1), value.squeeze(-1))

    def _vector(self, space, observations):
        if isinstance(space, spaces.Dict):
            parts = [self._vector(space[key], observations[key]) for key in sorted(space.keys())]
            return torch.cat(parts, -1)
        return torch.as_tensor(np.asarray(observations), dtype=torch.float32).reshape(BATCH, -1)

    def differences(self):
        """Recorded where the host hands a minibatch to the policy."""
        memory, policy = self.agent.memory, self.agent.policy
        act, rows, differences = policy.act, {}, []

        def noted_by(sample):
            def sampled(names, **keywords):
                batches = sample(names, **keywords)
                if "log_prob" in names:
                    for batch in batches:
                        values = dict(zip(names, batch, strict=True))
                        rows[id(values["actions"])] = values["log_prob"]
                return batches

            return sampled

        def noted(inputs, *, role=""):
            result = act(inputs, role=role)
            if "taken_actions" in inputs:
                old = rows[id(inputs["taken_actions"])]
                differences.append((result[1]["log_prob"] - old).abs().detach().flatten())
            return result

        memory.sample, memory.sample_all = noted_by(memory.sample), noted_by(memory.sample_all)
        policy.act = noted
        self.trainer.train()
        return torch.cat(differences)

    def optimizers(self):
        return [self.agent.optimizer]

    def train(self):
        for _ in range(3):
            self.trainer.train()

    def save(self, folder):
        self.agent.save(str(folder / "agent.pt"))

    @classmethod
    def rebuilt(cls, case, folder):
        driver = cls(case)
        driver.agent.load(str(folder / "agent.pt"))
        return driver


class A2cDriver(SkrlDriver):
    algorithm = A2C
    cases = ("choices", "bounded numbers", "memory", "a critic that sees more")

    def settings(self, config):
        config = copy.copy(config)
        config.pop("learning_epochs")
        return config


class TestPpo(TrainerContract):
    driver = SkrlDriver


class TestA2c(TrainerContract):
    driver = A2cDriver


def test_the_agents_of_skrl_itself_break_it(monkeypatch):
    """They store the state after the step: what `skrl.agent` cures."""
    monkeypatch.delattr(agents._Cured, "record_transition")
    assert SkrlDriver(CASES["memory"], learning_rate=0.0).differences().max() > 1e-3
