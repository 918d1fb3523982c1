"""What a CUDA graph cannot hold: the host waiting for a value, and shapes that depend on values."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class NoHostReads(TorchDispatchMode):
    """While it is on, an operation of that kind is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(REFUSED), f"{func} waits for the device"
        if name == "index":
            kinds = [index.dtype for index in args[1] if index is not None]
            assert torch.bool not in kinds, f"the shape of {func} depends on values"
        return func(*args, **(kwargs or {}))
