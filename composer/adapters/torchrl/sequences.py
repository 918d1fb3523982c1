"""A replay buffer of sequences, for models with memory: stored states, burn-in, and episodes that end within.

After R2D2 (Kapturowski et al. 2019, "Recurrent experience replay in distributed reinforcement learning").
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from composer.adapters.torchrl.functions import IS_INIT
from composer.spaces.values import flags_for

__all__ = ["LOSS_MASK", "STREAM_END", "EpisodeSequences", "refuse_lengths"]

LOSS_MASK = ("collector", "mask")  # where TorchRL's losses look for the steps that count
STREAM_END = ("collector", "stream_end")


def refuse_lengths(sequence_length: int, burn_in: int) -> None:
    """Raise ValueError unless ``burn_in`` leaves steps to learn from."""
    if not 0 <= burn_in < sequence_length:
        raise ValueError(
            f"burn_in must be smaller than sequence_length, which is {sequence_length}, got {burn_in}: the steps after "
            "it are learned from"
        )


class EpisodeSequences(Transform):
    """Sequences of ``length`` steps in which the next observation of every step is the observation of the step after.

    Where an episode ends in the middle of a sequence, its last observation follows as a step of its own, so that the
    memory that values it is the memory of its episode, also with the weights of a target network. The state at the
    first step is the stored one. ``("collector", "mask")``, which TorchRL's losses read, is true for the steps to learn
    from: not for the first ``burn_in``, nor for what was added. Rows that end while they warm up begin that much later.
    """

    def __init__(self, length: int, burn_in: int = 0) -> None:
        super().__init__()
        self.length, self.burn_in = length, burn_in

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The steps as they are stored: what one environment gives is one stream, whatever ends in it."""
        never = torch.zeros(
            *tensordict.shape, 1, dtype=torch.bool, device=tensordict[IS_INIT].device
        )
        return tensordict.clone(recurse=False).set(STREAM_END, never)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        steps = tensordict.exclude(STREAM_END, "index").reshape(-1, self.length)
        source, added = _places(steps[IS_INIT].squeeze(-1), self.burn_in)
        rows = torch.arange(len(steps), device=source.device).unsqueeze(-1)
        laid, after = steps[rows, source], steps[rows, (source + 1).clamp_max(self.length - 1)]
        following = laid["next"]
        for key in set(following.keys(True, True)) & set(laid.keys(True, True)):
            flags = flags_for(laid[key], added)
            value = torch.where(flags, following[key], laid[key])
            following[key] = torch.where(flags, after[key], following[key])
            laid[key] = value
        learned = ~added
        learned[:, : self.burn_in] = False
        return laid.set(LOSS_MASK, learned.unsqueeze(-1))


def _places(starts: Tensor, burn_in: int) -> tuple[Tensor, Tensor]:
    """For each place (rows, L) of the sequences, the step that it shows, and whether its next observation instead.

    ``starts`` (rows, T) are true where an episode begins. Every row has step ``burn_in`` at that place.
    """
    length = starts.shape[1]
    ends = torch.cat([starts[:, 1:], torch.zeros_like(starts[:, :1])], 1)
    steps = torch.arange(length, device=starts.device).expand(ends.shape)
    added_before = ends.cumsum(1) - ends.long()
    place = steps + added_before - added_before[:, burn_in : burn_in + 1]
    size = int(place[:, -1].max()) + 1
    source = torch.full((len(starts), size), length - 1, device=starts.device)
    added = torch.ones_like(source, dtype=torch.bool)
    for at, shown, is_step in ((place, torch.ones_like(ends), True), (place + 1, ends, False)):
        row, step = (shown & (at >= 0)).nonzero(as_tuple=True)
        source[row, at[row, step]] = steps[row, step]
        if is_step:
            added[row, at[row, step]] = False
    return source, added
