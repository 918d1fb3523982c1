"""Language models of Hugging Face's transformers: the tokens of a sequence as features."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from perception_blocks.base_block import seed_from
from perception_blocks.blocks.adapted import AdaptedBlock
from perception_blocks.blocks.embed import refuse_too_few
from perception_blocks.blocks.families import largest
from perception_blocks.blocks.language_config import (
    FAMILIES,
    Folder,
    checked_config,
    refusal,
    settings_of,
)
from perception_blocks.blocks.masks import MaskedBlock, as_bool, check_mask, shapes_of
from perception_blocks.init import Rule, derive_seed, draw_in_a_copy, local_generator
from perception_blocks.port import InputShapeError, Port, Shapes
from perception_blocks.random_states import random_states_kept
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import OneOrMany, SettingProblem, SettingsError

__all__ = ["TransformerBlock"]


@BLOCKS.register("transformer")
class TransformerBlock(AdaptedBlock, MaskedBlock):
    """The body of a language model of transformers over a sequence of tokens: ``(L,)`` -> ``(F,)`` or ``(L, F)``.

    ``family`` selects the body; the keys of its configuration (``n_layer`` of gpt2, ``num_hidden_layers`` of llama and
    mamba) stand beside it, with the library's defaults. Or ``checkpoint`` names a local folder that ``save_pretrained``
    wrote; its weights are not re-initialised, and a saved model does not need the folder. Every body is causal.
    ``read: last`` returns the features of the last token, ``read: all`` the features of every token.

    The mask ``(L,)`` is true for tokens. Padding is removed before the body counts positions, so
    padding before, after or between tokens changes nothing; features of padding, and the last of none, are zeros. The
    whole sequence is read at every step.

    >>> TransformerBlock([(8,), (8,)], family="gpt2", vocab_size=5, n_layer=1, n_head=2, n_embd=16).out_shapes
    [(16,)]
    """

    takes = "integer"
    mask_of = {"mask": 0}
    limits = {
        "cuda_graph": "transformers looks at the places of tokens to make masks; compiled, it does not"
    }
    from_ports = ("vocab_size",)
    body: PreTrainedModel

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        family: Literal["gpt2", "llama", "mamba"] | None = None,
        checkpoint: str | None = None,
        read: Literal["last", "all"] = "last",
        vocab_size: OneOrMany | None = None,
        lora: Mapping[str, Any] | None = None,
        freeze: Sequence[str] | None = None,
        **config: object,
    ) -> None:
        shapes = shapes_of(in_shapes, "transformer", 1, 2, "a sequence and optionally its mask")
        if len(shapes[0]) != 1:
            rule = "transformer takes a sequence of tokens (length,)"
            raise InputShapeError(rule, {0: shapes[0]})
        check_mask("transformer", shapes, 1, [shapes[0]])
        length = shapes[0][0]
        most = None if vocab_size is None else largest(vocab_size)
        self.folder = None if checkpoint is None else Folder(checkpoint)
        body = make_body(family, self.folder, config, most)
        require_places(body.config, length)
        width = body.config.hidden_size
        super().__init__(in_shapes, out_shapes=[(width,) if read == "last" else (length, width)])
        self.body = body
        self.read = read
        if checkpoint is not None:
            kept = {"family": body.config.model_type, **settings_of(body.config)}
            self.read_once = (("checkpoint", checkpoint), kept)
        self.keeps_mask = read == "all"
        self.adapt(lora, freeze)
        if self.folder is not None and not next(body.parameters()).is_meta:
            self.reset_parameters()

    @property
    def adapted(self) -> nn.Module:
        return self.body  # type: ignore[return-value]

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        seed = seed_from(generator)
        self.draw_adapted(seed, lambda: self._draw(seed))

    def _draw(self, seed: int) -> None:
        if self.folder is None:
            draw_in_a_copy(self.body, seed, lambda body: draw_body(body, seed, self.initializer))
        else:
            self._copy_stored(self.body)

    def layer_names(self) -> list[str]:
        """The layers of the body, by their names in it; not what is in a layer, which may be named as one too."""
        kinds = set(self.body._no_split_modules or ())  # type: ignore[arg-type]
        names: list[str] = []
        for name, part in self.body.named_modules():
            inside = any(name.startswith(f"{layer}.") for layer in names)
            if type(part).__name__ in kinds and not inside:
                names.append(name)
        return names

    def reset_part(self, name: str, seed: int, without: Sequence[str] = ()) -> None:
        """`reset_parameters` for the module ``name`` of the body alone, or for all of it ``without`` some modules."""
        part: Any = self.body.get_submodule(name)
        prefix = f"{name}." if name else ""

        def draw(twin: nn.Module) -> None:
            parts = [(_joined(name, inner), m) for inner, m in twin.named_modules()]
            draw_modules(self.body, parts, seed, self.initializer)

        def fill() -> None:
            if self.folder is None:
                draw_in_a_copy(part, seed, draw)
            else:
                self._copy_stored(part, prefix)

        with self.without(without):
            self.draw_adapted(seed, fill, prefix)
            self._fill(part)

    @contextlib.contextmanager
    def without(self, names: Sequence[str]) -> Iterator[None]:
        """The body without the modules called ``names``, for a while."""
        homes = [self.body.get_submodule(name.rpartition(".")[0])._modules for name in names]
        keys = [name.rpartition(".")[2] for name in names]
        held = [home.pop(key) for home, key in zip(homes, keys)]
        try:
            yield
        finally:
            for home, key, module in zip(homes, keys, held):
                home[key] = module

    def _copy_stored(self, part: nn.Module, prefix: str = "") -> None:
        """Weights of the checkpoint whose names begin with ``prefix``, into ``part`` of the body."""
        weights = part.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, tensor in self.folder.tensors(self.body):  # type: ignore[union-attr]
                if name.startswith(prefix):
                    weights[name.removeprefix(prefix)].copy_(tensor)

    def fill_constants(self) -> None:
        """Frequencies of rotary places stand in no checkpoint."""
        self._fill(self.body)

    def _fill(self, module: nn.Module) -> None:
        for part in module.modules():
            unsaved = [part._buffers[name] for name in part._non_persistent_buffers_set]
            if any(buffer is not None and not buffer.is_meta for buffer in unsaved):
                with torch.device("cpu"), torch.no_grad():
                    self.body._init_weights(part)  # type: ignore[operator]

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        refuse_too_few(self.body.config.vocab_size, in_ports[:1], "vocab_size")  # type: ignore[union-attr]
        return super().out_ports(in_ports)

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        leading = sequence.shape[:-1]
        tokens = sequence.long().reshape(math.prod(leading), sequence.shape[-1])
        if tokens.numel() == 0:  # which attention does not take
            return self._zeros(sequence)
        if mask is None:
            y = self._features(tokens)
            y = y[:, -1] if self.read == "last" else y
            return y.reshape(*leading, *y.shape[1:])
        seen = as_bool(mask).reshape(tokens.shape)
        features = self._features(packed(tokens, seen))
        if self.read == "last":
            last = seen.sum(-1, keepdim=True) - 1
            y, is_seen = at_places(features, last).squeeze(1), seen.any(-1, keepdim=True)
        else:
            y, is_seen = at_places(features, seen.cumsum(-1) - 1), seen.unsqueeze(-1)
        return y.masked_fill(~is_seen, 0.0).reshape(*leading, *y.shape[1:])

    def _features(self, tokens: Tensor) -> Tensor:
        """(rows, L) -> (rows, L, F)."""
        try:
            features = self.body(input_ids=tokens, use_cache=False).last_hidden_state
        except IndexError:
            require_places(self.body.config, tokens.shape[-1])
            raise
        return features.to(self.body.dtype)  # mamba sums in float32

    def _zeros(self, sequence: Tensor) -> Tensor:
        shape = (sequence.shape[:-1], sequence.shape)[self.read == "all"]
        like = next(self.body.parameters())
        return like.new_zeros((*shape, self.body.config.hidden_size))  # type: ignore[union-attr]

    def extra_repr(self) -> str:
        family = self.body.config.model_type  # type: ignore[union-attr]
        return f"{super().extra_repr()}, family={family!r}, read={self.read!r}"


def make_body(
    family: str | None, folder: Folder | None, settings: dict[str, object], vocab_size: int | None
) -> PreTrainedModel:
    """The library's module, from ``settings`` or for the weights in ``folder``.

    Raises SettingsError for settings that the family does not take, and for a folder that does not hold what it says.
    """
    if folder is None:
        if family is None:
            names = ", ".join(map(repr, FAMILIES))
            message = f"block 'transformer' needs 'family' (one of {names}) or 'checkpoint'"
            raise SettingsError([SettingProblem("family", message)])
        config = checked_config(family, settings, vocab_size)
    else:
        family = folder.family(family)
        if settings:
            brings = "a checkpoint brings its own configuration; leave out"
            raise SettingsError([SettingProblem(name, f"{brings} {name!r}") for name in settings])
        config = folder.config(family)
        if vocab_size is not None and vocab_size > config.vocab_size:
            message = f"'checkpoint' knows {config.vocab_size} tokens, the input has {vocab_size}"
            raise SettingsError([SettingProblem("checkpoint", message)])
    try:
        body = FAMILIES[family].model(config)
    except Exception as error:  # whatever the library says of values that only it knows
        raise refusal(family, settings, error) from error
    if folder is not None:
        folder.check(body)
    return body


def require_places(config: PretrainedConfig, length: int | None) -> None:
    """Raise SettingsError where a sequence is longer than the body has places."""
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and length is not None and length > most:
        name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        message = f"{name!r} must be at least {length}, the length of the sequence, got {most}"
        raise SettingsError([SettingProblem(name, message)])


def packed(tokens: Tensor, seen: Tensor) -> Tensor:
    """The tokens (rows, L) that are ``seen``, moved to the front in their order; zeros after them."""
    length = tokens.shape[-1]
    places = torch.where(seen, seen.cumsum(-1) - 1, length)  # all others go to one place behind
    row = tokens.new_zeros(tokens.shape[0], length + 1)
    return row.scatter(-1, places, tokens)[:, :length]


def at_places(features: Tensor, places: Tensor) -> Tensor:
    """``features`` (rows, L, F) at ``places`` (rows, n), of which those below zero stand for the first."""
    index = places.clamp(min=0).unsqueeze(-1).expand(-1, -1, features.shape[-1])
    return features.gather(1, index)


def draw_body(body: PreTrainedModel, seed: int, rule: Rule | None) -> None:
    """Weights as the library draws them, each module from a seed of its own name; matrices follow ``rule`` if any."""
    draw_modules(body, list(body.named_modules()), seed, rule)


def _joined(outer: str, inner: str) -> str:
    return ".".join(filter(None, (outer, inner)))


def draw_modules(
    body: Any, parts: Sequence[tuple[str, nn.Module]], seed: int, rule: Rule | None
) -> None:
    """The same for some modules of ``body``, by their names in it, each after those that hold it."""
    for name, part in reversed(parts):  # inner ones first: a layer scales weights of those it holds
        with random_states_kept(derive_seed(seed, name)):
            body._init_weights(part)
    for name, part in parts:
        weight = part._parameters.get("weight")
        if rule is not None and weight is not None and weight.dim() > 1:
            generator = local_generator(seed, f"{name}.weight")
            rule(weight.t() if isinstance(part, Conv1D) else weight, generator)
