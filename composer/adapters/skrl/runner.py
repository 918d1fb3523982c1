"""skrl's Runner with a spec under ``models``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from composer.adapters.needs import refuse_for
from composer.adapters.skrl.agents import ALGORITHMS, agent_of, config_of
from composer.adapters.skrl.composed import ComposedModel, models
from perception_blocks.registry import missing_extra
from perception_blocks.words import hint

try:
    from skrl.agents.torch import Agent
    from skrl.envs.wrappers.torch import MultiAgentEnvWrapper, Wrapper
    from skrl.utils.runner.torch import Runner as SkrlRunner
except ImportError as error:
    raise missing_extra("composer.adapters.skrl", error, "skrl") from error

__all__ = ["Runner"]

SETTINGS = ("spec", "allow", "seed", "states", "sequence_length")
OF_THE_SPEC = ("separate", "policy", "value")  # what skrl's own models are under


class Runner(SkrlRunner):
    """skrl's Runner, whose config may have a spec: ``models: {spec: agent.yaml}``; all else is as skrl has it.

    Beside ``spec`` there may be ``allow``, ``seed`` (by default the config's), ``states`` and ``sequence_length``,
    which are those of `agent`. ``runner.agent.policy.model`` is the model. A config without ``spec`` is skrl's.
    """

    def __init__(
        self, env: Wrapper | MultiAgentEnvWrapper, cfg: dict[str, Any], *, verbose: bool = False
    ) -> None:
        given = cfg.get("models") or {}
        self._spec: Mapping[str, Any] | None = given if "spec" in given else None
        if self._spec is not None:
            refuse_for("skrl", _problems(env, cfg, given))
        super().__init__(env, cfg, verbose=verbose)

    def _generate_models(self, env: Any, cfg: dict[str, Any]) -> dict[str, dict[str, Any]]:
        if self._spec is None:
            return super()._generate_models(env, cfg)
        settings = dict(self._spec)
        settings.pop("sequence_length", None)
        settings.setdefault("seed", cfg.get("seed"))
        return {"agent": dict(models(settings.pop("spec"), env, **settings))}

    def _component(self, name: str) -> Any:
        key = name.upper()
        if self._spec is None or key not in ALGORITHMS:
            return super()._component(name)
        return self._maker(key, self._spec.get("sequence_length"))

    def _maker(self, name: str, sequence_length: int | None) -> Callable[..., Agent]:
        def make(
            *, models: Mapping[str, ComposedModel], memory: Any, cfg: dict[str, Any], **spaces: Any
        ) -> Agent:
            spaces["state_space"] = models["policy"].state_space
            config = config_of(name, cfg)
            return agent_of(name, models, config, memory, sequence_length, **spaces)

        return make


def _problems(env: Any, cfg: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    problems = []
    for name in given:
        if name in OF_THE_SPEC:
            problems.append(f"models.{name} is said by the spec; leave it out")
        elif name not in SETTINGS:
            problems.append(f"models.{name} is no setting{hint(name, SETTINGS)}")
    chosen = str((cfg.get("agent") or {}).get("class", ""))
    if chosen.upper() not in ALGORITHMS:
        problems.append(f"agent.class {chosen!r} does not train a composed model; write PPO or A2C")
    if isinstance(env, MultiAgentEnvWrapper):
        problems.append(
            "the environment has several agents, and skrl's PPO and A2C train one policy"
        )
    return problems
