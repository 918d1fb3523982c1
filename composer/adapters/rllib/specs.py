"""RLModuleSpecs of composed models: the resolved spec travels as text, so that every worker builds the same model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gymnasium import spaces
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from composer.adapters.rllib.module import CONFIG_KEY, ComposedModule
from composer.build.construction import chosen_seed
from composer.checkpoint.plain_spec import plain_spec
from composer.errors import Path, Problems
from composer.limits import GivenLimits
from composer.model import Model
from composer.source.dump import dump_yaml
from composer.source.load import Override, Source, load_source
from composer.spaces.actors import read_actors, serve
from composer.spec.keys import PARTS
from composer.spec.model_spec import PolicySpec
from composer.spec.read import read_spec
from composer.trust import allow_list, import_allowed
from perception_blocks.init import derive_seed
from perception_blocks.words import hint

__all__ = ["module_spec", "multi_module_spec"]


def module_spec(
    spec: Any,
    *,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    seed: int | None = None,
    limits: GivenLimits = None,
    max_seq_len: int = 20,
) -> RLModuleSpec:
    """The RLModuleSpec of the model of ``spec``, for ``config.rl_module(rl_module_spec=...)``.

    Arguments are as for `compose`; the spaces are the environment's. Every process imports the modules in ``allow`` and
    draws the same weights from ``seed`` (None draws one here). ``max_seq_len`` is the number of steps of the sequences
    that memory learns from.

    Raises SpecError with every mistake in the structure, and CheckpointError for what cannot be written as text.
    """
    source, allow = _read(spec, allow, overrides, limits)
    return _module_spec(source.data, allow, chosen_seed(seed), limits, max_seq_len)


def _read(
    spec: Any, allow: Iterable[str], overrides: Iterable[Override], limits: GivenLimits
) -> tuple[Source, list[str]]:
    if isinstance(spec, Model):
        raise ValueError(
            "RLlib builds the model in every process: give its spec, such as model.source, and load the weights with "
            "module.model.load_weights(path)"
        )
    allowed = list(allow_list(allow))
    import_allowed(allowed)
    source = load_source(spec, overrides, allowed)
    read_spec(source, allowed, makes_environment=False, limits=limits)
    return source, [*allowed, *dict.fromkeys(_modules_of(source.data))]


def _module_spec(
    data: Mapping[str, Any],
    allow: list[str],
    seed: int,
    limits: GivenLimits,
    max_seq_len: int,
) -> RLModuleSpec:
    text = dump_yaml(plain_spec(data))
    given = {"spec": text, "allow": allow, "seed": seed, "limits": limits}
    model_config = {CONFIG_KEY: given, "max_seq_len": max_seq_len}
    return RLModuleSpec(module_class=ComposedModule, model_config=model_config)


def _modules_of(data: object) -> Iterator[str]:
    """The modules of the classes that the caller gave as objects: they are trusted, and written as their paths."""
    if isinstance(data, Mapping):
        for value in data.values():
            yield from _modules_of(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _modules_of(value)
    elif isinstance(data, type):
        yield data.__module__


def multi_module_spec(
    spec: Any,
    agents: Iterable[str],
    *,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    seed: int | None = None,
    limits: GivenLimits = None,
    max_seq_len: int = 20,
) -> tuple[MultiRLModuleSpec, dict[str, str]]:
    """The modules of a spec of several ``agents``, and the module of each agent, for ``config.multi_agent(...)``.

    Each of the spec's ``networks`` becomes one module of its name (without ``networks`` the only one is "shared"), with
    ``separate: true`` one for each agent that it serves, of the agent's name. Modules have the critic of the same
    entry. The other arguments are as for `module_spec`.

    Raises SpecError for mistakes in the structure and for networks that serve no agent or the same, and ValueError for
    critics that read other agents, which RLlib's modules do not see.
    """
    source, allowed = _read(spec, allow, overrides, limits)
    problems = Problems(source)
    model_spec = read_spec(source, allowed, makes_environment=False, limits=limits)
    if model_spec.critic is not None and model_spec.critic.kind != "state":
        raise ValueError(
            f"each module of RLlib sees its own agent, but a critic of kind {model_spec.critic.kind!r} reads others; "
            "write kind: state"
        )
    served = _served(model_spec.policy, list(agents), problems)
    for key in model_spec.critic.networks if model_spec.critic else ():
        if key is not None and key not in served:
            near = hint(key, [str(name) for name in served])
            path = ("critic", "networks", key)
            problems.add(path, f"the policy has no network {key!r}{near}", key=True)
    problems.raise_if_any()
    start, modules, module_of = chosen_seed(seed), {}, {}
    for key, names in served.items():
        network = model_spec.policy.networks[key]
        is_separate = model_spec.policy.separate or network.separate
        for name in names:
            module_of[name] = name if is_separate else key or "shared"
            if module_of[name] not in modules:
                own_seed = derive_seed(start, module_of[name])
                data = _of_one(source.data, key)
                modules[module_of[name]] = _module_spec(
                    data, allowed, own_seed, limits, max_seq_len
                )
    return MultiRLModuleSpec(rl_module_specs=modules), module_of


def _served(
    policy: PolicySpec, agents: list[str], problems: Problems
) -> dict[str | None, list[str]]:
    """The agents of each network of ``policy``."""
    nothing: dict[Any, Any] = {name: spaces.Discrete(1) for name in agents}
    places: dict[str | None, Path] = {key: net.path for key, net in policy.networks.items()}
    served = serve(read_actors(nothing, nothing), places, problems, (*policy.path, "networks"))
    return {key: [actor.name for actor in actors] for key, actors in served.items()}


def _of_one(data: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """The spec of one of the ``networks`` alone, for an environment with one space."""
    parts = {name: _section(data[name], key) for name in PARTS if data.get(name)}
    top = {name: value for name, value in data.items() if name != "environment"}
    return {**top, **parts}


def _section(section: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    rest = {name: value for name, value in section.items() if name not in ("networks", "separate")}
    networks = section.get("networks")
    if networks is None:
        return rest
    network = networks[int(key or 0)] if isinstance(networks, list) else networks[key]
    return {**rest, **{name: value for name, value in network.items() if name != "separate"}}
