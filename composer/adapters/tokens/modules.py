"""TorchRL modules that read whole sequences of tokens to train, and complete sequences of a policy to train them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from perception_blocks.registry import missing_extra

try:
    from tensordict import TensorDictBase
    from torchrl.envs import EnvBase
    from torchrl.objectives import LossModule
except ImportError as error:
    raise missing_extra("token_modules", error, "torchrl") from error

from torch import Tensor, nn

from composer.adapters.torchrl.checks import encoding_of
from composer.adapters.torchrl.fields import Encoding, Key
from composer.adapters.torchrl.functions import critic_of
from composer.adapters.torchrl.models import TorchRLModules, to_torchrl
from composer.adapters.torchrl.modules import ModulesBuilder, TensorModule, TensorValue
from composer.adapters.torchrl.sequences import LOSS_MASK
from composer.model import Model
from composer.policy.sequence_view import SequenceView
from composer.policy.structured import one_policy
from perception_blocks.port import format_shape

__all__ = ["SequenceFunction", "sample_sequences", "token_modules"]

TOKENS, MASK = "observation", "mask"


def token_modules(
    model: Model,
    env: EnvBase | None = None,
    *,
    encoding: Encoding | None = None,
    mask_training: bool = False,
    loss: type[LossModule] | None = None,
    temperature_key: Key | None = None,
) -> TorchRLModules:
    """``to_torchrl(model, env)`` whose modules for training read whole sequences, in one pass.

    ``actor_training`` and ``critic_training`` read a TensorDict (B, T): ``observation`` (B, T), the token before each
    step, from the start token on; ``mask`` (B, T), true for the steps there are (all without it). They write ``logits``
    (B, T, vocabulary) and ``state_value`` (B, T, 1), equal to what the modules for inference write at each step, and
    share their weights. The arguments are those of `composer.adapters.torchrl.to_torchrl`.

    Raises ValueError for what `to_torchrl` and `composer.policy.token_views` refuse.
    """
    modules = to_torchrl(
        model, env, encoding=encoding, mask_training=mask_training, loss=loss,
        temperature_key=temperature_key,
    )  # fmt: skip
    policy = one_policy(model.policy)
    chosen = encoding or ("categorical" if env is None else encoding_of(env))
    build = ModulesBuilder(
        model, chosen, {}, mask_training=mask_training, temperature_key=temperature_key
    )
    actor_view = SequenceView(policy)
    (action,) = policy.distributions
    is_one_hot = chosen == "one_hot"
    trained = SequenceFunction(actor_view, {action: "logits"}, is_one_hot)
    actor = build.actor(training=True, network=TensorModule(trained))  # type: ignore[arg-type]
    modules = replace(
        modules, actor_training=actor, actor_critic=None, q_actor=None, q_actor_training=None
    )
    critic = critic_of(model)
    if critic is None or "value" not in critic.out_ports:
        return modules
    view = SequenceView(critic, actor_view if critic.shared else None)
    judged = SequenceFunction(view, {"value": "state_value"}, is_one_hot)
    return replace(modules, critic_training=TensorValue(judged))  # type: ignore[arg-type]


class SequenceFunction(nn.Module):
    """A `SequenceView` as a function of the tensors in a TensorDict (B, T); ``outputs`` maps its outputs to keys."""

    states: dict[str, str] = {}  # what its network remembers begins anew in each sequence

    def __init__(self, view: SequenceView, outputs: dict[str, Key], is_one_hot: bool) -> None:
        super().__init__()
        self.view = view
        self.actor_view = view.actor  # registered here, so that a loss trains its weights too
        self.outputs = outputs
        self.is_one_hot = is_one_hot
        self.in_keys: list[Key] = [TOKENS, MASK]
        self.out_keys: list[Key] = list(outputs.values())

    def forward(self, data: TensorDictBase) -> dict[Key, Tensor]:
        """What it writes into ``data``, by key. Raises ValueError unless ``data`` has sequences of tokens."""
        tokens = data.get(TOKENS, None)
        if tokens is None:
            raise ValueError(
                f"the TensorDict lacks {TOKENS!r}: the token before each step of (B, T); sample_sequences(env, policy) "
                "and TokenDataset write it"
            )
        tokens = tokens.argmax(-1) if self.is_one_hot else tokens
        if tokens.dim() < 2:
            raise ValueError(
                f"the modules for training read whole sequences, {TOKENS!r} of (B, T); got {format_shape(tokens.shape)}"
                "; use the modules for inference for single steps"
            )
        outputs = self.view(tokens, data.get(MASK, None))
        return {key: outputs[name] for name, key in self.outputs.items()}


@torch.no_grad()
def sample_sequences(
    env: EnvBase, policy: Callable[[TensorDictBase], TensorDictBase] | None = None
) -> TensorDictBase:
    """Complete sequences of a `TokenEnv`, one in each row: a TensorDict (B, T), T steps in the longest.

    ``policy`` is such as ``modules.collecting``; without one, actions are random. ``mask`` (B, T) is true for the steps
    of a sequence, the one that ends it included; TorchRL's losses find it as ``("collector", "mask")``. Padding after
    it has reward 0, and is terminated, so that no return flows through it.
    """
    rules = getattr(env, "rules", None)
    if rules is None:
        raise ValueError(
            f"sample_sequences takes a TokenEnv, or a TransformedEnv of one, got a {type(env).__name__}"
        )
    policy_of_rollout: Any = policy
    data = env.rollout(
        rules.max_length - 1,
        policy_of_rollout,
        break_when_any_done=False,
        break_when_all_done=True,
    )
    done = data["next", "done"].squeeze(-1)
    ended = done.long().cumsum(-1) - done.long() > 0
    mask = ~ended
    over = ended.unsqueeze(-1)
    after = data["next"]
    after["reward"] = after["reward"].masked_fill(over, 0.0)
    after["done"] = after["done"] | over
    after["terminated"] = after["terminated"] | over
    after["truncated"] = after["truncated"] & ~over
    return data.set(MASK, mask).set(LOSS_MASK, mask.unsqueeze(-1))
