"""Models, environments and losses that do not fit TorchRL are refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

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

from composer.adapters.needs import TORCHRL_LOSSES, problems, refuse_for
from composer.adapters.reasons import one_choice
from composer.adapters.torchrl.fields import Encoding, Field, Key, choice_sizes, shown
from composer.adapters.torchrl.functions import critic_of, state_keys
from composer.critic.base import can_stand_for
from composer.model import Model
from composer.policy.structured import one_policy
from composer.spaces.lookup import is_by_actor
from composer.spaces.tree import format_space
from composer.spec.keys import PREVIOUS
from perception_blocks.port import format_shape
from perception_blocks.words import listing

__all__ = ["encoding_of", "refuse_loss", "refuse_model", "refuse_specs", "refuse_taken_keys"]
__all__ += ["refuse_temperature", "serves_choices"]

Specs = Mapping[Key, TensorSpec]
_INDICES = (Categorical, MultiCategorical)
_FORMS = {
    "plain": "",
    "index": " as an index",
    "one_hot": " as one-hot",
    "flat_one_hot": " as one-hot",
}
_WRITTEN = ("logits", "params", "state_value", "action_value", "state_action_value", "is_init")
_WRITTEN += (
    "next",
    "reward",
    "done",
    "terminated",
    "truncated",
    "collector",
    "mask",
    "temperature",
)


def refuse_model(model: Model) -> None:
    """Raise ValueError for what is no model, and for a model that needs more than one actor of TorchRL."""
    if not isinstance(model, Model):
        raise ValueError(
            f"to_torchrl and primers take a model, as composer.compose makes it, got a {type(model).__name__}"
        )
    if is_by_actor(model.observation_space):
        actors = ", ".join(repr(key) for key in model.observation_space)
        raise ValueError(
            f"to_torchrl takes a model of one space; this one has the actors {actors}, whose observations come at "
            "different times. Compose a model for each of them, or train in a loop of your own with "
            "model.policy.act({actor: observation})"
        )
    refuse_state_names(model)
    policy = one_policy(model.policy)
    if policy.users_own("act") is not None:
        name = type(policy.network.module).__name__
        raise ValueError(
            f"the class {name!r} defines act() itself, which has no distribution that a loss could differentiate; "
            "remove act() to train it with TorchRL"
        )
    for head, actions in policy.network.after.items():
        raise ValueError(
            f"TorchRL makes distributions of logits that it has stored, but the head {head!r} reads the action of "
            f"{listing(actions)}; use the trainer sb3, or a loop of your own with model.step"
        )


def refuse_state_names(model: Model) -> None:
    """Raise ValueError for a name under `state_names` that the modules write, or that another state has."""
    if not model.spec.state_names:
        return
    parts = [part for part in (one_policy(model.policy), critic_of(model)) if part is not None]
    keys = [key for part in parts for key in state_keys(part).values()]
    actions = one_policy(model.policy).action_tree.leaves
    others = {*_WRITTEN, *actions, *(f"{name}_log_prob" for name in actions)}
    for path, name in model.spec.state_names.items():
        if name in others or keys.count(name) > 1:
            raise ValueError(
                f"'state_names' calls {path!r} {name!r}, a key that TorchRL writes; choose another"
            )


def refuse_taken_keys(observations: Iterable[Field], actions: Iterable[Field]) -> None:
    """Raise ValueError for an observation under a key that the modules write: the actor would overwrite it."""
    taken = {*_WRITTEN, *(field.key for field in actions)}
    clashing = [field for field in observations if field.key in taken]
    if clashing:
        names = ", ".join(shown(field.key) for field in clashing)
        raise ValueError(
            f"the modules write {names} themselves, which are observations here; rename them in the environment with "
            "RenameTransform, and say so in to_torchrl(..., keys={name: key})"
        )


def refuse_temperature(key: Key, actions: Iterable[str], env: EnvBase | None) -> None:
    """Raise ValueError for temperatures of several actions, or that ``env`` does not have."""
    names = list(actions)
    if len(names) > 1:
        raise ValueError(
            f"temperature_key is for one action; this model has {listing(names)}; leave it out"
        )
    known = [] if env is None else list(_specs(env.full_observation_spec_unbatched))
    if env is not None and key not in known:
        shown_keys = ", ".join(map(shown, known))
        raise ValueError(
            f"temperature_key is {shown(key)}, which the environment does not have; it has {shown_keys}"
        )


def encoding_of(env: EnvBase) -> Encoding:
    """The form that choices have in the actions and observations of ``env``."""
    specs = [*_specs(env.full_action_spec_unbatched).values()]
    specs += _specs(env.full_observation_spec_unbatched).values()
    one_hot = any(isinstance(spec, (OneHot, MultiOneHot)) for spec in specs)
    return "one_hot" if one_hot else "categorical"


def refuse_specs(env: EnvBase, observations: Iterable[Field], actions: Iterable[Field]) -> None:
    """Raise ValueError with every difference between the specs of ``env`` and what the model reads and gives."""
    observed = _specs(env.full_observation_spec_unbatched)
    taken = _specs(env.full_action_spec_unbatched)
    actions = list(actions)
    problems = [p for field in observations for p in _differences("observation", field, observed)]
    problems += [p for field in actions for p in _differences("action", field, taken)]
    problems += [
        f"the environment takes the action {shown(key)}, which the model does not give"
        for key in taken
        if key not in [field.key for field in actions]
    ]
    if problems:
        raise ValueError(
            "this environment is not the one that the model was composed for:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def _differences(word: str, field: Field, specs: Specs) -> Iterable[str]:
    needed = format_space(field.leaf.space) + _FORMS[field.form]
    spec = specs.get(field.key)
    if spec is None:
        names = ", ".join(map(shown, specs))
        recall = ""
        if word == "observation" and field.leaf.path[:1] == (PREVIOUS,):
            recall = "; give GymWrapper an environment of composer.with_previous(env, model.spec.previous)"
        yield f"the {word} {shown(field.key)} is {needed} for the model; the environment has {names}{recall}"
    elif not _fits(field, spec):
        count = _sizes(spec)
        given = f"{type(spec).__name__} {format_shape(spec.shape)}"
        given += f" of {', '.join(map(str, sorted(count)))} choices" if count else ""
        yield f"the {word} {shown(field.key)} is {needed} for the model, {given} in the environment"


def _fits(field: Field, spec: TensorSpec) -> bool:
    shape, needed = tuple(spec.shape), tuple(field.shape)
    if field.form == "plain":
        return shape == needed or (not needed and shape == (1,))  # as GymEnv has a number
    if shape != needed or (field.form == "index") != isinstance(spec, _INDICES):
        return False
    return _sizes(spec) == set(choice_sizes(field.leaf))


def _sizes(spec: TensorSpec) -> set[int] | None:
    """The numbers of choices of a spec; None for a spec without choices."""
    if isinstance(spec, MultiCategorical):
        return {int(n) for n in spec.nvec.flatten()}
    if isinstance(spec, MultiOneHot):
        return {int(box.n) for box in spec.space}
    return {int(spec.space.n)} if isinstance(spec, (Categorical, OneHot)) else None


def _specs(composite: Composite) -> dict[Key, TensorSpec]:
    return {key: spec for key, spec in composite.items(True, True) if spec is not None}


def refuse_loss(loss: type[LossModule], model: Model) -> None:
    """Raise ValueError where the model's critic or distributions do not serve ``loss``, with a way out."""
    if not (isinstance(loss, type) and issubclass(loss, LossModule)):
        raise ValueError(
            f"loss must be a class of torchrl.objectives such as ClipPPOLoss, got {loss!r}"
        )
    row = next((name for known, name in _ROWS.items() if issubclass(loss, known)), None)
    if row is None:
        return
    table = {**TORCHRL_LOSSES, loss.__name__: TORCHRL_LOSSES[row]}
    if row == "DQNLoss" and model.critic is None:  # the policy's logits are the values
        table[loss.__name__] = replace(TORCHRL_LOSSES[row], critic=None)
    refuse_for(loss.__name__, problems(model, loss.__name__, table))


def serves_choices(model: Model) -> bool:
    """Whether the critic, or without one the policy, has one value for each choice of one Discrete action."""
    critic = model.spec.critic
    serves = critic is None or (can_stand_for(critic.kind, "state_action") and critic.ensemble == 1)
    return serves and not any(one_choice(model))


# A derived class stands before its base.
_ROWS: Mapping[type[LossModule], str] = {
    PPOLoss: "ClipPPOLoss",
    A2CLoss: "A2CLoss",
    ReinforceLoss: "A2CLoss",
    DiscreteSACLoss: "DiscreteSACLoss",
    DQNLoss: "DQNLoss",
    SACLoss: "SACLoss",
    DDPGLoss: "SACLoss",
}
