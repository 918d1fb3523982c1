"""Networks without actions in checkpoints: what goes in and comes out stands in the spec that is saved with them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path as FilePath

import torch

from composer.build.composed_network import ComposedNetwork, compose_network
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import (
    fill,
    read_record,
    read_tensors,
    require_blocks,
    restore_gradients,
)
from composer.limits import GivenLimits
from composer.source.load import stored_source
from composer.spec.top_level import is_network
from composer.trust import allow_list, import_allowed

__all__ = ["load_network"]


def load_network(
    path: str | FilePath,
    allow: Iterable[str] = (),
    *,
    device: torch.device | str = "cpu",
    limits: GivenLimits = None,
) -> ComposedNetwork:
    """Load the network that ``network.save(path)`` wrote. ``allow`` names the modules of the classes that it uses.

    ``limits`` are as for `compose_network`.

    Raises CheckpointError for a damaged or foreign file, for a model, for blocks that are not registered and for
    weights that do not fit, and SpecError for a class that is not allowed.
    """
    allow = allow_list(allow)
    record = read_record(path)
    import_allowed(allow)
    require_blocks(record)
    source = stored_source(record.spec, path)
    if not is_network(source.data):
        raise CheckpointError(f"{os.fspath(path)!r} is a model, which composer.load loads")
    dtype = getattr(torch, record.dtype)
    network = compose_network(
        source, allow=allow, device=device, dtype=dtype, seed=record.seed, limits=limits
    )
    fill(network, read_tensors(path, record), strict=True, advice="the file is of another network")
    restore_gradients(network, record)
    return network
