"""The wrapper that keeps a model's memory between calls, one slot for each environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from composer.wrappers.composed import OBSERVATION, composed_policy
from composer.wrappers.interface import IModelWrapper, Offer, Output, read_output, wrapper_label
from composer.wrappers.slots import ObjectSlots, Slots, StackedSlots, slot_ids, zeros_like
from perception_blocks.settings import PositiveInt

__all__ = ["HiddenStateWrapper"]


def no_state() -> None:
    """The state that a model takes for the beginning of an episode."""


class HiddenStateWrapper(IModelWrapper):
    """Keeps the states of ``state_num`` environments: puts them into the input as `prev_state`, takes `next_state`.

    Keywords of forward: ``data_id`` says which slots the rows of the batch belong to (all of them, in order, without
    it), ``valid_id`` which of these to store. A new slot holds what ``init_fn()`` returns; None is zero for a composed
    policy, whose states are stacked and go through the network as one batch. What is stored is detached. With
    ``save_prev_state`` the output has `prev_state` too, with zeros like the next state where a slot has none, so that
    rows collate.
    """

    listens = ("data_id",)

    def __init__(
        self,
        model: object,
        *,
        state_num: PositiveInt,
        save_prev_state: bool = False,
        init_fn: Callable[[], Any] = no_state,
    ) -> None:
        super().__init__(model)
        if not callable(init_fn):
            raise ValueError(f"'init_fn' must be a function without arguments, got {init_fn!r}")
        self.state_num = state_num
        self.save_prev_state = save_prev_state
        self.init_fn = init_fn
        # Made when first needed: a model may still be without weights.
        self._slots: Slots | None = None
        self._before: Slots | None = None

    @classmethod
    def fit(cls, offer: Offer) -> Offer:
        if not offer.memory:
            raise ValueError(
                f"{wrapper_label(cls)} keeps the state of a memory, but this policy has no memory"
            )
        return replace(offer, memory=False)

    @property
    def states(self) -> dict[int, Any]:
        """The state in each slot."""
        return dict(enumerate(self._kept().rows()))

    def forward(
        self,
        data: object,
        *args: object,
        data_id: object = None,
        valid_id: object = None,
        **kwargs: object,
    ) -> Output:
        ids = slot_ids(data_id, self.state_num)
        places = _places(valid_id, ids, self.state_num)
        slots = self._kept()
        previous = slots.take(ids)
        inputs = {**self._as_dict(data), "prev_state": previous}
        output = self._run(inputs, *args, **self._for_inner(data_id=data_id), **kwargs)
        after = read_output(output, "next_state", self)
        self._slots, self._before = slots.put(ids, after, places), slots
        result = {key: value for key, value in output.items() if key != "next_state"}
        if self.save_prev_state:
            result["prev_state"] = previous
            if isinstance(previous, list):
                pairs = zip(previous, after, strict=True)
                result["prev_state"] = [zeros_like(n) if s is None else s for s, n in pairs]
        return result

    def reset(self, data_id: object = None, *, state: Any = None, **settings: object) -> Any:
        """Begin all slots anew, or those in ``data_id``; with ``state``, a list of one a slot, these are stored."""
        ids = slot_ids(data_id, self.state_num)
        states = [self.init_fn() for _ in ids] if state is None else state
        slots = self._kept().put(ids, states, range(len(ids)))
        result = super().reset(data_id=data_id, **settings)
        self._slots = slots
        return result

    def _undo(self) -> None:
        super()._undo()
        if self._before is not None:
            self._slots, self._before = self._before, None

    def _kept(self) -> Slots:
        policy = composed_policy(self._model)
        if self._slots is None:
            states = [self.init_fn() for _ in range(self.state_num)]
            if policy is None:
                self._slots = ObjectSlots(states)
            else:
                zeros, ids = policy.initial_state(self.state_num), range(self.state_num)
                self._slots = StackedSlots(zeros).put(ids, states, ids)
        if policy is not None and isinstance(self._slots, StackedSlots):
            self._slots = self._slots.moved(policy.device, policy.dtype)
        return self._slots

    def _as_dict(self, data: object) -> Mapping[str, Any]:
        if isinstance(data, Mapping):
            return data
        if composed_policy(self._model) is None:
            raise ValueError(
                f"{wrapper_label(self)} puts 'prev_state' into the input, which must be a dict, "
                f"got a {type(data).__name__}"
            )
        return {OBSERVATION: data}


def _places(valid_id: object, ids: list[int], count: int) -> list[int]:
    """Where the slots ``valid_id`` are in the batch ``ids``."""
    if valid_id is None:
        return list(range(len(ids)))
    valid = slot_ids(valid_id, count, "valid_id")
    absent = [slot for slot in valid if slot not in ids]
    if absent:
        raise ValueError(
            f"'valid_id' names {', '.join(map(str, absent))}, not in this batch of {ids}"
        )
    return [ids.index(slot) for slot in valid]
