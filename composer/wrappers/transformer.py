"""Wrappers for models that read sequences, time first: (T, B, ...). Values may be tensors, or dicts of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from composer.wrappers.interface import (
    IModelWrapper,
    Output,
    innermost,
    read_output,
    undone,
    wrapper_label,
)
from composer.wrappers.slots import slot_ids
from perception_blocks.port import format_shape
from perception_blocks.settings import PositiveInt

__all__ = ["TransformerInputWrapper", "TransformerMemoryWrapper", "TransformerSegmentWrapper"]


class TransformerInputWrapper(IModelWrapper):
    """Turns one observation (B, ...) of each environment into the last ``seq_len`` of them, (seq_len, B, ...).

    Sequences start as zeros and fill from the front; when one is full its oldest observation leaves first. The output
    gains `input_seq`. Keywords of forward: ``only_last_logit`` keeps the logit of the newest observation only,
    (B, ...); ``data_id`` says whose observations these are (and whose last logits return), the others' sequences stay.
    """

    listens = ("data_id",)

    def __init__(self, model: object, *, seq_len: PositiveInt) -> None:
        super().__init__(model)
        self.seq_len = seq_len
        self.obs_memory: Any = None
        self.memory_idx: list[int] = []  # how many observations each environment has
        self._before: tuple[Any, list[int]] = (None, [])

    def forward(
        self,
        input_obs: Any,
        *args: object,
        only_last_logit: bool = True,
        data_id: object = None,
        **kwargs: object,
    ) -> Output:
        obs = mapped(torch.as_tensor, input_obs)
        memory, filled = self._memory_for(obs)
        ids = slot_ids(data_id, len(filled))
        got = _first(obs).shape[0]
        if got != len(ids):
            label = wrapper_label(self)
            raise ValueError(f"{label} got {got} observations for {len(ids)} environments")
        memory = mapped(lambda seq, x: _appended(seq, x, ids, filled), memory, obs)
        filled = [min(n + (i in ids), self.seq_len) for i, n in enumerate(filled)]
        output = self._run(memory, *args, **self._for_inner(data_id=data_id), **kwargs)
        self._before = (self.obs_memory, self.memory_idx)
        self.obs_memory, self.memory_idx = memory, filled
        with undone(self):
            result = {**output, "input_seq": memory}
            if only_last_logit:
                last = [filled[i] - 1 for i in ids]
                logit = read_output(output, "logit", self)
                result["logit"] = mapped(lambda seq: seq[last, ids], logit)
            return result

    def reset(self, data_id: object = None, **settings: object) -> Any:
        """Forget all observations, or those of the environments in ``data_id``."""
        if data_id is None:
            self.obs_memory, self.memory_idx = None, []
        else:
            ids = slot_ids(data_id, len(self.memory_idx))
            self.obs_memory = mapped(
                lambda seq: seq.index_fill(1, _index(ids, seq), 0), self.obs_memory
            )
            self.memory_idx = [0 if i in ids else n for i, n in enumerate(self.memory_idx)]
        return super().reset(data_id=data_id, **settings)

    def _undo(self) -> None:
        super()._undo()
        self.obs_memory, self.memory_idx = self._before

    def _memory_for(self, obs: Any) -> tuple[Any, list[int]]:
        """The current sequences; zeros, one per observation, before the first observation."""
        if self.obs_memory is not None:
            return self.obs_memory, self.memory_idx
        zeros = mapped(lambda x: x.new_zeros((self.seq_len, *x.shape)), obs)
        return zeros, [0] * _first(obs).shape[0]


class TransformerSegmentWrapper(IModelWrapper):
    """Runs a model on pieces of ``seq_len`` steps of (T, B, ...) and joins what comes out along time.

    The last piece is filled up with zeros, so what comes out has a multiple of ``seq_len`` steps.
    """

    def __init__(self, model: object, *, seq_len: PositiveInt) -> None:
        super().__init__(model)
        self.seq_len = seq_len

    def forward(self, obs: Any, *args: object, **kwargs: object) -> Any:
        obs = mapped(torch.as_tensor, obs)
        length = _first(obs).shape[0]
        if length == 0:
            raise ValueError(
                f"{wrapper_label(self)} needs at least one step, got a sequence of none"
            )
        outputs = []
        for start in range(0, length, self.seq_len):
            piece = mapped(partial(_piece, start=start, length=self.seq_len), obs)
            outputs.append(self._run(piece, *args, **kwargs))
        return mapped(lambda *parts: torch.cat(parts), *outputs)


class TransformerMemoryWrapper(IModelWrapper):
    """Keeps a memory of its own for a model that holds one, so that collecting and learning do not mix.

    The model has ``reset_memory(batch_size)`` for a fresh memory, ``reset_memory(state=memory)`` to set one, and
    ``get_memory()``. Each wrapper of one model sets its memory before a call and takes it back after. A memory is a
    tensor, or a dict of them, whose axis ``batch_axis`` counts the ``batch_size`` environments.
    """

    def __init__(self, model: object, *, batch_size: PositiveInt, batch_axis: int = -2) -> None:
        super().__init__(model)
        for method in ("reset_memory", "get_memory"):
            if not hasattr(model, method):
                raise ValueError(
                    f"{wrapper_label(self)} needs a model with {method!r}, "
                    f"which {type(innermost(model)).__name__} does not have"
                )
        self.batch_size = batch_size
        self.batch_axis = batch_axis
        self._model.reset_memory(batch_size=batch_size)
        self.memory = self._taken()
        self._fresh = self.memory
        self._before = self.memory

    def forward(self, *args: object, **kwargs: object) -> Any:
        self._model.reset_memory(state=mapped(Tensor.clone, self.memory))
        output = self._run(*args, **kwargs)
        self._before, self.memory = self.memory, self._taken()
        return output

    def reset(self, data_id: object = None, **settings: object) -> Any:
        """A fresh memory, for all environments or those in ``data_id``."""
        ids = slot_ids(data_id, self.batch_size)

        def with_fresh_rows(memory: Tensor, new: Tensor) -> Tensor:
            index = _index(ids, memory)
            rows = new.to(memory).index_select(self.batch_axis, index)
            return memory.index_copy(self.batch_axis, index, rows)

        self.memory = mapped(with_fresh_rows, self.memory, self._fresh)
        return super().reset(data_id=data_id, **settings)

    def _undo(self) -> None:
        super()._undo()
        self.memory = self._before

    def _taken(self) -> Any:
        """The model's memory, without its graph and apart from what the model may change in place."""
        return mapped(lambda value: value.detach().clone(), self._model.get_memory())


def mapped(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """``function`` of a tensor (or what can be one), or of each in dicts and lists of them."""
    if isinstance(value, Mapping):
        return {k: mapped(function, v, *(other[k] for other in others)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(function, *parts) for parts in zip(value, *others, strict=True)]
    return function(value, *others)


def _first(value: Any) -> Tensor:
    """Any of the tensors."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    return value


def _appended(seq: Tensor, x: Tensor, ids: Sequence[int], filled: Sequence[int]) -> Tensor:
    """``seq`` (T, B, ...) with a new element x[i] for each of ``ids``; where it is full the oldest makes room."""
    if not isinstance(x, Tensor) or x.shape[1:] != seq.shape[2:]:
        expected = format_shape(seq.shape[2:])
        got = format_shape(x.shape[1:]) if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"observations had the shape {expected} before, got {got}")
    seq = seq.clone()
    for i, env in enumerate(ids):
        if filled[env] == len(seq):
            seq[:, env] = seq[:, env].roll(-1, 0)
        seq[min(filled[env], len(seq) - 1), env] = x[i]
    return seq


def _index(ids: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.int64, device=like.device)


def _piece(seq: Tensor, start: int, length: int) -> Tensor:
    """``length`` steps from ``start`` on, zeros behind the end."""
    piece = seq[start : start + length]
    missing = length - piece.shape[0]
    return torch.cat([piece, piece.new_zeros((missing, *piece.shape[1:]))]) if missing else piece
