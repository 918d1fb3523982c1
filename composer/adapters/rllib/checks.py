"""Settings of RLlib that would do twice, or undo, what a composed model does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from composer.adapters.rllib.learner import ComposedLearner
from composer.adapters.rllib.module import ComposedModule

__all__ = ["checked"]

C = TypeVar("C", bound=AlgorithmConfig)


def checked(config: C) -> C:
    """``config`` itself, if RLlib trains its composed modules as they are: ``checked(config).build_algo()``.

    Its learner becomes `ComposedLearner`, by which `freeze` and `learning_rate_scale` of the specs hold.

    Raises ValueError with every setting in the way, before anything is built. What the model itself lacks is refused
    when RLlib builds the module.
    """
    reasons = list(_reasons(config))
    lines = "".join(f"\n  {reason}" for reason in reasons)
    if lines:
        raise ValueError(f"RLlib cannot train a composed model with these settings:{lines}")
    if not _has_its_learner(config):
        config.learners(learner_class=ComposedLearner)
    return config


def _reasons(config: AlgorithmConfig) -> Iterator[str]:
    spec = config._rl_module_spec
    if not any(_classes(spec)):
        yield "no module of it is composed; write config.rl_module(rl_module_spec=module_spec(spec))"
    is_ppo = isinstance(config, PPOConfig) and type(config).__name__ == "PPOConfig"
    if not is_ppo:
        yield f"{type(config).__name__.removesuffix('Config')} was not tried with composed models; use PPOConfig"
    if not (config.enable_rl_module_and_learner and config.enable_env_runner_and_connector_v2):
        yield "the old API stack has no RLModules; leave out config.api_stack(...)"
    elif is_ppo and not _has_its_learner(config) and config.learner_class is not PPOTorchLearner:
        yield (
            f"its learner {config.learner_class.__name__} does not know what the specs freeze; derive it from "
            "rllib.ComposedLearner, or leave out learner_class"
        )
    if config.normalize_actions:
        yield (
            "normalize_actions=True, RLlib's default, scales actions that the model gives in the environment's bounds "
            "already; write config.environment(normalize_actions=False)"
        )
    if config.observation_filter not in (None, "NoFilter"):
        yield (
            f"observation_filter={config.observation_filter!r} is of the old API stack and has no effect; leave it out"
        )
    if config._model_config:
        yield "model_config has settings of RLlib's own networks; leave out model_config in config.rl_module(...)"


def _has_its_learner(config: AlgorithmConfig) -> bool:
    learner = config.learner_class
    return isinstance(learner, type) and issubclass(learner, ComposedLearner)


def _classes(spec: object) -> Iterator[bool]:
    """Of each module in ``spec``, whether it is composed."""
    if isinstance(spec, RLModuleSpec):
        yield isinstance(spec.module_class, type) and issubclass(spec.module_class, ComposedModule)
    elif isinstance(spec, MultiRLModuleSpec):
        inner = spec.rl_module_specs
        for module in inner.values() if isinstance(inner, Mapping) else [inner]:
            yield from _classes(module)
