"""What the algorithms of all trainers need of a model: actions, memory, critics and distributions, in one table.

`NEEDS` has each trainer's algorithms (`AlgorithmNeeds`). From a row follow the reasons why an algorithm cannot train a
model, and the way out: a setting of the spec to change, or the algorithms of the same trainer that can train it.
`refuse` raises them all at once. No trainer's library is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from gymnasium import spaces

from composer.adapters.reasons import (
    Reasons,
    all_of,
    anything,
    choices_alone,
    critic_as_a_whole,
    heads_at_once,
    maskable,
    memory_of_actions,
    needs_memory,
    no_memory,
    no_returns,
    no_sequences,
    no_statistics,
    numbers_alone,
    of_copies,
    one_action,
    one_box,
    one_choice,
    one_plain_choice,
    one_vector,
    private_keys,
    without_rows,
)
from composer.critic.base import can_stand_for
from composer.distributions.base import DISTRIBUTIONS, is_bounded
from composer.distributions.beta import Beta
from composer.distributions.continuous import Gaussian
from composer.distributions.deterministic import Deterministic
from composer.host.optimizing import nothing_to_train
from composer.model import Model
from composer.policy.structured import one_policy
from composer.source.dump import dump_flow
from composer.spaces.actors import ActorKey
from composer.spaces.lookup import is_by_actor
from composer.spaces.tree import format_space

__all__ = ["NEEDS", "TORCHRL_LOSSES", "AlgorithmNeeds", "TrainerNeeds"]
__all__ += ["problems", "refuse", "refuse_actors", "refuse_for"]

ADVISED = {
    "state": "critic: {kind: state, template: {}}",
    "state_action": "critic: {kind: state_action, ensemble: 2, template: {}}",
    "choices": "critic: {kind: state_action, template: {}}",
}
KINDS = {"state": "state", "state_action": "state_action", "choices": "state_action"}
BOUND_THEM = (
    ", or give the environment's actions bounds, as gymnasium.wrappers.TransformAction does"
)


@dataclass(frozen=True)
class AlgorithmNeeds:
    """One row of a trainer's table.

    ``refuses`` says why the actions, the mask or the memory of a model cannot be trained, which no other critic or
    distribution would change; with ``of_boxes``, all actions must be Boxes with finite bounds. ``critic`` is the kind
    that is needed ("choices": of actions, without an ensemble), None where there must be no critic; ``family`` says
    which distributions serve. ``more`` says what else of the critic is in the way, each with its way out.
    """

    refuses: Reasons
    critic: Literal["state", "state_action", "choices"] | None
    family: Literal["any", "chances", "bounded", "deterministic"] = "chances"
    more: Reasons = anything
    of_boxes: bool = False
    is_advised: bool = True  # not where the environment must be made for it


@dataclass(frozen=True)
class TrainerNeeds:
    """A trainer's table: ``algorithms`` by name.

    ``host`` is its library's name in messages, where ``title`` stands for an algorithm. ``refuses`` says why none of
    its algorithms can train a model. Steps and agents are refused unless it ``takes_actors``.
    """

    host: str
    algorithms: Mapping[str, AlgorithmNeeds]
    title: str = "{}"
    refuses: Reasons = anything
    takes_actors: bool = False


def refuse(
    model: Model, algorithm: str, trainer: str, names: Mapping[str, str] | None = None
) -> None:
    """Raise ValueError with every reason why ``algorithm`` of ``trainer``, as in `NEEDS`, cannot train ``model``.

    ``names`` maps names in the table to what the caller calls the algorithms.
    """
    row = NEEDS[trainer]
    if is_by_actor(model.observation_space) and not row.takes_actors:
        reasons = [f"it acts for {_several_actors(model.observation_space, row.host)}"]
    else:
        reasons = [*problems(model, algorithm, row.algorithms), *row.refuses(model)]
        reasons += nothing_to_train(model)
    renamed = [_renamed(reason, names or {}) for reason in reasons]
    refuse_for(_renamed(row.title.format(algorithm), names or {}), renamed)


def refuse_actors(space: object, trainer: str) -> None:
    """Raise ValueError if an environment's observation ``space`` is of several steps or agents."""
    if is_by_actor(space):
        raise ValueError(f"the environment has {_several_actors(space, NEEDS[trainer].host)}")


def _several_actors(spaces_by_actor: Iterable[ActorKey], host: str) -> str:
    names = ", ".join(map(repr, spaces_by_actor))
    return f"several steps or agents ({names}); {host} trains one policy of one agent"


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """``text`` with the algorithms by other ``names``."""
    for name, other in names.items():
        text = re.sub(rf"(?<!')\b{name}\b", other, text)  # not of actions, which are quoted
    return text


def problems(model: Model, name: str, table: Mapping[str, AlgorithmNeeds]) -> list[str]:
    """Why the algorithm ``name`` of ``table`` cannot train ``model``, each reason with a way out that works."""
    algorithm = table[name]
    refused = list(_refused(model, algorithm))
    if refused:
        out = _way_out(model, table)
        return [f"{reason}{out}{more}" for reason, more in refused]
    return [
        *_of_distributions(model, algorithm.family),
        *(problem for problem, _ in _of_critic(model, name, algorithm.critic)),
        *algorithm.more(model),
    ]


def refuse_for(trainer: str, reasons: Iterable[str]) -> None:
    """Raise ValueError with every one of ``reasons`` why ``trainer`` cannot train a model."""
    lines = "".join(f"\n  {reason}" for reason in reasons)
    if lines:
        raise ValueError(f"{trainer} cannot train this model:{lines}")


def _way_out(model: Model, table: Mapping[str, AlgorithmNeeds]) -> str:
    """The algorithms that can train ``model`` and what they need besides, as the end of a message: ``; use PPO``."""
    fit = [n for n, row in table.items() if row.is_advised and not any(_refused(model, row))]
    needs = {name: _needs(model, table[name]) for name in fit}
    if not fit:
        return ""
    fewest = needs[min(fit, key=lambda name: len(needs[name]))]
    names = [name for name in fit if needs[name] == fewest]
    listed = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"; use {listed}" + (f" with {' and '.join(fewest)}" if fewest else "")


def _refused(model: Model, row: AlgorithmNeeds) -> Iterator[tuple[str, str]]:
    """Each reason against the model's actions, mask or memory, and what else would help."""
    for key, leaf in one_policy(model.policy).action_tree.leaves.items() if row.of_boxes else ():
        shown = format_space(leaf.space)
        if not isinstance(leaf.space, spaces.Box):
            yield f"it needs Box actions, but {key!r} is {shown}", ""
        elif not is_bounded(leaf):
            yield f"it needs Box actions with finite bounds, but {key!r} is {shown}", BOUND_THEM
    for reason in row.refuses(model):
        yield reason, ""


def _needs(model: Model, row: AlgorithmNeeds) -> list[str]:
    """The changes in the spec that it needs, in a few words each."""
    others = _other_families(model, row.family)
    needs = [f"distribution: {family} for {key!r}" for key, family in others]
    return needs + [change for _, change in _of_critic(model, "", row.critic)]


# --- critics ---


def _of_critic(model: Model, name: str, needed: str | None) -> Iterator[tuple[str, str]]:
    """Why the critic does not serve the algorithm ``name``, and the change in the spec in a few words."""
    critic = model.spec.critic
    if needed is None:
        if critic is not None:
            yield (
                f"{name} learns one network, whose values choose the action: the policy, whose logits they are. "
                "A critic would leave one of the two untrained; leave it out, as --set critic=null does",
                "critic: null",
            )
        return
    what = "the value of a state" if needed == "state" else "the value of an action"
    advised = ADVISED[needed]
    if critic is None:
        yield f"{name} needs {what}; add a critic such as {advised}", advised
    elif not can_stand_for(critic.kind, KINDS[needed]):
        got = f"but the critic is of kind {critic.kind!r}"
        yield f"{name} needs {what}, {got}; give it one such as {advised}", advised
    elif needed != "state_action" and critic.ensemble > 1:
        got = f"but the critic gives {critic.ensemble}"
        yield f"{name} needs {what} once, {got}; leave out 'ensemble'", "no 'ensemble'"


# --- distributions ---


def _of_distributions(model: Model, family: str) -> Iterator[str]:
    for key, other in _other_families(model, family):
        distribution = one_policy(model.policy).distributions[key]
        name = DISTRIBUTIONS.name_of(type(distribution)) or type(distribution).__name__
        if isinstance(distribution, Deterministic):
            reason = f"it learns from chances, but {key!r} is deterministic"
        elif family == "deterministic":
            reason = f"its actor is deterministic, but {key!r} has the distribution {name!r}"
        else:
            reason = f"it needs actions within their bounds, which the {name} of {key!r} leaves"
        yield f"{reason}; {_rule(model, key, other)}"


def _other_families(model: Model, family: str) -> Iterator[tuple[str, str]]:
    """The actions whose distribution does not fit, each with one that does."""
    for key, distribution in one_policy(model.policy).distributions.items():
        if family == "deterministic":
            if not isinstance(distribution, Deterministic):
                yield key, "deterministic"
        elif family != "any" and (
            isinstance(distribution, Deterministic)
            or (family == "bounded" and isinstance(distribution, Gaussian))
        ):
            yield key, "squashed_gaussian"  # whose Box has bounds, or `refuses` had said so


def _rule(model: Model, key: str, family: str) -> str:
    """How to give the action ``key`` another distribution."""
    kind = one_policy(model.policy).action_tree.leaves[key].kind
    for rule in model.spec.distributions:
        if rule.entry.get("action") == key or rule.entry.get("space") == kind:
            return f"write distribution: {family} in its entry of 'distributions'"
    entry = dump_flow({"action": key, "distribution": family})
    return f"write under 'distributions': - {entry}"


# --- Stable-Baselines3 and sb3-contrib ---

_STEPS_ALONE = no_memory("which only RecurrentPPO of sb3-contrib carries from step to step")

SB3: Mapping[str, AlgorithmNeeds] = {
    "PPO": AlgorithmNeeds(_STEPS_ALONE, "state"),
    "A2C": AlgorithmNeeds(_STEPS_ALONE, "state"),
    "RecurrentPPO": AlgorithmNeeds(needs_memory, "state"),
    "MaskablePPO": AlgorithmNeeds(all_of(maskable, _STEPS_ALONE), "state", is_advised=False),
    "DQN": AlgorithmNeeds(all_of(one_plain_choice, no_sequences("dqn")), None, "any"),
    "SAC": AlgorithmNeeds(no_sequences("sac"), "state_action", "bounded", of_boxes=True),
    "TD3": AlgorithmNeeds(no_sequences("sac"), "state_action", "deterministic", of_boxes=True),
}

# --- TorchRL: the algorithms of `composer train`, and its losses ---

TORCHRL: Mapping[str, AlgorithmNeeds] = {
    "ppo": AlgorithmNeeds(anything, "state"),
    "a2c": AlgorithmNeeds(one_action, "state"),
    "dqn": AlgorithmNeeds(one_choice, None, "any"),
    "sac": AlgorithmNeeds(
        one_action,
        "state_action",
        "bounded",
        all_of(of_copies, memory_of_actions, critic_as_a_whole),
        of_boxes=True,
    ),
}
TORCHRL_LOSSES: Mapping[str, AlgorithmNeeds] = {
    "ClipPPOLoss": AlgorithmNeeds(anything, "state", "any"),
    "A2CLoss": AlgorithmNeeds(one_action, "state", "any", is_advised=False),
    "DQNLoss": AlgorithmNeeds(one_choice, "choices", "any", is_advised=False),
    "DiscreteSACLoss": AlgorithmNeeds(one_choice, "state_action", "any", critic_as_a_whole),
    "SACLoss": AlgorithmNeeds(
        one_box, "state_action", "any", all_of(memory_of_actions, critic_as_a_whole)
    ),
}

# --- rsl_rl ---

RSL_RL: Mapping[str, AlgorithmNeeds] = {
    "PPO": AlgorithmNeeds(one_vector, "state", more=no_returns),
}

# --- rl_games ---


def _normals(model: Model) -> Iterator[str]:
    """rl_games measures how far a policy has moved by means and standard deviations of normals."""
    for key, distribution in one_policy(model.policy).distributions.items():
        if isinstance(distribution, Beta):
            yield (
                f"its KL is of normals, which the beta of {key!r} is not; "
                f"{_rule(model, key, 'squashed_gaussian')}"
            )


RL_GAMES: Mapping[str, AlgorithmNeeds] = {
    "a2c_discrete": AlgorithmNeeds(all_of(choices_alone, heads_at_once), "state"),
    "a2c_continuous": AlgorithmNeeds(all_of(numbers_alone, heads_at_once), "state", more=_normals),
}

# --- skrl, whose agents have a form with memory and one without ---

SKRL: Mapping[str, AlgorithmNeeds] = {
    "PPO": AlgorithmNeeds(anything, "state"),
    "A2C": AlgorithmNeeds(anything, "state"),
}

# --- RLlib ---

RLLIB: Mapping[str, AlgorithmNeeds] = {
    "PPO": AlgorithmNeeds(without_rows, "state", more=no_statistics),
}

# --- Tianshou ---

TIANSHOU: Mapping[str, AlgorithmNeeds] = {
    "PPO": AlgorithmNeeds(anything, "state", more=no_returns),
    "A2C": AlgorithmNeeds(anything, "state", more=no_returns),
}

NEEDS: dict[str, TrainerNeeds] = {
    "sb3": TrainerNeeds("Stable-Baselines3", SB3),
    "torchrl": TrainerNeeds(
        "TorchRL", TORCHRL, "{} of torchrl", all_of(private_keys, heads_at_once)
    ),
    "rsl_rl": TrainerNeeds("rsl_rl", RSL_RL, "{} of rsl_rl"),
    "rl_games": TrainerNeeds("rl_games", RL_GAMES),
    "tianshou": TrainerNeeds("Tianshou", TIANSHOU, "{} of Tianshou"),
    "skrl": TrainerNeeds("skrl", SKRL, "{} of skrl"),
    "rllib": TrainerNeeds("RLlib", RLLIB, "{} of RLlib", heads_at_once),
    "torchrl.objectives": TrainerNeeds("TorchRL", TORCHRL_LOSSES, refuses=heads_at_once),
}
"""What each trainer's algorithms need, by the trainer's name."""
