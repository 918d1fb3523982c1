"""PPO of Tianshou with the model of configs/cartpole.yaml: python configs/trainers/tianshou_cartpole.py"""

from pathlib import Path

import gymnasium
from tianshou.algorithm.modelfree.ppo import PPO
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams

from composer.adapters import tianshou

SPEC = Path(__file__).parent.parent / "cartpole.yaml"


def train(epochs: int = 10, steps: int = 10_000, envs: int = 8, per_update: int = 1024) -> PPO:
    """Train for ``epochs`` times ``steps`` steps; an update follows every ``per_update`` of them."""
    policy = tianshou.policy(SPEC, "CartPole-v1", seed=0)
    algorithm = PPO(
        policy=policy,
        critic=tianshou.critic(policy),
        optim=AdamOptimizerFactory(lr=1e-3),
        max_grad_norm=0.5,
        gae_lambda=0.95,
        gamma=0.99,
    )
    training = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(envs)])
    test = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1")])
    buffer = VectorReplayBuffer(2 * per_update, envs)
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=Collector[CollectStats](algorithm, training, buffer),
            test_collector=Collector[CollectStats](algorithm, test),
            max_epochs=epochs,
            epoch_num_steps=steps,
            collection_step_num_env_steps=per_update,
            update_step_num_repetitions=4,
            batch_size=256,
            test_step_num_episodes=5,
        )
    )
    policy.model.save("cartpole.safetensors")
    return algorithm


if __name__ == "__main__":
    train()
