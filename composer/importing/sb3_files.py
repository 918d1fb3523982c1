"""Agents that Stable-Baselines3 saved, and the hyperparameters of its zoo."""

from __future__ import annotations

import os
import re
from typing import Any

from composer.errors import Position, SpecError
from composer.importing.document import Document
from composer.importing.imported import Imported, finished
from composer.importing.kinds import Kind
from composer.importing.python_config import python_mappings
from composer.importing.sb3 import fill_in
from composer.importing.sb3_archive import Sb3Archive
from composer.importing.sb3_policies import ALGORITHMS, EXTRACTORS, Agent
from composer.importing.sb3_spaces import action_of, action_size_of, observations_of
from composer.importing.sb3_statistics import UNNAMED
from composer.importing.taken import Taken
from composer.source.values import Located
from perception_blocks.words import did_you_mean, few_of, hint

__all__ = ["SB3", "read_sb3"]

_OF_MODULE = {  # the modules of policies -> what builds the same networks
    "stable_baselines3.common.policies": "ppo",
    "stable_baselines3.dqn.policies": "dqn",
    "stable_baselines3.sac.policies": "sac",
    "stable_baselines3.td3.policies": "td3",
    "sb3_contrib.qrdqn.policies": "qrdqn",
    "sb3_contrib.tqc.policies": "tqc",
    "sb3_contrib.crossq.policies": "crossq",
    "sb3_contrib.common.recurrent.policies": "ppo_lstm",
    "sb3_contrib.common.maskable.policies": "ppo_mask",
}
MOST_LEVELS = 8
_LIBRARIES = ("stable_baselines3", "sb3_contrib")
_CLASS = re.compile(r"<function (\w+)\.__init__ ")  # in the text of a class that the file pickles
_PYTHON = ("policy_kwargs", "normalize")  # keys of the zoo that hold Python in a text
_OPTIMIZER = ("optimizer_class", "optimizer_kwargs")  # keys of policy_kwargs about training
_OF_REWARDS = ("norm_reward", "clip_reward", "gamma", "training")  # of VecNormalize
_NETWORK = ("policy", "policy_kwargs", "use_sde", "normalize", "env_wrapper", "frame_stack")
_NETWORK += ("vec_env_wrapper",)  # keys of an entry of the zoo that say what the networks read


def _is_sb3(document: Document) -> bool:
    if document.is_archive:
        return True
    return any(
        isinstance(entry.value, dict) and {"policy", "n_timesteps"} <= entry.value.keys()
        for entry in document.root().values()
    )


def read_sb3(document: Document, name: str | None = None) -> Imported:
    """The networks of an agent in a zip, or of the entry ``name`` of a file of rl-zoo3."""
    if document.is_archive:
        return _agent(document, name)
    return _entry(document, name)


# --- the zip of an agent ---


def _agent(document: Document, name: str | None) -> Imported:
    archive = Sb3Archive(document.path)
    if name is not None:
        raise archive.refusal(f"an agent has no entries, and none is called {name!r}")
    top = document.taken(_located(archive.data, Position(archive.name)))
    algorithm, policy = _policy_class(top)
    out = Imported({"version": 1})
    actions = top.plain("action_space") if "action_space" in top else None
    agent = Agent(
        algorithm,
        _extractor_of(policy),
        use_sde=top.flag("use_sde", False),
        seen=_seen(top),
        action=action_of(actions),
        shares_first=_is_before(archive.version, (1, 8)),
        quantiles=top.layers("n_quantiles") if "n_quantiles" in top else None,
        actions=action_size_of(actions),
    )
    kwargs = top.below("policy_kwargs") if top.has("policy_kwargs") else _nothing(top)
    top.ask("policy_class")
    fill_in(out, agent, kwargs)
    return finished(out, top, _training(top, kwargs, ("policy_kwargs",)))


def _policy_class(top: Taken) -> tuple[str, str]:
    """The algorithm of an agent, and the name of its policy's class."""
    about = top.below("policy_class")
    module = about.text("__module__", "")
    match = _CLASS.match(str(about.get("__init__", "")))
    if module.startswith("composer."):
        reason = (
            "the policy is a model of this library already; load the agent with Stable-Baselines3 and call "
            "agent.policy.model.save(path)"
        )
        raise top.refusal("policy_class", reason)
    if module not in _OF_MODULE:
        known = module.partition(".")[0] in _LIBRARIES
        reason = f"policies of {module!r} are not read; {_listing()} are"
        if not known:
            reason = f"a class of your own in {module!r}, whose code is not read"
        raise top.refusal("policy_class", reason)
    return _OF_MODULE[module], match[1] if match else ""


def _listing() -> str:
    names = [
        "PPO",
        "A2C",
        "DQN",
        "SAC",
        "TD3",
        "RecurrentPPO",
        "MaskablePPO",
        "QRDQN",
        "TQC",
        "CrossQ",
    ]
    return few_of(names, most=len(names))


def _extractor_of(policy: str) -> str:
    """The features extractor of a policy by the name of its class, such as ``MultiInputActorCriticPolicy``."""
    if "Cnn" in policy:
        return "NatureCNN"
    return "CombinedExtractor" if "MultiInput" in policy else "FlattenExtractor"


def _seen(top: Taken) -> Any:
    seen = observations_of(top.plain("observation_space")) if "observation_space" in top else None
    if seen is None:
        top.refuse("observation_space", "the text of the space cannot be read")
    return seen or []


def _is_before(version: str, other: tuple[int, ...]) -> bool:
    numbers = [int(part) for part in re.findall(r"\d+", version)[: len(other)]]
    return bool(numbers) and tuple(numbers) < other


# --- an entry of the zoo ---


def _entry(document: Document, name: str | None) -> Imported:
    top = document.taken()
    entries = [key for key in top if isinstance(top.node.value[key].value, dict)]
    if name is None:
        if len(entries) != 1:
            reason = f"it has {len(entries)} entries; say which with --class, or name=: {few_of(entries)}"
            raise top.refusal(None, reason)
        name = entries[0]
    if name not in entries:
        near = did_you_mean(name, entries) or f"; it has {few_of(entries)}"
        raise top.refusal(None, f"there is no entry {name!r}{near}")
    parsed = _with_python(Taken(document.data.value[name], (name,), document.refusals))
    top = document.taken(Located({name: parsed}, top.node.position))
    entry = top.below(name)
    kwargs = entry.below("policy_kwargs") if entry.has("policy_kwargs") else _nothing(entry)
    out = Imported({"version": 1})
    policy = entry.text("policy")
    if policy not in EXTRACTORS:
        entry.refuse("policy", f"there is no policy {policy!r}{hint(policy, EXTRACTORS)}")
    algorithm = _algorithm_of(document, entry)
    if "Lstm" in policy and algorithm != "ppo_lstm":
        entry.refuse("policy", f"{policy!r} has a memory; such entries are in ppo_lstm.yml")
    extractor = EXTRACTORS.get(policy, "FlattenExtractor")
    agent = Agent(algorithm, extractor, use_sde=entry.flag("use_sde", False))
    fill_in(out, agent, kwargs)
    _normalization(entry, out, policy)
    return finished(out, top, _training(entry, kwargs, _NETWORK))


def _with_python(entry: Taken) -> Located:
    """The ``entry`` with mappings in the place of texts such as ``dict(net_arch=[64], activation_fn=nn.ReLU)``."""
    node = entry.node
    values = dict(node.value)
    for key in _PYTHON:
        text = values.get(key)
        if text is not None and isinstance(text.value, str):
            values[key] = _parsed(entry, key, text)
    return Located(values, node.position, node.key_position)


def _parsed(entry: Taken, key: str, node: Located) -> Located:
    """The mapping that ``node`` holds as Python in a text; nothing of it is executed."""
    try:
        mappings = python_mappings(f"value = (\n{node.value}\n)", "")
    except SpecError as error:
        entry.refuse(key, error.problems[0].message)
        return Located({}, node.position, node.key_position)
    if "value" not in mappings:
        reason = f"must be a mapping such as dict(net_arch=[64, 64]), got {node.value!r:.80}"
        entry.refuse(key, reason)
        return Located({}, node.position, node.key_position)
    return _moved(mappings["value"], node)


def _algorithm_of(document: Document, entry: Taken) -> str:
    """The algorithm, which the name of the file says there."""
    stem = os.path.basename(document.path).partition(".")[0].lower().replace("-", "_")
    if stem not in ALGORITHMS:
        near = hint(stem, ALGORITHMS)
        entry.refuse(
            None,
            f"the name of the file says the algorithm, such as ppo.yml; there is no {stem!r}{near}",
        )
        return "ppo"
    return stem


def _normalization(entry: Taken, out: Imported, policy: str) -> None:
    """VecNormalize around the environment: its part for the observations."""
    if not entry.has("normalize"):
        return
    value = entry["normalize"]
    sees = value.flag("norm_obs", True) if isinstance(value, Taken) else value is True
    if isinstance(value, Taken):
        value.ask(*_OF_REWARDS)
    if not sees:
        return
    if policy.startswith("Mlp"):
        out.spec["normalize"] = ["observation"]
        out.note(
            "normalize: the rewards are not normalised here; observations are, by the model itself"
        )
    else:
        out.note(UNNAMED)


# --- both ---


def _training(top: Taken, kwargs: Taken, network: tuple[str, ...]) -> list[Any]:
    """The paths of what is about training: all but the keys of the ``network``, and the optimizer."""
    paths: list[Any] = [(*kwargs.path, key) for key in _OPTIMIZER]
    return paths + [(*top.path, key) for key in top if key not in network]


def _nothing(owner: Taken) -> Taken:
    path = (*owner.path, "policy_kwargs")
    return Taken(Located({}, owner.node.position), path, owner.refusals)


def _located(value: Any, place: Position, levels: int = MOST_LEVELS) -> Located:
    """Plain data at one ``place``; what is nested deeper than a policy's settings ever are is left out."""
    if isinstance(value, dict | list) and not levels:
        return Located(None, place)
    if isinstance(value, dict):
        return Located({k: _located(v, place, levels - 1) for k, v in value.items()}, place)
    if isinstance(value, list):
        return Located([_located(inner, place, levels - 1) for inner in value], place)
    return Located(value, place)


def _moved(node: Located, place: Located) -> Located:
    """``node`` with all that is in it where ``place`` is."""
    value: Any = node.value
    if isinstance(value, dict):
        value = {key: _moved(inner, place) for key, inner in value.items()}
    elif isinstance(value, list):
        value = [_moved(inner, place) for inner in value]
    return Located(value, place.position, place.key_position)


SB3 = Kind(
    "the zip of an agent, or YAML of rl-zoo3 named after its algorithm (ppo.yml) with --class ENVIRONMENT",
    _is_sb3,
    read_sb3,
)
