"""A device "elsewhere" whose numbers are on the CPU: it refuses, as CUDA does, what mixes it with tensors of the CPU.

`elsewhere()` lets everything that is created there, or moved there, be computed by the CPU's own kernels.
"""

from contextlib import contextmanager

import torch
from torch._decomp.decompositions import gru_impl, lstm_impl
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

NAME = "elsewhere"
COPIES = {"aten::_to_copy", "aten::copy_"}
INDEXED = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}


class Moved(torch.Tensor):
    """A tensor of the device "elsewhere"; ``inner`` has its numbers."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=f"{NAME}:0", requires_grad=False,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return Moved(inner["inner"])

    def __repr__(self):
        return f"Moved({self.inner!r})"

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)  # a file has what map_location="cpu" makes of it

    def __deepcopy__(self, memo):
        copied = Moved(self.inner.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class Calls(TorchFunctionMode):
    """What PyTorch would compute by kernels of the device: new tensors of numbers, and the cells of memories."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            return func(*args, **{**kwargs, "device": None}).to(device)
        if func is torch.Tensor.new_tensor:
            return torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}).to(args[0].device)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], without_lists(args[1]), *args[2:])
        if func in CELLS:
            return CELLS[func](*args)
        if func is torch.unravel_index:
            return tuple(
                part.to(args[0].device) for part in func(args[0].cpu(), *args[1:], **kwargs)
            )
        return func(*args, **kwargs)


def without_lists(index):
    """``index`` with lists of numbers as tensors of the CPU, as which CUDA takes them too."""
    if isinstance(index, tuple):
        return tuple(map(without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


def gru_cell(x, h, *weights):
    (r, z, n), (hidden_r, hidden_z, hidden_n) = gates(x, h, weights, 3)
    z, n = torch.sigmoid(z + hidden_z), torch.tanh(n + torch.sigmoid(r + hidden_r) * hidden_n)
    return n + z * (h - n)


def lstm_cell(x, state, *weights):
    hidden, cell = state
    i, f, g, o = (a + b for a, b in zip(*gates(x, hidden, weights, 4), strict=True))
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gates(x, h, weights, count):
    w_x, w_h, b_x, b_h = weights
    parts = functional.linear(x, w_x, b_x), functional.linear(h, w_h, b_h)
    return [part.chunk(count, -1) for part in parts]


CELLS = {
    torch.gru_cell: gru_cell, torch.lstm_cell: lstm_cell, torch.gru: gru_impl, torch.lstm: lstm_impl,
}  # fmt: skip


class Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    flat, form = tree_flatten((args, kwargs))
    moved = [value for value in flat if isinstance(value, Moved)]
    wanted = kwargs.get("device")
    goes = bool(moved) if wanted is None else torch.device(wanted).type == NAME
    if moved:
        refuse_mixed(func, args, flat)
    if goes and wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        flat, form = tree_flatten((args, kwargs))
    wrappers = {id(value.inner): value for value in moved}
    plain = [value.inner if isinstance(value, Moved) else value for value in flat]
    args, kwargs = tree_unflatten(plain, form)
    result = func(*args, **kwargs)
    if func._schema.name == "aten::_to_copy" and wanted is None:
        goes = bool(moved)
    if not goes:
        return result

    def placed(value):
        return wrappers[id(value)] if id(value) in wrappers else Moved(value)

    return tree_map_only(torch.Tensor, placed, result)


def refuse_mixed(func, args, flat):
    name = func._schema.name
    if name in COPIES:
        return
    if name in {each.split(".")[0] for each in INDEXED}:
        flat = [args[0], *args[2:3]]  # indices may be on the CPU
    others = [v for v in flat if isinstance(v, torch.Tensor) and not isinstance(v, Moved)]
    if any(value.dim() for value in others):
        shapes = [tuple(value.shape) for value in others]
        raise RuntimeError(f"{func} takes tensors of two devices; on the CPU are {shapes}")


class Backend(backend_registration._DummyBackendModule):
    def synchronize(self, *_):
        """Nothing: all is computed at once."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


@contextmanager
def elsewhere():
    """The device, for as long as this lasts."""
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    with torch.autograd.set_multithreading_enabled(False), Elsewhere(), Calls():
        yield NAME
