"""Models by name: what makes an actor, a critic or both of them, and the files that belong to it.

A training config then says ``model: my_gru`` and nothing more. Nothing is imported until a part is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from composer.limits import GivenLimits
from composer.source.load import GivenSpec, Override, load_source
from composer.trust import allow_list, import_object
from perception_blocks.registry import NameTakenError, UnknownNameError
from perception_blocks.words import did_you_mean, hint

__all__ = ["MODELS", "MissingPartError", "ModelRecord", "ModelRegistry", "SpecFactory"]
__all__ += ["find_model", "record_of_spec"]

Factory = TypeVar("Factory")
# Part -> what messages call it, in the order of the 6-tuple.
PARTS = {
    "actor": "actor factory",
    "critic": "critic factory",
    "actor_critic": "actor-critic factory",
    "vocabulary": "vocabulary file",
    "weights": "weights file",
    "tokenizer": "tokenizer",
}
FACTORIES = ("actor", "critic", "actor_critic")
IMPORTED = (*FACTORIES, "tokenizer")  # text in these is a dotted path


class MissingPartError(ValueError, AttributeError):
    """A model has no such part; the message says which it has."""


@dataclass(frozen=True)
class ModelRecord:
    """All that belongs to one model; any part may be missing.

    It unpacks as (actor, critic, actor_critic, vocabulary, weights, tokenizer), with None for what is missing; as an
    attribute, a missing part raises MissingPartError. ``actor`` and ``critic`` are factories that return (training,
    inference), ``actor_critic`` returns (actor training, actor inference, critic training, critic inference).

    >>> record = ModelRecord("mine", {"vocabulary": "tokens.txt"})
    >>> actor, critic, actor_critic, vocabulary, weights, tokenizer = record
    >>> record.vocabulary
    'tokens.txt'
    >>> record.weights
    Traceback (most recent call last):
    ...
    composer.model_registry.MissingPartError: the model 'mine' has no weights file; it has a vocabulary file
    """

    name: str
    parts: Mapping[str, object]
    allow: tuple[str, ...] = ()  # modules that parts given as dotted paths may come from

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _checked(self.name, self.parts))

    def __iter__(self) -> Iterator[Any]:
        return (self._part(part) for part in PARTS)

    def __len__(self) -> int:
        return len(PARTS)

    def __getattr__(self, part: str) -> Any:
        if part not in PARTS:
            raise AttributeError(f"a model has no {part!r}{did_you_mean(part, PARTS)}", name=part)
        value = self._part(part)
        if value is None:
            has = ", ".join(_article(PARTS[here]) for here in PARTS if here in self.parts)
            raise MissingPartError(
                f"the model {self.name!r} has no {PARTS[part]}; it has {has or 'no part at all'}"
            )
        return value

    def _part(self, part: str) -> Any:
        """The part, imported if it is given as a path; None where it is missing."""
        value = self.parts.get(part)
        if part not in IMPORTED or not isinstance(value, str):
            return value
        imported = import_object(value, self.allow)
        if part in FACTORIES and not callable(imported):
            raise ValueError(
                f"the model {self.name!r}: its {PARTS[part]} {value!r} must be a function, got a "
                f"{type(imported).__name__}"
            )
        return imported

    def tokens(self, vocabulary_size: int | None = None) -> list[str]:
        """The vocabulary file's tokens, one of each line, in the order of their numbers.

        Raises ValueError for a file without tokens, with one twice or in no UTF-8, and where there are not
        ``vocabulary_size``.
        """
        path = Path(self.vocabulary)
        if not path.is_file():
            raise ValueError(f"the model {self.name!r}: there is no vocabulary file {str(path)!r}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the model {self.name!r}: the vocabulary file {str(path)!r} is no text in UTF-8: its byte "
                f"{error.start + 1} is {error.object[error.start]:#04x}"
            ) from error
        # Not splitlines(): a token may hold what that takes for the end of a line, such as U+2028.
        tokens = text.removesuffix("\n").split("\n") if text else []
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        if twice or not tokens:
            why = f"holds {', '.join(map(repr, twice))} more than once" if twice else "is empty"
            raise ValueError(f"the model {self.name!r}: the vocabulary file {str(path)!r} {why}")
        if vocabulary_size not in (None, len(tokens)):
            raise ValueError(
                f"the model {self.name!r}: 'vocabulary_size' is {vocabulary_size}, but the vocabulary file "
                f"{str(path)!r} has {len(tokens)} tokens"
            )
        return tokens


@dataclass(frozen=True)
class SpecFactory:
    """One part of a model whose networks a spec describes; called with the vocabulary's size and the longest length."""

    spec: GivenSpec
    part: str
    allow: tuple[str, ...] = ()

    def __call__(
        self,
        *,
        vocabulary_size: int,
        max_length: int,
        seed: int | None = None,
        device: Any = "cpu",
        overrides: Iterable[Override] = (),
        limits: GivenLimits = None,
    ) -> tuple[Any, ...]:
        """(training, inference), or all four of an actor and its critic; see `composer.policy.sequence_view`."""
        # Not above: naming a model needs neither torch nor gymnasium.
        from composer.adapters.tokens.gym_env import token_spaces
        from composer.model import compose
        from composer.policy.sequence_view import token_views

        observation_space, action_space = token_spaces(vocabulary_size, max_length)
        model = compose(
            self.spec,
            observation_space=observation_space,
            action_space=action_space,
            allow=self.allow,
            overrides=overrides,
            limits=limits,
            device=device,
            seed=seed,
        )
        if self.part == "actor_critic":
            return token_views(model.policy, model.critic)
        return token_views(model.policy if self.part == "actor" else model.critic)


def record_of_spec(
    name: str, spec: GivenSpec, allow: Iterable[str] = (), **files: object
) -> ModelRecord:
    """The record of a spec (file, text or mapping); it has a critic where the spec has one."""
    allow = allow_list(allow)
    has_critic = load_source(spec, allow=allow).data.get("critic") is not None
    names = ("actor", "critic", "actor_critic") if has_critic else ("actor",)
    factories = {part: SpecFactory(spec, part, allow) for part in names}
    return ModelRecord(name, {**factories, **files}, allow)


class ModelRegistry:
    """Model records by name.

    >>> models = ModelRegistry()
    >>> @models.register("mine", "actor", vocabulary="tokens.txt")
    ... def make_actor(vocabulary_size, max_length): ...
    >>> models.get("mine").actor is make_actor
    True
    """

    def __init__(self) -> None:
        self._records: dict[str, ModelRecord] = {}

    def register(
        self,
        name: str,
        part: str | None = None,
        *,
        spec: GivenSpec | None = None,
        allow: Iterable[str] = (),
        replace: bool = False,
        **parts: object,
    ) -> Any:
        """Give a model its name: by its ``parts``, by a ``spec``, or as the decorator of the factory that is ``part``.

        A factory may be given as a dotted path; it may then be imported from the modules in ``allow``. Decorators of
        other parts add to the same name. Raises NameTakenError where a part is taken and ``replace`` is not set, and
        ValueError for parts that no model has, factories that cannot be called, and where nothing is given.
        """
        if part is not None:
            if spec is not None:
                raise ValueError(
                    f"the model {name!r} has a spec and is a decorator of its {part!r}; register one, then the other"
                )
            _checked(name, {part: None, **parts})

            def decorate(factory: Factory) -> Factory:
                self._add(name, {part: factory, **parts}, allow, replace)
                return factory

            return decorate
        if spec is not None:
            record = record_of_spec(name, spec, allow, **parts)
            parts = dict(record.parts)
        if not parts:
            raise ValueError(
                f"the model {name!r} has nothing to register; give its parts or a spec, or name the part "
                f"that is decorated: register({name!r}, 'actor')"
            )
        return self._add(name, parts, allow, replace)

    def _add(
        self, name: str, parts: Mapping[str, object], allow: Iterable[str], replace: bool
    ) -> None:
        parts = _checked(name, parts)
        old = None if replace else self._records.get(name)
        taken = [part for part in parts if old is not None and part in old.parts]
        if taken:
            words = ", ".join(PARTS[part] for part in taken)
            raise NameTakenError(
                f"the model {name!r} has its {words} already; choose another name, or pass replace=True"
            )
        before = old or ModelRecord(name, {})
        allowed = tuple(dict.fromkeys([*before.allow, *allow_list(allow)]))
        self._records[name] = ModelRecord(name, {**before.parts, **parts}, allowed)

    def get(self, name: str) -> ModelRecord:
        """Raises UnknownNameError, with a near name, for a model that nobody has registered."""
        if name not in self._records:
            raise UnknownNameError(
                f"unknown model {name!r}{hint(name, self._records, 'known are')}"
            )
        return self._records[name]

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)


MODELS = ModelRegistry()


def find_model(
    model: object, allow: Iterable[str] = (), models: ModelRegistry = MODELS
) -> ModelRecord:
    """What a training config means by ``model``: a name, the dotted path of a record, or a spec (file or mapping).

    The whole config may be given, a mapping with the key ``model``. Raises ValueError for what is none of these;
    a dotted path needs ``allow``.
    """
    if isinstance(model, ModelRecord):
        return model
    if isinstance(model, Mapping):
        if "policy" in model:
            return record_of_spec("spec", model, allow)
        if "model" not in model:
            raise ValueError("a training config names its 'model'; this one has no such key")
        return find_model(model["model"], allow, models)
    if isinstance(model, Path) or (isinstance(model, str) and model.endswith((".yaml", ".yml"))):
        return record_of_spec(Path(model).stem, model, allow)
    if not isinstance(model, str):
        raise ValueError(
            f"'model' is a name, a dotted path or a spec, got a {type(model).__name__}"
        )
    if model in models or "." not in model:
        return models.get(model)
    record = import_object(model, allow)
    if not isinstance(record, ModelRecord):
        raise ValueError(f"{model!r} is no ModelRecord but a {type(record).__name__}")
    return record


def _checked(name: str, parts: Mapping[str, object]) -> dict[str, object]:
    """The ``parts`` that are there. Raises ValueError for one that no model has, and for a factory that is none."""
    for part, value in parts.items():
        if part not in PARTS:
            near = hint(part, PARTS, "it may have")
            raise ValueError(f"the model {name!r} cannot have a part {part!r}{near}")
        if part in FACTORIES and not (value is None or isinstance(value, str) or callable(value)):
            raise ValueError(
                f"the model {name!r}: its {PARTS[part]} must be a function or a dotted path, got {value!r}"
            )
    return {part: value for part, value in parts.items() if value is not None}


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
