"""Memory blocks that compute all steps at once, wherever episodes begin; frame_stack is the simplest."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from perception_blocks.base_block import MemoryBlock, State, one_input
from perception_blocks.blocks.dense import known_size
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import Range

__all__ = ["FrameStackBlock", "ParallelMemoryBlock", "episodes", "last_of_episode"]


class ParallelMemoryBlock(MemoryBlock):
    """A memory block whose ``scan`` knows resets: no loop over time, and no look at the data, whatever the resets."""

    def scan(self, x: Tensor, state: State, resets: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps of (..., T) + shape; resets (..., T) or None."""
        raise TypeError(f"{type(self).__name__} must define scan(x, state, resets)")

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step is a scan of length 1."""
        time = x.dim() - len(self.in_shapes[0])
        y, state = self.scan(x.unsqueeze(time), state)
        return y.squeeze(time), state

    def _scan_episodes(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        return self.scan(x, state, resets)


@BLOCKS.register("frame_stack")
class FrameStackBlock(ParallelMemoryBlock):
    """The last ``num_frames`` inputs, oldest first, zeros before an episode's first: ``(F,)`` -> ``(num_frames, F)``.

    They are stacked on a ``new`` first ``axis``, or concatenated along the ``first`` axis (channels of an image)
    or the ``last`` one.

    >>> FrameStackBlock([(3, 64, 64)], axis="first").out_shapes
    [(12, 64, 64)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_frames: Annotated[int, Range(low=2)] = 4,
        axis: Literal["new", "first", "last"] = "new",
    ) -> None:
        shape = one_input(in_shapes, "frame_stack")
        known_size(shape, "frame_stack")
        if axis != "new" and not shape:
            rule = f"frame_stack with axis={axis!r} needs one axis or more"
            raise InputShapeError(rule, {0: shape}, "leave axis out")
        super().__init__(in_shapes, out_shapes=[_stacked_shape(shape, num_frames, axis)])
        self.num_frames = num_frames
        self.axis = axis
        self.state_shapes = {"frames": (num_frames - 1, *shape)}  # type: ignore[dict-item]

    def scan(self, x: Tensor, state: State, resets: Tensor | None = None) -> tuple[Tensor, State]:
        rank, past = len(self.in_shapes[0]), self.num_frames - 1
        time = x.dim() - rank - 1
        frames = torch.cat([state["frames"], x], dim=time)
        windows = frames.unfold(time, self.num_frames, 1).movedim(-1, time + 1)
        last = frames.narrow(time, x.shape[time], past)
        if resets is not None:
            episode = episodes(resets, past)
            same = episode.unfold(-1, self.num_frames, 1) == episode[..., past:].unsqueeze(-1)
            windows = torch.where(_widened(same, rank), windows, 0.0)
            last = torch.where(_widened(last_of_episode(episode, past), rank), last, 0.0)
        return self._joined(windows, time + 1), {"frames": last}

    def _joined(self, windows: Tensor, axis: int) -> Tensor:
        """The windows' frames, counted along ``axis``, where the setting wants them."""
        if self.axis == "new":
            return windows
        if self.axis == "first":
            return windows.flatten(axis, axis + 1)
        return windows.movedim(axis, -2).flatten(-2)


def episodes(resets: Tensor, past: int) -> Tensor:
    """(..., past + T): a number for the episode of each step; the ``past`` steps of the state come first."""
    number = resets.cumsum(dim=-1)
    before = number.new_zeros((*number.shape[:-1], past))
    return torch.cat([before, number], dim=-1)


def last_of_episode(episode: Tensor, count: int) -> Tensor:
    """(..., count): which of the last ``count`` steps belong to the episode of the very last."""
    end = episode.shape[-1]
    return episode.narrow(-1, end - count, count) == episode.narrow(-1, end - 1, 1)


def _widened(mask: Tensor, rank: int) -> Tensor:
    """``mask`` with ``rank`` more axes, for the features of what it masks."""
    return mask.reshape(*mask.shape, *[1] * rank)


def _stacked_shape(shape: Shape, count: int, axis: str) -> Shape:
    if axis == "new":
        return (count, *shape)
    place = 0 if axis == "first" else len(shape) - 1
    size = shape[place]
    assert size is not None
    return (*shape[:place], count * size, *shape[place + 1 :])
