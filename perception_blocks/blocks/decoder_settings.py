"""What the settings of a decoder must be to fit one another, and its input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from perception_blocks.base_block import one_input
from perception_blocks.blocks.decoder_layers import LayerForm
from perception_blocks.blocks.rotary import ROPE_THETA, problems_of_scaling
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.settings import OneOrMany, SettingProblem, SettingsError
from perception_blocks.words import cut

__all__ = ["problems_of_heads", "problems_of_numbers", "problems_of_places", "problems_of_rotation"]
__all__ += ["required_vocab_size", "token_shape"]


def token_shape(in_shapes: Shapes) -> Shape:
    """``()``, one token at each step, or ``(length,)``, a sequence."""
    shape = one_input(in_shapes, "decoder")
    if len(shape) > 1:
        rule = "decoder takes one token () or a sequence of tokens (length,)"
        raise InputShapeError(rule, {0: shape})
    return shape


def required_vocab_size(vocab_size: OneOrMany | None) -> OneOrMany:
    """Raises SettingsError where no port and no family has told it."""
    if vocab_size is None:
        message = "block 'decoder' needs the setting 'vocab_size' (an integer, or a list of them)"
        raise SettingsError([SettingProblem("vocab_size", message)])
    return vocab_size


def problems_of_heads(form: LayerForm, sized: bool, rotary: bool) -> Iterator[SettingProblem]:
    """What is wrong with the heads; ``sized``: their ``head_dim`` was given."""
    if form.num_heads % form.num_kv_heads:
        message = f"'num_kv_heads' must divide num_heads={form.num_heads}, got {form.num_kv_heads}"
        yield SettingProblem("num_kv_heads", message)
    if not sized and form.width % form.num_heads:
        message = (
            f"'num_heads' must divide width={form.width}, got {form.num_heads}; or give 'head_dim'"
        )
        yield SettingProblem("num_heads", message)
    elif rotary and form.head_dim % 2:
        what = "'head_dim'" if sized else "'head_dim' (width / num_heads)"
        message = f"{what} must be even for rotary positions, got {form.head_dim}"
        yield SettingProblem("head_dim" if sized else "num_heads", message)


def problems_of_places(
    shape: Shape, max_length: int, sliding_window: int | None
) -> Iterator[SettingProblem]:
    """What is wrong with the number of places and what is said of them."""
    if shape and shape[0] is not None and shape[0] > max_length:
        message = f"'max_length' must be at least {shape[0]}, the length of the sequence, got {max_length}"
        yield SettingProblem("max_length", message)
    if sliding_window is not None and sliding_window >= max_length:
        message = (
            f"'sliding_window' must be less than max_length={max_length}, got {sliding_window}"
        )
        yield SettingProblem("sliding_window", f"{message}; leave it out to see all tokens")


def problems_of_rotation(
    positions: str, rope_theta: float, rope_scaling: Mapping[str, Any] | None
) -> Iterator[SettingProblem]:
    """What is wrong with rotary positions."""
    given = {"rope_theta": rope_theta != ROPE_THETA, "rope_scaling": rope_scaling is not None}
    if positions == "learned":
        for name in [name for name, is_given in given.items() if is_given]:
            message = f"{name!r} is for rotary positions; leave out {name!r} or 'positions'"
            yield SettingProblem(name, message)
    elif rope_scaling is not None:
        for message in problems_of_scaling(rope_scaling):
            yield SettingProblem("rope_scaling", "'rope_scaling': " + message)


def problems_of_numbers(vocab_size: OneOrMany, **scales: float) -> Iterator[SettingProblem]:
    """What is wrong with a vocabulary of none, and numbers that float32 does not hold."""
    if isinstance(vocab_size, Sequence) and not vocab_size:
        yield SettingProblem("vocab_size", "'vocab_size' is an empty list; leave it out")
    for name, value in scales.items():
        if value > torch.finfo(torch.float32).max:
            yield SettingProblem(
                name, f"{name!r} must be a number of float32, got {cut(str(value), 40)}"
            )
