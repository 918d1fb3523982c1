"""The contract of all trainers, for PPO of Tianshou."""

import torch
from tianshou.algorithm.modelfree.ppo import PPO
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.torch_utils import policy_within_training_step

from composer.adapters import tianshou
from tests.helpers.trainer_contract import Driver, Forward, TrainerContract

ENVS, STEPS = 2, 64


class TianshouDriver(Driver):
    """An algorithm over `tianshou.policy` and `tianshou.critic`; the config is what `policy` is given."""

    cases = (
        "choices", "several choices", "numbers", "bounded numbers", "shared layers", "masks",
        "nested observations", "frozen layers",
    )  # fmt: skip

    def make_config(self):
        return {"spec": self.case.spec, "env": self.case.make_env(), "seed": 0}

    def build(self, learning_rate):
        torch.manual_seed(0)
        self.policy = tianshou.policy(**self.config)
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in self.case.frozen):
                parameter.requires_grad_(False)
        self.algorithm = PPO(
            policy=self.policy,
            critic=tianshou.critic(self.policy),
            optim=AdamOptimizerFactory(lr=learning_rate),
            max_batchsize=STEPS,
        )

    @property
    def model(self):
        return self.policy.model

    def forward(self, observations):
        batch = Batch(obs=Batch(observations) if isinstance(observations, dict) else observations)
        with torch.no_grad():
            stored = self.policy(batch).act
            batch.act = stored
            log_prob = self.policy(batch).dist.log_prob(stored)
            values = self.algorithm.critic(batch.obs).squeeze(-1)
        return Forward(self.model.to_environment(self.policy.from_host(stored)), log_prob, values)

    def collected(self):
        envs = DummyVectorEnv([self.case.make_env] * ENVS)
        envs.seed(0)
        buffer = VectorReplayBuffer(ENVS * STEPS, ENVS)
        collector = Collector[CollectStats](self.algorithm, envs, buffer)
        collector.reset()
        collector.collect(n_step=STEPS)
        return collector.buffer

    def differences(self):
        """Between what the algorithm keeps before its update, and what it compares within."""
        original, drawn = self.policy.forward, []

        def spied(batch, *arguments, **keywords):
            answer = original(batch, *arguments, **keywords)
            if "logp_old" in batch.get_keys():
                new = answer.dist.log_prob(batch.act).detach()
                drawn.append((new - batch.logp_old).abs())
            return answer

        with policy_within_training_step(self.policy):
            buffer = self.collected()
            self.policy.forward = spied
            self.algorithm.update(buffer, 16, 1)
        del self.policy.forward
        return torch.cat(drawn)

    def optimizers(self):
        return [self.algorithm.optim._optim]

    def train(self):
        for _ in range(3):
            with policy_within_training_step(self.policy):
                self.algorithm.update(self.collected(), 16, 2)

    def save(self, folder):
        torch.save(self.algorithm.state_dict(), folder / "algorithm.pt")

    @classmethod
    def rebuilt(cls, case, folder):
        driver = cls(case)
        driver.algorithm.load_state_dict(torch.load(folder / "algorithm.pt", weights_only=False))
        return driver


class TestTianshou(TrainerContract):
    driver = TianshouDriver
