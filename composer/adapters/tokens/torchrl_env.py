"""Sequences of tokens as a TorchRL environment: a policy says token after token, a function judges what it said."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from composer.adapters.tokens.sequences import Judge, TokenRules, TokenSequences
from composer.distributions.base import check_temperature
from perception_blocks.port import format_shape
from perception_blocks.registry import missing_extra
from perception_blocks.words import did_you_mean

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Binary, Bounded, Categorical, Composite, OneHot, Unbounded
    from torchrl.envs import EnvBase
except ImportError as error:
    raise missing_extra("TokenEnv", error, "torchrl") from error

__all__ = ["TokenEnv"]

ENCODINGS = ("categorical", "one_hot")


class TokenEnv(EnvBase):
    """Every row of the batch B is a sequence; each action appends a token, until it is the end token.

    Fields: ``observation`` (B,), int32, the token before; ``sequence`` and ``sequence_mask`` (B, max_length);
    ``action_mask`` (B, vocabulary_size). A row terminates with the end token, which is not written, and is truncated at
    ``max_length``; finished rows do not grow. The reward (B, 1) is zero until a row is finished: then it is what
    ``score(sequence, sequence_mask)`` says of the finished rows, one number each. ``legal``, a function of the same
    arguments, gives the action mask, which is true everywhere without it. Raises ValueError for rules that contradict
    each other, for actions that are no tokens or not legal, where no token is legal, and for scores without a number.

    With ``encoding="one_hot"`` observation, sequence and action are one-hot, with an axis of vocabulary_size more;
    token 0 stands where the mask of a sequence is false. With a ``temperature`` there is a field of that name (B, 1),
    by which actors that are made with ``temperature_key="temperature"`` divide their logits.

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
        encoding: str = "categorical",
        temperature: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        rules = TokenRules(vocabulary_size, max_length, start_token, end_token, score, legal)
        if encoding not in ENCODINGS:
            near = did_you_mean(encoding, ENCODINGS)
            raise ValueError(f"encoding must be 'categorical' or 'one_hot', got {encoding!r}{near}")
        if temperature is not None:
            check_temperature(temperature)
        shape = torch.Size([batch_size] if isinstance(batch_size, int) else batch_size)
        of_tokens, of_places = (torch.Size([*shape, n]) for n in (vocabulary_size, max_length))
        column = torch.Size([*shape, 1])
        super().__init__(device=device, batch_size=shape)
        self.rules = rules
        self.is_one_hot, self.temperature = encoding == "one_hot", temperature
        self._rows = TokenSequences(rules, math.prod(shape), device)
        self.observation_spec = Composite(
            observation=self._token_spec(shape, torch.int32),
            sequence=self._token_spec(of_places, torch.int64),
            sequence_mask=Binary(shape=of_places, dtype=torch.bool),
            action_mask=Binary(shape=of_tokens, dtype=torch.bool),
            shape=shape,
            device=self.device,
        )
        if temperature is not None:
            self.observation_spec["temperature"] = Bounded(
                0.0, math.inf, shape=column, device=self.device
            )
        self.action_spec = self._token_spec(shape, torch.int64)
        self.reward_spec = Unbounded(shape=column, device=self.device)
        flag = Binary(shape=column, dtype=torch.bool, device=self.device)
        flags = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=shape, device=self.device)

    def _token_spec(self, shape: torch.Size, dtype: torch.dtype) -> Categorical | OneHot:
        """Tokens of ``shape``, in the encoding of this environment."""
        size = self.rules.vocabulary_size
        if self.is_one_hot:
            return OneHot(size, shape=torch.Size([*shape, size]), dtype=dtype, device=self.device)
        return Categorical(size, shape=shape, dtype=dtype, device=self.device)

    def _encoded(self, tokens: Tensor) -> Tensor:
        if not self.is_one_hot:
            return tokens
        return functional.one_hot(tokens.long(), self.rules.vocabulary_size).to(tokens.dtype)

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """A uniform sample of the legal tokens."""
        legal = self._rows.action_mask()
        chances = torch.rand(legal.shape, device=legal.device).masked_fill(~legal, -1.0)
        if tensordict is None:
            tensordict = TensorDict(batch_size=self.batch_size, device=self.device)
        action = self._encoded(chances.argmax(-1).reshape(self.batch_size))
        return tensordict.set("action", action)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        rows = None if tensordict is None else tensordict.get("_reset", None)
        if rows is None:
            rows = torch.ones(self.batch_size, dtype=torch.bool, device=self.device)
        self._rows.reset(rows.reshape(-1))
        begun = torch.zeros_like(self._rows.finished)
        fields = self._fields(begun, begun)
        if self.temperature is not None and tensordict is not None:
            given = tensordict.get("temperature", None)  # which a caller may have set
            fields = fields if given is None else fields.set("temperature", given)
        return fields

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"]
        if self.is_one_hot:
            action = self._tokens_of(action)
        action = action.reshape(-1)
        reward, terminated, truncated = self._rows.step(action)
        fields = self._fields(terminated, truncated)
        if self.temperature is not None:
            fields.set("temperature", tensordict["temperature"])
        return fields.set("reward", reward.reshape(*self.batch_size, 1))

    def _tokens_of(self, action: Tensor) -> Tensor:
        """One-hot actions as tokens. Raises ValueError for what has not exactly one 1 in each row."""
        needed = (*self.batch_size, self.rules.vocabulary_size)
        is_shaped = action.shape == needed
        if not is_shaped or not bool(((action != 0).sum(-1) == 1).all()):
            got = "a row without exactly one" if is_shaped else format_shape(action.shape)
            raise ValueError(f"'action' must be one-hot, {format_shape(needed)}, got {got}")
        return action.argmax(-1)

    def _fields(self, terminated: Tensor, truncated: Tensor) -> TensorDictBase:
        rows, shape = self._rows, self.batch_size
        fields = {
            "observation": self._encoded(rows.last.int()),
            "sequence": self._encoded(rows.sequence),
            "sequence_mask": rows.sequence_mask,
            "action_mask": rows.action_mask(),
            "terminated": terminated.unsqueeze(-1),
            "truncated": truncated.unsqueeze(-1),
            "done": (terminated | truncated).unsqueeze(-1),
        }
        if self.temperature is not None:
            fields["temperature"] = torch.full(
                (len(rows.last), 1), self.temperature, device=self.device
            )
        fields = {name: value.reshape((*shape, *value.shape[1:])) for name, value in fields.items()}
        return TensorDict(fields, batch_size=shape, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        """Nothing here is random."""
