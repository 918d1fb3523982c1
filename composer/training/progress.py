"""A progress bar on standard error, where that is a terminal."""

from __future__ import annotations

import time

from perception_blocks.registry import missing_extra

try:
    from tqdm import tqdm
except ImportError as error:
    raise missing_extra("composer train", error, "train") from error

__all__ = ["ProgressBar"]

SHOWN_EVERY = 0.2  # seconds


class ProgressBar:
    """Steps made of all steps, what is done now, and the mean return of the last episodes; a context manager."""

    def __init__(self, steps: int, done: int = 0, unit: str = "step") -> None:
        self._bar = tqdm(
            total=steps, initial=done, unit=unit, unit_scale=True, dynamic_ncols=True, disable=None
        )  # fmt: skip
        self.now = "collecting"
        self._shown_at = 0.0

    def phase(self, name: str) -> None:
        """Show what is done from now on; at once, unless it changes faster than can be read."""
        self.now = name
        self._bar.set_description_str(name, refresh=False)
        if not self._bar.disable and time.monotonic() - self._shown_at > SHOWN_EVERY:
            self._shown_at = time.monotonic()
            self._bar.refresh()

    def show(self, done: int, return_mean: float | None = None) -> None:
        if return_mean is not None:
            self._bar.set_postfix_str(f"return {return_mean:.1f}", refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
