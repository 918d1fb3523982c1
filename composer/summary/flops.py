"""The FLOPs of a module, counted in one forward on tensors without data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perception_blocks.measure import PROBE_BATCH, measure
from perception_blocks.port import Port

__all__ = ["count_flops", "flops_of"]


def count_flops(
    module: nn.Module, ports: Sequence[Port], call: Callable[..., object] | None = None
) -> dict[str, int] | None:
    """FLOPs of ``module`` for one observation: ``""`` is the whole, ``"body"`` its child of that name, ``"body.0"`` ...

    A multiply-add counts as two. Matrix products, convolutions and attention are counted, operations on elements are
    not. Nothing is allocated, and neither the module nor a random state changes (see `measure`, also for ``call``).
    None if a length varies, or if the module does not run on such data.
    """
    if any(size is None for port in ports for size in port.shape):
        return None
    counts: dict[str, dict[Callable[..., object], int]] = {}

    def counted(trial: nn.Module, *tensors: Tensor) -> object:
        with FlopCounterMode(display=False) as counter:
            result = trial(*tensors) if call is None else call(trial, *tensors)
        counts.update(counter.get_flop_counts())
        return result

    try:
        measure(module, ports, counted)
    except Exception:  # a user's module may need what only its own forward knows: claim nothing
        return None
    totals: dict[str, int] = defaultdict(int, {"": 0})
    for name, by_operation in counts.items():  # "Global", "Class", "Class.child", "Class.child.0"
        if name == "Global":
            totals[""] += sum(by_operation.values()) // PROBE_BATCH
        elif "." in name:
            totals[name.partition(".")[2]] += sum(by_operation.values()) // PROBE_BATCH
    return dict(totals)


def flops_of(counts: dict[str, int], name: str) -> int:
    """The FLOPs in ``counts`` of the child ``name``; if it is never called itself, of the children inside it."""
    if name in counts:
        return counts[name]
    inside = [key for key in counts if key.startswith(f"{name}.")]
    outermost = (k for k in inside if not any(k.startswith(f"{other}.") for other in inside))
    return sum(counts[key] for key in outermost)
