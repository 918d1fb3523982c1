"""Values of a space as TensorDict holds them: under which keys, and choices as indices or one-hot.

TorchRL's GymEnv has Discrete and MultiDiscrete values one-hot unless it is made with
``categorical_action_encoding=True``, the actions of a Dict space under its own keys, and everything else under
``observation`` and ``action``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    MultiCategorical,
    TensorSpec,
    Unbounded,
)

from composer.spaces.kinds import KINDS, Leaf, from_space_value, to_space_value
from composer.spaces.tree import SpaceTree
from perception_blocks.words import did_you_mean

__all__ = ["CHOICES", "Encoding", "Field", "Key", "choice_sizes", "fields_of", "shown"]

Key = str | tuple[str, ...]
Encoding = Literal["categorical", "one_hot"]
Form = Literal["plain", "index", "one_hot", "flat_one_hot"]
CHOICES = ("discrete", "multi_discrete")  # kinds of leaves of which there are encodings
VARIABLE = ("variable", "mask")  # several leaves of one path, each under its flat key


@dataclass(frozen=True, eq=False)
class Field:
    """One value of a space under ``key`` of a TensorDict.

    ``form`` of a choice: its ``index`` as gymnasium has it; ``one_hot`` (*shape, n); ``flat_one_hot``, the one-hot
    vectors of all elements in a row. Of anything else it is ``plain``.
    """

    leaf: Leaf
    key: Key
    form: Form

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes without the batch axes."""
        return self.leaf.shape if self.form in ("plain", "index") else tuple(self.spec.shape)

    @cached_property
    def spec(self) -> TensorSpec:
        """Its spec for TorchRL."""
        if self.form == "plain":
            return _plain_spec(self.leaf)
        sizes, shape = choice_sizes(self.leaf), torch.Size(self.leaf.shape)
        spec: Any = Categorical(sizes[0], shape=shape, dtype=torch.int64)
        if len(set(sizes)) > 1:
            spec = MultiCategorical(sizes, shape=shape, dtype=torch.int64)
        return spec if self.form == "index" else spec.to_one_hot_spec().to(torch.int64)

    def to_space(self, value: Tensor) -> Tensor:
        """``value`` as gymnasium has it: the index of a choice."""
        if self.form in ("plain", "index"):
            return value
        return self.spec.to_categorical(value, safe=False)  # type: ignore[attr-defined]

    def to_model(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """``value`` as distributions and critics have it: zero-based, or of ``dtype``. Gradients flow through."""
        if self.leaf.kind in CHOICES:  # which distributions and critics look at themselves
            return KINDS[self.leaf.kind].inward(self.leaf, self.to_space(value), dtype)
        return from_space_value(self.leaf, self.to_space(value), dtype=dtype)

    def to_tensordict(self, value: Tensor) -> Tensor:
        """A draw of a distribution as the environment takes it: start, dtype, bounds, encoding."""
        exact = to_space_value(self.leaf, value)
        if self.form == "one_hot":
            return functional.one_hot(exact.to(torch.int64), choice_sizes(self.leaf)[0])
        if self.form == "flat_one_hot":
            sizes = choice_sizes(self.leaf)
            parts = exact.to(torch.int64).unbind(-1)
            return torch.cat([functional.one_hot(p, n) for p, n in zip(parts, sizes)], -1)
        return exact


def fields_of(
    tree: SpaceTree,
    wanted: Iterable[str],
    *,
    encoding: Encoding,
    keys: Mapping[str, Key] | None = None,
) -> dict[str, Field]:
    """The values called ``wanted`` of a space by flat key; ``keys`` says which keys differ from the space's own.

    Raises ValueError for an encoding that there is not, or that a value does not have.
    """
    if encoding not in ("categorical", "one_hot"):
        near = did_you_mean(encoding, ["categorical", "one_hot"])
        raise ValueError(f"encoding must be 'categorical' or 'one_hot', got {encoding!r}{near}")
    fields = {}
    for name in wanted:
        leaf = tree.leaves[name]
        key = (keys or {}).get(name) or _own_key(tree, leaf)
        fields[name] = Field(leaf, key, _form(leaf, encoding))
    return fields


def choice_sizes(leaf: Leaf) -> list[int]:
    """The number of choices of each element."""
    known = leaf.port.cardinality
    assert known is not None
    return [known] if isinstance(known, int) else list(known)


def shown(key: object) -> str:
    """A key of a TensorDict in a message."""
    return repr(key[0] if isinstance(key, tuple) and len(key) == 1 else key)


def _own_key(tree: SpaceTree, leaf: Leaf) -> Key:
    if leaf.kind in VARIABLE or not leaf.path:
        return leaf.key
    path = tuple(str(part) for part in leaf.path)
    return path[0] if len(path) == 1 else path


def _form(leaf: Leaf, encoding: Encoding) -> Form:
    if leaf.kind not in CHOICES:
        return "plain"
    is_even = len(set(choice_sizes(leaf))) == 1
    if len(leaf.shape) > 1 and not is_even:
        raise ValueError(
            f"{leaf.key!r} is a MultiDiscrete with choices of several sizes in {len(leaf.shape)} axes, which TorchRL "
            "cannot store; give the environment a MultiDiscrete of one axis, as gymnasium.wrappers.TransformAction and "
            "TransformObservation do"
        )
    if encoding == "categorical":
        return "index"
    if isinstance(leaf.start, Tensor) or leaf.start != 0:
        raise ValueError(
            f"{leaf.key!r} counts from {np.asarray(leaf.start).tolist()}, which one-hot vectors do not tell; "
            "use an environment with categorical_action_encoding=True"
        )
    return "one_hot" if is_even else "flat_one_hot"


def _plain_spec(leaf: Leaf) -> TensorSpec:
    shape = torch.Size(leaf.shape)
    if leaf.kind == "multi_binary":
        return Binary(shape=shape, dtype=leaf.dtype)
    if leaf.port.low is None and leaf.port.high is None:
        return Unbounded(shape=shape, dtype=leaf.dtype)
    assert isinstance(leaf.space, spaces.Box)
    limits = leaf.space.low, leaf.space.high
    low, high = (torch.as_tensor(limit, dtype=leaf.dtype) for limit in limits)
    return Bounded(low, high, shape=shape, dtype=leaf.dtype)
