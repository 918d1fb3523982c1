"""What a model cannot do while its weights are spread over processes, in words."""

from __future__ import annotations

from torch import nn

__all__ = ["mark_sharded", "refuse_sharded"]

_MARK = "is_sharded"


def mark_sharded(module: nn.Module) -> None:
    """Say of ``module`` that its weights are spread over processes from now on."""
    vars(module)[_MARK] = True


def refuse_sharded(module: nn.Module, what: str) -> None:
    """Raise ValueError if the weights of ``module`` are spread over processes, where ``what`` is not possible."""
    if _MARK in vars(module):
        raise ValueError(
            f"{what} needs all weights in one process, and those of this model are sharded; "
            "save it with model.save(path), and use composer.load(path) in a process of its own"
        )
