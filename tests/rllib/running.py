"""RLlib on one machine, without its dashboard and its logs; the learners and runners are in this process or beside it."""

import logging
import os

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")

import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

from composer.adapters import rllib

ENVS = 2
SETTINGS = {
    "train_batch_size_per_learner": 64 * ENVS,
    "minibatch_size": 64,
    "num_epochs": 2,
    "use_kl_loss": True,
}


def start_ray() -> None:
    if not ray.is_initialized():
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
        )


def config_of(make_env, module_spec, *, runners: int = 0, **settings) -> PPOConfig:
    """PPO on environments that ``make_env`` makes."""
    torch.set_num_threads(1)
    start_ray()
    register_env("of_a_test", lambda _: make_env())
    return (
        PPOConfig()
        .environment("of_a_test", normalize_actions=False)
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=ENVS)
        .learners(num_learners=0)
        .training(**{**SETTINGS, **settings})
        .rl_module(rl_module_spec=module_spec)
        .debugging(seed=1, log_level="ERROR")
    )


def agent(make_env, module_spec, **settings):
    """The algorithm, checked and built."""
    return rllib.checked(config_of(make_env, module_spec, **settings)).build_algo()


def learned(algo, name: str = "default_policy"):
    """The model that the learner trains."""
    module = algo.learner_group._learner.module[name]
    return module.unwrapped().model
