"""Rewards from texts: a function of your own as an interface, and interfaces by dotted names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from composer.dataflow.algorithms.interfaces import INTERFACES, Interface
from composer.dataflow.algorithms.timeouts import (
    FunctionError,
    KillableFunction,
    RaisedError,
    in_words,
    why_not_elsewhere,
)
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample
from composer.errors import RefusedError
from composer.trust import PathError, import_object
from perception_blocks.settings import PositiveFloat
from perception_blocks.words import cut, describe, hint

__all__ = ["RewardError", "Text", "interface_of", "rewards_from", "reward_function", "texts_of"]

RewardFunction: TypeAlias = Callable[..., Sequence[float]]
LONGEST = 60  # characters of a text that a message shows
LARGEST = torch.finfo(torch.float32).max


class RewardError(RefusedError):
    """A reward cannot be had; the message names the call, the item and the text."""


@dataclass(frozen=True)
class Text:
    """A sequence of an item as texts. Prompt and completion may have a space between them, which neither has."""

    item: object
    place: int  # of the item in the sample
    whole: str
    prompt: str
    completion: str

    def __str__(self) -> str:
        return f"item {self.item!r}, the text {cut(self.whole, LONGEST)!r}"


def texts_of(sample: Sample, tokenizer: Any, where: str) -> list[Text]:
    """The sequences of ``ids`` as texts without special tokens; ``prompt_mask``, if there is one, says what is prompt.

    Raises RewardError, which begins with ``where``, without a tokenizer.
    """
    if tokenizer is None:
        raise RewardError(f"{where}: a reward of texts needs a tokenizer, and there is none")
    if not any(sample.seqlens["ids"]):
        return []
    sequences = sample.sequences("ids")
    masks = [torch.zeros_like(ids, dtype=torch.bool) for ids in sequences]
    if "prompt_mask" in sample.keys:
        masks = [mask.bool() for mask in sample.sequences("prompt_mask")]
    pairs = list(zip(sequences, masks, strict=True))
    parts = (
        sequences,
        [ids[mask] for ids, mask in pairs],
        [ids[~mask] for ids, mask in pairs],
    )
    texts = [
        tokenizer.batch_decode([ids.tolist() for ids in part], skip_special_tokens=True)
        for part in parts
    ]
    places = [at for at, lengths in enumerate(sample.seqlens["ids"]) for _ in lengths]
    return [Text(sample.ids[place], place, *of) for place, *of in zip(places, *texts, strict=True)]


def rewards_from(numbers: object, texts: Sequence[Text], what: str) -> Tensor:
    """The rewards (S,) that ``what`` gives for ``texts``. Raises RewardError unless each has a finite number."""
    plain: Any = numbers.tolist() if hasattr(numbers, "tolist") else numbers  # type: ignore[attr-defined]
    if not isinstance(plain, list | tuple):
        first = f"; the first is {texts[0]}" if texts else ""
        raise RewardError(
            f"{what} gives {describe(plain)}, not a list with a number for each text{first}"
        )
    for text, number in zip(texts, plain, strict=False):
        size: Any = abs(number) if isinstance(number, Real) else None
        if size is None:
            got = describe(number)
        elif size <= LARGEST:
            continue
        else:
            got = "a number that is too large" if LARGEST < size < math.inf else str(number)
        raise RewardError(f"{what} gives {got} for {text}; a reward is a finite number")
    if len(plain) < len(texts):
        count = f"{len(plain)} of {len(texts)} rewards"
        raise RewardError(f"{what} gives {count}; the first without is {texts[len(plain)]}")
    if len(plain) > len(texts):
        raise RewardError(
            f"{what} gives {len(plain)} rewards for {len(texts)} texts; the last is {texts[-1]}"
        )
    return torch.tensor(plain, dtype=torch.float32)


def reward_function(
    function: RewardFunction, *, timeout: PositiveFloat | None = None
) -> type[Interface]:
    """An interface that calls ``function(prompts, completions, **columns)``: texts in, a list of numbers out.

    ``prompts`` and ``completions`` are lists of texts, one for each sequence; a column is a list of what the data set's
    rows have under another key, for each further argument of the function by its name, all of them for ``**columns``.
    With a ``timeout`` in seconds, which is a setting of a call too, the function runs in a process of its own, which is
    killed where a batch takes longer. It reads ``ids`` and ``prompt_mask`` and writes ``rewards``; without
    ``prompt_mask``, completions are the whole texts and prompts are empty.

    Raises TypeError for what cannot be called so, ValueError for a function that no other process can import. Calls
    raise RewardError.

    >>> def brevity(prompts, completions):
    ...     return [-float(len(text)) for text in completions]
    >>> reward_function(brevity).writes
    {'inference': ('rewards',)}
    """
    columns = _columns_of(function)

    class RewardFunctionInterface(_FunctionReward):
        wrapped = staticmethod(function)

        def __init__(self, timeout: PositiveFloat | None = timeout) -> None:
            super().__init__(function, columns, timeout)

    RewardFunctionInterface(timeout)  # raises ValueError
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        if (value := getattr(function, attribute, None)) is not None:
            setattr(RewardFunctionInterface, attribute, value)
    return RewardFunctionInterface


@dataclass(frozen=True)
class _Columns:
    """The arguments of a reward function: its first two, the other names, those without a default, and ``**``."""

    first: Sequence[str]
    names: Sequence[str]
    required: Sequence[str]
    takes_any: bool


def _columns_of(function: object) -> _Columns:
    """Raises TypeError for what is no function of two lists of texts."""
    if not callable(function):
        raise TypeError(f"a reward function is a function, got {describe(function)}")
    kinds = inspect.Parameter
    parameters = list(inspect.signature(function).parameters.values())
    first, rest = parameters[:2], parameters[2:]
    positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    if len(first) < 2 or any(parameter.kind not in positional for parameter in first):
        name = getattr(function, "__name__", "")
        name = name if name.isidentifier() else "score"
        raise TypeError(
            f"a reward function takes prompts and completions, as in: def {name}(prompts, completions); "
            f"this one takes {_arguments(parameters)}"
        )
    named = [p for p in rest if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    return _Columns(
        first=[parameter.name for parameter in first],
        names=[parameter.name for parameter in named],
        required=[parameter.name for parameter in named if parameter.default is kinds.empty],
        takes_any=any(parameter.kind is kinds.VAR_KEYWORD for parameter in rest),
    )


def _arguments(parameters: Iterable[inspect.Parameter]) -> str:
    return ", ".join(str(parameter) for parameter in parameters) or "nothing"


class _FunctionReward(Interface):
    needs_model = False
    reads = {"inference": ("ids",)}
    optional = {"inference": ("prompt_mask",)}
    writes = {"inference": ("rewards",)}

    def __init__(self, function: RewardFunction, columns: _Columns, timeout: float | None) -> None:
        self.function = function
        self.columns = columns
        kind = type(function).__qualname__  # of an object that can be called
        self.name = f"{function.__module__}.{getattr(function, '__qualname__', kind)}"
        self._call: Callable[..., object] = function
        if timeout is not None:
            if why := why_not_elsewhere(function):
                raise ValueError(
                    f"{self.name!r} with a timeout runs in another process, which cannot import it: {why}"
                )
            self._call = KillableFunction(function, timeout)

    def inference(self, model: object, sample: Sample, context: Context) -> Mapping[str, Tensor]:
        """``rewards`` (S,), a number for each sequence. Raises RewardError."""
        what = f"{context.where()}: {self.name!r}"
        texts = texts_of(sample, context.tokenizer, what)
        columns = self._chosen(sample, what)
        try:
            numbers = self._called(texts, columns)
        except (Exception, SystemExit) as error:
            raise RewardError(f"{what} {self._why(error, texts, columns)}") from error
        return {"rewards": rewards_from(numbers, texts, what)}

    def _chosen(self, sample: Sample, what: str) -> Mapping[str, Sequence[object]]:
        """The metadata that the function takes, for each item."""
        known = {key: of for key, of in sample.metadata.items() if key not in self.columns.first}
        for name in self.columns.required:
            if name not in known:
                near = hint(name, known, "they have")
                raise RewardError(
                    f"{what} takes {name!r}, which the rows of the data set lack{near}"
                )
        if self.columns.takes_any:
            return known
        return {name: known[name] for name in self.columns.names if name in known}

    def _called(self, texts: Sequence[Text], columns: Mapping[str, Sequence[object]]) -> object:
        return self._call(
            [text.prompt for text in texts],
            [text.completion for text in texts],
            **{key: [of[text.place] for text in texts] for key, of in columns.items()},
        )

    def _why(
        self, error: BaseException, texts: Sequence[Text], columns: Mapping[str, Sequence[object]]
    ) -> str:
        """What the function did, and for which text: the first for which it does so alone, else all of them."""
        said = str(error) if isinstance(error, FunctionError) else f"raises {in_words(error)}"
        if not isinstance(error, FunctionError) or isinstance(error, RaisedError):
            for text in texts:
                try:
                    self._called([text], columns)
                except (Exception, SystemExit) as again:
                    if type(again) is type(error):
                        return f"{said}, for {text}"
        if not texts:
            return f"{said}, for no texts"
        return f"{said}, for {len(texts)} texts, the first of which is {texts[0]}"


def interface_of(name: str, allow: Iterable[str] = ()) -> type[Interface]:
    """The interface that is registered as ``name``, or that ``name`` leads to as a dotted path in an allowed module.

    A path leads to a class derived from `Interface`, or to a function as `reward_function` takes it. Raises
    UnknownNameError for an unknown name, MissingExtraError where its library is not installed, PathError for a path
    that is not allowed or leads to something else.
    """
    if name in INTERFACES or "." not in name:
        return INTERFACES.get(name)
    target = import_object(name, allow)
    if isinstance(target, type):
        if not issubclass(target, Interface):
            raise PathError(f"{name!r} is no subclass of composer.dataflow.Interface")
        return target
    try:
        return reward_function(target)
    except TypeError as error:
        raise PathError(f"{name!r} is no interface: {error}") from error
