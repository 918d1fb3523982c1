"""LoRA: pairs of small matrices beside the weights of a body, which are frozen; by Hugging Face's peft.

The adapters are injected into the body in place, so that its own names, hooks and methods stay. Nothing but the
adapters is changed: a weight is called ``q_proj.base_layer.weight`` afterwards, and `without_adapters` shows the body
under its own names.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perception_blocks.init import local_generator
from perception_blocks.registry import missing_extra
from perception_blocks.settings import SettingProblem, SettingsError
from perception_blocks.words import did_you_mean

__all__ = ["DEFAULT_TARGETS", "Lora", "adapter_names", "adapter_scales", "base_name"]
__all__ += [
    "draw_adapter",
    "draw_adapters",
    "freeze",
    "inject",
    "is_adapter",
    "merge",
    "merged_weights",
    "without_adapters",
]

# Linear layers of transformers, vision towers and projectors by their last names; heads over a vocabulary are not among
# them.
DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEFAULT_TARGETS += ("proj", "qkv", "fc1", "fc2", "fc3", "q", "kv", "out_proj", "c_attn", "c_proj")
DEFAULT_TARGETS += ("c_fc", "in_proj", "x_proj")
ADAPTER = "default"  # peft's name of the only adapter
_PAIRS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_DRAWN = ("lora_A", "lora_embedding_B")  # the others begin as zeros
_TAKES = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # and transformers' Conv1D


class Lora(NamedTuple):
    """Matrices of ``rank``, times ``alpha / rank``, beside the modules whose names end in one of ``targets``.

    ``targets`` None: all linear layers among `DEFAULT_TARGETS`.
    """

    rank: int = 8
    alpha: float | None = None  # None: the rank
    targets: tuple[str, ...] | None = None


def inject(body: nn.Module, lora: Lora, frozen: Sequence[str] = ()) -> None:
    """Put adapters beside the targets in ``body`` and freeze all else; those below a ``frozen`` path get none.

    Raises SettingsError for targets that nothing in ``body`` has, and MissingExtraError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise missing_extra("'lora'", error, "llm") from error
    from transformers.pytorch_utils import Conv1D  # here: to freeze needs neither library

    names = _targets(body, lora.targets, frozen, Conv1D)
    dtypes = {next(body.get_submodule(name).parameters()).dtype for name in names}
    layers = {type(body.get_submodule(name)) for name in names}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        fan_in_fan_out=layers == {Conv1D},
        init_lora_weights=False,  # draw_adapters does
        target_modules="|".join(map(re.escape, names)),  # a text has to match a whole name
    )
    inject_adapter_in_model(config, body)
    if len(dtypes) == 1:  # sharding wants one dtype in a layer
        (dtype,) = dtypes
        for name in adapter_names(body):
            adapter = body.get_parameter(name)
            adapter.data = adapter.data.to(dtype)


def _targets(
    body: nn.Module, given: Sequence[str] | None, frozen: Sequence[str], conv1d: type[nn.Module]
) -> list[str]:
    modules = dict(body.named_modules())
    open_to = [name for name in modules if not _is_below(name, frozen)]
    if given is None:
        head = _vocabulary_head(body)
        names = [
            name
            for name in open_to
            if isinstance(modules[name], (nn.Linear, conv1d))
            and name.rpartition(".")[2] in DEFAULT_TARGETS
            and modules[name] is not head
        ]
        if not names:
            linear = [name for name in open_to if isinstance(modules[name], nn.Linear)]
            last = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))[:4]
            such = f", such as {', '.join(last)}" if last else ""
            message = f"'lora' finds none of the usual layers here; name its 'targets'{such}"
            raise SettingsError([SettingProblem("lora", message)])
        return names
    problems, names = [], []
    for target in given:
        matching = [name for name in open_to if name == target or name.endswith(f".{target}")]
        kinds = {type(modules[name]).__name__ for name in matching}
        if not matching:
            known = {part for name in open_to for part in (name, name.rpartition(".")[2]) if part}
            near = did_you_mean(target, sorted(known))
            problems.append(f"'lora' targets {target!r}, which no module is called" + near)
        elif not all(isinstance(modules[name], (*_TAKES, conv1d)) for name in matching):
            problems.append(
                f"'lora' targets {target!r}, a {' or '.join(sorted(kinds))}: it takes linear layers, convolutions "
                "and embeddings"
            )
        names += matching
    if problems:
        raise SettingsError([SettingProblem("lora", problem) for problem in problems])
    return list(dict.fromkeys(names))


def _vocabulary_head(body: Any) -> nn.Module | None:
    head = getattr(body, "get_output_embeddings", None)
    return None if head is None else head()


def freeze(body: nn.Module, paths: Sequence[str]) -> None:
    """Let nothing below the module ``paths`` of ``body`` be trained.

    Raises SettingsError for paths that ``body`` does not have.
    """
    modules = dict(body.named_modules())
    problems = [
        f"'freeze' names {path!r}, which no module is called" + did_you_mean(path, list(modules))
        for path in paths
        if not path or path not in modules
    ]
    if problems:
        raise SettingsError([SettingProblem("freeze", problem) for problem in problems])
    for path in paths:
        modules[path].requires_grad_(False)


def adapter_names(body: nn.Module) -> list[str]:
    """The names of the adapters' weights in ``body``."""
    return [name for name, _ in body.named_parameters() if is_adapter(name)]


def base_name(name: str) -> str:
    """The name that a weight has without adapters: ``q_proj.base_layer.weight`` is ``q_proj.weight``."""
    return name.replace(".base_layer.", ".")


def draw_adapters(body: nn.Module, seed: int, prefix: str = "") -> None:
    """Draw the adapters whose names begin so, each by its own name; the second of a pair is zero: no output changes."""
    for name, parameter in body.named_parameters():
        if is_adapter(name) and not parameter.is_meta and name.startswith(prefix):
            draw_adapter(name, parameter, seed)


@torch.no_grad()
def draw_adapter(name: str, parameter: Tensor, seed: int) -> None:
    """Draw one of the weights of adapters, as `draw_adapters` does."""
    pair = next((pair for pair in _DRAWN if f".{pair}." in name), None)
    if pair is None:
        parameter.zero_()
        return
    rank = parameter.shape[0 if pair == "lora_A" else 1]
    drawn = torch.empty(parameter.shape)
    drawn.normal_(0.0, 1.0 / rank, generator=local_generator(seed, name))
    parameter.copy_(drawn)


@contextlib.contextmanager
def without_adapters(body: nn.Module) -> Iterator[None]:
    """Within, ``body`` is as it was before `inject`: its modules, and the names of its weights."""
    layers = _adapted(body)
    for parent, name, layer in layers:
        parent._modules[name] = layer.get_base_layer()
    try:
        yield
    finally:
        for parent, name, layer in layers:
            parent._modules[name] = layer


def merge(body: nn.Module) -> None:
    """Add the adapters to the weights and remove them: what is left needs no peft."""
    for parent, name, layer in _adapted(body):
        layer.merge(safe_merge=True)
        parent._modules[name] = layer.get_base_layer()


def merged_weights(body: nn.Module) -> dict[str, Tensor]:
    """The weights of ``body`` with its adapters added, under the names without adapters; ``body`` does not change."""
    layers = {id(layer.get_base_layer().weight): layer for _, _, layer in _adapted(body)}
    with without_adapters(body):
        weights = body.state_dict(keep_vars=True)
    with torch.no_grad():
        return {
            name: weight + layers[id(weight)].get_delta_weight(ADAPTER).to(weight.dtype)
            if id(weight) in layers
            else weight
            for name, weight in weights.items()
        }


def adapter_scales(body: nn.Module) -> dict[str, float]:
    """By what the product of each pair is multiplied, by the path of its layer: weights do not show it."""
    return {
        name: float(layer.scaling[ADAPTER])  # type: ignore[index]
        for name, layer in body.named_modules()
        if hasattr(layer, "get_base_layer")
    }


def _adapted(body: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """The modules with adapters: what holds each, its name there, and itself."""
    return [
        (parent, name, child)
        for parent in body.modules()
        for name, child in parent._modules.items()
        if hasattr(child, "get_base_layer")
    ]


def is_adapter(name: str) -> bool:
    return any(f".{pair}." in name for pair in _PAIRS)


def _is_below(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)
