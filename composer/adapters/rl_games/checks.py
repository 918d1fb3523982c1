"""Models and settings of rl_games that do not go together are refused before the first step, all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Literal

import numpy as np
from gymnasium import Space, spaces

from composer.adapters.needs import NEEDS, problems, refuse_actors, refuse_for
from composer.adapters.rl_games.hosted import STATES, Hosted, HostedActions, as_space
from composer.critic.base import SpaceCritic
from composer.distributions.continuous import Gaussian
from composer.model import Model
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from composer.spaces.tree import format_space
from perception_blocks.words import hint, listing

__all__ = ["CENTRAL", "SETTINGS", "CentralKind", "refuse", "refuse_no_spec"]

SETTINGS = ("spec", "allow", "seed", "overrides", "observation_space", "action_space")
CENTRAL = (
    "central_value_config: {model: {name: composer}, network: {name: composer}, normalize_input: false, "
    "learning_rate: 3e-4, mini_epochs: 4, minibatch_size: 512, clip_value: false}"
)
CentralKind = Literal["none", "composed", "unfinished", "foreign"]
"""The network of central_value_config: none, the spec's critic, that in a model of rl_games, or rl_games' own."""

Lines = Iterator[str]


def refuse_no_spec(given: Mapping[str, Any]) -> None:
    """Raise ValueError where ``network:`` has no spec that a config can hold."""
    spec = given.get("spec")
    if spec is None:
        near = [name for name in given if name not in SETTINGS]
        also = f", got {listing(near)}" if near else ""
        raise ValueError(
            f"network: {{name: composer}} needs a 'spec', a file or its text{also}; "
            "write network: {name: composer, spec: agent.yaml}"
        )
    if isinstance(spec, Model):
        raise ValueError(
            "rl_games copies its config, and a Model in it would be another one that nobody trains; give its spec: "
            "spec: agent.yaml, and load weights into agent.model.composed"
        )


def refuse(
    model: Model,
    hosted: Hosted | None,
    central: CentralKind,
    given: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:
    """Raise ValueError with everything in a config of rl_games that keeps it from training or running ``model``.

    ``given`` stands under ``network:``, ``config`` is what rl_games builds a model with.
    """
    refuse_actors(model.observation_space, "rl_games")
    reasons = list(_of_network(given))
    title = "rl_games"
    if hosted is not None:
        title = hosted.algorithm
        reasons += _of_needs(model, hosted, central)
        reasons += _of_spaces(model, hosted, config)
        reasons += _of_hosts_normalizers(model, hosted, central)
        if not hosted.is_player:
            reasons += _of_memory(model, hosted)
            reasons += _of_central(model, hosted, central)
        if hosted.algorithm == "a2c_continuous":
            reasons += _of_numbers(one_policy(model.policy), hosted)
    refuse_for(title, reasons)


def _of_network(given: Mapping[str, Any]) -> Lines:
    for name in given:
        if name not in SETTINGS:
            near = hint(name, SETTINGS, "it takes")
            yield f"network: {name!r} is no setting beside 'spec', which describes the network{near}"


def _of_needs(model: Model, hosted: Hosted, central: CentralKind) -> Lines:
    table = NEEDS["rl_games"].algorithms
    reasons = problems(model, hosted.algorithm, table)
    if hosted.is_player or central == "foreign":  # which need no critic of the spec
        reasons = [reason for reason in reasons if "the value of a state" not in reason]
    yield from reasons
    if central == "foreign" and model.critic is not None:
        yield (
            "the critic of the spec would not be trained beside the network in central_value_config; leave it out, "
            f"as overrides: [critic=null] does, or train it: {CENTRAL}"
        )


def _of_spaces(model: Model, hosted: Hosted, config: Mapping[str, Any]) -> Lines:
    action: Space = as_space(hosted.info["action_space"])
    parts = action.spaces if isinstance(action, spaces.Tuple) else [action]
    if any(isinstance(part, spaces.Discrete) and part.start for part in parts):
        yield f"rl_games counts choices from 0, got {format_space(action)}; use env_name: composer"
    needed = HostedActions(one_policy(model.policy).action_tree).space
    if _counts(needed) != _counts(action) and _counts(action):
        yield (
            f"action_space: the environment takes {format_space(action)}, but the model acts in {format_space(needed)}"
        )
    if "model_spaces" not in hosted.info:
        yield from _of_observations(model, config["input_shape"])


def _counts(action: Space) -> list[int]:
    """The numbers of choices, or of numbers, that an action has for rl_games."""
    if isinstance(action, spaces.Box):
        return [-prod(action.shape)]
    parts = action.spaces if isinstance(action, spaces.Tuple) else [action]
    return [int(part.n) for part in parts if isinstance(part, spaces.Discrete)]


def _of_observations(model: Model, shape: Any) -> Lines:
    space = model.observation_space
    if isinstance(shape, Mapping):
        known = space.spaces if isinstance(space, spaces.Dict) else {}
        for name in shape:
            if name not in known:
                yield f"observation_space: the environment's {name!r} is missing{hint(name, known)}"
            elif known[name].shape != tuple(shape[name]):
                yield (
                    f"observation_space: {name!r} is {format_space(known[name])}, but {tuple(shape[name])} in the "
                    "environment"
                )
        return
    lone = space if not isinstance(space, spaces.Dict) else space.spaces.get("observation")
    if lone is None or lone.shape != tuple(shape or ()):
        yield f"observation_space: it is {format_space(space)}, but one tensor {tuple(shape or ())} in the environment"


def _of_hosts_normalizers(model: Model, hosted: Hosted, central: CentralKind) -> Lines:
    out = (
        "its statistics would not be saved with the model; write normalize_input: false there, "
        "and normalize: [...] in the spec"
    )
    if hosted.config.get("normalize_input"):
        yield f"normalize_input: {out}"
    is_ours = central in ("composed", "unfinished") and not hosted.is_player
    if is_ours and hosted.central and hosted.central.get("normalize_input"):
        yield f"central_value_config: normalize_input: {out}"
    if hosted.is_player or model.critic is None or central == "foreign":
        return
    counts, has = hosted.config.get("normalize_value", False), _has_value_normalizer(model)
    if counts and not has:
        yield (
            "normalize_value: its statistics would not be saved with the model; write normalize_value: false, or "
            "normalize_value: true in the critic of the spec as well, whose statistics it then uses"
        )
    if has and not counts:
        yield (
            "the critic's normalize_value would never count a return; write normalize_value: true in the config as "
            "well, which then uses its statistics"
        )


def _has_value_normalizer(model: Model) -> bool:
    return model.critic is not None and model.critic.value_normalizer is not None


def _of_memory(model: Model, hosted: Hosted) -> Lines:
    if hosted.agent.value_size != 1:
        yield f"value_size: a composed critic gives one value, not {hosted.agent.value_size}; write 1"
    if not model.has_memory:
        return
    agent = hosted.agent
    if not agent.zero_rnn_on_done:
        yield (
            "zero_rnn_on_done: false carries memory into the next episode, and says nothing of it when it learns; "
            "leave it out"
        )
    length, sizes = agent.seq_length, (agent.horizon_length, agent.minibatch_size)
    if any(size % length for size in sizes):
        fits = max(n for n in range(1, length + 1) if not any(size % n for size in sizes))
        yield (
            f"seq_length: {length} does not divide horizon_length {sizes[0]} and minibatch_size {sizes[1]}, so that "
            f"sequences would be of several environments; write seq_length: {fits}"
        )


# --- the critic of states ---


def _of_central(model: Model, hosted: Hosted, central: CentralKind) -> Lines:
    if central == "none":
        return
    if central == "unfinished":
        yield f"central_value_config: network: {{name: composer}} needs the model of that name; write {CENTRAL}"
    is_trained = hosted.config.get("use_experimental_cv", hosted.algorithm == "a2c_continuous")
    if is_trained:
        yield (
            "use_experimental_cv would train values of the actor, which has none beside a central critic; "
            "write use_experimental_cv: false"
        )
    if central == "foreign" or not isinstance(model.critic, SpaceCritic):
        return
    sources = model.critic.input_sources().values()
    if model.critic.shared:
        yield (
            f"rl_games trains a central critic apart from the actor, of which it cannot read "
            f"{listing(model.critic.shared)}; leave out 'shares'"
        )
    other = [s.key for s in sources if s.kind == "observation" and not _is_state(s.key)]
    if other:
        yield (
            f"rl_games hands {listing([STATES])} alone to a central critic, which reads {listing(other)}; let the "
            "environment put them into its states, and the critic read those"
        )
    if model.critic.has_memory:
        yield (
            "rl_games steps the memory of a central critic twice where a rollout ends; give the critic none: "
            "critic: {template: {}}"
        )
    read = [key for key in one_policy(model.policy).read_keys if _is_state(key)]
    if read:
        yield (
            f"rl_games hands 'states' to the central critic alone, but the policy reads {listing(read)}; list what it "
            "may read under policy: observations"
        )


def _is_state(key: str) -> bool:
    return key == STATES or key.startswith(f"{STATES}/")


# --- actions of numbers ---


def _of_numbers(policy: Policy, hosted: Hosted) -> Lines:
    config = hosted.config
    bounded = [key for key, f in policy.distributions.items() if not isinstance(f, Gaussian)]
    if config.get("clip_actions", True) and (bounded or not _within_one(policy.action_space)):
        yield (
            "clip_actions, which is true by default, scales actions from -1 and 1 to their bounds, which the model's "
            "actions have already; write clip_actions: false"
        )
    if hosted.is_player:
        return
    if config.get("use_action_masks"):
        yield "use_action_masks: a2c_continuous has no masks; write use_action_masks: false"
    coefficient = config.get("bounds_loss_coef")
    if coefficient is None:
        yield "bounds_loss_coef: without a number rl_games fails in its first update; write bounds_loss_coef: 0.0"
    elif coefficient and bounded and config.get("bound_loss_type", "bound") == "bound":
        yield (
            f"bounds_loss_coef draws means back into bounds that {listing(bounded)} cannot leave; write "
            "bounds_loss_coef: 0.0"
        )


def _within_one(space: Space) -> bool:
    """Whether all numbers are between -1 and 1, so that clipping changes none within its bounds."""
    parts = space.spaces if isinstance(space, spaces.Dict | spaces.Tuple) else [space]
    boxes = parts.values() if isinstance(parts, Mapping) else parts
    return all(
        isinstance(box, spaces.Box) and bool(np.all(box.low == -1) and np.all(box.high == 1))
        for box in boxes
    )
