"""The output shapes of a module that does not declare them: one forward on data that is not there.

A copy of the module is run in eval mode: on the meta device, then on fake tensors, then on real zeros, until one works.
No random state moves, and nothing of the module itself changes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from perception_blocks.init import random_states_kept
from perception_blocks.meta import MetaMode
from perception_blocks.port import Port, Shape, format_shape
from perception_blocks.trial_copy import trial_copy

__all__ = ["PROBE_BATCH", "feature_shape", "measure", "measure_lengths", "output_shapes"]
__all__ += ["probing_tensors", "still", "with_length"]

PROBE_BATCH = 11  # an unusual size, so that a batch axis is not mistaken for a feature axis
# They stand for an axis whose length varies; what differs between them varies too.
PROBE_LENGTHS = (5, 7)
MOST_ELEMENTS = 2**28  # numbers that may exist for real while a module is measured
MOST_OF_TORCHS = (
    2**22
)  # and one of torch's own classes, which needs them for the words of its refusal only


@contextmanager
def still() -> Iterator[None]:
    """No gradients, and untouched random states (torch, numpy, random), within the block."""
    with random_states_kept(), torch.no_grad():
        yield


def measure(
    module: nn.Module,
    ports: Sequence[Port],
    call: Callable[..., Any] | None = None,
    length: int = PROBE_LENGTHS[0],
) -> Any:
    """What ``module`` returns for a batch of PROBE_BATCH values of ``ports``, as meta, fake or real tensors.

    A copy of the module is run, in eval mode; the module itself does not change. ``call`` turns that copy and the
    probing tensors into a call (by default they are its positional arguments). Raises what the module raises on real
    zeros: that is what its user would see.
    """
    call = call or _called
    ports = [with_length(port, length) for port in ports]
    with still():
        try:
            return _on_meta(module, ports, call)
        except Exception:  # no meta kernel, or data-dependent code: try the next
            pass
        try:
            return _on_fake(module, ports, call)
        except Exception:
            is_torchs = type(module).__module__.startswith("torch.nn.")
            if _elements(module, ports) > (MOST_OF_TORCHS if is_torchs else MOST_ELEMENTS):
                raise  # checking must not fill the memory
        return _on_zeros(module, ports, call)


def _called(module: nn.Module, *tensors: Tensor) -> Any:
    return module(*tensors)


def measure_lengths(
    module: nn.Module, ports: Sequence[Port], call: Callable[..., Any] | None = None
) -> list[Any]:
    """What `measure` gives: once, or for each of PROBE_LENGTHS where an axis varies."""
    varies = any(None in port.shape for port in ports)
    lengths = PROBE_LENGTHS if varies else PROBE_LENGTHS[:1]
    return [measure(module, ports, call, length) for length in lengths]


def output_shapes(results: Sequence[Any], name: str) -> tuple[list[Shape], bool]:
    """The outputs' shapes without batch axis from what `measure_lengths` gave, and whether there is a single output.

    Raises ValueError where ``name`` returned no tensors or lost the batch axis.
    """
    single = not isinstance(results[0], (tuple, list))
    runs = [[result] if single else list(result) for result in results]
    shapes = [[feature_shape(value, name) for value in run] for run in runs]
    return [_common(variants, name) for variants in zip(*shapes)], single


def _common(variants: Sequence[Shape], name: str) -> Shape:
    """One shape for all lengths: what differs varies."""
    if len({len(shape) for shape in variants}) > 1:
        raise ValueError(f"{name} returned another number of axes for another length of its input")
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*variants))


def feature_shape(value: Any, name: str) -> Shape:
    """The shape of one measured output without its batch axis; says so when the batch axis got lost."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} returned a value of type {type(value).__name__}; a tensor is needed"
        )
    if value.dim() == 0 or value.shape[0] != PROBE_BATCH:
        raise ValueError(
            f"{name} returned {format_shape(value.shape)} for a batch of {PROBE_BATCH}; "
            "the first axis of the output must be the batch axis of the input"
        )
    return tuple(value.shape[1:])


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """No log lines of that logger: a failed attempt is no news, the next one speaks."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _elements(module: nn.Module, ports: Sequence[Port]) -> int:
    state = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() for tensor in state) + sum(math.prod(_sizes(p)) for p in ports)


def _sizes(port: Port) -> list[int]:
    return [PROBE_BATCH, *(size for size in port.shape if size is not None)]


def _probe_dtype(port: Port) -> torch.dtype:
    if port.dtype == torch.bool:
        return torch.bool
    return torch.int64 if port.is_integer else torch.get_default_dtype()


def with_length(port: Port, length: int = PROBE_LENGTHS[0]) -> Port:
    """``port`` with ``length`` for each axis whose length varies."""
    return replace(port, shape=tuple(length if n is None else n for n in port.shape))


def probing_tensors(ports: Sequence[Port], device: str) -> list[Tensor]:
    """A batch of zeros for each of ``ports``, none of whose axes varies."""
    return [torch.zeros(_sizes(port), dtype=_probe_dtype(port), device=device) for port in ports]


def _run(
    module: nn.Module,
    ports: Sequence[Port],
    call: Callable[..., Any],
    device: str,
    to: Callable[[Tensor], Tensor],
) -> Any:
    """What ``call`` makes of a copy of ``module`` whose tensors ``to`` has made."""
    trial = trial_copy(module, to)
    trial.eval()
    return call(trial, *probing_tensors(ports, device))


def _on_meta(module: nn.Module, ports: Sequence[Port], call: Callable[..., Any]) -> Any:
    with MetaMode():
        return _run(module, ports, call, "meta", lambda t: t.detach().to("meta"))


def _on_fake(module: nn.Module, ports: Sequence[Port], call: Callable[..., Any]) -> Any:
    from torch._subclasses import fake_tensor  # takes a third of the time of importing composer

    fakes = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with _silent(fake_tensor.__name__), fakes as mode:
        return _run(module, ports, call, "cpu", lambda t: mode.from_tensor(_on_cpu(t)))


def _on_zeros(module: nn.Module, ports: Sequence[Port], call: Callable[..., Any]) -> Any:
    return _run(module, ports, call, "cpu", lambda t: _on_cpu(t).clone())


def _on_cpu(tensor: Tensor) -> Tensor:
    """Weights that do not exist yet are ones: zeros would make a division by a norm fail."""
    if tensor.device.type == "meta":
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    return tensor.detach().cpu()
