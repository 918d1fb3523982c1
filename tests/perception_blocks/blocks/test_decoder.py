"""The decoder: the numbers of Hugging Face's models, whatever the cache holds and wherever episodes begin."""

import itertools
import math
import re

import pytest
import torch
from gymnasium.spaces import Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import composer
from perception_blocks import DecoderBlock
from perception_blocks.blocks import decoder as decoder_module

WORDS, PLACES, WIDTH = 11, 24, 16
SMALL = {"vocab_size": WORDS, "width": WIDTH, "num_heads": 4, "max_length": PLACES}
FULL = (
    "block 'decoder' has places for max_length=24 tokens, and this episode has more; "
    "raise 'max_length', or say in 'resets' where episodes begin"
)
a_few = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def decoder(shape=(), **changes):
    """A small block with weights that matter."""
    block = DecoderBlock([shape], **{**SMALL, **changes}).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def window_of(block, **changes):
    """The same weights over whole sequences."""
    other = decoder((None,), **changes)
    other.load_state_dict(block.state_dict())
    return other


def words(*shape):
    return torch.randint(WORDS, shape)


def stepped(block, x, state, resets=None):
    """(B, T) token by token."""
    outputs = []
    for t in range(x.shape[1]):
        y, state = block.step(x[:, t], state, None if resets is None else resets[:, t])
        outputs.append(y)
    return torch.stack(outputs, 1), state


# --- the numbers of Hugging Face --------------------------------------------------------------------------------------

COMMON = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": PLACES,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
OURS = {"num_kv_heads": 2, "mlp_units": 20}
GEMMA = {"head_dim": 6, "num_key_value_heads": 1, "hidden_activation": "gelu_pytorch_tanh"}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**COMMON), OURS),
    "llama with other settings": (
        LlamaForCausalLM,
        LlamaConfig(
            **COMMON,
            attention_bias=True,
            mlp_bias=True,
            rms_norm_eps=1e-3,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        OURS
        | {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "eps": 1e-3, "rope_theta": 500.0},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**COMMON), {**OURS, "qkv_bias": True}),
    "mistral": (
        MistralForCausalLM,
        MistralConfig(**COMMON, sliding_window=5),
        {**OURS, "sliding_window": 5},
    ),
    "gemma": (
        GemmaForCausalLM,
        GemmaConfig(**{**COMMON, **GEMMA}),
        {
            **OURS, "num_kv_heads": 1, "head_dim": 6, "norm": "rms_plus_one",
            "activation": {"gelu": {"approximate": "tanh"}}, "embed_scale": math.sqrt(WIDTH),
        },
    ),
}  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES)


def pair(family, shape=()):
    """A model of transformers and a decoder with its weights."""
    cls, config, changes = FAMILIES[family]
    model = cls(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    block = DecoderBlock([shape], **{**SMALL, **changes}).eval()
    block.load_state_dict(model.model.state_dict())
    return model, block


@every_family
@torch.no_grad()
def test_features_are_those_of_the_family(family):
    model, block = pair(family)
    x = words(3, PLACES)
    expected = model.model(input_ids=x, use_cache=False).last_hidden_state
    for y in (
        block.unroll(x, block.initial_state(3))[0],
        stepped(block, x, block.initial_state(3))[0],
    ):
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    whole = window_of(block, **FAMILIES[family][2])
    torch.testing.assert_close(whole(x), expected, atol=1e-5, rtol=1e-5)


@every_family
@torch.no_grad()
def test_tokens_are_those_of_generate(family):
    model, block = pair(family)
    first = words(3, 1)
    expected = model.generate(
        first, attention_mask=torch.ones_like(first), do_sample=False, max_new_tokens=PLACES - 1
    )
    tokens, state = [first[:, 0]], block.initial_state(3)
    for _ in range(PLACES - 1):
        y, state = block.step(tokens[-1], state)
        tokens.append(model.lm_head(y).argmax(-1))
    assert torch.equal(torch.stack(tokens, 1), expected)


@every_family
def test_weights_go_back_by_their_names(family):
    model, block = pair(family)
    block.reset_parameters()
    model.model.load_state_dict(block.state_dict())
    x = words(2, 7)
    expected = window_of(block, **FAMILIES[family][2])(x)
    y = model.model(input_ids=x, use_cache=False).last_hidden_state
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_learned_positions_and_layer_norms_are_gpt2s():
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": WIDTH, "n_positions": PLACES}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, **sizes)).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    block = DecoderBlock(
        [()], **SMALL, gated=False, norm="layer", eps=1e-5, positions="learned", qkv_bias=True, out_bias=True,
        mlp_bias=True, activation={"gelu": {"approximate": "tanh"}},
    ).eval()  # fmt: skip
    block.load_state_dict(from_gpt2(model.transformer.state_dict()))
    x = words(3, PLACES)
    expected = model.transformer(input_ids=x).last_hidden_state
    for y in (
        block.unroll(x, block.initial_state(3))[0],
        stepped(block, x, block.initial_state(3))[0],
    ):
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def from_gpt2(weights):
    """Its names as ours; its matrices are transposed, and queries, keys and values one."""
    names = {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc": "mlp.up_proj",
    }
    names |= {"mlp.c_proj": "mlp.down_proj", "attn.c_proj": "self_attn.o_proj", "ln_f": "norm"}
    names |= {"wte": "embed_tokens", "wpe": "embed_positions", "h.": "layers."}
    result = {}
    for name, tensor in weights.items():
        tensor = tensor.t() if "c_" in name else tensor
        if "c_attn" in name:
            for part, piece in zip("qkv", tensor.chunk(3)):
                result[
                    name.replace("h.", "layers.").replace("attn.c_attn", f"self_attn.{part}_proj")
                ] = piece
            continue
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        result[name] = tensor
    return result


def test_a_composed_policy_generates_what_generate_does():
    spec = """
version: 1
policy:
  graph:
    latent: {block: decoder, in: observation, width: 16, num_heads: 4, num_kv_heads: 2, mlp_units: 20, max_length: 24}
  heads: {in: latent}
"""
    model, _ = pair("llama")
    space = Discrete(WORDS)
    policy = (
        composer.compose(spec, observation_space=space, action_space=space, seed=0).eval().policy
    )
    network = policy.network.module
    network.latent.load_state_dict(model.model.state_dict())
    linear = network.get_submodule("heads.action").linear
    with torch.no_grad():
        linear.bias.zero_()
        linear.weight.copy_(model.lm_head.weight)
    first = words(3, 1)
    expected = model.generate(
        first, attention_mask=torch.ones_like(first), do_sample=False, max_new_tokens=20
    )
    for acting in (policy, policy.lower()):
        tokens, state = [first[:, 0]], policy.initial_state(3)
        for _ in range(20):
            token, state = acting.act(tokens[-1], state, deterministic=True)
            tokens.append(token)
        assert torch.equal(torch.stack(tokens, 1), expected)


# --- by hand ----------------------------------------------------------------------------------------------------------


def by_hand(block, tokens, heads, window=None):
    """Token by token and head by head, with lists as the cache: rotary, rms, gated, a key for every two queries."""
    share = block.layers[0].self_attn.head_dim
    cache = [[] for _ in block.layers]
    outputs = []
    for place, token in enumerate(tokens.tolist()):
        x = block.embed_tokens.weight[token]
        for layer, past in zip(block.layers, cache):
            h = normed(layer.input_layernorm, x)
            own = layer.self_attn
            keys = [
                turned(k, place, block.rope_theta) for k in (own.k_proj.weight @ h).split(share)
            ]
            past.append((keys, (own.v_proj.weight @ h).split(share)))
            seen, parts = past[-window:] if window else past, []
            for head, query in enumerate((own.q_proj.weight @ h).split(share)):
                query, group = turned(query, place, block.rope_theta), head * len(keys) // heads
                scores = torch.stack([query @ key[group] for key, _ in seen]) / math.sqrt(share)
                parts.append(sum(w * v[group] for w, (_, v) in zip(scores.softmax(0), seen)))
            x = x + own.o_proj.weight @ torch.cat(parts)
            h, mlp = normed(layer.post_attention_layernorm, x), layer.mlp
            x = x + mlp.down_proj.weight @ (
                functional.silu(mlp.gate_proj.weight @ h) * (mlp.up_proj.weight @ h)
            )
        outputs.append(normed(block.norm, x))
    return torch.stack(outputs)


def normed(norm, x):
    return norm.weight * x / torch.sqrt(x.square().mean() + norm.eps)


def turned(x, place, theta):
    """Pairs (first half, second half) as complex numbers, turned."""
    half = len(x) // 2
    angles = place / theta ** (torch.arange(half) / half)
    pairs = torch.complex(*x.split(half)) * torch.polar(torch.ones(half), angles)
    return torch.cat([pairs.real, pairs.imag])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 4])
@torch.no_grad()
def test_all_ways_to_read_are_the_network_by_hand(kv_heads, window):
    block = decoder(num_kv_heads=kv_heads, sliding_window=window)
    x = words(PLACES - 3)
    expected = by_hand(block, x, heads=4, window=window)
    state = block.initial_state()
    ways = {
        "unroll": block.unroll(x, state)[0],
        "step": stepped(block, x.unsqueeze(0), block.initial_state(1))[0][0],
        "whole": window_of(block, num_kv_heads=kv_heads, sliding_window=window)(x),
        "packed": block.packed(x, [len(x)]),
    }
    for y in ways.values():
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@st.composite
def lives(draw):
    """How many tokens came before, how many come, where episodes begin, and the window; for two rows."""
    before, steps = draw(st.integers(0, 6)), draw(st.integers(1, 10))
    resets = draw(
        st.lists(st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=2, max_size=2)
    )
    return before, torch.tensor(resets), draw(st.sampled_from([None, 1, 3])), draw(st.booleans())


@a_few
@given(lives(), st.integers(0, 2**20))
def test_wherever_episodes_begin_each_is_read_as_if_it_were_alone(life, seed):
    before, resets, window, with_gradients = life
    torch.manual_seed(seed)
    block = decoder(num_kv_heads=2, sliding_window=window)
    whole = window_of(block, num_kv_heads=2, sliding_window=window)
    past, x = words(2, before), words(*resets.shape)
    with torch.set_grad_enabled(with_gradients):
        state = block.initial_state(2)
        if before:
            _, state = stepped(block, past, state)
        unrolled, end = block.unroll(x, state, resets)
        step, step_end = stepped(block, x, state, resets)
        torch.testing.assert_close(step, unrolled, atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(step_end, end, atol=2e-6, rtol=2e-6)
        for row in range(2):
            begins = resets[row].nonzero().flatten().tolist()
            steps = resets.shape[1]
            length = steps - begins[-1] if begins else before + steps
            assert end["length"][row].item() == length
            for place, (start, stop) in enumerate(itertools.pairwise([0, *begins, steps])):
                tokens = x[row, start:stop] if place else torch.cat([past[row], x[row, :stop]])
                expected = whole(tokens)[len(tokens) - (stop - start) :]
                torch.testing.assert_close(
                    unrolled[row, start:stop], expected, atol=1e-5, rtol=1e-5
                )


@a_few
@given(st.lists(st.integers(0, 6), max_size=5), st.sampled_from([None, 2]), st.integers(0, 2**20))
def test_packed_sequences_are_read_as_if_each_were_alone(lengths, window, seed):
    torch.manual_seed(seed)
    block = decoder(num_kv_heads=2, sliding_window=window)
    whole = window_of(block, num_kv_heads=2, sliding_window=window)
    sequences = [words(length) for length in lengths]
    tokens = torch.cat([words(0), *sequences])
    alone = torch.cat([torch.zeros(0, WIDTH), *(whole(s) for s in sequences)])
    for given_lengths in (lengths, torch.tensor(lengths, dtype=torch.int32)):
        torch.testing.assert_close(block.packed(tokens, given_lengths), alone, atol=1e-5, rtol=1e-5)


def test_gradients_of_packed_sequences_are_those_of_each():
    block = decoder()
    whole = window_of(block)
    a, b = words(3), words(5)
    block.packed(torch.cat([a, b]), [3, 5]).square().sum().backward()
    (whole(a).square().sum() + whole(b).square().sum()).backward()
    for name, parameter in block.named_parameters():
        expected = dict(whole.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-4)


# --- the state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_gradients", [True, False])
def test_states_that_a_caller_keeps_stay_as_they_are(with_gradients):
    """Also where one is continued twice, and where the state that follows is written to."""
    block = decoder()
    with torch.set_grad_enabled(with_gradients):
        _, state = stepped(block, words(2, 3), block.initial_state(2))
        kept = {name: part.clone() for name, part in state.items()}
        first, after = block.step(torch.tensor([1, 2]), state)
        block.step(torch.tensor([3, 4]), state)
        block.step(torch.tensor([3, 4]), after, torch.tensor([True, False]))
        with torch.no_grad():
            for part in after.values():
                part.zero_()
        again, _ = block.step(torch.tensor([1, 2]), state)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert torch.equal(first, again)


def test_what_stands_beyond_the_length_is_never_seen():
    block = decoder()
    x, state = words(2, 4), block.initial_state(2)
    rubbish = {"keys": torch.randn(2, 2, 4, PLACES, 4), "values": torch.randn(2, 2, 4, PLACES, 4)}
    rubbish["length"] = torch.zeros(2, 1)
    torch.testing.assert_close(block.unroll(x, rubbish)[0], block.unroll(x, state)[0])
    torch.testing.assert_close(stepped(block, x, rubbish)[0], stepped(block, x, state)[0])


@pytest.mark.parametrize("most", [256, 257, 65536, 65537])
def test_the_length_is_counted_exactly_in_bfloat16(most):
    block = DecoderBlock(
        [()], vocab_size=3, width=2, num_layers=1, num_heads=1, max_length=most, positions="learned"
    )
    digits = {256: 1, 257: 2, 65536: 2, 65537: 3}[most]
    assert block.state_shapes["length"] == (digits,)
    counts = torch.tensor([0, 1, 255, 256, most - 1, most, most + 7])
    empty = torch.zeros(len(counts), 0, dtype=torch.bfloat16)
    block.state_shapes = {**block.state_shapes, "keys": (0,), "values": (0,)}
    state = block._state(empty, empty, counts, [len(counts)])
    assert state["length"].dtype == torch.bfloat16
    _, length = block._flat(state, len(counts))
    assert length.tolist() == [min(count, most) for count in counts.tolist()]


@torch.no_grad()
def test_a_policy_in_bfloat16_reads_beyond_256_tokens():
    block = decoder(max_length=300).bfloat16()
    state = block.initial_state(1, dtype=torch.bfloat16)
    _, state = block.unroll(words(1, 298), state)
    _, state = block.step(words(1), state)
    assert state["length"].tolist() == [[1, 43]]
    assert {part.dtype for part in state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_state_keeps_its_dtype_under_autocast(with_gradients):
    block = decoder()
    x = words(2, 5)
    resets = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    with torch.set_grad_enabled(with_gradients), torch.autocast("cpu", torch.bfloat16):
        y, state = block.unroll(x, block.initial_state(2), resets)
        step, after = stepped(block, x, block.initial_state(2), resets)
    assert {part.dtype for part in (*state.values(), *after.values())} == {torch.float32}
    torch.testing.assert_close(y.float(), step.float(), atol=0.1, rtol=0.1)


# --- a cache that is full ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_gradients", [True, False])
def test_a_full_cache_is_an_error_that_names_max_length(with_gradients):
    block = decoder()
    with torch.set_grad_enabled(with_gradients):
        _, state = block.unroll(words(2, PLACES), block.initial_state(2))
        for call in (lambda: block.step(words(2), state), lambda: block.unroll(words(2, 1), state)):
            with pytest.raises(ValueError, match=f"^{re.escape(FULL)}$"):
                call()
        with pytest.raises(ValueError, match=re.escape(FULL)):
            block.unroll(words(2, PLACES + 1), block.initial_state(2))
        with pytest.raises(ValueError, match=re.escape(FULL)):
            block.step(words(2), state, torch.tensor([True, False]))
        y, after = block.step(words(2), state, torch.tensor([True, True]))
        assert y.isfinite().all()
        assert after["length"].tolist() == [[1], [1]]
        resets = torch.zeros(2, PLACES + 5, dtype=torch.bool)
        resets[:, 9] = True
        block.unroll(words(2, PLACES + 5), block.initial_state(2), resets)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64], ids=str)
def test_lengths_may_be_whole_numbers_of_any_size(dtype):
    block, tokens = decoder(), words(256)
    lengths = torch.full((16,), 16)
    assert torch.equal(block.packed(tokens, lengths.to(dtype)), block.packed(tokens, lengths))


NO_LENGTHS = [-1.0, -5.0, PLACES + 1.0, 1e9, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("resets", [None, True])
@pytest.mark.parametrize("length", NO_LENGTHS)
def test_a_state_of_a_length_that_there_cannot_be_is_refused(length, resets, with_gradients):
    block = decoder()
    state = {**block.initial_state(2), "length": torch.tensor([[length], [1.0]])}
    begins = None if resets is None else torch.ones(2, 3, dtype=torch.bool)
    message = "block 'decoder' got a state whose 'length' is not between 0 and max_length=24; begin with initial_state(batch_size)"
    with torch.set_grad_enabled(with_gradients):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            block.unroll(words(2, 3), state, begins)
        if resets is None:
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                block.step(words(2), state)


def test_sequences_that_are_too_long_are_refused():
    message = (
        "block 'decoder' has places for max_length=24 tokens, and a sequence has 25; "
        "raise 'max_length', or shorten the sequence"
    )
    for call in (
        lambda: decoder((None,))(words(2, PLACES + 1)),
        lambda: decoder().packed(words(30), [5, PLACES + 1]),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_where_the_host_does_not_look_what_does_not_fit_is_nan(
    with_gradients, positions, monkeypatch
):
    """As on an accelerator, and in compiled and exported code; the other rows and the next episode are right."""
    block = decoder(positions=positions, max_length=6)
    x = words(2, 9)
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[0, 3] = resets[:, 8] = True
    whole = window_of(block, positions=positions, max_length=6)
    monkeypatch.setattr(decoder_module, "may_look", lambda x, waiting=False: False)
    with torch.set_grad_enabled(with_gradients):
        step, end = stepped(block, x, block.initial_state(2), resets)
        unrolled, unrolled_end = block.unroll(x, block.initial_state(2), resets)
    torch.testing.assert_close(step, unrolled, atol=2e-6, rtol=2e-6, equal_nan=True)
    torch.testing.assert_close(end, unrolled_end, atol=2e-6, rtol=2e-6)
    assert step[1, 6:8].isnan().all()
    for row, start, stop in [(0, 0, 3), (0, 3, 8), (1, 0, 6), (0, 8, 9), (1, 8, 9)]:
        torch.testing.assert_close(
            step[row, start:stop], whole(x[row, start:stop]), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_compiled_steps_say_nan_for_what_does_not_fit():
    block = decoder(max_length=2)
    torch.compiler.reset()
    step = torch.compile(lambda x, state: block.step(x, state), backend="eager", fullgraph=True)
    state = block.initial_state(1)
    for expected in (False, False, True):
        y, state = step(words(1), state)
        assert y.isnan().all().item() is expected


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        (
            (2, 3),
            {},
            "decoder takes one token () or a sequence of tokens (length,), got (2, 3)",
        ),
        ((), {"num_heads": 3}, "'num_heads' must divide width=16, got 3; or give 'head_dim'"),
        ((), {"num_kv_heads": 3}, "'num_kv_heads' must divide num_heads=4, got 3"),
        ((), {"head_dim": 5}, "'head_dim' must be even for rotary positions, got 5"),
        (
            (),
            {"num_heads": 16},
            "'head_dim' (width / num_heads) must be even for rotary positions, got 1",
        ),
        (
            (),
            {"sliding_window": 24},
            "'sliding_window' must be less than max_length=24, got 24; leave it out to see all tokens",
        ),
        ((30,), {}, "'max_length' must be at least 30, the length of the sequence, got 24"),
        (
            (),
            {"positions": "learned", "rope_theta": 500.0},
            "'rope_theta' is for rotary positions; leave out 'rope_theta' or 'positions'",
        ),
        ((), {"vocab_size": []}, "'vocab_size' is an empty list; leave it out"),
        ((), {"rope_theta": 1e39}, "'rope_theta' must be a number of float32, got 1e+39"),
        ((), {"embed_scale": 1e300}, "'embed_scale' must be a number of float32, got 1e+300"),
        (
            (),
            {"num_heads": 3, "num_kv_heads": 2, "sliding_window": 99},
            "'num_kv_heads' must divide num_heads=3, got 2; 'num_heads' must divide width=16, got 3; or give "
            "'head_dim'; 'sliding_window' must be less than max_length=24, got 99; leave it out to see all tokens",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_all_at_once(shape, changes, message):
    message = re.escape(message)
    with pytest.raises(ValueError, match=f"^{message}$"):
        DecoderBlock([shape], **{**SMALL, **changes})


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        (words(2, 3), [3], "packed takes tokens (N,) and lengths (B,), got (2, 3) and (1,)"),
        (words(3), [1, 1], "the lengths of packed sequences must be 0 or more and add up to the 3 tokens, got [1, 1]"),
        (words(3), [4, -1], "the lengths of packed sequences must be 0 or more and add up to the 3 tokens, got [4, -1]"),
        (words(3), [3.0], "packed takes lengths as whole numbers, got torch.float32"),
        (words(3), [True] * 3, "packed takes lengths as whole numbers, got torch.bool"),
        (words(3), torch.tensor([3j]), "packed takes lengths as whole numbers, got torch.complex64"),
        (words(3), "abc", "packed takes lengths as whole numbers, got the text 'abc'"),
        (words(3), None, "packed takes lengths as whole numbers, got nothing (null)"),
        (words(3), [[2], [1, 1]], "packed takes lengths as whole numbers, got a list"),
        (words(3), 3, "packed takes tokens (N,) and lengths (B,), got (3,) and ()"),
        (words(3), [2**62, 2**62], f"the lengths of packed sequences must be 0 or more and add up to the 3 tokens, got {[2**62, 2**62]}"),
        ([1, 2, 3], [3], "packed takes tokens as a tensor (N,), got a list"),
    ],
)  # fmt: skip
def test_lengths_that_do_not_fit_their_tokens_are_refused(tokens, lengths, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        decoder().packed(tokens, lengths)


def test_weights_are_drawn_narrowly_and_follow_an_initialiser():
    block = DecoderBlock([()], vocab_size=50, width=64, qkv_bias=True)
    for _ in range(2):
        assert 0.018 < block.embed_tokens.weight.std() < 0.022
        attention = block.layers[0].self_attn
        assert 0.018 < attention.q_proj.weight.std() < 0.022
        assert not attention.q_proj.bias.any()
        assert block.norm.weight.eq(1).all()
        block.reset_parameters()
    block.take_initializer(lambda tensor, generator: tensor.fill_(0.5))
    block.reset_parameters()
    assert block.layers[1].mlp.gate_proj.weight.eq(0.5).all()
    assert block.layers[1].input_layernorm.weight.eq(1).all()
