"""Language models of Hugging Face's transformers: the tokens of a sequence as features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from perception_blocks.blocks.body_block import BodyBlock, make_body
from perception_blocks.blocks.body_config import chosen_family, settings_of
from perception_blocks.blocks.embed import refuse_too_few
from perception_blocks.blocks.families import largest
from perception_blocks.blocks.language_config import FAMILIES, Folder
from perception_blocks.blocks.masks import MaskedBlock, as_bool, check_mask, shapes_of
from perception_blocks.port import InputShapeError, Port, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import OneOrMany, SettingProblem, SettingsError

__all__ = ["TransformerBlock"]


@BLOCKS.register("transformer")
class TransformerBlock(BodyBlock, MaskedBlock):
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
        body = make_language_model(family, self.folder, config, most)
        require_places(body.config, length)
        width = body.config.hidden_size
        super().__init__(in_shapes, out_shapes=[(width,) if read == "last" else (length, width)])
        self.body = body
        self.read = read
        if checkpoint is not None:
            name = body.config.model_type
            kept = {"family": name, **settings_of(FAMILIES[name], body.config, ["vocab_size"])}
            self.read_once = ({"checkpoint": checkpoint, "lora": lora}, kept)
        self.keeps_mask = read == "all"
        self.adapt(lora, freeze)
        if self.folder is not None and not next(body.parameters()).is_meta:
            self.reset_parameters()

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


def make_language_model(
    family: str | None, folder: Folder | None, settings: dict[str, object], vocab_size: int | None
) -> PreTrainedModel:
    """The library's module, from ``settings`` or for the weights in ``folder``.

    Raises SettingsError for settings that the family does not take, and for a folder that does not hold what it says.
    """
    family = chosen_family("transformer", family, folder, FAMILIES)
    given = {} if vocab_size is None else {"vocab_size": vocab_size}
    body = make_body("transformer", FAMILIES[family], folder, settings, given)
    known = body.config.vocab_size
    if folder is not None and vocab_size is not None and vocab_size > known:  # type: ignore[operator]
        message = f"'checkpoint' knows {known} tokens, the input has {vocab_size}"
        raise SettingsError([SettingProblem("checkpoint", message)])
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
