"""Whether an action model calculates in training what it did in acting, on observations that are made for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from composer.language.action_spec import size_in
from composer.language.generating import is_single

__all__ = ["ProofError", "made_observation", "prove_action_model"]

EXACT, HALF = 1e-5, 0.1  # what two ways of calculating a log-probability may differ by
TASKS = ("pick up the red cup", "put")  # of unequal lengths, so that one is padded
IMAGE_SIZE = 224  # where neither a space nor a configuration says it


class ProofError(ValueError):
    """Log-probabilities that are calculated again are not those of acting: training would be wrong in silence."""


def prove_action_model(
    model: Any, observation: Mapping[str, Any] | None, tolerance: float | None
) -> float:
    """`composer.language.ActionModel.prove`."""
    if tolerance is None:
        tolerance = EXACT if next(model.hf.parameters()).dtype == torch.float32 else HALF
    observation = made_observation(model) if observation is None else observation
    if is_single(observation, model.plan.spec.inputs):
        observation = {name: [value] for name, value in observation.items()}
    was_training = model.training
    model.eval()
    try:
        _, acted = model.predict_action_batch(observation)
        with torch.no_grad():
            again = model(acted["forward_inputs"])
    finally:
        model.train(was_training)
    worst = 0.0
    for name, before in (("logprobs", "prev_logprobs"), ("values", "prev_values")):
        difference = float((again[name] - acted[before]).abs().max())
        if not math.isfinite(difference):
            raise ProofError(
                f"{name} are not finite: the model's weights have NaN or infinity in them"
            )
        if difference > tolerance:
            raise ProofError(
                f"{name} that forward calculates again differ by {difference:.2g} from those of acting, more than "
                f"{tolerance:.0e}: the model counts places, or reads its inputs, otherwise in one pass than step "
                "by step; look at its prepare_inputs_for_generation"
            )
        worst = max(worst, difference)
    return worst


def made_observation(model: Any, count: int = 2) -> dict[str, list[Any]]:
    """``count`` observations: images of random pixels ``(H, W, 3)``, and tasks."""
    draw, shape = np.random.default_rng(0), _image_shape(model)
    images = [draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]
    tasks = [*itertools.islice(itertools.cycle(TASKS), count)]
    values = {"image": images, "text": tasks}
    return {name: values[kind] for kind, name in model.plan.spec.inputs.items()}


def _image_shape(model: Any) -> tuple[int, ...]:
    """As the space has it, or else the configuration."""
    name = model.plan.spec.inputs.get("image", "")
    shape = getattr(getattr(model.observation_space, "spaces", {}).get(name), "shape", None)
    if shape is not None:
        return shape
    size = size_in(model.plan.config, "image_size") or IMAGE_SIZE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width, 3
