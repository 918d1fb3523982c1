"""A progress bar on standard error where that is a terminal, else a line in the log every tenth of the steps."""

from __future__ import annotations

import logging
import time

from perception_blocks.registry import missing_extra

try:
    from tqdm import tqdm
except ImportError as error:
    raise missing_extra("a training", error, "train") from error

__all__ = ["ProgressBar"]

SHOWN_EVERY = 0.2  # seconds
LINE_EVERY = 5.0  # seconds, at least
LINES = 10
LOGGER = logging.getLogger("composer.progress")


class ProgressBar:
    """Steps made of all steps, what is done now, and the mean return of the last episodes; a context manager."""

    def __init__(self, steps: int, done: int = 0, unit: str = "step") -> None:
        self._bar = tqdm(
            total=steps, initial=done, unit=unit, unit_scale=True, dynamic_ncols=True, disable=None
        )  # fmt: skip
        self.now = "collecting"
        self._mean = ""
        self._shown_at = 0.0
        self._begun, self._first, self._steps, self._unit = time.monotonic(), done, steps, unit
        self._line, self._line_at = LINES * done // max(steps, 1), self._begun + LINE_EVERY

    def phase(self, name: str) -> None:
        """Show what is done from now on; at once, unless it changes faster than can be read."""
        self.now = name
        self._bar.set_description_str(name, refresh=False)
        if not self._bar.disable and time.monotonic() - self._shown_at > SHOWN_EVERY:
            self._shown_at = time.monotonic()
            self._bar.refresh()

    def show(self, done: int, return_mean: float | None = None) -> None:
        if return_mean is not None:
            self._mean = f", return {return_mean:.1f}"
            self._bar.set_postfix_str(f"return {return_mean:.1f}", refresh=False)
        if self._bar.disable:
            self._say(done)
        else:
            self._bar.update(done - self._bar.n)

    def _say(self, done: int) -> None:
        """Log a line where another tenth is done."""
        now = time.monotonic()
        tenth = min(LINES, LINES * done // max(self._steps, 1))  # a rollout may exceed the steps
        if tenth <= self._line or now < self._line_at:
            return
        self._line, self._line_at = tenth, now + LINE_EVERY
        speed = (done - self._first) / max(now - self._begun, 1e-9)
        LOGGER.info(
            "%d %%: %s of %s %ss%s, %.0f %ss per second",
            min(100, 100 * done // max(self._steps, 1)), f"{done:,}", f"{self._steps:,}", self._unit, self._mean, speed,
            self._unit,
        )  # fmt: skip

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
