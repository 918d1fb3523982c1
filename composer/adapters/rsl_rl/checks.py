"""Configs, models and observations that do not go together are refused, with every reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from composer.adapters.needs import NEEDS, problems, refuse_for
from composer.adapters.rsl_rl.groups import group_problems, keys_of
from composer.critic.base import SpaceCritic
from composer.errors import SpecError
from composer.model import Model, compose
from composer.network.network import Tensors
from composer.policy.structured import one_policy
from perception_blocks.registry import missing_extra
from perception_blocks.words import hint

try:
    from tensordict import TensorDictBase
except ImportError as error:
    raise missing_extra("composer.adapters.rsl_rl", error, "rsl-rl") from error

__all__ = ["KNOWN", "by_group", "critic_problems", "model_given", "refuse", "refuse_no_sequences"]
__all__ += ["setting_problems"]

KNOWN = ("spec", "allow", "seed", "weights", "observation_space", "action_space")
# What rsl_rl's own models are made of, and where the spec says it.
OF_THE_SPEC = {
    "hidden_dims": "hidden_units of a dense block",
    "activation": "activation of a block",
    "obs_normalization": "normalize: [...] at its top",
    "distribution_cfg": "the entries of 'distributions'",
    "rnn_type": "block: lstm or block: gru in the graph",
    "rnn_hidden_dim": "hidden_units of the lstm or gru block",
    "rnn_num_layers": "num_layers of the lstm or gru block",
    "cnn_cfg": "blocks such as strided_conv in the graph",
    "cnns": "shares: [...] under 'policy'",
    "init_noise_std": "init_log_std in an entry of 'distributions'",
    "noise_std_type": "log_std in an entry of 'distributions'",
    "state_dependent_std": "log_std in an entry of 'distributions'",
}


def setting_problems(settings: Mapping[str, object]) -> Iterator[str]:
    """Why ``settings`` of a config, beside those `KNOWN`, cannot stand beside a spec."""
    for name in settings:
        if name in OF_THE_SPEC:
            yield f"{name!r} is said by the spec: {OF_THE_SPEC[name]}; leave it out of the config"
        else:
            yield f"{name!r} is no setting{hint(name, KNOWN)}"


def model_given(spec: object) -> Iterator[str]:
    """Why a Model in the config is refused."""
    if isinstance(spec, Model):
        yield (
            "'spec' is a Model, and rsl_rl copies its config, so that your model would stay as it is; write "
            "model.save('agent.safetensors'), and give spec: model.source and weights: 'agent.safetensors'"
        )
    elif spec is None:
        yield "there is no 'spec'; give the YAML text of one, or the path of its file"


def refuse(
    model: Model,
    obs: TensorDictBase,
    obs_groups: Mapping[str, list[str]],
    obs_set: str,
    output_dim: int,
    groups: list[str],
) -> None:
    """Raise ValueError with every reason why rsl_rl cannot train ``model``."""
    needs = NEEDS["rsl_rl"].algorithms
    # Students and teachers imitate: neither a critic nor chances are needed.
    learns = obs_set == "actor"
    reasons = problems(model, "PPO", needs) if learns else list(needs["PPO"].refuses(model))
    policy = one_policy(model.policy)
    size = int(np.prod(policy.action_space.shape or ()))
    if not reasons and size != output_dim:
        reasons.append(
            f"action_space has {size} numbers, but the environment takes {output_dim}; leave out action_space, or "
            f"give a Box of {output_dim}"
        )
    critic = model.critic if isinstance(model.critic, SpaceCritic) else None
    keys = keys_of(policy.observer.tree, groups)
    sets = {"actor": obs_groups[obs_set], "critic": obs_groups.get("critic", [])}
    reasons += group_problems(policy, critic, keys, by_group(obs), sets)
    refuse_for("rsl_rl", reasons)
    try:
        inputs = {key: obs[keys[key]] for key in policy.read_keys}
        policy.read(inputs)
    except ValueError as error:
        refuse_for("rsl_rl", [f"its first observations do not fit: {error}"])


def critic_problems(model: Model, spec: Any, others: Mapping[str, Any]) -> Iterator[str]:
    yield from setting_problems(
        {k: v for k, v in others.items() if k not in ("allow", "seed", "weights")}
    )
    if spec is None or spec == model.source:
        return
    try:
        same = compose(
            spec, observation_space=model.observation_space, action_space=model.action_space,
            device="meta", allow=others.get("allow", ()), seed=0,
        ).source.data == model.source.data  # fmt: skip
    except SpecError:
        same = False
    if not same:
        yield (
            "the critic's 'spec' is another one than the actor's, and both are parts of one model; leave out the "
            "critic's"
        )


def refuse_no_sequences(masks: Tensor) -> None:
    """Of no environment there would be no loss, but NaN."""
    if not masks.shape[1]:
        raise ValueError(
            "with memory, rsl_rl divides the environments into mini-batches, and there are fewer environments than "
            "num_mini_batches; make it at most the number of environments"
        )


def by_group(obs: TensorDictBase) -> Tensors:
    return {str(name): obs[name] for name in obs.keys()}  # noqa: SIM118 - iterating would split the batch
