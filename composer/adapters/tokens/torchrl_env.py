"""Sequences of tokens as a TorchRL environment: a policy says token after token, a function judges what it said."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from composer.adapters.tokens.sequences import Judge, TokenRules, TokenSequences
from perception_blocks.registry import missing_extra

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Binary, Categorical, Composite, Unbounded
    from torchrl.envs import EnvBase
except ImportError as error:
    raise missing_extra("TokenEnv", error, "torchrl") from error

__all__ = ["TokenEnv"]


class TokenEnv(EnvBase):
    """Every row of the batch B is a sequence; each action appends a token, until it is the end token.

    Fields: ``observation`` (B,), int32, the token before; ``sequence`` and ``sequence_mask`` (B, max_length);
    ``action_mask`` (B, vocabulary_size). A row terminates with the end token, which is not written, and is truncated at
    ``max_length``; finished rows do not grow. The reward (B, 1) is zero until a row is finished: then it is what
    ``score(sequence, sequence_mask)`` says of the finished rows, one number each. ``legal``, a function of the same
    arguments, gives the action mask, which is true everywhere without it. Raises ValueError for rules that contradict
    each other, for actions that are no tokens or not legal, where no token is legal, and for scores without a number.

    >>> env = TokenEnv(vocabulary_size=4, max_length=4, batch_size=2)
    >>> env.step(env.reset().set("action", torch.tensor([2, 3])))["next", "sequence"].tolist()
    [[0, 2, 0, 0], [0, 3, 0, 0]]
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        max_length: int,
        start_token: int = 0,
        end_token: int = 1,
        batch_size: int | Sequence[int] = 1,
        score: Judge | None = None,
        legal: Judge | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        rules = TokenRules(vocabulary_size, max_length, start_token, end_token, score, legal)
        shape = torch.Size([batch_size] if isinstance(batch_size, int) else batch_size)
        of_tokens, of_places = (torch.Size([*shape, n]) for n in (vocabulary_size, max_length))
        column = torch.Size([*shape, 1])
        super().__init__(device=device, batch_size=shape)
        self.rules = rules
        self._rows = TokenSequences(rules, math.prod(shape), device)
        self.observation_spec = Composite(
            observation=Categorical(vocabulary_size, shape=shape, dtype=torch.int32),
            sequence=Categorical(vocabulary_size, shape=of_places),
            sequence_mask=Binary(shape=of_places, dtype=torch.bool),
            action_mask=Binary(shape=of_tokens, dtype=torch.bool),
            shape=shape,
            device=self.device,
        )
        self.action_spec = Categorical(vocabulary_size, shape=shape, device=self.device)
        self.reward_spec = Unbounded(shape=column, device=self.device)
        flag = Binary(shape=column, dtype=torch.bool, device=self.device)
        flags = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=shape, device=self.device)

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """A uniform sample of the legal tokens."""
        legal = self._rows.action_mask()
        chances = torch.rand(legal.shape, device=legal.device).masked_fill(~legal, -1.0)
        if tensordict is None:
            tensordict = TensorDict(batch_size=self.batch_size, device=self.device)
        return tensordict.set("action", chances.argmax(-1).reshape(self.batch_size))

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        rows = None if tensordict is None else tensordict.get("_reset", None)
        if rows is None:
            rows = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)
        self._rows.reset(rows.reshape(-1))
        begun = torch.zeros_like(self._rows.finished)
        return self._fields(begun, begun)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].reshape(-1)
        reward, terminated, truncated = self._rows.step(action)
        fields = self._fields(terminated, truncated)
        return fields.set("reward", reward.reshape(*self.batch_size, 1))

    def _fields(self, terminated: Tensor, truncated: Tensor) -> TensorDictBase:
        rows, shape = self._rows, self.batch_size
        fields = {
            "observation": rows.last.int(),
            "sequence": rows.sequence,
            "sequence_mask": rows.sequence_mask,
            "action_mask": rows.action_mask(),
            "terminated": terminated.unsqueeze(-1),
            "truncated": truncated.unsqueeze(-1),
            "done": (terminated | truncated).unsqueeze(-1),
        }
        fields = {name: value.reshape((*shape, *value.shape[1:])) for name, value in fields.items()}
        return TensorDict(fields, batch_size=shape, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        """Nothing here is random."""
