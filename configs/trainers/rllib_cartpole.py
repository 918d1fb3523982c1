"""PPO of RLlib on CartPole, with the model of a spec: ``python configs/trainers/rllib_cartpole.py [ITERATIONS]``.

It needs the environment of .ci/constraints-rllib.txt, and writes agent.safetensors, which `composer.load` reads.
"""

import sys
from pathlib import Path

from ray.rllib.algorithms.ppo import PPOConfig

from composer.adapters import rllib

SPEC = Path(__file__).parents[1] / "cartpole.yaml"


def main(iterations: int = 20) -> float:
    """Train, save the model, and return the mean return of the last episodes."""
    config = (
        PPOConfig()
        .environment("CartPole-v1", normalize_actions=False)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=1024, minibatch_size=128, num_epochs=8, lr=1e-3, vf_clip_param=1e4
        )
        .rl_module(rl_module_spec=rllib.module_spec(SPEC, seed=0))
        .debugging(seed=0)
    )  # fmt: skip
    algorithm = rllib.checked(config).build_algo()
    result = {}
    for _ in range(iterations):
        result = algorithm.train()
    module = algorithm.get_module()
    assert isinstance(module, rllib.ComposedModule)
    module.model.save("agent.safetensors")
    algorithm.stop()
    return result["env_runners"]["episode_return_mean"]


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
