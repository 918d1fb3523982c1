"""Which observations of a vector environment are the first of their episode: what policies call ``resets``."""

from __future__ import annotations

import numpy as np
from gymnasium.vector import AutoresetMode

from perception_blocks.port import format_shape

__all__ = ["EpisodeStarts", "first_steps"]

_MODES = ", ".join(repr(mode.value) for mode in AutoresetMode)


def first_steps(
    vector_env: object, autoreset_mode: AutoresetMode | str | None = None
) -> EpisodeStarts:
    """Track which observations of a vector environment are the first of an episode, in its autoreset mode.

    Give ``autoreset_mode`` ("NextStep", "SameStep" or "Disabled") if the ``metadata`` of the environment do not.
    Raises ValueError for anything but a vector environment, for an unknown mode and for none.

    >>> import gymnasium
    >>> first_steps(gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")).resets
    array([ True,  True])
    """
    num_envs = getattr(vector_env, "num_envs", None)
    if not isinstance(num_envs, int):
        raise ValueError(
            f"first_steps takes a vector environment, got a {type(vector_env).__name__}; "
            "of one environment, the observation that reset() returns is the first"
        )
    mode = autoreset_mode
    if mode is None:
        mode = (getattr(vector_env, "metadata", None) or {}).get("autoreset_mode")
    if mode is None:
        raise ValueError(
            f"the vector environment, a {type(vector_env).__name__}, has no 'autoreset_mode' in its metadata; "
            f"give first_steps(vector_env, autoreset_mode=...), one of {_MODES}"
        )
    try:
        return EpisodeStarts(num_envs, AutoresetMode(mode))
    except ValueError:
        raise ValueError(f"autoreset_mode must be one of {_MODES}, got {mode!r}") from None


class EpisodeStarts:
    """``resets``, booleans (num_envs,): true where the observation that the policy sees next is its episode's first.

    Call `update` after every ``step`` and `reset` after every ``reset`` by hand. Each call makes a new array, so stored
    ones do not change.
    """

    def __init__(self, num_envs: int, mode: AutoresetMode) -> None:
        self.mode = mode
        self.resets = np.ones(num_envs, dtype=np.bool_)
        self._over = np.zeros(num_envs, dtype=np.bool_)  # ended, and its next episode has not begun

    def update(self, terminations: object, truncations: object) -> None:
        """Call this after ``vector_env.step``, with what it returned. Raises ValueError for arrays of another shape.

        Without autoreset, also where an episode ended and `reset` was not called for it.
        """
        ended = self._flags("terminations", terminations) | self._flags("truncations", truncations)
        if self.mode is AutoresetMode.SAME_STEP:  # the last observation is in the infos
            self.resets = ended
            return
        if self.mode is AutoresetMode.NEXT_STEP:
            # The last observation comes first, the new one a step later.
            self.resets = self._over
        else:
            self._refuse_forgotten()
            self.resets = np.zeros_like(ended)
        self._over = ended

    def reset(self, mask: object = None) -> None:
        """Call this after ``vector_env.reset``, with its ``options["reset_mask"]`` if you gave one."""
        began = np.ones_like(self.resets) if mask is None else self._flags("mask", mask)
        self.resets = self.resets | began
        self._over = self._over & ~began

    def _flags(self, name: str, values: object) -> np.ndarray:
        to_host = getattr(values, "cpu", None)  # of a tensor
        flags = np.asarray(to_host() if to_host else values)
        if flags.shape != self.resets.shape:
            expected, got = format_shape(self.resets.shape), format_shape(flags.shape)
            raise ValueError(f"{name} must have the shape {expected}, got {got}")
        return flags.astype(np.bool_)

    def _refuse_forgotten(self) -> None:
        if self._over.any():
            which = np.flatnonzero(self._over).tolist()
            raise ValueError(
                f"the episodes of environments {which} ended, and this environment does not reset itself: after "
                'vector_env.reset(options={"reset_mask": mask}) call reset(mask)'
            )
