"""The base classes of distributions, and their checks of actions.

A family (`ActionDistribution`) is chosen for each action of the space; called with logits it returns a `Distribution`.
The families are in `discrete`, `continuous` and `deterministic`; users register others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from composer.distributions.candidates import Candidates, padded, refuse_no_count
from composer.spaces.kinds import Leaf
from composer.spaces.tree import format_space
from composer.spaces.values import on_host
from perception_blocks.port import format_shape
from perception_blocks.registry import Registry
from perception_blocks.words import hint, listing

__all__ = ["DISTRIBUTIONS", "ActionDistribution", "Distribution", "NoNumberError", "AS_SAMPLED"]
__all__ += ["ENVIRONMENTS_ACTION", "all_finite", "check_action", "check_family", "event_sum"]
__all__ += ["check_temperature", "default_distribution", "floor_of", "index_text", "is_bounded"]
__all__ += ["limits_text", "misfit", "no_action_to_mask", "no_mask_given", "refuse_actions"]
__all__ += ["sum_of", "wide", "with_observation"]

ENVIRONMENTS_ACTION = "policy.from_environment(action) makes it of an environment's action"
AS_SAMPLED = "log_prob takes actions as sample() gives them"
FEW_NUMBERS = 32

DISTRIBUTIONS = Registry("distribution")
"""Families of distributions by name."""
DISTRIBUTIONS.register_all(
    "composer.distributions.discrete",
    {
        "categorical": "Categorical",
        "multi_categorical": "MultiCategorical",
        "bernoulli": "Bernoulli",
    },
)
DISTRIBUTIONS.register_all(
    "composer.distributions.continuous",
    {"gaussian": "Gaussian", "squashed_gaussian": "SquashedGaussian"},
)
DISTRIBUTIONS.register_all("composer.distributions.beta", {"beta": "Beta"})
DISTRIBUTIONS.register_all("composer.distributions.gsde", {"gsde": "GSDE"})
DISTRIBUTIONS.register_all(
    "composer.distributions.deterministic", {"deterministic": "Deterministic"}
)


class Distribution(ABC):
    """A batch of distributions over one action. Actions are (..., *action shape), zero-based or on the Box's scale.

    ``log_prob``, ``entropy`` and ``kl`` are sums over the action's dimensions, shape (...). They raise ValueError where
    ``has_density`` is False.
    """

    has_density: bool = True

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A sample, without gradient."""

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """A reparametrised sample, with gradient. Raises ValueError if the distribution has none."""
        raise ValueError(f"{type(self).__name__} has no reparametrised sample; use sample()")

    @abstractmethod
    def mode(self) -> Tensor:
        """The action that a deterministic policy takes."""

    @abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """The log probability (density, for a Box) of ``action``."""

    def log_prob_of_draw(self, action: Any) -> Tensor:
        """`log_prob` of what `sample` or `mode` of this very distribution returned: it need not be looked at."""
        return self.log_prob(action)

    @abstractmethod
    def entropy(self) -> Tensor:
        """The entropy in nats; of continuous actions the differential entropy."""

    @abstractmethod
    def kl(self, other: Any) -> Tensor:
        """The divergence from this to ``other``, a distribution of the same family."""

    def top_k(self, k: int) -> Candidates:
        """The ``k`` most likely actions, best first, and their log-probabilities: exact, joint, on a new first axis.

        Choices that are masked or have no probability are never among them. Where fewer are left, the log-probability
        of the rest is minus infinity. An action of a continuous distribution has one candidate, its mode.
        """
        refuse_no_count(k)
        action = self.mode()
        return padded(action, self.log_prob_of_draw(action), k)

    def row(self) -> Tensor:
        """The numbers that stand for this distribution, (..., P), without weights, observations and masks.

        `Policy.distribution_of_row` makes the distribution of them again. Raises ValueError for a distribution that has
        no such row.
        """
        raise ValueError(
            f"{type(self).__name__} has no row of numbers that stands for it; define row() in it, and row_width and "
            "of_row(row) in its family"
        )


class ActionDistribution(nn.Module):
    """A family of distributions for one action: ``Family(leaf, **settings)``; logits (..., k) -> `Distribution`.

    A subclass gives the width of its head, ``super().__init__(leaf, width)``, and reads logits in ``forward``.
    Logits narrower than float32 are widened before any density is computed. Minus infinity, in a
    family that ``allows_minus_infinity``, is a choice that is never taken.
    """

    allows_minus_infinity = True
    has_density = True  # whether its distributions have; as `Distribution.has_density`
    holds_noise = False  # whether `hold_noise` can keep the noise of samples from step to step
    stays_within = False  # whether samples are always within the bounds of a Box

    def __init__(self, leaf: Leaf, width: int) -> None:
        super().__init__()
        self.key = leaf.key
        self.action_shape = leaf.shape
        self.logits_shape = (width,)
        self._constants: dict[str, tuple[Sequence[object] | float, torch.dtype]] = {}

    def forward(
        self, logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0
    ) -> Distribution:
        """``temperature`` below 1 sharpens. ``mask`` has the shape of the logits; 1 or true is legal."""
        raise TypeError(f"{type(self).__name__} must define forward(logits, mask, temperature)")

    @property
    def row_width(self) -> int:
        """How many numbers `Distribution.row` gives for this action."""
        return self.logits_shape[0]

    def of_row(self, row: Tensor) -> Distribution:
        """The distribution whose `Distribution.row` is ``row`` (..., row_width)."""
        raise ValueError(
            f"{type(self).__name__} makes no distribution of a row of numbers; define row_width and of_row(row) in it"
        )

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise the parameters of the family; most families have none."""

    def hold_noise(self, batch_size: int, generator: torch.Generator | None = None) -> None:
        """Draw the noise of samples, and keep it until it is drawn again or released, where it ``holds_noise``."""
        raise TypeError(f"{type(self).__name__} draws fresh noise for every sample")

    def release_noise(self) -> None:
        """Draw fresh noise for every sample again."""

    def refuse_no_numbers(self, logits: Tensor) -> None:
        """Raise NoNumberError for ``logits`` or parameters that are NaN or infinite, where `on_host` allows a look.

        Call this before you call the family for an action.
        """
        if on_host(logits):
            self.refuse_no_logits(logits)
            self.refuse_no_parameters()

    def refuse_no_logits(self, logits: Tensor) -> None:
        """As `refuse_no_numbers`, of ``logits`` alone, wherever they are."""
        if not all_finite(logits):
            wrong = self.wrong_logits(logits)
            if bool(wrong.any()):
                raise NoNumberError(
                    f"the logits of action {self.key!r} are NaN or infinite{index_text(wrong)}; "
                    "look for NaN in the observations, the state and the weights"
                )

    def refuse_no_parameters(self) -> None:
        """As `refuse_no_numbers`, of the parameters alone."""
        if self._parameters or self._modules:  # most families have none
            # Without children the parameters are at hand; named_parameters() takes longer than the look.
            parameters = self.named_parameters() if self._modules else self._parameters.items()
            for name, parameter in parameters:
                if parameter is None:
                    continue
                if on_host(parameter.data) and not all_finite(parameter):
                    raise NoNumberError(
                        f"the parameter {name!r} of action {self.key!r} is NaN or infinite"
                        f"{index_text(~parameter.isfinite())}; go back to weights from before that, "
                        "with a lower learning rate or clipped gradients"
                    )

    def wrong_logits(self, logits: Tensor) -> Tensor:
        """The logits that the family cannot read, as booleans; called if some are not finite."""
        if self.allows_minus_infinity:
            return logits.isnan() | (logits == math.inf)
        return ~logits.isfinite()

    def constant(self, name: str, value: Sequence[object] | float, dtype: torch.dtype) -> None:
        """Keep ``value`` as a tensor that moves with the module, but is never cast, saved or left uninitialised."""
        self._constants[name] = (value, dtype)
        self.register_buffer(name, torch.tensor(value, dtype=dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ActionDistribution:
        super()._apply(fn, recurse)
        for name, (value, dtype) in self._constants.items():
            device = self._buffers[name].device  # type: ignore[union-attr]
            self._buffers[name] = torch.tensor(value, dtype=dtype, device=device)
        return self

    def extra_repr(self) -> str:
        return f"{self.key!r}, logits={self.logits_shape}, action={self.action_shape}"


_DEFAULTS = {
    "discrete": "categorical",
    "multi_discrete": "multi_categorical",
    "multi_binary": "bernoulli",
}


def default_distribution(leaf: Leaf) -> str:
    """The name of the family of an action without a rule."""
    if leaf.kind == "box":
        return "squashed_gaussian" if is_bounded(leaf) else "gaussian"
    return _DEFAULTS[leaf.kind]


def is_bounded(leaf: Leaf) -> bool:
    """Whether ``leaf`` is a Box whose bounds are all finite."""
    bounds = (leaf.port.low, leaf.port.high)
    return leaf.kind == "box" and all(b is not None and _bounded(b) for b in bounds)


def _bounded(bound: float | tuple) -> bool:
    return all(map(_bounded, bound)) if isinstance(bound, tuple) else math.isfinite(bound)


def misfit(name: str, leaf: Leaf, needs: str) -> ValueError:
    """The error of a family that does not fit the space of an action."""
    instead = default_distribution(leaf)
    return ValueError(
        f"distribution {name!r} needs {needs}, got {format_space(leaf.space)} for {leaf.key!r}; use {instead!r}"
    )


def wide(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 if it is in half precision, where densities are noise."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def check_temperature(temperature: float | Tensor) -> None:
    """Raise ValueError unless it is positive and finite; a tensor is checked where `on_host` allows it."""
    if not isinstance(temperature, Tensor):
        right = 0 < temperature < math.inf
    else:
        positive = (temperature > 0) & temperature.isfinite()
        right = not on_host(temperature) or bool(positive.all())
    if not right:
        raise ValueError(
            f"temperature must be positive and finite, got {temperature}; a deterministic policy takes mode()"
        )


class NoNumberError(ValueError):
    """Logits that are NaN or infinite; the message names their action."""


def with_observation(error: NoNumberError, inputs: Mapping[str, Tensor]) -> NoNumberError:
    """``error`` with the first of the observations ``inputs`` that is NaN or infinite, if there is one."""
    for key, value in inputs.items():
        wrong = ~value.isfinite()
        if bool(wrong.any()):
            first = value[wrong][0].item()
            return NoNumberError(f"{error}; the observation {key!r} is {first}{index_text(wrong)}")
    return error


def all_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; also False if only their sum is not."""
    few = tensor.dim() == 1 and tensor.numel() <= FEW_NUMBERS  # Python adds them up in less time
    total = sum(tensor.tolist()) if few else tensor.sum().item()
    return total - total == 0


def no_mask_given(key: str, observation: str, single: bool) -> str:
    """The message for logits without their mask, where the spec has one."""
    joint = f"; samples of that are dicts, {{{key!r}: action}}" if single else ""
    return (
        f"the spec masks action {key!r} by the observation {observation!r}, which logits do not contain; "
        "policy.distribution(observations) reads it, or pass it: "
        f"policy.distributions(logits, masks={{{key!r}: mask}}), None for no mask{joint}"
    )


def no_action_to_mask(name: object, actions: Iterable[str]) -> str:
    """The message about a mask for a name that is no action."""
    return f"there is no action {name!r} to mask{hint(name, actions)}"


def floor_of(dtype: torch.dtype) -> float:
    """A finite log-probability of the impossible: its exp is 0, and the sum of a million of them is finite."""
    return torch.finfo(dtype).min / 2**20


def refuse_actions(
    action: Tensor,
    wrong: Tensor,
    expected: Callable[[tuple[int, ...]], str],
    key: str,
    way_out: str = AS_SAMPLED,
) -> None:
    """Raise ValueError for the first action that is ``wrong``; ``expected`` has the right values at its index.

    ``way_out`` is the advice about a finite number; NaN and infinity get other advice.
    """
    if bool(wrong.any()):
        index = tuple(wrong.nonzero()[0].tolist())
        value = action.expand(wrong.shape)[index].item()
        if not math.isfinite(value):
            way_out = "look for NaN and infinity where the action is from"
        raise ValueError(
            f"action {key!r} is {value:.7g}{index_text(wrong)}, expected {expected(index)}; {way_out}"
        )


def limits_text(
    low: float | Tensor, high: float | Tensor, shape: Sequence[int], index: tuple[int, ...]
) -> str:
    """The bounds at ``index`` of values of ``shape``: ``0 to 3``."""
    least, most = (torch.as_tensor(limit).expand(shape)[index].item() for limit in (low, high))
    return f"{least:g} to {most:g}"


def index_text(wrong: Tensor) -> str:
    """The index of the first true entry of ``wrong``, for a message."""
    index = tuple(wrong.nonzero()[0].tolist())
    return f" at index {index}" if index else ""


def check_family(this: Distribution, other: object) -> None:
    """Raise ValueError unless ``other`` is a distribution of the same family."""
    if type(other) is not type(this):
        name, got = type(this).__name__, type(other).__name__
        raise ValueError(f"kl of a {name} is to another one, got a {got}")


def check_action(action: object, shape: Sequence[int], event_dims: int) -> None:
    """Raise ValueError unless ``action`` is one for a distribution of batch and action axes ``shape``.

    Batch axes may be broadcast, but not actions (B, 1) with a batch (B,): the result would be (B, B).
    """
    if isinstance(action, Mapping):
        raise ValueError(
            f"log_prob takes the tensor of one action, got a {type(action).__name__} of {listing(action)}; "
            "give the value of this action"
        )
    if not isinstance(action, Tensor):
        raise ValueError(
            f"log_prob takes what sample() gives, a tensor, got a {type(action).__name__}; "
            f"{ENVIRONMENTS_ACTION}"
        )
    if action.is_complex():
        raise ValueError(f"an action of this distribution is of real numbers, got {action.dtype}")
    batch_dims, first = max(action.dim() - event_dims, 0), len(shape) - event_dims
    one_axis_more = not event_dims and len(shape) > 0 and action.shape == (*shape, 1)
    if action.shape[batch_dims:] != shape[first:] or one_axis_more:
        expected, got = format_shape(tuple(shape)), format_shape(tuple(action.shape))
        raise ValueError(f"an action of this distribution has the shape {expected}, got {got}")
    for size, batch in zip(
        reversed(action.shape[:batch_dims]), reversed(shape[:first]), strict=False
    ):
        if size != batch and size != 1 and batch != 1:
            expected, got = format_shape(tuple(shape)), format_shape(tuple(action.shape))
            raise ValueError(f"actions of the shape {got} are no batch for this one, {expected}")


def event_sum(values: Tensor, event_dims: int) -> Tensor:
    """The sum over the last ``event_dims`` axes."""
    if event_dims > 1:
        values = values.flatten(-event_dims)
    return values.sum(-1) if event_dims else values


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """The sum of one value (...) of each action."""
    total = None
    for value in values:
        total = value if total is None else total + value
    if total is None:
        raise ValueError("the action space has no actions")
    return total
