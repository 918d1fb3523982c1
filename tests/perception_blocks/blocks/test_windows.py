import re
from typing import Any

import pytest
import torch

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.windows import FrameStackBlock


def frames_by_hand(xs, resets, count):
    """The last ``count`` inputs at each step, zeros before the episode's first."""
    kept: list[Any] = []
    windows = []
    for x, reset in zip(xs, resets):
        kept = [] if reset else kept
        kept.append(x)
        last = kept[-count:]
        windows.append(torch.stack([torch.zeros_like(x)] * (count - len(last)) + last))
    return torch.stack(windows)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 4)])
def test_frames_are_stacked_until_an_episode_ends(shape):
    block = FrameStackBlock([shape], num_frames=3)
    x = torch.randn(4, 9, *shape)
    resets = torch.rand(4, 9) < 0.3
    output, _ = block.unroll(x, block.initial_state(4), resets)
    expected = torch.stack([frames_by_hand(x[i], resets[i], 3) for i in range(4)])
    assert torch.equal(output, expected)


def test_frames_stand_side_by_side_along_an_axis():
    x = torch.randn(5, 2, 3, 4)
    state = {"frames": torch.randn(5, 2, 2, 3, 4)}
    older = state["frames"].unbind(1)
    first, _ = FrameStackBlock([(2, 3, 4)], num_frames=3, axis="first").step(x, state)
    assert torch.equal(first, torch.cat([*older, x], dim=1))
    last, _ = FrameStackBlock([(2, 3, 4)], num_frames=3, axis="last").step(x, state)
    assert torch.equal(last, torch.cat([*older, x], dim=-1))


@pytest.mark.parametrize(
    ("axis", "shape"), [("new", (4, 3, 8, 8)), ("first", (12, 8, 8)), ("last", (3, 8, 32))]
)
def test_the_shape_follows_from_where_frames_go(axis, shape):
    block = FrameStackBlock([(3, 8, 8)], axis=axis)
    assert block.out_shapes == [shape]
    assert block.state_shapes == {"frames": (3, 3, 8, 8)}


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_unroll_of_any_length_carries_the_last_frames(steps):
    block = FrameStackBlock([(2,)], num_frames=4)
    x, state = torch.randn(steps, 2), {"frames": torch.randn(3, 2)}
    _, end = block.unroll(x, state)
    assert torch.equal(end["frames"], torch.cat([state["frames"], x])[-3:])


def test_an_ensemble_of_states_is_vmapped():
    block = FrameStackBlock([(2,)], num_frames=3)
    x, state = torch.randn(5, 7, 2), torch.randn(5, 2, 2)
    resets = torch.rand(5, 7) < 0.4
    expected, _ = block.unroll(x, {"frames": state}, resets)
    together = torch.func.vmap(lambda x, s, r: block.unroll(x, {"frames": s}, r)[0])
    torch.testing.assert_close(together(x, state, resets), expected)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((None, 3), {}, "frame_stack needs to know the size of every axis, got (?, 3)"),
        (
            (),
            {"axis": "last"},
            "frame_stack with axis='last' needs one axis or more, got (); leave axis out",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_words(shape, settings, message):
    with pytest.raises(InputShapeError) as caught:
        FrameStackBlock([shape], **settings)
    assert str(caught.value) == message


def test_one_frame_is_no_stack():
    with pytest.raises(
        ValueError, match=re.escape("'num_frames' must be an integer of at least 2, got 1")
    ):
        FrameStackBlock([(3,)], num_frames=1)
