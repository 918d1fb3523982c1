"""The processes that torchrun starts, as one `Mesh`; and torchrun itself, for `composer prove`.

Nothing here or elsewhere in the room sends objects between processes: they are pickled. Numbers go as tensors.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from composer.atomic import lock
from perception_blocks.words import did_you_mean, listing

__all__ = ["Mesh", "end_with_starter", "run_processes", "start"]

BACKENDS = ("gloo", "nccl")
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STORE = "COMPOSER_PROVE_STORE"  # the file by which the processes of a proof find one another
LOCK = "lock"  # a file that is locked as long as the process that started the others runs
ENDING_S = 10.0  # how long processes may take to end once they were told to


@dataclass
class Mesh:
    """The processes of this run: this one is number ``rank`` of ``size``, and calculates on ``device``.

    Without torchrun there is one process and no ``backend``: models stay whole. As a context manager, or by `stop`, it
    leaves the process group.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backend: str | None = None
    _grids: dict[tuple[int, int], DeviceMesh] = field(default_factory=dict, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def grid(self, data: int, tensor: int) -> DeviceMesh:
        """The processes as PyTorch's mesh with the axes "data" and "tensor"."""
        if (data, tensor) not in self._grids:
            self._grids[data, tensor] = init_device_mesh(
                self.device.type, (data, tensor), mesh_dim_names=("data", "tensor")
            )
        return self._grids[data, tensor]

    def agreed(self, number: int) -> int:
        """The ``number`` of the first process, on all of them."""
        if self.backend is None:
            return number
        tensor = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, 0)
        return int(tensor)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each of these over all processes, which wait for one another."""
        if self.backend is None:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def stop(self) -> None:
        """Leave the process group; models that were sharded can no longer be used."""
        global _started
        if self.backend is not None and dist.is_initialized():
            dist.destroy_process_group()
        _started = None

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


_started: Mesh | None = None


def start(backend: str | None = None) -> Mesh:
    """Join the processes that torchrun has started; once there, return the same `Mesh` again.

    ``backend`` is nccl where there is a GPU, else gloo. A process that torchrun has not started is alone, and opens no
    connection. On one machine all connections are on its loopback interface.

    Raises ValueError for an unknown backend and where torchrun's variables are incomplete.
    """
    global _started
    if backend not in (None, *BACKENDS):
        near = did_you_mean(str(backend), BACKENDS)
        raise ValueError(f"'backend' must be one of {listing(BACKENDS)}, got {backend!r}{near}")
    if _started is not None:
        if backend not in (None, _started.backend):
            raise ValueError(
                f"the processes have been started with the backend {_started.backend!r} already"
            )
        return _started
    if not dist.is_initialized():
        if not {"RANK", "WORLD_SIZE"} & set(os.environ):
            _started = Mesh()
            return _started
        _join(backend or ("nccl" if torch.cuda.is_available() else "gloo"))
    _started = _mesh()
    return _started


def _mesh() -> Mesh:
    """Of the process group that there is."""
    backend = str(dist.get_backend())
    device = torch.device("cpu")
    if "nccl" in backend:
        device = torch.device("cuda", torch.cuda.current_device())
    return Mesh(dist.get_rank(), dist.get_world_size(), device, backend)


def _join(backend: str) -> None:
    path = os.environ.get(STORE)
    missing = [n for n in NEEDED if n not in os.environ and not (path and n.startswith("MASTER"))]
    if missing:
        raise ValueError(
            f"torchrun's variables are incomplete, {listing(missing)} is missing; start this program with "
            "torchrun --nproc-per-node 2 script.py"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("LOCAL_WORLD_SIZE", str(size)) == str(size):
        _stay_on_this_machine()
    options: dict[str, Any] = {}
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(device)
        options["device_id"] = device
    if path:
        options |= {"store": FileStore(path, size), "rank": rank, "world_size": size}
    dist.init_process_group(backend, **options)


def _stay_on_this_machine() -> None:
    """Connections between processes go through the loopback interface, unless the caller has said otherwise."""
    names = [name for _, name in socket.if_nameindex()]
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def run_processes(module: str, arguments: Sequence[str], count: int, folder: Path) -> str:
    """Let torchrun run ``python -P -m module`` ``count`` times; returns what it said, once all have ended.

    They meet through files in ``folder``, not through a port. They import nothing from the current folder, and end with
    this process, however it ends, if they call `end_with_starter`.
    """
    python = [sys.executable, "-P", "-m"]
    places = ["--rdzv-endpoint", str(folder / "rendezvous"), "--log-dir", str(folder / "logs")]
    how = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--local-addr", "127.0.0.1"]
    torchrun = [*python, "torch.distributed.run", "--nproc-per-node", str(count), *how, *places]
    command = [*torchrun, "--no-python", *python, module, *arguments]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONSAFEPATH": "1", STORE: str(folder / "store")}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # which would listen on all interfaces
    environment.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, with a warning
    with (
        _lock_held(folder),
        _sigterm_raises(),
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            said, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
    return said.decode(errors="replace")


@contextlib.contextmanager
def _lock_held(folder: Path) -> Iterator[None]:
    """Hold a lock in ``folder``, which the system takes from this process when it ends, even if it is killed."""
    with open(folder / LOCK, "wb") as file:
        lock(file.fileno())
        yield


def end_with_starter(folder: Path) -> None:
    """Let this process end when the one that called `run_processes` with this ``folder`` has ended."""

    def wait() -> None:
        with contextlib.suppress(OSError), open(folder / LOCK, "rb") as file:
            if lock(file.fileno(), shared=True):
                os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends this process by an exception, so that what it has started ends too."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let torchrun end its processes, and then end itself."""
    process.terminate()
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
