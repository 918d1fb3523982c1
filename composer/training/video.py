"""A video of a policy: one episode, as its environment draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from composer.errors import SpecError
from composer.training.environment import EnvironmentMaker
from composer.training.evaluation import FIRST_SEED, Act, masks_of
from composer.training.trainer import TrainingError
from perception_blocks.registry import missing_extra
from perception_blocks.words import cut

__all__ = ["film", "require_imageio", "why_not_filmed"]

MOST_FRAMES = 10_000
DEFAULT_FPS = 30
FORM = "rgb_array"


def require_imageio(option: str = "--video") -> None:
    """Raise MissingExtraError where what writes videos is not installed."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise missing_extra(option, error, "train") from error


def why_not_filmed(maker: EnvironmentMaker, option: str = "--video") -> str | None:
    """Why an environment cannot be filmed, as `option` asks, in words; None if it can."""
    try:
        with closing(_filmed(maker)()) as env:
            env.reset(seed=0)
            _frame(env)
    except SpecError as error:
        return f"{option}: {cut(str(error), 500)}"
    except Exception as error:  # whatever its renderer raises, such as a missing library or screen
        return f"{option}: the environment {maker.name!r} gives no pictures: {cut(str(error), 500)}"
    return None


def film(
    act: Act, maker: EnvironmentMaker, seed: int, path: str | Path, stop: Callable[[], bool]
) -> None:
    """Write one episode, the first of the evaluation with ``seed``, as MP4 to ``path``; ends where ``stop()`` says so.

    Raises TrainingError for what cannot be written.
    """
    import imageio_ffmpeg

    with closing(_filmed(maker)()) as env:
        frames = islice(_episode(act, env, seed, stop), MOST_FRAMES)
        first = next(frames)
        writer = imageio_ffmpeg.write_frames(
            str(path), (first.shape[1], first.shape[0]), macro_block_size=2, ffmpeg_log_level="error",
            fps=env.metadata.get("render_fps") or DEFAULT_FPS, output_params=["-f", "mp4"],
        )  # fmt: skip
        with closing(writer):
            writer.send(None)
            for frame in chain([first], frames):
                if frame.shape != first.shape:
                    raise TrainingError(
                        f"pictures of the environment {maker.name!r} differ in size"
                    )
                writer.send(np.ascontiguousarray(frame))


def _filmed(maker: EnvironmentMaker) -> EnvironmentMaker:
    return replace(maker, arguments={**maker.arguments, "render_mode": FORM})


def _episode(act: Act, env: Any, seed: int, stop: Callable[[], bool]) -> Iterator[np.ndarray]:
    masks = masks_of(env)
    observation, _ = env.reset(seed=seed + FIRST_SEED)
    state, first, over = None, True, False
    yield _frame(env)
    while not (over or stop()):
        action, state = act(observation, state, first, masks() if masks else None)
        observation, _, terminated, truncated, _ = env.step(action)
        first, over = False, bool(terminated or truncated)
        yield _frame(env)


def _frame(env: Any) -> np.ndarray:
    """A picture (height, width, 3) of uint8. Raises TrainingError for anything else."""
    frame = env.render()
    is_picture = isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[-1] == 3
    if not is_picture or frame.dtype != np.uint8 or not math.prod(frame.shape):
        got = f"an array {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise TrainingError(f"its render() gives {got}, not a picture (height, width, 3) of uint8")
    return frame
