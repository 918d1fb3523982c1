"""A causal transformer over tokens that is a memory: its state is the cache of keys and values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.base_block import State, capturing, is_traced, seed_from
from perception_blocks.blocks.adapted import AdaptedBlock
from perception_blocks.blocks.decoder_layers import DecoderLayer, LayerForm, NormName, make_norm
from perception_blocks.blocks.decoder_settings import (
    problems_of_heads,
    problems_of_numbers,
    problems_of_places,
    problems_of_rotation,
    required_vocab_size,
    token_shape,
)
from perception_blocks.blocks.embed import refuse_too_few
from perception_blocks.blocks.families import (
    FAMILIES,
    complete_settings,
    largest,
    told_settings,
)
from perception_blocks.blocks.family_folder import FamilyFolder, read_folder
from perception_blocks.blocks.key_value_cache import (
    AppendedToken,
    Attending,
    CachedTokens,
    PackedSequences,
    Placement,
    WholeSequences,
)
from perception_blocks.blocks.rotary import ROPE_THETA, rotary_tables
from perception_blocks.blocks.windows import ParallelMemoryBlock
from perception_blocks.init import draw_parameters
from perception_blocks.port import Port, Shapes, format_shape
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import (
    Activation,
    LayerCount,
    OneOrMany,
    PositiveFloat,
    PositiveInt,
    SettingProblem,
    SettingsError,
)
from perception_blocks.words import describe

__all__ = ["DecoderBlock", "FullCacheError"]

# Keys and values, each (n, layers, heads, places, features of a head).
Cache: TypeAlias = tuple[Tensor, Tensor]
BASE = 256  # a state is in the model's dtype, and bfloat16 has no odd number above it


class FullCacheError(ValueError):
    """An episode has more tokens than its cache has places."""


@BLOCKS.register("decoder")
class DecoderBlock(AdaptedBlock, ParallelMemoryBlock):
    """A causal transformer that carries its key-value cache: a token ``()`` -> ``(width,)``.

    The state holds the ``keys`` and ``values`` of the episode's tokens, and their number as ``length``: in digits of
    base 256 where ``max_length`` is above 256, since bfloat16 counts no further. An episode has at most ``max_length``
    tokens; one more is an error. On a sequence ``(L,)`` it starts from nothing, carries nothing and gives
    ``(L, width)``; no token sees later ones. With ``tied_head`` the output are logits ``(vocab_size,)`` of the next
    token, computed by the weights of the embedding.

    ``family`` (gpt2, llama, qwen2, mistral, gemma) sets what its models have in common. ``checkpoint`` names a local
    folder of such a model, which brings its settings and weights; beside it there may be ``max_length``, ``tied_head``,
    ``lora`` and ``freeze``. Its weights are not re-initialised, and a saved model does not need the folder. Other
    weights have llama's names, and are drawn from a normal distribution of standard deviation 0.02.

    >>> DecoderBlock([()], vocab_size=5, width=8, num_heads=2, max_length=16).state_shapes
    {'keys': (2, 2, 16, 4), 'values': (2, 2, 16, 4), 'length': (1,)}
    >>> DecoderBlock([(7,)], vocab_size=5, width=8).out_shapes
    [(7, 8)]
    """

    takes = "integer"
    from_ports = ("vocab_size",)
    writes_state = False  # whether a step may write into the state that it is given
    cosines: Tensor | None
    sines: Tensor | None
    given: Mapping[str, Any]  # the settings that were given, among them those that equal a default
    family: str | None = None
    settings: Mapping[str, Any] | None = None  # all of them, where the family is known
    folder: FamilyFolder | None

    def __new__(cls, in_shapes: object = None, *args: object, **settings: object) -> Self:
        block = super().__new__(cls, in_shapes, *args, **settings)
        vars(block)["given"] = settings
        return block

    def __init__(
        self,
        in_shapes: Shapes,
        *,
        vocab_size: OneOrMany | None = None,
        width: PositiveInt = 64,
        num_layers: LayerCount = 2,
        num_heads: PositiveInt = 4,
        max_length: PositiveInt = 64,
        num_kv_heads: PositiveInt | None = None,
        head_dim: PositiveInt | None = None,
        mlp_units: PositiveInt | None = None,
        gated: bool = True,
        activation: Activation = "silu",
        norm: NormName = "rms",
        eps: PositiveFloat = 1e-6,
        positions: Literal["rotary", "learned"] = "rotary",
        rope_theta: PositiveFloat = ROPE_THETA,
        rope_scaling: Mapping[str, Any] | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        mlp_bias: bool = False,
        embed_scale: PositiveFloat = 1.0,
        sliding_window: PositiveInt | None = None,
        tied_head: bool = False,
        family: str | None = None,
        checkpoint: str | None = None,
        lora: Mapping[str, Any] | None = None,
        freeze: Sequence[str] | None = None,
    ) -> None:
        shape = token_shape(in_shapes)
        if family is not None or checkpoint is not None:
            settings = self._settings_of_family(family, checkpoint)
            DecoderBlock.__init__(self, in_shapes, **settings)
            return
        vocab_size = required_vocab_size(vocab_size)
        features = head_dim or width // num_heads
        form = LayerForm(
            width, num_heads, num_kv_heads or num_heads, features, mlp_units or 4 * width,
            gated, activation, norm, eps, qkv_bias, out_bias, mlp_bias,
        )  # fmt: skip
        sized = head_dim is not None
        problems = [
            *problems_of_heads(form, sized, rotary=positions == "rotary"),
            *problems_of_places(shape, max_length, sliding_window),
            *problems_of_rotation(positions, rope_theta, rope_scaling),
            *problems_of_numbers(
                vocab_size=vocab_size, rope_theta=rope_theta, embed_scale=embed_scale
            ),
        ]
        if problems:
            raise SettingsError(problems)
        self.vocab_size = largest(vocab_size)
        self.features = self.vocab_size if tied_head else width
        super().__init__(in_shapes, out_shapes=[(*shape, self.features)])
        self.embed_tokens = nn.Embedding(self.vocab_size, width)
        learned = positions == "learned"
        self.embed_positions = nn.Embedding(max_length, width) if learned else None
        self.layers = nn.ModuleList(DecoderLayer(form, index) for index in range(num_layers))
        self.norm = make_norm(form)
        self.max_length, self.rope_theta = max_length, float(rope_theta)
        self.rope_scaling = rope_scaling
        self.embed_scale, self.sliding_window = float(embed_scale), sliding_window
        self._make_tables(None if learned else features)
        self.reads_window = self.keeps_mask = bool(shape)  # padding at the end is seen by no token
        if not self.reads_window:
            cache = (num_layers, form.num_kv_heads, max_length, features)
            self.longest_episode = max_length
            self.state_shapes = {"keys": cache, "values": cache, "length": (digits_of(max_length),)}
        self.tied_head = tied_head
        self.adapt(lora, freeze)
        self._refuse_adapters_of_the_head()
        self.reset_parameters()

    def _make_tables(self, features: int | None) -> None:
        """The tables of rotary positions, (max_length, features); none where positions are learned."""
        for name in ("cosines", "sines"):
            table = None if features is None else torch.zeros(self.max_length, features)
            self.register_buffer(name, table, persistent=False)
        self.fill_constants()

    def _refuse_adapters_of_the_head(self) -> None:
        if self.tied_head and not isinstance(self.embed_tokens, nn.Embedding):
            message = (
                "'lora' cannot have adapters of 'embed_tokens', which is the head too ('tied_head')"
            )
            raise SettingsError([SettingProblem("lora", message)])

    def _settings_of_family(self, family: str | None, checkpoint: str | None) -> dict[str, Any]:
        """All settings but ``family`` and ``checkpoint``, and the attributes that are about these."""
        settings = dict(self.given)
        if checkpoint is not None:
            self.folder, settings = read_folder(checkpoint, settings)
            family = self.folder.family.name
        assert family is not None  # of the two at least one
        full = complete_settings(family, settings)
        full["tied_head"] = bool(settings.get("tied_head"))  # features, unless logits are asked for
        vars(self).update(family=FAMILIES.get(family).name, settings=full)
        if self.folder is not None:
            told = told_settings(
                self.folder.family, {**self.folder.settings, "tied_head": full["tied_head"]}
            )
            beside = {name: self.given.get(name) for name in ("max_length", "tied_head", "lora")}
            self.read_once = ({"checkpoint": checkpoint, **beside}, told)
        return {name: value for name, value in full.items() if name not in ("family", "checkpoint")}

    @property
    def adapted(self) -> nn.Module:
        return self

    def fill_constants(self) -> None:
        if self.cosines is None or self.sines is None or self.cosines.is_meta:
            return
        length, features = self.cosines.shape
        cosines, sines = rotary_tables(length, features, self.rope_theta, self.rope_scaling)
        self.cosines.copy_(cosines)
        self.sines.copy_(sines)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        seed, rule = seed_from(generator), self.initializer or narrow_normal
        if self.folder is None:
            self.draw_adapted(seed, lambda: draw_parameters(self, seed, rule))
        else:
            self.draw_adapted(seed, self._copy_stored)

    def _copy_stored(self) -> None:
        assert self.folder is not None
        weights = self.state_dict(keep_vars=True)
        if self.embed_tokens.weight.is_meta:
            self.folder.weight_map(None)  # they are looked at now, and read later
            return
        with torch.no_grad():
            for name, tensor in self.folder.body_tensors(tied=self.tied_head):
                weights[name].copy_(tensor)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        refuse_too_few(self.vocab_size, in_ports, "vocab_size")
        return super().out_ports(in_ports)

    def zero_state(self, x: Tensor) -> dict[str, Tensor]:
        leading = x.shape[: x.dim() - len(self.in_shapes[0])]
        like = self.embed_tokens.weight
        return self.initial_state(*leading, device=like.device, dtype=like.dtype)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> Tensor | tuple[Tensor, State]:
        if self.reads_window:
            return self._whole(x)
        if state is None:
            return self._whole(x.unsqueeze(-1)).squeeze(-2)
        if unroll:
            return self.scan(x, state, resets)
        if torch.is_grad_enabled() or is_traced():
            steps = None if resets is None else resets.unsqueeze(-1)
            y, state = self._read(x.unsqueeze(-1), state, steps, look=may_look(x))
            return y.squeeze(-2), state
        return self._append(x, state, resets, look=may_look(x))

    def scan(self, x: Tensor, state: State, resets: Tensor | None = None) -> tuple[Tensor, State]:
        return self._read(x, state, resets, look=may_look(x, waiting=True))

    def packed(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """Features (N, width) of sequences that stand one after the other in ``tokens`` (N,), without padding.

        ``lengths`` says how many tokens each has; each is read as if it were alone. Raises ValueError unless they are
        all tokens there are, and where a sequence is longer than ``max_length``.
        """
        lengths = lengths_of(lengths, tokens)
        longest = self._longest_of(tokens, lengths)
        if longest == 0:
            return self.embed_tokens.weight.new_zeros(0, self.features)
        numbers = torch.arange(len(lengths), device=tokens.device).repeat_interleave(lengths)
        places = torch.arange(len(tokens), device=tokens.device)
        places = places - (lengths.cumsum(0) - lengths)[numbers]
        attending = PackedSequences(numbers, places, len(lengths), longest, self.sliding_window)
        return self._features(tokens.unsqueeze(0), places, attending).squeeze(0)

    def _whole(self, x: Tensor) -> Tensor:
        """Sequences (..., L) -> (..., L, width)."""
        leading, length = x.shape[:-1], x.shape[-1]
        self._require_places(length, f"a sequence has {length}", "shorten the sequence")
        tokens = x.reshape(math.prod(leading), length)
        places = torch.arange(length, device=x.device)
        y = self._features(tokens, places, WholeSequences(self.sliding_window))
        return y.reshape(*x.shape, y.shape[-1])

    def _read(
        self, x: Tensor, state: State, resets: Tensor | None, look: bool
    ) -> tuple[Tensor, State]:
        """Tokens (..., T) after those that ``state`` holds; ``look``: the host may look at how many these are."""
        leading, steps = x.shape[:-1], x.shape[-1]
        rows = math.prod(leading)
        cache, length = self._flat(state, rows)
        resets = None if resets is None else resets.reshape(rows, steps)
        placement = Placement(length, steps, resets)
        used, whole = self.max_length, False
        if look and rows:
            _, used = self._extent_of(length)
            self._require_places(int(placement.places.max()) + 1)
            whole = used == 0 and (resets is None or not bool(resets[:, 1:].any()))
        mask = None if whole else placement.mask(used, self.sliding_window)
        attending = CachedTokens(cache, used, mask, self.sliding_window)
        y = self._placed_features(x.reshape(rows, steps), placement.places, attending, look)
        keys, values = (placement.written(*pair) for pair in zip(cache, attending.new))
        after = self._state(keys, values, placement.places[:, -1] + 1, leading)
        return y.reshape(*x.shape, y.shape[-1]), after

    def _append(
        self, x: Tensor, state: State, resets: Tensor | None, look: bool
    ) -> tuple[Tensor, State]:
        """One token without gradients. The cache is copied once: a state that the caller keeps stays as it is.

        Not so with `writes_state`.
        """
        rows = x.numel()
        cache, length = self._flat(state, rows)
        if resets is None or (look and not bool(resets.any())):
            keys, values = cache if self.writes_state else (part.clone() for part in cache)
        else:
            resets = resets.reshape(rows)
            length = torch.where(resets, 0, length)
            keys, values = (torch.where(resets[:, None, None, None, None], 0.0, c) for c in cache)
        least, most = (0, self.max_length - 1)
        if look and rows:
            least, most = self._extent_of(length)
            self._require_places(most + 1)
        place = least if least == most else length.clamp(0, self.max_length - 1)
        first = 0 if self.sliding_window is None else max(0, least + 1 - self.sliding_window)
        attending = AppendedToken((keys, values), place, first, most + 1, self.sliding_window)
        y = self._placed_features(x.reshape(rows, 1), length.unsqueeze(-1), attending, look)
        return y.reshape(*x.shape, y.shape[-1]), self._state(keys, values, length + 1, x.shape)

    def _placed_features(
        self, tokens: Tensor, places: Tensor, attending: Attending, look: bool
    ) -> Tensor:
        """Features of tokens at ``places`` (n, T); NaN beyond the cache, where the host may not ``look``."""
        if look:
            return self._features(tokens, places, attending)
        y = self._features(tokens, places.clamp(0, self.max_length - 1), attending)
        return torch.where((places < self.max_length).unsqueeze(-1), y, torch.nan)

    def _features(self, tokens: Tensor, places: Tensor, attending: Attending) -> Tensor:
        """Tokens (n, T) at ``places``, (n, T) or (T,), -> (n, T, width)."""
        x = self.embed_tokens(tokens.long())
        if self.embed_scale != 1.0:
            x = x * self.embed_scale
        if self.embed_positions is not None:
            x = x + self.embed_positions(places.expand(tokens.shape))
        angles = None
        if self.cosines is not None and self.sines is not None:
            angles = self.cosines[places].unsqueeze(-3), self.sines[places].unsqueeze(-3)
        for layer in self.layers:
            x = layer(x, angles, attending)
        x = self.norm(x)
        return functional.linear(x, self.embed_tokens.weight) if self.tied_head else x

    def _flat(self, state: State, rows: int) -> tuple[Cache, Tensor]:
        """Keys and values with ``rows`` as their only leading axis, and how many tokens they are of."""
        shapes = self.state_shapes
        flat = {name: state[name].reshape(rows, *shape) for name, shape in shapes.items()}
        digits = flat["length"].long().unbind(-1)
        length = digits[0]
        for digit in digits[1:]:
            length = length * BASE + digit
        return (flat["keys"], flat["values"]), length

    def _state(
        self, keys: Tensor, values: Tensor, length: Tensor, leading: Sequence[int]
    ) -> dict[str, Tensor]:
        length = length.clamp(max=self.max_length)
        digits = [length]
        for _ in range(digits_of(self.max_length) - 1):
            digits[:1] = [digits[0] // BASE, digits[0] % BASE]
        parts = {"keys": keys, "values": values, "length": torch.stack(digits, -1).to(keys.dtype)}
        return {
            name: part.reshape(*leading, *self.state_shapes[name]) for name, part in parts.items()
        }

    def _extent_of(self, length: Tensor) -> tuple[int, int]:
        """The least and the most tokens that a state holds. Raises ValueError for numbers that no state has."""
        least, most = map(int, length.aminmax())
        if least < 0 or most > self.max_length:
            raise ValueError(
                f"block 'decoder' got a state whose 'length' is not between 0 and max_length={self.max_length}; "
                "begin with initial_state(batch_size)"
            )
        return least, most

    def _require_places(
        self,
        count: int,
        what: str = "this episode has more",
        advice: str = "say in 'resets' where episodes begin",
    ) -> None:
        """Raise FullCacheError if ``count`` tokens are more than there are places."""
        if count > self.max_length:
            raise FullCacheError(
                f"block 'decoder' has places for max_length={self.max_length} tokens, and {what}; "
                f"raise 'max_length', or {advice}"
            )

    def _longest_of(self, tokens: Tensor, lengths: Tensor) -> int:
        """The longest of packed sequences. Raises ValueError unless ``lengths`` are those of all ``tokens``."""
        if tokens.dim() != 1 or lengths.dim() != 1:
            shapes = " and ".join(format_shape(part.shape) for part in (tokens, lengths))
            raise ValueError(f"packed takes tokens (N,) and lengths (B,), got {shapes}")
        counts = lengths.tolist()
        if min(counts, default=0) < 0 or sum(counts) != len(tokens):
            raise ValueError(
                f"the lengths of packed sequences must be 0 or more and add up to the {len(tokens)} "
                f"tokens, got {counts}"
            )
        longest = max(counts, default=0)
        self._require_places(longest, f"a sequence has {longest}", "shorten the sequence")
        return longest


def lengths_of(lengths: object, tokens: object) -> Tensor:
    """The lengths of packed ``tokens`` as whole numbers on their device. Raises ValueError for what are none."""
    if not isinstance(tokens, Tensor):
        raise ValueError(f"packed takes tokens as a tensor (N,), got {describe(tokens)}")
    try:
        given = torch.as_tensor(lengths, device=tokens.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"packed takes lengths as whole numbers, got {describe(lengths)}"
        ) from error
    is_whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if given.numel() and not is_whole:  # an empty list has no dtype
        raise ValueError(f"packed takes lengths as whole numbers, got {given.dtype}")
    return given.long()


def digits_of(max_length: int) -> int:
    """How many digits it takes to count to ``max_length``; the first may be BASE itself."""
    return next(count for count in itertools.count(1) if BASE**count >= max_length)


def may_look(x: Tensor, waiting: bool = False) -> bool:
    """Whether the host may look at values: where they are at hand, or with ``waiting`` for the device."""
    if is_traced() or x.is_meta:
        return False
    return x.is_cpu or (waiting and not capturing())


def narrow_normal(tensor: Tensor, generator: torch.Generator) -> None:
    tensor.normal_(0.0, 0.02, generator=generator)
