"""States of memory for tests that do not care how one came about."""

from collections.abc import Mapping

import torch
from torch import Tensor


def random_state(shapes: Mapping[str, tuple], *leading: int) -> dict[str, Tensor]:
    """Random numbers; a ``length`` counts the tokens of a decoder's cache, so it is a small count in digits."""
    state = {name: torch.randn(*leading, *shape) for name, shape in shapes.items()}
    for name, part in state.items():
        if name.rpartition("/")[2] == "length":
            part.zero_()[..., -1] = torch.randint(3, leading)
    return state
