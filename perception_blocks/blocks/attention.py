"""Attention: elements look at elements, those that a mask lets them see.

A mask is true where a query may attend to a key. The attention mask has one row per query, the key-padding mask holds
for all queries; with both, a key must be legal in both. A query without any legal key gets zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.blocks.masks import (
    MaskedBlock,
    as_bool,
    blank,
    check_mask,
    known_features,
    masked_softmax,
    same_shape,
    shapes_of,
)
from perception_blocks.blocks.precision import wide_product
from perception_blocks.init import linear_layer
from perception_blocks.port import InputShapeError, Shape, Shapes
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import PositiveInt, Probability

__all__ = ["Attention", "AttentionBlock", "CrossAttentionBlock", "MultiHeadAttentionBlock"]
__all__ += ["SelfAttentionSeqBlock", "head_width", "sequence_shape"]


class Attention(nn.Module):
    """Scaled dot-product attention in several heads, with linear layers before and after it (Vaswani et al., 2017).

    ``sizes`` are the features of query, key and value; heads share ``width``, the output has ``out_features``.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        width: int,
        num_heads: int,
        *,
        out_features: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value = (linear_layer(size, width, bias=bias) for size in sizes)
        self.output = linear_layer(
            width, width if out_features is None else out_features, bias=bias
        )
        self.num_heads = num_heads
        self.dropout = dropout
        self.scale = 1 / math.sqrt(width // num_heads) if scale is None else scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        weighted: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(..., Q, F), (..., K, F), (..., K, F) -> (..., Q, out_features), and weights (..., heads, Q, K) if asked.

        ``mask`` is bool, has an axis for heads, and can be broadcast to the weights.
        """
        q, k, v = (self._heads(x) for x in (self.query(query), self.key(key), self.value(value)))
        if causal and (mask is not None or weighted):
            shape = (1, q.shape[-2], k.shape[-2])
            below = torch.ones(shape, dtype=torch.bool, device=q.device).tril()
            mask, causal = below if mask is None else mask & below, False
        legal = None
        if mask is not None:
            legal = mask.any(dim=-1, keepdim=True)
            mask = mask | ~legal  # a query without legal keys attends to all, and is zeroed below
        y, weights = self._attend(q, k, v, mask, causal, weighted)
        if legal is not None:
            y = y.masked_fill(~legal, 0.0)
            weights = None if weights is None else weights.masked_fill(~legal, 0.0)
        y = self.output(y.transpose(-3, -2).flatten(-2))
        if legal is not None:
            y = y.masked_fill(~legal.any(dim=-3), 0.0)  # the bias too
        return y, weights

    def _heads(self, x: Tensor) -> Tensor:
        """(..., N, width) -> (..., heads, N, width / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        weighted: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not weighted:
            leading = q.shape[:-3]
            if len(leading) > 1:  # fused kernels take one batch axis
                q, k, v = (x.flatten(0, -4) for x in (q, k, v))
                if mask is not None:
                    mask = mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4)
            y = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=self.scale
            )
            return (y.unflatten(0, leading) if len(leading) > 1 else y), None
        scores = wide_product(q, k.transpose(-2, -1)) * self.scale
        weights = scores.softmax(dim=-1) if mask is None else masked_softmax(scores, mask)
        weights = weights.to(v.dtype)
        return functional.dropout(weights, dropout) @ v, weights


class AttentionBlock(MaskedBlock):
    """What blocks over sequences share: the masks after their other inputs, told apart by the shapes declared for them.

    Those are, for Q queries and K keys, ``(Q, K)`` or ``(heads, Q, K)`` for the attention mask, ``(K,)`` for the
    key-padding mask; the attention mask comes first where both are given.
    """

    mask_of = {"key_padding_mask": 0}
    keeps_mask = True
    only_padding = False  # the one mask given is the key-padding mask
    mask_per_head = False

    def expect_masks(self, name: str, queries: Shape, keys: int | None, num_heads: int) -> None:
        """Check the shapes of the masks; ``queries`` is empty for a query that is a single vector."""
        shapes, first = self.in_shapes, self.quantities
        if len(shapes) > first + 1 + len(queries):
            known = "an attention mask and a key-padding mask" if queries else "one mask"
            raise InputShapeError(f"{name} takes at most {known}", dict(enumerate(shapes)))
        full = [(*queries, keys), (num_heads, *queries, keys)] if queries else []
        both = len(shapes) == first + 2
        check_mask(name, shapes, first, full if both else [(keys,), *full])
        check_mask(name, shapes, first + 1, [(keys,)])
        if len(shapes) > first:
            self.only_padding = len(shapes[first]) == 1
            self.mask_per_head = len(shapes[first]) == 3

    def masks(
        self, attention_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both masks as one that can be broadcast to (..., heads, Q, K), and the key-padding mask alone."""
        if self.only_padding and key_padding_mask is None:
            attention_mask, key_padding_mask = None, attention_mask
        mask = None
        if attention_mask is not None:
            mask = as_bool(attention_mask)
            mask = mask if self.mask_per_head else mask.unsqueeze(-3)
        if key_padding_mask is not None:
            padding = as_bool(key_padding_mask)[..., None, None, :]
            mask = padding if mask is None else mask & padding
        return mask, key_padding_mask


@BLOCKS.register("multi_head_attention")
class MultiHeadAttentionBlock(AttentionBlock):
    """Queries attend to keys and values (2017): ``(Q, F)``, ``(K, G)``, ``(K, V)`` -> ``(Q, hidden_units)``.

    Then an attention mask ``(Q, K)`` or ``(num_heads, Q, K)``, a key-padding mask ``(K,)``, or both. ``hidden_units``
    is F unless given; ``return_weights`` adds an output ``(num_heads, Q, K)``.

    >>> MultiHeadAttentionBlock([(5, 8), (7, 6), (7, 4), (7,)], num_heads=2).out_shapes
    [(5, 8)]
    """

    quantities = 3
    mask_of = {"key_padding_mask": 1}

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_heads: PositiveInt = 1,
        hidden_units: PositiveInt | None = None,
        dropout: Probability = 0.0,
        bias: bool = True,
        return_weights: bool = False,
    ) -> None:
        name = "multi_head_attention"
        shapes = shapes_of(in_shapes, name, 3, 5, "query, key, value and optionally their masks")
        queries, query_size = sequence_shape(shapes, 0, name)
        keys, key_size = sequence_shape(shapes, 1, name)
        values, value_size = sequence_shape(shapes, 2, name)
        if not same_shape((keys,), (values,)):
            got = {1: shapes[1], 2: shapes[2]}
            raise InputShapeError(f"{name} needs a value for each key", got)
        width = head_width(name, query_size, hidden_units, num_heads)
        weights = [(num_heads, queries, keys)] if return_weights else []
        super().__init__(in_shapes, out_shapes=[(queries, width), *weights])
        self.expect_masks(name, (queries,), keys, num_heads)
        sizes = (query_size, key_size, value_size)
        self.attention = Attention(sizes, width, num_heads, dropout=dropout, bias=bias)
        self.return_weights = return_weights

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        mask, padding = self.masks(attention_mask, key_padding_mask)
        key, value = blank(key, padding), blank(value, padding)
        y, weights = self.attention(query, key, value, mask, weighted=self.return_weights)
        return (y, weights) if self.return_weights else y


@BLOCKS.register("self_attention_seq")
class SelfAttentionSeqBlock(AttentionBlock):
    """Steps of a sequence, or elements of a set, attend to each other (2017): ``(N, F)`` -> ``(N, hidden_units)``.

    Then an attention mask ``(N, N)`` or ``(num_heads, N, N)``, a key-padding mask ``(N,)``, or both. With ``causal``
    no step attends to later ones. ``residual`` adds the input; ``hidden_units`` is F unless given; ``return_weights``
    adds an output ``(num_heads, N, N)``. With ``init_gain`` the output of attention is multiplied by a learned gain,
    which begins there. A single vector ``(F,)`` is a sequence of one, without masks: it gives ``(hidden_units,)``.

    >>> SelfAttentionSeqBlock([(5, 8), (5,)], num_heads=2, return_weights=True).out_shapes
    [(5, 8), (2, 5, 5)]
    """

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_heads: PositiveInt = 1,
        hidden_units: PositiveInt | None = None,
        dropout: Probability = 0.0,
        bias: bool = True,
        causal: bool = False,
        residual: bool = False,
        return_weights: bool = False,
        init_gain: float | None = None,
    ) -> None:
        name = "self_attention_seq"
        shapes = shapes_of(in_shapes, name, 1, 3, "a sequence and optionally its masks")
        self.single = len(shapes) == 1 and len(shapes[0]) == 1  # a vector, a sequence of one
        sequences = [(1, *shapes[0])] if self.single else shapes
        length, features = sequence_shape(sequences, 0, name)
        width = head_width(name, features, hidden_units, num_heads)
        check_residual(name, residual, features, width)
        weights = [(num_heads, length, length)] if return_weights else []
        out_shape = (width,) if self.single else (length, width)
        super().__init__(in_shapes, out_shapes=[out_shape, *weights])
        self.init_gain = init_gain
        self.gain = None if init_gain is None else nn.Parameter(torch.full((1,), float(init_gain)))
        self.expect_masks(name, (length,), length, num_heads)
        self.attention = Attention((features,) * 3, width, num_heads, dropout=dropout, bias=bias)
        self.causal, self.residual, self.return_weights = causal, residual, return_weights

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.fill_(self.init_gain or 0.0)  # the gain, the only parameter of its own

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        mask, padding = self.masks(attention_mask, key_padding_mask)
        x = x.unsqueeze(-2) if self.single else blank(x, padding)
        y, weights = self.attention(x, x, x, mask, self.causal, self.return_weights)
        y = y if self.gain is None else self.gain * y
        y = x + y if self.residual else y
        y = y.squeeze(-2) if self.single else y
        return (y, weights) if self.return_weights else y


@BLOCKS.register("cross_attention")
class CrossAttentionBlock(AttentionBlock):
    """A vector or a sequence attends to another (2017): ``(F,)`` or ``(Q, F)``, ``(K, G)`` -> the first's shape.

    Then masks: for a sequence an attention mask ``(Q, K)`` or ``(num_heads, Q, K)``, a key-padding mask ``(K,)``, or
    both; for a vector ``(K,)``. ``residual`` adds the first input; ``hidden_units`` is F unless given;
    ``return_weights`` adds an output ``(num_heads, Q, K)``, for a vector ``(num_heads, K)``.

    >>> CrossAttentionBlock([(8,), (5, 6), (5,)], num_heads=2).out_shapes
    [(8,)]
    """

    quantities = 2
    mask_of = {"key_padding_mask": 1}

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        num_heads: PositiveInt = 1,
        hidden_units: PositiveInt | None = None,
        dropout: Probability = 0.0,
        bias: bool = True,
        residual: bool = False,
        return_weights: bool = False,
    ) -> None:
        name = "cross_attention"
        takes = "a query, the values it attends to and optionally their masks"
        shapes = shapes_of(in_shapes, name, 2, 4, takes)
        if len(shapes[0]) not in (1, 2):
            rule = f"{name} takes a vector (features,) or a sequence (elements, features)"
            raise InputShapeError(rule, {0: shapes[0]}, "put a flatten block before it")
        features = known_features(shapes[0], 0, name)
        queries = shapes[0][:-1]
        keys, context_features = sequence_shape(shapes, 1, name)
        width = head_width(name, features, hidden_units, num_heads)
        check_residual(name, residual, features, width)
        weights = [(num_heads, *queries, keys)] if return_weights else []
        super().__init__(in_shapes, out_shapes=[(*queries, width), *weights])
        self.expect_masks(name, queries, keys, num_heads)
        sizes = (features, context_features, context_features)
        self.attention = Attention(sizes, width, num_heads, dropout=dropout, bias=bias)
        self.residual, self.return_weights = residual, return_weights
        self.single = not queries

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        mask, padding = self.masks(attention_mask, key_padding_mask)
        context = blank(context, padding)
        queries = query.unsqueeze(-2) if self.single else query
        y, weights = self.attention(queries, context, context, mask, weighted=self.return_weights)
        y = y.squeeze(-2) if self.single else y
        y = query + y if self.residual else y
        if not self.return_weights:
            return y
        return y, weights.squeeze(-2) if self.single else weights


def sequence_shape(shapes: Sequence[Shape], index: int, name: str) -> tuple[int | None, int]:
    """Length and features of input ``index``. Raises InputShapeError where it is no sequence of vectors."""
    shape = shapes[index]
    if len(shape) != 2:
        raise InputShapeError(
            f"{name} takes a sequence or set (elements, features)", {index: shape}
        )
    return shape[0], known_features(shape, index, name)


def head_width(name: str, features: int, hidden_units: int | None, num_heads: int) -> int:
    """The features of all heads together."""
    width = hidden_units or features
    if width % num_heads:
        raise ValueError(
            f"{name} cannot split {width} features into {num_heads} equal heads; "
            "change 'num_heads', or 'hidden_units' where it has them"
        )
    return width


def check_residual(name: str, residual: bool, features: int, width: int) -> None:
    if residual and features != width:
        raise ValueError(
            f"{name} cannot add its input of {features} features to its output of {width}; "
            "leave out 'residual' or 'hidden_units'"
        )
