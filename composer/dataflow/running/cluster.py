"""A Ray that says nothing and listens to nobody: started on this machine, or one that is there already."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from types import ModuleType

from composer.adapters.local_ray import (
    LOCAL,
    QUIET,
    environment,
    silence,
    start,
    stay_on_this_machine,
)
from composer.dataflow.running.schedule import RunError
from perception_blocks.registry import missing_extra
from perception_blocks.words import cut

__all__ = ["connect", "import_ray"]

ANSWERS_S = 5.0  # within which a cluster answers
# The first bytes of a client of HTTP/2, which gRPC is: its preface and empty settings. A server answers with its own.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4  # the kind of a frame, its fourth byte


def import_ray() -> ModuleType:
    """Raises MissingExtraError where it is not installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise missing_extra("--runner ray", error, "ray") from error
    return ray


def connect(address: str | None, workers: int) -> Callable[[], None]:
    """Connect this process to Ray, unless it is; returns what ends the connection.

    Without an ``address`` a cluster is started that ends with this process; its servers listen on the loopback
    interface. With one, such as ``10.0.0.7:6379`` or ``auto``, it is left running.

    Raises RunError where there is no such cluster, it is too small, or Ray cannot be started.
    """
    is_local = address is None or _is_on_loopback_alone(address)
    with environment(LOCAL | QUIET if is_local else QUIET):
        ray = import_ray()
        if is_local:
            stay_on_this_machine()
        if ray.is_initialized():
            _refuse_another(ray, address)
            if address:
                _refuse_small(ray, workers)
            return lambda: None
        if address not in (None, "auto"):
            _refuse_no_cluster(str(address))
        try:
            if address is None:
                return start(workers)
            logging.getLogger("ray").setLevel(logging.ERROR)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray's are of many kinds
            ray.shutdown()
            raise RunError(_why_not(address, error)) from error
    silence()
    try:
        _refuse_small(ray, workers)
    except RunError:
        ray.shutdown()
        raise
    return ray.shutdown


def _refuse_another(ray: ModuleType, address: str | None) -> None:
    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise RunError(
            f"this process is connected to the cluster at {here} already, not to {address!r}"
        )


def _refuse_small(ray: ModuleType, workers: int) -> None:
    """Ray itself would wait for processors, for ever where there are none."""
    whole = int(ray.cluster_resources().get("CPU", 0))
    free = int(ray.available_resources().get("CPU", 0))
    if free < workers:
        raise RunError(
            f"the cluster has {free} of {whole} processors free, and every worker needs one: give "
            f"run.workers={max(free, 1)}, or a larger cluster"
        )


def _refuse_no_cluster(address: str) -> None:
    """Ray itself waits for minutes where nobody answers, and for another program at that port."""
    place = _host_and_port(address)
    if place is None:
        raise RunError(
            f"--address takes HOST:PORT of a cluster, such as 10.0.0.7:6379, or 'auto'; got {cut(address, 80)!r}"
        )
    try:
        answer = _answer(*place)
    except OSError as error:
        reason = error.strerror or "it does not answer"
        raise RunError(f"there is no Ray cluster at {address}: {reason}") from error
    if not _is_grpc(answer):
        raise RunError(f"there is no Ray cluster at {address}: another program uses this port")


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, colon, port = address.rpartition(":")
    good = host and colon and port.isdigit() and 0 < int(port) < 2**16
    return (host.strip("[]"), int(port)) if good else None


def _answer(host: str, port: int) -> bytes:
    with socket.create_connection((host, port), timeout=ANSWERS_S) as server:
        server.settimeout(ANSWERS_S)
        server.sendall(_PREFACE)
        return server.recv(9, socket.MSG_WAITALL)


def _is_grpc(answer: bytes) -> bool:
    return len(answer) == 9 and answer[3] == _SETTINGS


def _is_on_loopback_alone(address: str) -> bool:
    """Whether the cluster is one that `connect` has started: Ray looks for it at this machine's other address."""
    place = _host_and_port(address)
    if place is None or place[0] not in ("127.0.0.1", "localhost"):
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nowhere:
            # This says by which address others are reached; nothing is sent.
            nowhere.connect(("192.0.2.1", 9))
            return not _is_grpc(_answer(nowhere.getsockname()[0], place[1]))
    except OSError:
        return True


def _why_not(address: str | None, error: Exception) -> str:
    reason = cut(next(iter(str(error).strip().splitlines()), type(error).__name__), 300)
    if address:
        return f"the Ray cluster at {address} cannot be used: {reason}"
    return f"Ray cannot be started: {reason}; run on this process with --runner local"
