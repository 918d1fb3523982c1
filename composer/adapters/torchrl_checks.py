"""What cannot work with TorchRL, found before anything runs: models, environments and losses that do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torchrl.data import Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec
from torchrl.envs import EnvBase
from torchrl.objectives import (
    A2CLoss,
    DDPGLoss,
    DiscreteSACLoss,
    DQNLoss,
    LossModule,
    PPOLoss,
    ReinforceLoss,
    SACLoss,
)

from composer.adapters.torchrl_fields import (
    CHOICES,
    Encoding,
    Field,
    choice_sizes,
    shown,
)
from composer.critic import Critic
from composer.model import Model
from composer.policy import Policy
from composer.spaces import format_space
from composer.state_action import StateActionCritic
from perception_blocks.port import format_shape

__all__ = ["encoding_of", "refuse_loss", "refuse_model", "refuse_specs"]
__all__ += ["refuse_taken_keys", "serves_choices"]

Specs = Mapping[Any, TensorSpec]
_INDICES = (Categorical, MultiCategorical)
_FORMS = {
    "plain": "",
    "index": " as an index",
    "one_hot": " as one-hot",
    "flat_one_hot": " as one-hot",
}
_WRITTEN = ("logits", "params", "state_value", "action_value", "state_action_value", "is_init")
_VALUES_STATES = (PPOLoss, A2CLoss, ReinforceLoss)


def refuse_model(model: Model) -> None:
    """Raise ValueError for what is no model, and for one that one actor and one critic of TorchRL cannot stand for."""
    if not isinstance(model, Model):
        raise ValueError(
            f"to_torchrl and primers take a model, as composer.compose makes it, got a {type(model).__name__}"
        )
    if not isinstance(model.policy, Policy):
        actors = ", ".join(repr(key) for key in model.observation_space)
        raise ValueError(
            f"to_torchrl takes a model of one space; this one has the actors {actors}, whose observations come at "
            "different times. Compose a model for each of them, or train in a loop of your own with "
            "model.policy.act({actor: observation})"
        )
    if model.policy.users_own("act") is not None:
        name = type(model.policy.network.module).__name__
        raise ValueError(
            f"the class {name!r} defines act() itself, which has no distribution that a loss could differentiate; "
            "remove act() to train it with TorchRL"
        )


def refuse_taken_keys(observations: Iterable[Field], actions: Iterable[Field]) -> None:
    """Raise ValueError for an observation under a key that the modules write: it would be gone after the actor."""
    taken = {*_WRITTEN, *(field.key for field in actions)}
    found = [field for field in observations if field.key in taken]
    if found:
        names = ", ".join(shown(field.key) for field in found)
        raise ValueError(
            f"the modules write {names} themselves, which are observations here; rename them in the environment with "
            "RenameTransform, and say so in to_torchrl(..., keys={name: key})"
        )


def encoding_of(env: EnvBase) -> Encoding:
    """How ``env`` takes choices, and shows them."""
    specs = [*_specs(env.full_action_spec_unbatched).values()]
    specs += _specs(env.full_observation_spec_unbatched).values()
    one_hot = any(isinstance(spec, (OneHot, MultiOneHot)) for spec in specs)
    return "one_hot" if one_hot else "categorical"


def refuse_specs(env: EnvBase, observations: Iterable[Field], actions: Iterable[Field]) -> None:
    """Raise ValueError with every difference between the specs of ``env`` and what the model reads and gives."""
    problems = []
    for word, fields, composite in (
        ("observation", observations, env.full_observation_spec_unbatched),
        ("action", actions, env.full_action_spec_unbatched),
    ):
        specs = _specs(composite)
        for field in fields:
            problems += _differences(word, field, specs)
        if word == "action":
            known = [field.key for field in actions]
            for key in specs:
                if key not in known:
                    problems.append(
                        f"the environment takes the action {shown(key)}, which the model does not give"
                    )
    if problems:
        raise ValueError(
            "this environment is not the one that the model was composed for:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def _differences(word: str, field: Field, specs: Specs) -> Iterable[str]:
    own = format_space(field.leaf.space) + _FORMS[field.form]
    spec = specs.get(field.key)
    if spec is None:
        there = ", ".join(map(shown, specs))
        yield f"the {word} {shown(field.key)} is {own} for the model; the environment has {there}"
    elif not _fits(field, spec):
        count = _sizes(spec)
        found = f"{type(spec).__name__} {format_shape(spec.shape)}"
        found += f" of {', '.join(map(str, sorted(count)))} choices" if count else ""
        yield f"the {word} {shown(field.key)} is {own} for the model, {found} in the environment"


def _fits(field: Field, spec: TensorSpec) -> bool:
    shape, own = tuple(spec.shape), tuple(field.shape)
    if field.form == "plain":
        return shape == own or (not own and shape == (1,))  # as GymEnv has a number
    if shape != own or (field.form == "index") != isinstance(spec, _INDICES):
        return False
    return _sizes(spec) == set(choice_sizes(field.leaf))


def _sizes(spec: TensorSpec) -> set[int] | None:
    """How many choices there are."""
    if isinstance(spec, MultiCategorical):
        return {int(n) for n in spec.nvec.flatten()}
    if isinstance(spec, MultiOneHot):
        return {int(box.n) for box in spec.space}
    return {int(spec.space.n)} if isinstance(spec, (Categorical, OneHot)) else None


def _specs(composite: Composite) -> dict[Any, TensorSpec]:
    return {key: spec for key, spec in composite.items(True, True) if spec is not None}


def refuse_loss(loss: type[LossModule], model: Model) -> None:
    """Raise ValueError where the model's critic or distributions do not serve ``loss``, with a way out."""
    if not (isinstance(loss, type) and issubclass(loss, LossModule)):
        raise ValueError(
            f"loss must be a class of torchrl.objectives such as ClipPPOLoss, got {loss!r}"
        )
    message = None
    if issubclass(loss, _VALUES_STATES):
        message = _not_of_states(model)
        if len(model.policy.distributions) > 1 and not issubclass(loss, PPOLoss):
            message = "trains one action, and this model has several; ClipPPOLoss trains them"
    elif issubclass(loss, DiscreteSACLoss):
        message = _not_of_choices(model, ensemble=True)
    elif issubclass(loss, DQNLoss):
        message = _not_of_choices(model, policy=True)
    elif issubclass(loss, (SACLoss, DDPGLoss)):
        message = _not_of_actions(model)
    if message:
        raise ValueError(f"{loss.__name__} {message}")


def _not_of_states(model: Model) -> str | None:
    critic = model.critic
    if critic is None:
        return (
            "needs the value of a state, and this model has no critic; give it one of kind: state"
        )
    if isinstance(critic, StateActionCritic):
        return "needs the value of a state, and this critic values actions; write kind: state in it"
    assert isinstance(critic, Critic)
    if critic.out_ports["value"].shape != (1,):
        return "needs one value of a state, and this critic is an ensemble; leave out 'ensemble'"
    return None


def serves_choices(model: Model) -> bool:
    """Whether the critic, or without one the policy, has one value for each choice of one Discrete action."""
    return _not_of_choices(model, policy=True) is None


def _not_of_choices(model: Model, *, ensemble: bool = False, policy: bool = False) -> str | None:
    """``policy`` says whether its logits may be the values where there is no critic."""
    critic = model.critic
    needed = "needs a value for each choice of one Discrete action"
    if not (isinstance(critic, StateActionCritic) or (policy and critic is None)):
        return f"{needed}; write kind: state_action in the critic"
    leaves = [*model.policy.action_tree.leaves.values()]
    if len(leaves) > 1 or leaves[0].kind not in CHOICES[:1]:
        spaces = ", ".join(format_space(leaf.space) for leaf in leaves)
        return f"{needed}; the action here is {spaces}"
    if leaves[0].start != 0:
        return f"counts choices from 0; the action here is {format_space(leaves[0].space)}"
    if critic is not None and critic.copies > 1 and not ensemble:
        return f"{needed}, once; this critic is an ensemble; leave out 'ensemble'"
    return None


def _not_of_actions(model: Model) -> str | None:
    critic = model.critic
    if not isinstance(critic, StateActionCritic):
        return "needs the value of an action; write kind: state_action in the critic"
    leaves = model.policy.action_tree.leaves.values()
    if any(leaf.kind != "box" for leaf in leaves) or len(leaves) > 1:
        spaces = ", ".join(format_space(leaf.space) for leaf in leaves)
        return (
            f"needs gradients through one action, which a Box has; the action here is {spaces}. "
            "For a Discrete one there are DiscreteSACLoss and DQNLoss"
        )
    return None
