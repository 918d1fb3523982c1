"""What ``generate`` of an action model is given: observations as rows, prompts, and how its tokens are chosen."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor

from perception_blocks.port import format_shape
from perception_blocks.words import describe, did_you_mean, listing

__all__ = ["SAMPLING", "OnlyBins", "Sampler", "check_prompt", "check_sampling", "check_tokens"]
__all__ += ["generation_config", "is_single", "refuse_arguments", "rows_of", "split_rows"]

SAMPLING = ("temperature", "top_k", "top_p")
OF_FORWARD = ("action_tokens", "input_ids", "attention_mask")


# --- observations -----------------------------------------------------------------------------------------------------


def rows_of(env_obs: Any, inputs: Mapping[str, str]) -> dict[str, list[Any]]:
    """Images as arrays, and texts, of a batch of observations, by their kinds. Raises ValueError for unequal counts."""
    if not isinstance(env_obs, Mapping):
        raise ValueError(
            f"observations are a mapping with {listing(inputs.values())}, got {describe(env_obs)}"
        )
    rows: dict[str, list[Any]] = {}
    for kind, name in inputs.items():
        if name not in env_obs:
            near = did_you_mean(name, list(env_obs)) or f"; there is {listing(env_obs) or 'nothing'}"  # fmt: skip
            raise ValueError(f"the observation has no {name!r} for the {kind}{near}")
        given = env_obs[name]
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ValueError(f"{name!r} must hold one {kind} for each row, got {describe(given)}")
        rows[kind] = [*map(_as_array, given)] if kind == "image" else list(given)
        odd = [row for row in rows[kind] if kind == "text" and not isinstance(row, str)]
        if odd:
            raise ValueError(f"{name!r} must hold texts, got {describe(odd[0])}")
    counts = {inputs[kind]: len(values) for kind, values in rows.items()}
    if len({*counts.values()}) > 1 or not all(counts.values()):
        shown = " and ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise ValueError(
            f"observations must have equally many rows, at least one; there are {shown}"
        )
    return rows


def is_single(observation: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    """Whether it is of one environment: a text, or an image alone."""
    if "text" in inputs:
        return isinstance(observation.get(inputs["text"]), str)
    return getattr(observation.get(inputs.get("image", "")), "ndim", 4) == 3


def _as_array(row: Any) -> np.ndarray:
    return row.cpu().numpy() if isinstance(row, Tensor) else np.asarray(row)


# --- prompts ----------------------------------------------------------------------------------------------------------


def check_prompt(ids: Any, mask: Tensor | None, vocab_size: int) -> None:
    """Raise ValueError for a prompt that the model has no embeddings of, or that is padded behind its last token."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        got = describe(ids)
        if isinstance(ids, Tensor):
            got = f"{format_shape(ids.shape)} of {str(ids.dtype).removeprefix('torch.')}"
        raise ValueError(
            f"a prompt must be tokens (B, L), whole numbers and at least one, got {got}"
        )
    low, high = map(int, ids.aminmax())
    if low < 0 or high >= vocab_size:
        token = low if low < 0 else high
        raise ValueError(
            f"the prompt has the token {token}; the model has those below {vocab_size}"
        )
    if mask is None:
        return
    if mask.shape != ids.shape:
        shapes = f"{format_shape(ids.shape)}, got {format_shape(mask.shape)}"
        raise ValueError(f"'attention_mask' must have the shape of the prompt, {shapes}")
    if not bool(mask[:, -1].all()):
        raise ValueError(
            "prompts must be padded on the left, and 'attention_mask' leaves out the last token of one"
        )


def check_tokens(forward_inputs: Any, count: int) -> None:
    """Raise ValueError for inputs of `forward` that are not those that `predict_action_batch` returned."""
    if not isinstance(forward_inputs, Mapping):
        raise ValueError(
            f"forward takes 'forward_inputs', a mapping, got {describe(forward_inputs)}"
        )
    lost = [name for name in OF_FORWARD if name not in forward_inputs]
    if lost:
        raise ValueError(
            f"'forward_inputs' lacks {listing(lost)}; it is what predict_action_batch returns under that name"
        )
    tokens, prompt = forward_inputs["action_tokens"], forward_inputs["input_ids"]
    if tuple(tokens.shape) != (len(prompt), count):
        got, needed = format_shape(tokens.shape), format_shape((len(prompt), count))
        raise ValueError(f"'action_tokens' must be {needed}, a row for each prompt, got {got}")


def split_rows(inputs: dict[str, Any], size: int | None, key: str) -> list[dict[str, Any]]:
    """Batches of at most ``size`` rows. Raises ValueError for inputs that have not one row for each observation."""
    rows = len(inputs["input_ids"])
    if size is None or size >= rows:
        return [inputs]
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    uneven = [name for name, value in tensors.items() if value.dim() == 0 or len(value) != rows]
    if uneven:
        raise ValueError(
            f"{key!r} splits inputs by rows, and {listing(uneven)} has not {rows} of them; leave it out"
        )
    return [
        {n: v[at : at + size] if n in tensors else v for n, v in inputs.items()}
        for at in range(0, rows, size)
    ]


# --- how tokens are chosen --------------------------------------------------------------------------------------------


@cache
def _arguments() -> frozenset[str]:
    """What ``generate`` takes beside inputs of the model."""
    taken = inspect.signature(vars(GenerationMixin)["generate"]).parameters
    return frozenset(GenerationConfig().to_dict()) | frozenset(taken) - {"inputs", "kwargs"}


def refuse_arguments(names: Iterable[str]) -> None:
    """Raise ValueError for arguments of ``generate`` among the inputs of a model: some would run code from a hub."""
    wrong = [name for name in names if name in _arguments()]
    if wrong:
        raise ValueError(
            f"{listing(wrong)} cannot be chosen: an action has its number of tokens, and one sequence; leave it out"
        )


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers by which nothing can be sampled."""
    rules = {
        "temperature": (lambda x: 0 < x < math.inf, "a number above 0"),
        "top_k": (lambda x: isinstance(x, int) and x >= 0, "a whole number, 0 for all tokens"),
        "top_p": (lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
    }
    for name, value in sampling.items():
        fits, needed = rules[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not fits(value):
            raise ValueError(f"{name!r} must be {needed}, got {describe(value)}")


def generation_config(
    count: int, sampling: Mapping[str, Any] | None, *, with_features: bool
) -> GenerationConfig:
    """``count`` tokens, drawn as ``sampling`` says, or the likeliest ones where that is None."""
    draws = sampling is not None
    return GenerationConfig(
        max_new_tokens=count,
        do_sample=draws,
        num_beams=1,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0, **sampling} if draws else {}),
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        output_hidden_states=with_features,
        return_dict_in_generate=True,
    )


class OnlyBins(LogitsProcessor):
    """Tokens that stand for no action are never chosen. Raises ValueError where no action can be: for NaN."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.after = first, first + count

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.first : self.after] = scores[:, self.first : self.after]
        if not kept.amax(-1).isfinite().all():
            raise ValueError(
                "the model's logits of actions are not finite: its weights or inputs have NaN or infinity in them"
            )
        return kept


class Sampler(LogitsProcessor):
    """Samples by a generator: with Gumbel noise added, the likeliest token is a sample."""

    def __init__(self, generator: torch.Generator, temperature: float = 1.0, **other: Any) -> None:
        if other:
            raise ValueError(f"with a generator there is 'temperature' only, got {listing(other)}")
        self.generator, self.temperature = generator, temperature

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        noise = torch.empty_like(scores, dtype=torch.float32)
        noise = -noise.exponential_(generator=self.generator).log()
        return scores.float() / self.temperature + noise
