"""A Ray on this machine alone, for what needs one: it says nothing, and listens on the loopback interface."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

__all__ = ["LOCAL", "QUIET", "environment", "silence", "start", "stay_on_this_machine"]

# What Ray reads from the environment, where the user has not said otherwise.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# A cluster of one machine stays on its loopback interface, as Ray itself has it on Windows and macOS.
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def start(processors: int) -> Callable[[], None]:
    """Start a cluster that ends with this process, unless there is a Ray already; returns what ends it sooner.

    It has ``processors``, or as many as the machine, if that has more.
    """
    with environment(LOCAL | QUIET):
        import ray

        stay_on_this_machine()
        if ray.is_initialized():
            return lambda: None
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            ray.init(
                address="local", num_cpus=max(processors, os.cpu_count() or 1), include_dashboard=False,
                log_to_driver=False, configure_logging=False,
            )  # fmt: skip
        except BaseException:
            ray.shutdown()
            raise
    silence()
    return ray.shutdown


@contextmanager
def environment(names: Mapping[str, str]) -> Iterator[None]:
    """Variables that are not set yet, for the processes that are started in this context."""
    new = {name: text for name, text in names.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def stay_on_this_machine() -> None:
    """What `LOCAL` says, where Ray had been imported before it was said."""
    constants = sys.modules.get("ray._private.ray_constants")
    if hasattr(constants, "ENABLE_RAY_CLUSTER"):
        setattr(constants, "ENABLE_RAY_CLUSTER", False)  # noqa: B010


def silence() -> None:
    """Ray prints what its servers report, such as the end of a worker, which we say in a line; it has no setting."""
    worker = sys.modules.get("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):
        setattr(worker, "print_to_stdstream", lambda *_, **__: None)  # noqa: B010
