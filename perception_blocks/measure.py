"""The output shapes of a module that does not declare them: one forward on tensors without data.

A copy of the module is run in eval mode: on the meta device, then on fake tensors, then on real zeros, until one works.
No random state moves, and nothing of the module itself changes.
"""

from __future__ import annotations

import functools
import logging
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from perception_blocks.port import Port, Shape, format_shape
from perception_blocks.random_states import random_states_kept
from perception_blocks.trial_copy import trial_copy

__all__ = [
    "PROBE_BATCH",
    "Measured",
    "check_one_row",
    "feature_shape",
    "for_one_row",
    "initialize_lazy",
    "measure",
    "measure_lengths",
    "output_shapes",
    "probing_tensors",
    "still",
    "with_length",
    "MetaMode",
]

# They change values only, which meta tensors do not have.
_DRAWS = {
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.constant_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
}
# They keep the shape. To find that out, torch works in Python on means and variances, and imports its compiler for it.
_NORMS = {functional.layer_norm, functional.rms_norm}

PROBE_BATCH = 11  # an unusual size, so that a batch axis is not mistaken for a feature axis
# They stand for an axis whose length varies; what differs between them varies too.
PROBE_LENGTHS = (5, 7)
Probes: TypeAlias = Callable[[str], list[Tensor]]  # probing tensors on a device
MOST_ELEMENTS = 2**28  # numbers that may exist for real while a module is measured
MOST_OF_TORCHS = (
    2**22
)  # the same for torch's own classes, which run for real for an error message only


@contextmanager
def still() -> Iterator[None]:
    """No gradients, and untouched random states (torch, numpy, random), within the block."""
    with random_states_kept(), torch.no_grad():
        yield


def measure(
    module: nn.Module,
    ports: Sequence[Port],
    call: Callable[..., object] | None = None,
    length: int = PROBE_LENGTHS[0],
    batch: int = PROBE_BATCH,
) -> Any:
    """What ``module`` returns for a ``batch`` of values of ``ports``, as meta, fake or real tensors.

    A copy of the module is run, in eval mode; the module itself does not change, but for lazy layers, which get their
    weights. ``call`` turns that copy and the probing tensors into a call (by default they are its positional
    arguments). Raises what the module raises on real zeros: that is what its user would see.
    """
    call = call or operator.call
    initialize_lazy(module, ports, call)
    probes = functools.partial(probing_tensors, ports, length=length, batch=batch)
    with still():
        try:
            with MetaMode():
                return _run(module, call, lambda t: t.detach().to("meta"), probes("meta"))
        except Exception:  # no meta kernel, or data-dependent code: try the next
            pass
        try:
            return _on_fake(module, probes, call)
        except Exception:
            is_torchs = type(module).__module__.startswith("torch.nn.")
            if _elements(module, probes) > (MOST_OF_TORCHS if is_torchs else MOST_ELEMENTS):
                raise  # checking must not fill the memory
        return _run(module, call, lambda t: _on_cpu(t).clone(), probes("cpu"))


@dataclass(frozen=True)
class Measured:
    """What a module returned: for each of the lengths, and for a single row; None where it is not run on one."""

    runs: list[object]
    one_row: object


def measure_lengths(
    module: nn.Module, ports: Sequence[Port], call: Callable[..., object] | None = None
) -> Measured:
    """What `measure` gives: once, or for each of PROBE_LENGTHS where an axis varies, and for a batch of one."""
    varies = any(None in port.shape for port in ports)
    lengths = PROBE_LENGTHS if varies else PROBE_LENGTHS[:1]
    with still():
        runs = [measure(module, ports, call, length) for length in lengths]
        if all(type(inner).__module__.startswith("torch.") for inner in module.modules()):
            return Measured(runs, None)  # torch's classes drop no axis
        return Measured(runs, for_one_row(lambda: measure(module, ports, call, batch=1)))


def for_one_row(run: Callable[[], object]) -> object:
    """What ``run`` returns; None where it fails: what needs several rows says so itself, whenever it is called."""
    try:
        return run()
    except Exception:
        return None


def initialize_lazy(
    module: nn.Module, ports: Sequence[Port], call: Callable[..., object] | None = None
) -> None:
    """Give the lazy layers of ``module`` their weights, as its first call would."""
    lazy = _lazy_tensors(module)
    if not lazy:
        return
    modes = [(inner, inner.training) for inner in module.modules()]
    device = next(iter(lazy.values())).device
    module.eval()
    try:
        with torch.no_grad():
            (call or operator.call)(module, *probing_tensors(ports, device))
    finally:
        for inner, mode in modes:
            inner.training = mode
    left = ", ".join(map(repr, _lazy_tensors(module)))
    if left:
        label = type(module).__name__
        raise ValueError(f"forward of {label} does not reach {left}; give its lazy layer its sizes")


def _lazy_tensors(module: nn.Module) -> dict[str, Tensor]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor for name, tensor in named if is_lazy(tensor)}


def output_shapes(measured: Measured, name: str) -> tuple[list[Shape], bool]:
    """The outputs' shapes without batch axis from what `measure_lengths` gave, and whether there is a single output.

    Raises ValueError where ``name`` returned no tensors or lost the batch axis.
    """
    runs = list(map(_outputs, measured.runs))
    shapes = [[feature_shape(value, name) for value in run] for run in runs]
    if measured.one_row is not None:
        for value, like in zip(_outputs(measured.one_row), runs[0]):
            check_one_row(value, like, name)
    single = not isinstance(measured.runs[0], (tuple, list))
    return [_common(variants, name) for variants in zip(*shapes)], single


def _outputs(result: object) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _common(variants: Sequence[Shape], name: str) -> Shape:
    """The shape for all lengths: an axis whose size differs is None."""
    if len({len(shape) for shape in variants}) > 1:
        raise ValueError(f"{name} returned another number of axes for another length of its input")
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*variants))


def feature_shape(value: object, name: str, batch: int = PROBE_BATCH) -> Shape:
    """The shape of one measured output without its batch axis; says so when the batch axis got lost."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} returned a value of type {type(value).__name__}; a tensor is needed"
        )
    if value.dim() == 0 or value.shape[0] != batch:
        alone = ", of a single sample too: squeeze(-1) keeps it, squeeze() does not"
        raise ValueError(
            f"{name} returned {format_shape(value.shape)} for a batch of {batch}; "
            f"the first axis of the output must be the batch axis of the input{alone if batch == 1 else ''}"
        )
    return tuple(value.shape[1:])


def check_one_row(value: Any, like: Tensor, name: str) -> None:
    """Raise ValueError where an output for one row has another shape than one of ``like``, which is for PROBE_BATCH."""
    if feature_shape(value, name, 1) != tuple(like.shape[1:]):
        shown = f"{format_shape(value.shape)} for a batch of 1"
        raise ValueError(
            f"{name} returned {shown} and {format_shape(like.shape)} for a batch of {PROBE_BATCH}; "
            "what it returns for a sample must not depend on the others"
        )


class _SilentThreads(threading.local):
    """A filter that drops the log records of threads in which an attempt runs."""

    active = False

    def __call__(self, record: logging.LogRecord) -> bool:
        return not self.active


_SILENT = _SilentThreads()


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Silence the logger ``name`` in this thread: a failed attempt is not worth a log line."""
    logging.getLogger(name).addFilter(_SILENT)
    before, _SILENT.active = _SILENT.active, True
    try:
        yield
    finally:
        _SILENT.active = before


def _elements(module: nn.Module, probes: Probes) -> int:
    tensors = (*module.parameters(), *module.buffers(), *probes("meta"))
    return sum(tensor.numel() for tensor in tensors)


def _probe_dtype(port: Port) -> torch.dtype:
    if port.dtype == torch.bool:
        return torch.bool
    return torch.int64 if port.is_integer else torch.get_default_dtype()


def with_length(port: Port, length: int = PROBE_LENGTHS[0]) -> Port:
    """``port`` with ``length`` for each axis whose length varies."""
    return replace(port, shape=tuple(length if n is None else n for n in port.shape))


def probing_tensors(
    ports: Sequence[Port],
    device: torch.device | str,
    length: int = PROBE_LENGTHS[0],
    batch: int = PROBE_BATCH,
) -> list[Tensor]:
    """A batch of zeros for each of ``ports``, with ``length`` for each axis whose length varies."""
    shapes = [with_length(port, length).shape for port in ports]
    return [
        torch.zeros((batch, *shape), dtype=_probe_dtype(port), device=device)  # type: ignore[arg-type]
        for port, shape in zip(ports, shapes)
    ]


def _run(
    module: nn.Module,
    call: Callable[..., object],
    to: Callable[[Tensor], Tensor],
    tensors: list[Tensor],
) -> object:
    """The result of ``call`` on a copy of ``module`` with its tensors converted by ``to``."""
    trial = trial_copy(module, to)
    trial.eval()
    return call(trial, *tensors)


def _on_fake(module: nn.Module, probes: Probes, call: Callable[..., object]) -> object:
    from torch._subclasses import fake_tensor  # takes a third of the time of importing composer

    fakes = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with _silent(fake_tensor.__name__), fakes as mode:
        return _run(module, call, lambda t: mode.from_tensor(_on_cpu(t)), probes("cpu"))


def _on_cpu(tensor: Tensor) -> Tensor:
    """Weights that do not exist yet are ones: zeros would make a division by a norm fail."""
    if tensor.device.type == "meta":
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    return tensor.detach().cpu()


class MetaMode(TorchFunctionMode):
    """As ``with torch.device("meta")``, where weights are not drawn and norms cost nothing.

    ``on_new`` is called with every tensor that a constructor of torch creates.
    """

    def __init__(self, on_new: Callable[[Tensor], object] | None = None) -> None:
        super().__init__()
        self._on_new = on_new

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        elif func in _NORMS:
            normed = _normed(*args, **kwargs)
            if normed is not None:
                return normed
        elif func in _device_constructors():
            if kwargs.get("device") is None:
                kwargs["device"] = "meta"
            tensor = func(*args, **kwargs)
            if self._on_new is not None:
                self._on_new(tensor)
            return tensor
        return func(*args, **kwargs)


def _normed(
    x: Tensor, normalized_shape: Iterable[int], *args: object, **kwargs: object
) -> Tensor | None:
    """A norm's output for a meta ``x`` of the right shape; None where torch itself must run or raise."""
    sizes = tuple(normalized_shape)
    if not x.is_meta or tuple(x.shape[x.dim() - len(sizes) :]) != sizes:
        return None
    return torch.empty(x.shape, dtype=x.dtype, device="meta")
