"""Settings are typed beside the class that takes them; this module checks and describes them.

The annotations of a block's ``__init__`` are the one source for error messages, documentation and the JSON Schema.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import math
import numbers
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from perception_blocks.registry import ACTIVATIONS, FUNCTIONS, INITIALIZERS, Registry
from perception_blocks.words import cut, did_you_mean, hint, joined, near_name

__all__ = [
    "Activation",
    "Function",
    "Initializer",
    "LayerCount",
    "NegativeInt",
    "NonNegativeInt",
    "OneOrMany",
    "PositiveFloat",
    "PositiveInt",
]
__all__ += ["Probability", "Range", "Setting", "SettingProblem", "SettingsError", "as_yaml"]
__all__ += ["Words", "check_settings", "describe", "mismatch", "settings_of"]


@dataclass(frozen=True)
class Range:
    """The numbers a setting may take, bounds included unless ``exclusive``."""

    low: float = -math.inf
    high: float = math.inf
    exclusive: bool = False

    def __contains__(self, value: float) -> bool:
        if self.exclusive:
            return self.low < value < self.high
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Named:
    """A name of ``registry``, such a name with settings ({name: {setting: value}}), or the thing itself.

    With ``dotted`` a text with dots passes too; the block itself checks what it names.
    """

    registry: Registry
    dotted: bool = False
    skip: int = 0  # arguments of an entry that are not settings


@dataclass(frozen=True)
class Words:
    """How messages describe a type, in place of a description of its parts."""

    text: str


PositiveInt = Annotated[int, Range(low=1)]
NegativeInt = Annotated[int, Range(high=-1)]
NonNegativeInt = Annotated[int, Range(low=0)]
LayerCount = Annotated[int, Range(1, 1000)]
PositiveFloat = Annotated[float, Range(low=0.0, exclusive=True)]
Coefficient = Annotated[float, Range(low=0.0)]
Probability = Annotated[float, Range(0.0, 1.0)]
Activation = Annotated[Any, Named(ACTIVATIONS, dotted=True)]
Function = Annotated[Any, Named(FUNCTIONS)]
Initializer = Annotated[Any, Named(INITIALIZERS, skip=2)]
OneOrMany = PositiveInt | Sequence[PositiveInt]


@dataclass(frozen=True)
class Setting:
    """One keyword of a constructor."""

    name: str
    annotation: object
    default: object

    @cached_property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @cached_property
    def fits(self) -> Callable[[object], bool]:
        """Whether a value fits the annotation, which is read only once."""
        return _checker(self.annotation)


@dataclass(frozen=True)
class SettingProblem:
    setting: str
    message: str
    misspelt: bool = False


class SettingsError(ValueError):
    """Settings that a block cannot take, all of them at once."""

    def __init__(self, problems: Iterable[SettingProblem]) -> None:
        self.problems = list(problems)
        super().__init__(joined(problem.message for problem in self.problems))


@cache
def settings_of(function: Callable[..., object], skip: int = 1) -> tuple[dict[str, Setting], bool]:
    """The settings of a class or function after its first ``skip`` arguments, and whether it takes any other name.

    ``self`` does not count. Annotations that cannot be resolved count as Any.
    """
    target = function.__init__ if isinstance(function, type) else function
    try:
        hints = get_type_hints(target, include_extras=True)
    except Exception:  # a user's annotation that names something not importable here
        hints = {}
    parameters = list(inspect.signature(target).parameters.values())
    parameters = parameters[skip + isinstance(function, type) :]
    kinds = inspect.Parameter
    settings = {
        p.name: Setting(p.name, hints.get(p.name, Any), p.default)
        for p in parameters
        if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    return settings, any(p.kind is kinds.VAR_KEYWORD for p in parameters)


def check_settings(
    function: Callable[..., object],
    given: Mapping[str, object],
    label: str,
    *,
    partial: bool = False,
    skip: int = 1,
) -> list[SettingProblem]:
    """What is wrong with the settings ``given`` to a class or function; ``partial`` forgives missing ones."""
    settings, takes_any = settings_of(function, skip)
    problems = []
    named: set[str | None] = set(given)  # and what a misspelt name was meant to be
    for name, value in given.items():
        setting = settings.get(name)
        if setting is not None:
            if not setting.fits(value):
                wrong = mismatch(setting.annotation, value) or ""
                problems.append(SettingProblem(name, f"{name!r} " + wrong))
        elif not takes_any:
            named.add(near_name(name, settings, "setting"))
            near = hint(name, settings, "it has", kind="setting")
            message = f"{name!r} is not a setting of {label}" + near
            problems.append(SettingProblem(name, message, misspelt=True))
    if not partial:
        for name, setting in settings.items():
            if setting.required and name not in named:
                what = "" if setting.annotation is Any else f" ({describe(setting.annotation)})"
                if name == "in_shapes":
                    what = "; only a class that is derived from PerceptionBlock gets the shapes of its inputs"
                problems.append(SettingProblem(name, f"{label} needs the setting {name!r}{what}"))
    return problems


def mismatch(annotation: object, value: object) -> str | None:
    """Why ``value`` does not fit, as the end of a sentence that begins with the setting's name."""
    if _checker(annotation)(value):
        return None
    named = next(filter(None, map(_named, _alternatives(annotation))), None)
    meant = _meant(annotation, value)
    if named is not None and isinstance(value, (str, Mapping)) and not meant:
        return _name_mismatch(named, value)
    return f"must be {describe(annotation)}, got {_show(value)}" + meant


def _meant(annotation: object, value: object) -> str:
    """The end of a message about a text that does not fit: the near choice, or how to write the value."""
    if not isinstance(value, str):
        return ""
    literals = [part for part in _alternatives(annotation) if get_origin(part) is Literal]
    choices = [choice for part in literals for choice in get_args(part) if isinstance(choice, str)]
    return did_you_mean(value, choices, "choice") or as_yaml(value, _checker(annotation))


def as_yaml(text: str, fits: Callable[[object], bool]) -> str:
    """How to write what ``text`` is in Python or in older YAML, as the end of a message; nothing where it is a text.

    >>> as_yaml("(64, 64)", lambda value: True), as_yaml("None", lambda value: value is None)
    ('; write [64, 64]', '; write null')
    """
    plain: object = _OTHER_WORDS.get(text.lower(), text)
    if plain is text and len(text) < 100:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            plain = ast.literal_eval(text)
    if isinstance(plain, str) or not fits(plain):
        return ""
    shown = _show(list(plain) if isinstance(plain, tuple) else plain)
    return f"; write {shown}" + (" without quotes" if shown == text else "")


def describe(annotation: object, plural: bool = False) -> str:
    """An annotation in words: ``a list of positive integers``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe_annotated(args, plural)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg, plural) for arg in args)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(repr(arg) for arg in args)
    if annotation in _PLAIN_WORDS:
        return _PLAIN_WORDS[annotation][plural]
    if origin is tuple and args and Ellipsis not in args:
        return f"a list of {len(args)} {describe(args[0], True)}"
    if _is_list(annotation):
        return ("lists" if plural else "a list") + (
            f" of {describe(args[0], True)}" if args else ""
        )
    if annotation is Mapping or annotation is dict or origin in (dict, Mapping):
        return "mappings" if plural else "a mapping"
    return getattr(annotation, "__name__", str(annotation))


def _describe_annotated(args: tuple[object, ...], plural: bool) -> str:
    base = describe(args[0], plural)
    for note in args[1:]:
        if isinstance(note, Words):
            return note.text
        if isinstance(note, Named):
            return (
                f"{note.registry.kind} names" if plural else f"the name of {_a(note.registry.kind)}"
            )
        if isinstance(note, Range):
            article, _, noun = base.rpartition(" ")
            if note == Range(low=1) or note == Range(low=0.0, exclusive=True):
                return f"{'a ' if article else ''}positive {noun}"
            if note == Range(high=-1):
                return f"{'a ' if article else ''}negative {noun}"
            if note == Range(low=0):
                return f"{base} of 0 or more"
            if math.isinf(note.high):
                return f"{base} {'above' if note.exclusive else 'of at least'} {note.low:g}"
            return f"{base} between {note.low:g} and {note.high:g}"
    return base


def _alternatives(annotation: object) -> tuple[object, ...]:
    """The types of a union, or the one type itself."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _named(annotation: object) -> Named | None:
    notes = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((note for note in notes if isinstance(note, Named)), None)


def _name_mismatch(named: Named, value: object) -> str | None:
    kind = named.registry.kind
    if isinstance(value, str):
        if value in named.registry or (named.dotted and "." in value):
            return None
        return f"names the unknown {kind} {value!r}" + named.registry.hint(value)
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, settings),) = value.items()
        if not isinstance(name, str) or not isinstance(settings, Mapping):
            return f"must be {{name: {{setting: value}}}}, got {_show(value)}"
        return _name_mismatch(named, name) or _settings_mismatch(named, name, settings)
    if isinstance(value, type) or callable(value):
        return None
    return f"must be the name of {_a(kind)}, got {_show(value)}"


def _settings_mismatch(named: Named, name: str, settings: Mapping[str, object]) -> str | None:
    if name not in named.registry:  # a dotted path: known when it is used
        return None
    entry, label = named.registry.get(name), f"{named.registry.kind} {name!r}"
    problems = check_settings(entry, settings, label, skip=named.skip)
    return "is wrong: " + joined(p.message for p in problems) if problems else None


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _checker(annotation: object) -> Callable[[object], bool]:
    """Whether a value fits ``annotation``. One that we do not know how to check fits everything."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any or isinstance(annotation, str):
        return lambda value: True
    if origin is Annotated:
        return _annotated_checker(annotation, args)
    if origin in (Union, types.UnionType):
        return _any_of([_checker(arg) for arg in args])
    if origin is Literal:
        return lambda value: any(value == arg and type(value) is type(arg) for arg in args)
    if annotation is None or annotation is type(None):
        return lambda value: value is None
    if annotation in _PLAIN_CHECKS:
        return _PLAIN_CHECKS[annotation]
    if origin is tuple and args and Ellipsis not in args:
        parts = [_checker(arg) for arg in args]
        return lambda value: (
            _is_items(value)
            and len(value) == len(parts)
            and all(fits(item) for fits, item in zip(parts, value))
        )
    if _is_list(annotation):
        fits = _checker(args[0]) if args else _checker(Any)
        return lambda value: _is_items(value) and all(map(fits, value))
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return lambda value: isinstance(value, Mapping)
    if isinstance(annotation, type):
        return lambda value: isinstance(value, annotation)
    return lambda value: True


def _annotated_checker(annotation: object, args: tuple[object, ...]) -> Callable[[Any], bool]:
    named = _named(annotation)
    if named is not None:
        return lambda value: _name_mismatch(named, value) is None
    fits = _checker(args[0])
    ranges = [note for note in args[1:] if isinstance(note, Range)]
    if len(ranges) == 1:
        return lambda value: fits(value) and value in ranges[0]
    return lambda value: fits(value) and all(value in limits for limits in ranges)


def _any_of(checks: list[Callable[[object], bool]]) -> Callable[[object], bool]:
    def fits(value: object) -> bool:
        for check in checks:  # noqa: SIM110 - `any` takes three times as long
            if check(value):
                return True
        return False

    return fits


def _is_integer(value: object) -> bool:
    if not isinstance(value, (int, numbers.Integral)) or isinstance(value, bool):
        return False
    return abs(int(value)) < 2**63  # torch counts in 64 bits


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return _is_integer(value)
    return isinstance(value, numbers.Real) and not math.isnan(value)


# What Python and older YAML call these.
_OTHER_WORDS = {"none": None, "nil": None, "yes": True, "on": True, "no": False, "off": False}
_OTHER_WORDS |= {"true": True, "false": False}
_PLAIN_WORDS: dict[object, tuple[str, str]] = {  # of one, and of several
    str: ("text", "texts"),
    bool: ("true or false", "truth values"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    None: ("null", "nulls"),
    type(None): ("null", "nulls"),
    Any: ("a value", "values"),
}
_PLAIN_CHECKS: dict[object, Callable[[object], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: _is_integer,
    float: _is_number,
}


def _is_list(annotation: object) -> bool:
    return (get_origin(annotation) or annotation) in (Sequence, list, tuple)


def _is_items(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _show(value: object) -> str:
    """The value as the user wrote it; long ones are cut."""
    text = None
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 1024:  # Python has a limit for writing them
        return f"a number of {value.bit_length():,} bits"
    return cut(text or repr(value), 80)
