"""model_wrap and register_wrapper; a spec's `wrap:` checked, and put around its policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from composer.errors import Path, Problems
from composer.policy.policy import Policy
from composer.spec.wrapper_names import WRAPPERS
from composer.wrappers.composed import ComposedPolicy
from composer.wrappers.interface import BaseModelWrapper, IModelWrapper, Offer, chain
from perception_blocks.settings import SettingsError, check_settings

__all__ = ["check_wrap", "model_wrap", "register_wrapper", "wrap_policy"]

Entry = str | Mapping[str, Any]


def model_wrap(model: object, wrapper_name: str, **settings: object) -> IModelWrapper:
    """``model`` with the wrapper called ``wrapper_name`` around it; a wrapped model may be wrapped again.

    A model is a composed policy, or anything with a ``forward`` from dict to dict. Raises ValueError for an unknown
    name or setting, and for a wrapper that does not fit a composed policy.

    >>> import torch
    >>> class Net(torch.nn.Module):
    ...     def forward(self, data):
    ...         return {"logit": data["x"]}
    >>> net = model_wrap(Net(), "argmax_sample")
    >>> net({"x": torch.tensor([[1.0, 5.0, 3.0], [9.0, 2.0, 1.0]])})["action"]
    tensor([1, 0])
    """
    cls = _wrapper_class(wrapper_name)
    problems = check_settings(cls, settings, f"wrapper {wrapper_name!r}")
    if problems:
        raise SettingsError(problems)
    if not isinstance(model, IModelWrapper):
        model = _based(model)
        if cls is BaseModelWrapper:
            return model
    offer = _offer(model)
    if offer is not None:
        cls.fit(offer)
    return cls(model, **settings)


def register_wrapper(name: str, wrapper: type[IModelWrapper] | None = None) -> Any:
    """Give a subclass of IModelWrapper a name for `model_wrap`; without ``wrapper``, a decorator that does so.

    Raises ValueError for anything else, and for a name that another wrapper has.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a wrapper must be a text, got {name!r}")
    if wrapper is None:
        return lambda cls: register_wrapper(name, cls)
    if not (isinstance(wrapper, type) and issubclass(wrapper, IModelWrapper)):
        raise ValueError(f"a wrapper must be a subclass of IModelWrapper, got {wrapper!r}")
    return WRAPPERS.register(name, wrapper)


def wrap_policy(policy: Policy, entries: Iterable[Entry]) -> IModelWrapper:
    """``policy`` with the wrappers of a spec's `wrap:` around it, the first one innermost."""
    model: Any = policy
    for entry in entries:
        name, settings = _parts(entry)
        model = model_wrap(model, name, **settings)
    return model


def check_wrap(
    entries: Iterable[Entry], path: Path, offer: Offer | None, problems: Problems
) -> None:
    """Note what is wrong with the settings of a spec's `wrap:`, and what does not fit a policy with this ``offer``.

    ``offer`` is None where it is not known, as something else is wrong.
    """
    for index, entry in enumerate(entries):
        name, settings = _parts(entry)
        at = (*path, index)
        cls = _wrapper_class(name)
        wrong = check_settings(cls, settings, f"wrapper {name!r}")
        for problem in wrong:
            known = problem.setting in settings
            where = (*at, name, problem.setting) if known else at
            problems.add(where, problem.message, key=problem.misspelt)
        if not wrong:
            try:  # a wrapper may refuse more when it is made
                cls(BaseModelWrapper(None), **settings)
            except ValueError as error:
                problems.add(at, str(error))
        try:
            offer = None if offer is None else cls.fit(offer)
        except ValueError as error:
            problems.add(at, str(error))
            offer = None  # what stands outside of it would only repeat this


def _parts(entry: Entry) -> tuple[str, dict[str, Any]]:
    """The name and the settings of an entry of `wrap:`."""
    if isinstance(entry, str):
        return entry, {}
    ((name, settings),) = entry.items()
    return name, dict(settings or {})


def _wrapper_class(name: object) -> type[IModelWrapper]:
    if not isinstance(name, str):
        raise ValueError(f"wrapper_name must be the name of a wrapper, got {name!r}")
    return WRAPPERS.get(name)


def _based(model: object) -> IModelWrapper:
    """``model`` in its innermost wrapper."""
    if isinstance(model, Policy):
        return BaseModelWrapper(ComposedPolicy(model))
    if isinstance(model, type):
        raise ValueError(
            f"a model must be an object, got the class {model.__name__}; make one of it"
        )
    if not callable(getattr(model, "forward", None)):
        raise ValueError(
            f"a model must have a method 'forward', got an object of type {type(model).__name__}"
        )
    return BaseModelWrapper(model)


def _offer(model: IModelWrapper) -> Offer | None:
    """What a chain of wrappers offers, if a composed policy is inside of it."""
    offer = None
    for wrapper in reversed(list(chain(model))):
        if isinstance(wrapper, ComposedPolicy):
            offer = wrapper.offer()
        elif offer is not None:
            offer = type(wrapper).fit(offer)
    return offer
