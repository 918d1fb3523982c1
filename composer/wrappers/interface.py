"""What every wrapper does: it calls its model, has the model's attributes, and hands `reset` down the chain."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

from composer.spec.wrapper_names import WRAPPERS
from perception_blocks.words import listing

__all__ = ["BaseModelWrapper", "Chosen", "Head", "IModelWrapper", "Offer", "Output", "chain"]
__all__ += ["innermost", "read_output", "undone", "wrapper_label"]

Output: TypeAlias = dict[str, Any]  # of a model or wrapper, by name
Head = Literal["choice", "normal", "other"]
Chosen = Literal["choice", "normal", "hybrid"]


@dataclass(frozen=True)
class Offer:
    """What a composed policy and the wrappers around it give, known before any forward.

    ``heads`` says of each action what its logit is: choices to pick from, a normal ({mu, sigma}), or another.
    ``memory`` is whether a `next_state` comes out, ``action`` what has been chosen already.
    """

    heads: Mapping[str, Head]
    memory: bool
    action: Chosen | None = None

    def with_action(self, kind: Chosen, label: str) -> Offer:
        """What is offered once the wrapper called ``label`` has chosen an action. Raises ValueError if it cannot."""
        if self.action is not None:
            raise ValueError(
                f"{label} would replace the action that a wrapper inside of it chooses; keep one of them"
            )
        if kind == "hybrid":
            if sorted(self.heads.values()) != ["choice", "normal"]:
                raise ValueError(
                    f"{label} needs one action that is a choice and one that is a normal, got {self._listed()}"
                )
        elif any(head != kind for head in self.heads.values()):
            needed = "choices" if kind == "choice" else "normals, logits {mu, sigma}"
            raise ValueError(f"{label} needs {needed}, got {self._listed()}{self._instead()}")
        return replace(self, action=kind)

    def _listed(self) -> str:
        words = {"choice": "a choice", "normal": "a normal", "other": "neither choice nor normal"}
        return ", ".join(f"{action!r} ({words[head]})" for action, head in self.heads.items())

    def _instead(self) -> str:
        """What fits these actions."""
        kinds = tuple(sorted(self.heads.values()))
        names = {"choice": "argmax_sample", "normal": "deterministic_sample"}
        if kinds == ("choice", "normal"):
            return "; use 'hybrid_deterministic_argmax_sample'"
        return f"; use {names[kinds[0]]!r}" if kinds[0] in names and len({*kinds}) == 1 else ""


class IModelWrapper:
    """Base of wrappers, which change how a model is used. All other attributes are those of the model.

    A subclass takes ``(model, *, settings)`` and defines ``forward``, which calls the model by ``self._run(...)``.
    The constructor reads only its settings: a spec's `wrap:` checks wrappers around a stand-in.
    """

    listens: ClassVar[tuple[str, ...]] = ()  # keywords of forward that it takes
    chooses: ClassVar[Chosen | None] = None  # the kind of `action` that it adds to the output

    def __init__(self, model: object) -> None:
        self._model: Any = model

    @classmethod
    def fit(cls, offer: Offer) -> Offer:
        """What a composed policy offers with this wrapper around it. Raises ValueError if the two do not fit."""
        return offer if cls.chooses is None else offer.with_action(cls.chooses, wrapper_label(cls))

    def __getattr__(self, name: str) -> Any:
        # Asked by copy and pickle before there is a model; a model's own __deepcopy__ would copy the model alone.
        if name == "_model" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._model, name)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    def reset(self, data_id: object = None, **settings: Any) -> Any:
        """Reset every wrapper of the chain, for all environments or those in ``data_id``."""
        return self._model.reset(data_id=data_id, **settings)

    def info(self, attr_name: str) -> str:
        """The classes in the chain that define the attribute, the outermost first; empty if there are none."""
        owners: list[Any] = [wrapper for wrapper in chain(self) if attr_name in dir(wrapper)]
        inner = innermost(self)
        owners += [inner] if hasattr(inner, attr_name) else []
        return " ".join(type(owner).__name__ for owner in owners)

    def __repr__(self) -> str:
        inner = repr(self._model) if isinstance(self._model, IModelWrapper) else None
        return f"{type(self).__name__}({inner or type(self._model).__name__})"

    def _run(self, *args: object, **kwargs: object) -> Any:
        """Call the model, hooks included where it has them."""
        call = self._model if callable(self._model) else self._model.forward
        return call(*args, **kwargs)

    def _for_inner(self, **keywords: object) -> dict[str, Any]:
        """Those of the keywords given to this wrapper that a wrapper inside listens to as well."""
        known = {word for wrapper in chain(self._model) for word in wrapper.listens}
        return {name: v for name, v in keywords.items() if v is not None and name in known}

    def _undo(self) -> None:
        """Take back what the last forward changed in this chain: something went wrong further out."""
        if isinstance(self._model, IModelWrapper):
            self._model._undo()


class BaseModelWrapper(IModelWrapper):
    """The innermost wrapper, around the model itself; it calls the model's `reset` if there is one."""

    def reset(self, data_id: object = None, **settings: object) -> Any:
        method = getattr(self._model, "reset", None)
        if method is None:
            if settings:
                raise ValueError(f"reset got {listing(settings)}, which nothing in {self!r} takes")
            return None
        if _takes(method, "data_id"):
            settings["data_id"] = data_id
        return method(**settings)


@contextmanager
def undone(wrapper: IModelWrapper) -> Iterator[None]:
    """If what follows the model's forward fails, the chain is as it was before."""
    try:
        yield
    except Exception:
        wrapper._undo()
        raise


def chain(model: object) -> Iterator[IModelWrapper]:
    """The wrappers from ``model`` inwards."""
    while isinstance(model, IModelWrapper):
        yield model
        model = model._model


def innermost(model: object) -> Any:
    """What stands inside of all wrappers."""
    while isinstance(model, IModelWrapper):
        model = model._model
    return model


def wrapper_label(wrapper: IModelWrapper | type[IModelWrapper]) -> str:
    """How messages call a wrapper: its registered name in quotes, or that of its class."""
    cls = wrapper if isinstance(wrapper, type) else type(wrapper)
    return repr(WRAPPERS.name_of(cls) or cls.__name__)


def read_output(output: Output, key: str, wrapper: IModelWrapper) -> Any:
    """What the model returned under ``key``. Raises ValueError where there is none."""
    if not isinstance(output, Mapping):
        hint = "; wrap its 'policy'" if hasattr(innermost(wrapper), "policy") else ""
        got = type(output).__name__
        raise ValueError(
            f"{wrapper_label(wrapper)} needs a model that returns a dict, got a {got}{hint}"
        )
    if key not in output:
        got = listing(output) or "nothing"
        raise ValueError(
            f"{wrapper_label(wrapper)} reads {key!r} of the model's output, which has {got}"
        )
    return output[key]


def _takes(function: Callable[..., Any], keyword: str) -> bool:
    parameters = inspect.signature(function).parameters
    return keyword in parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )
