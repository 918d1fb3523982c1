"""Sequences of tokens as a gymnasium environment: one sequence at a time, with the rules of `TokenEnv`.

Importing this module registers ``Tokens-v0``, whose arguments are the rules; gymnasium does both for the id
``composer.adapters.tokens.gym_env:Tokens-v0``.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from composer.adapters.tokens.sequences import Judge, TokenRules, TokenSequences, wrong_sizes

__all__ = ["TokenGym", "token_spaces"]

Observation = dict[str, np.integer | np.ndarray]


def token_spaces(vocabulary_size: int, max_length: int) -> tuple[spaces.Dict, spaces.Discrete]:
    """Observation and action space of a token environment, to compose a model before the environment exists.

    Raises ValueError for sizes below 2.
    """
    if wrong := wrong_sizes(vocabulary_size, max_length):
        raise ValueError("; ".join(wrong))
    observation_space = spaces.Dict(
        observation=spaces.Discrete(vocabulary_size),
        sequence=spaces.MultiDiscrete([vocabulary_size] * max_length),
        sequence_mask=spaces.MultiBinary(max_length),
        action_mask=spaces.MultiBinary(vocabulary_size),
    )
    return observation_space, spaces.Discrete(vocabulary_size)


class TokenGym(gymnasium.Env):
    """A sequence; each action appends a token, until it is the end token or ``max_length`` is reached.

    It has the arguments, fields and reward of `composer.adapters.tokens.torchrl_env.TokenEnv`, without the batch axis.

    >>> env = TokenGym(vocabulary_size=4, max_length=4)
    >>> _ = env.reset()
    >>> env.step(2)[0]["sequence"].tolist()
    [0, 2, 0, 0]
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        max_length: int,
        start_token: int = 0,
        end_token: int = 1,
        score: Judge | None = None,
        legal: Judge | None = None,
    ) -> None:
        self.rules = TokenRules(vocabulary_size, max_length, start_token, end_token, score, legal)
        self.observation_space, self.action_space = token_spaces(vocabulary_size, max_length)
        self._row = TokenSequences(self.rules, 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[Observation, dict[str, object]]:
        super().reset(seed=seed)
        self._row.reset(torch.ones(1, dtype=torch.bool))
        return self._observation(), {}

    def step(self, action: object) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        reward, terminated, truncated = self._row.step(torch.as_tensor(action).reshape(-1))
        over = bool(terminated), bool(truncated)
        return self._observation(), float(reward), *over, {}

    def _observation(self) -> Observation:
        row = self._row
        return {
            "observation": np.int64(row.last.item()),
            "sequence": row.sequence[0].numpy().copy(),
            "sequence_mask": row.sequence_mask[0].numpy().astype(np.int8),
            "action_mask": row.action_mask()[0].numpy().astype(np.int8),
        }


gymnasium.register("Tokens-v0", "composer.adapters.tokens.gym_env:TokenGym")
