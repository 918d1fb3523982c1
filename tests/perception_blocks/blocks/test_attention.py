import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from perception_blocks.base_block import InputShapeError
from perception_blocks.blocks.attention import (
    Attention,
    CrossAttentionBlock,
    MultiHeadAttentionBlock,
    SelfAttentionSeqBlock,
)
from perception_blocks.blocks.attention_conv import SelfAttentionConvBlock
from perception_blocks.blocks.transformer import TransformerEncoderBlock
from perception_blocks.graph.graph import Graph
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Port

HEADS, BATCH, QUERIES, KEYS = 2, 5, 4, 7
SHAPES: Any = [(QUERIES, 6), (KEYS, 5), (KEYS, 3)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return module.eval()


def data(batch=BATCH):
    return [torch.randn(batch, *shape) for shape in SHAPES]


@torch.no_grad()
def plain(attention: Any, query, key, value, allowed):
    """One sample, key by key: ``allowed(head, query, key)`` says who may attend to whom."""
    size = attention.query.out_features // attention.num_heads
    q, k, v = attention.query(query), attention.key(key), attention.value(value)
    rows = []
    for i in range(len(query)):
        heads, any_legal = [], False
        for h in range(attention.num_heads):
            part = slice(h * size, (h + 1) * size)
            keys = [j for j in range(len(key)) if allowed(h, i, j)]
            scores = [math.exp(q[i, part] @ k[j, part] * attention.scale) for j in keys]
            mean = torch.zeros(size)
            for j, score in zip(keys, scores):
                mean = mean + score / sum(scores) * v[j, part]
            heads.append(mean)
            any_legal |= bool(keys)
        out = attention.output(torch.cat(heads))
        rows.append(out if any_legal else torch.zeros_like(out))
    return torch.stack(rows)


def masks(kind, batch=BATCH):
    """Random masks of that kind by argument name, in which nothing, a row, a sample is masked altogether."""
    made = {}
    if kind in ("attention", "both"):
        made["attention_mask"] = torch.rand(batch, QUERIES, KEYS) < 0.5
        made["attention_mask"][1, 2] = False
        made["attention_mask"][2] = True
    if kind == "per_head":
        made["attention_mask"] = torch.rand(batch, HEADS, QUERIES, KEYS) < 0.5
        made["attention_mask"][1, 0, 2] = False  # one head sees nothing, the other something
        made["attention_mask"][1, :, 3] = False
    if kind in ("padding", "both"):
        made["key_padding_mask"] = torch.rand(batch, KEYS) < 0.5
        made["key_padding_mask"][3] = False
        made["key_padding_mask"][2] = True
    return made


def allows(made, sample):
    def allowed(head, i, j):
        attention, padding = made.get("attention_mask"), made.get("key_padding_mask")
        if attention is not None:
            row = attention[sample]
            if not (row[head, i, j] if row.dim() == 3 else row[i, j]):
                return False
        return padding is None or bool(padding[sample, j])

    return allowed


@pytest.mark.parametrize("kind", ["none", "attention", "padding", "both", "per_head"])
@pytest.mark.parametrize("weights", [False, True])
def test_silent_defect_1_masks_are_right_for_every_sample_and_head(kind, weights):
    made = masks(kind)
    shapes = [*SHAPES, *(tuple(mask.shape[1:]) for mask in made.values())]
    block: Any = randomize(MultiHeadAttentionBlock(shapes, num_heads=HEADS, return_weights=weights))
    inputs = data()
    y = block(*inputs, *made.values())
    y = y[0] if weights else y
    for b in range(BATCH):
        query, key, value = (x[b] for x in inputs)
        expected = plain(block.attention, query, key, value, allows(made, b))
        torch.testing.assert_close(y[b], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "padding", "both", "per_head"])
@pytest.mark.parametrize("leading", [(), (3, 5), (2, 1, 3)])
def test_silent_defect_1_masks_are_right_for_any_leading_axes(kind, leading):
    count = math.prod(leading)
    made = masks(kind, max(count, 5))
    shapes = [*SHAPES, *(tuple(mask.shape[1:]) for mask in made.values())]
    block = randomize(MultiHeadAttentionBlock(shapes, num_heads=HEADS))
    flat = [x[:count] for x in (*data(max(count, 5)), *made.values())]
    shaped = [x.reshape(*leading, *x.shape[1:]) for x in flat]
    torch.testing.assert_close(
        block(*shaped), block(*flat).reshape(*leading, QUERIES, 6), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("masked", range(KEYS))
@pytest.mark.parametrize("weights", [False, True])
def test_silent_defect_2_any_key_can_be_masked_the_first_too(masked, weights):
    block = randomize(
        MultiHeadAttentionBlock([*SHAPES, (KEYS,)], num_heads=HEADS, return_weights=weights)
    )
    query, key, value = data()
    mask = torch.ones(BATCH, KEYS)
    mask[:, masked] = 0
    before = block(query, key, value, mask)
    key[:, masked], value[:, masked] = 100.0, 100.0
    torch.testing.assert_close(block(query, key, value, mask), before)


@pytest.mark.parametrize("kind", ["none", "attention", "padding", "both", "per_head"])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_torchs_multi_head_attention(kind, bias):
    theirs: Any = nn.MultiheadAttention(
        6, HEADS, bias=bias, kdim=5, vdim=3, batch_first=True
    ).eval()
    made = masks(kind)
    for mask in made.values():  # torch's own gives NaN where nothing is legal
        mask[..., 0] = True
    shapes = [*SHAPES, *(tuple(mask.shape[1:]) for mask in made.values())]
    block: Any = MultiHeadAttentionBlock(
        shapes, num_heads=HEADS, bias=bias, return_weights=True
    ).eval()
    ours = block.attention
    with torch.no_grad():
        for mine, name in [(ours.query, "q"), (ours.key, "k"), (ours.value, "v")]:
            getattr(theirs, f"{name}_proj_weight").copy_(mine.weight)
        theirs.out_proj.weight.copy_(ours.output.weight)
        if bias:
            for layer in (ours.query, ours.key, ours.value, ours.output):
                layer.bias.normal_()
            theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
            theirs.out_proj.bias.copy_(ours.output.bias)
    inputs = data()
    attention, padding = made.get("attention_mask"), made.get("key_padding_mask")
    if attention is not None:  # true = may not attend, one for each pair of sample and head
        attention = ~(attention if attention.dim() == 4 else attention.unsqueeze(1))
        attention = attention.expand(BATCH, HEADS, QUERIES, KEYS).flatten(0, 1)
    expected = theirs(
        *inputs,
        attn_mask=attention,
        key_padding_mask=None if padding is None else ~padding,
        average_attn_weights=False,
    )
    torch.testing.assert_close(block(*inputs, *made.values()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", [False, True])
def test_what_sees_nothing_is_zero_with_finite_gradients(weights):
    block = randomize(SelfAttentionSeqBlock([(4, 6), (4,)], num_heads=2, return_weights=weights))
    x = torch.randn(3, 4, 6, requires_grad=True)
    mask = torch.ones(3, 4)
    mask[1] = 0
    outputs = block(x, mask)
    y = outputs[0] if weights else outputs
    assert torch.equal(y[1], torch.zeros(4, 6))
    assert bool((y[0] != 0).all())
    if weights:
        assert torch.equal(outputs[1][1], torch.zeros(2, 4, 4))
    y.square().sum().backward()
    for tensor in (x, *block.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert x.grad is not None
    assert torch.equal(x.grad[1], torch.zeros(4, 6))


def test_a_query_whose_row_is_masked_is_zero():
    block = randomize(SelfAttentionSeqBlock([(4, 6), (4, 4)], num_heads=2))
    mask = torch.ones(4, 4)
    mask[2] = 0
    y = block(torch.randn(4, 6), mask)
    assert torch.equal((y == 0).all(-1), torch.tensor([False, False, True, False]))


def test_masks_can_be_given_by_name():
    padding, pairs = torch.rand(BATCH, 4) < 0.5, torch.rand(BATCH, 4, 4) < 0.5
    x = torch.randn(BATCH, 4, 6)
    both = randomize(SelfAttentionSeqBlock([(4, 6), (4, 4), (4,)]))
    one = SelfAttentionSeqBlock([(4, 6), (4,)]).eval()
    one.load_state_dict(both.state_dict())
    everything = torch.ones(BATCH, 4, 4)
    expected = both(x, everything, padding)
    torch.testing.assert_close(one(x, padding), expected)
    torch.testing.assert_close(one(x, key_padding_mask=padding), expected)
    torch.testing.assert_close(both(x, key_padding_mask=padding), expected)
    assert not torch.equal(both(x, attention_mask=pairs, key_padding_mask=padding), expected)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_causal_step_sees_no_later_one(weights, padded):
    shapes: Any = [(6, 4), (6,)] if padded else [(6, 4)]
    block: Any = randomize(
        SelfAttentionSeqBlock(shapes, num_heads=2, causal=True, return_weights=weights)
    )
    x, seen = torch.randn(3, 6, 4), torch.rand(3, 6) < 0.7
    y = block(x, seen) if padded else block(x)
    y = y[0] if weights else y
    for b in range(3):

        def allowed(head, i, j, row=seen[b]):
            return j <= i and (not padded or bool(row[j]))

        row = x[b] * seen[b].unsqueeze(-1) if padded else x[b]  # what does not exist is zero
        expected = plain(block.attention, row, row, row, allowed)
        torch.testing.assert_close(y[b], expected, atol=1e-5, rtol=1e-5)


def test_weights_are_what_the_output_is_made_of():
    block: Any = randomize(
        MultiHeadAttentionBlock([*SHAPES, (KEYS,)], num_heads=HEADS, return_weights=True)
    )
    query, key, value = data()
    mask = torch.rand(BATCH, KEYS) < 0.6
    mask[:, 1] = True
    y, weights = block(query, key, value, mask)
    values = block.attention.value(value).unflatten(-1, (HEADS, 3)).transpose(1, 2)
    mixed = (weights @ values).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(y, block.attention.output(mixed))
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, QUERIES))
    assert torch.equal(weights[~mask[:, None, None].expand_as(weights)].unique(), torch.zeros(1))


def test_the_residual_is_the_input():
    plain_block = randomize(SelfAttentionSeqBlock([(4, 6)]))
    block = SelfAttentionSeqBlock([(4, 6)], residual=True)
    block.load_state_dict(plain_block.state_dict())
    x = torch.randn(3, 4, 6)
    torch.testing.assert_close(block(x), x + plain_block(x))


def test_dropout_acts_in_training_only():
    block = randomize(SelfAttentionSeqBlock([(4, 6)], dropout=0.5))
    x = torch.randn(3, 4, 6)
    assert torch.equal(block(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_cross_attention_is_attention_to_a_context(single, weights):
    query_shape = (6,) if single else (4, 6)
    block: Any = randomize(
        CrossAttentionBlock([query_shape, (7, 5), (7,)], num_heads=2, return_weights=weights)
    )
    query, context = torch.randn(3, *query_shape), torch.randn(3, 7, 5)
    seen = torch.rand(3, 7) < 0.5
    seen[0] = False
    y = block(query, context, seen)
    y = y[0] if weights else y
    for b in range(3):
        row = seen[b]
        queries = query[b].reshape(-1, 6)
        expected = plain(
            block.attention, queries, context[b], context[b], lambda h, i, j, row=row: row[j]
        )
        torch.testing.assert_close(y[b].reshape(-1, 6), expected, atol=1e-5, rtol=1e-5)


def torch_encoder(block: Any, heads, activation):
    """nn.TransformerEncoder with the weights of ``block``."""
    size, units = block.norm.normalized_shape[0], block.layers[0].up.out_features
    layer = nn.TransformerEncoderLayer(
        size, heads, units, 0.0, activation, batch_first=True, norm_first=True
    )
    theirs: Any = nn.TransformerEncoder(
        layer, len(block.layers), nn.LayerNorm(size), enable_nested_tensor=False
    )
    with torch.no_grad():
        for mine, other in zip(block.layers, theirs.layers):
            parts = (mine.attention.query, mine.attention.key, mine.attention.value)
            other.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
            other.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
            pairs = [
                (mine.attention.output, other.self_attn.out_proj),
                (mine.attention_norm, other.norm1),
                (mine.norm, other.norm2),
                (mine.up, other.linear1),
                (mine.down, other.linear2),
            ]
            for one, two in pairs:
                two.load_state_dict(one.state_dict())
        theirs.norm.load_state_dict(block.norm.state_dict())
    return theirs.train()  # eval mode would take torch's fused path; there is no dropout


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder_is_torchs(causal, padded, activation):
    shapes: Any = [(6, 4), (6,)] if padded else [(6, 4)]
    block = randomize(
        TransformerEncoderBlock(
            shapes, num_layers=2, num_heads=2, activation=activation, causal=causal
        )
    )
    theirs = torch_encoder(block, 2, activation)
    x = torch.randn(3, 6, 4)
    seen = torch.rand(3, 6) < 0.5
    seen[:, 0] = True
    later = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
    expected = theirs(x, mask=later, src_key_padding_mask=~seen if padded else None)
    if padded:
        expected = expected * seen.unsqueeze(-1)
    y = block(x, seen) if padded else block(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_a_padded_sequence_gives_what_the_short_one_gives_and_zeros():
    block = randomize(TransformerEncoderBlock([(None, 4), (None,)], num_heads=2, num_layers=2))
    x = torch.randn(6, 4)
    seen = torch.tensor([1, 1, 1, 1, 0, 0])
    y = block(x, seen)
    torch.testing.assert_close(y[:4], block(x[:4], seen[:4]), atol=1e-5, rtol=1e-5)
    assert torch.equal(y[4:], torch.zeros(2, 4))
    assert torch.equal(block(x, torch.zeros(6)), torch.zeros(6, 4))


def with_gain(block):
    with torch.no_grad():
        block.gain.fill_(0.7)
    return block.eval()


@pytest.mark.parametrize("kind", ["none", "pixels", "pairs"])
@pytest.mark.parametrize("weights", [False, True])
def test_silent_defect_3_masked_pixels_are_never_seen(kind, weights):
    mask_shape = {"none": [], "pixels": [(2, 3)], "pairs": [(6, 6)]}[kind]
    block: Any = with_gain(SelfAttentionConvBlock([(8, 2, 3), *mask_shape], return_weights=weights))
    x = torch.randn(4, 8, 2, 3)
    given = [torch.rand(4, *shape) < 0.5 for shape in mask_shape]
    for mask in given:
        mask[1] = False  # nothing to see: the input comes back
    y = block(x, *given)
    y = y[0] if weights else y
    for b in range(4):

        def allowed(head, i, j, b=b):
            if kind == "pixels":
                return bool(given[0][b].flatten()[j])
            return kind == "none" or bool(given[0][b, i, j])

        pixels = x[b].flatten(1).T
        found = plain(block.attention, pixels, pixels, pixels, allowed)
        expected = x[b] + 0.7 * found.T.reshape(8, 2, 3)
        torch.testing.assert_close(y[b], expected, atol=1e-5, rtol=1e-5)
    if kind != "none":
        assert torch.equal(y[1], x[1])


def test_self_attention_conv_is_the_published_layer():
    block: Any = SelfAttentionConvBlock([(16, 4, 5)])
    assert torch.equal(block.gain.detach(), torch.zeros(1))
    assert block.attention.scale == 1.0
    assert block.attention.query.out_features == 2
    x = torch.randn(3, 16, 4, 5)
    assert torch.equal(block(x), x)
    block.reset_parameters(torch.Generator().manual_seed(0))
    assert torch.equal(block.gain.detach(), torch.zeros(1))


@pytest.mark.parametrize("length", [0, 1, 8])
def test_lengths_may_vary(length):
    block = randomize(SelfAttentionSeqBlock([(None, 4), (None,)], num_heads=2))
    assert block.out_shapes == [(None, 4)]
    x = torch.randn(3, length, 4)
    assert block(x, torch.ones(3, length)).shape == (3, length, 4)
    cross = randomize(CrossAttentionBlock([(4,), (None, 4), (None,)]))
    y = cross(torch.randn(3, 4), x, torch.ones(3, length))
    assert bool((y == 0).all()) == (length == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weighted_and_fused_attention_agree(dtype):
    attention = randomize(Attention((6, 6, 6), 8, 2)).to(dtype)
    x, mask = torch.randn(3, 4, 5, 6, dtype=dtype), torch.rand(3, 4, 1, 5, 5) < 0.5
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    for causal, given in itertools.product([False, True], [None, mask]):
        fused, _ = attention(x, x, x, given, causal)
        explicit, _ = attention(x, x, x, given, causal, weighted=True)
        torch.testing.assert_close(fused, explicit, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("block", "shapes", "settings", "message"),
    [
        (
            SelfAttentionSeqBlock,
            [(3, 4, 4)],
            {},
            "self_attention_seq takes a sequence or set (elements, features), got (3, 4, 4)",
        ),
        (
            SelfAttentionSeqBlock,
            [(4,), (1,)],
            {},
            "self_attention_seq takes a sequence or set (elements, features), got (4,)",
        ),
        (
            SelfAttentionSeqBlock,
            [(4, None)],
            {},
            "self_attention_seq needs to know how many features an element has, got (4, ?)",
        ),
        (
            SelfAttentionSeqBlock,
            [(4, 6), (5,)],
            {"num_heads": 3},
            "self_attention_seq needs a mask of shape (4,) or (4, 4) or (3, 4, 4), got (5,)",
        ),
        (
            SelfAttentionSeqBlock,
            [(4, 6), (4,), (4, 4)],
            {},
            "self_attention_seq needs a mask of shape (4, 4) or (1, 4, 4), got (4,)",
        ),
        (
            SelfAttentionSeqBlock,
            [(4, 6)] * 4,
            {},
            "self_attention_seq takes a sequence and optionally its masks, got (4, 6), (4, 6), (4, 6) and (4, 6)",
        ),
        (
            MultiHeadAttentionBlock,
            [(4, 6), (7, 5)],
            {},
            "multi_head_attention takes query, key, value and optionally their masks, got (4, 6) and (7, 5)",
        ),
        (
            MultiHeadAttentionBlock,
            [(4, 6), (7, 5), (8, 5)],
            {},
            "multi_head_attention needs a value for each key, got (7, 5) and (8, 5)",
        ),
        (
            CrossAttentionBlock,
            [(4, 6, 2), (7, 5)],
            {},
            "cross_attention takes a vector (features,) or a sequence (elements, features), got (4, 6, 2); "
            "put a flatten block before it",
        ),
        (
            CrossAttentionBlock,
            [(6,), (7, 5), (7,), (7,)],
            {},
            "cross_attention takes at most one mask, got (6,), (7, 5), (7,) and (7,)",
        ),
        (
            SelfAttentionConvBlock,
            [(3, 4, 5), (4, 4)],
            {},
            "self_attention_conv needs a mask of shape (4, 5) or (20, 20), got (4, 4)",
        ),
        (
            SelfAttentionConvBlock,
            [(3,)],
            {},
            "self_attention_conv takes (channels, height, width), got (3,); a vector goes into a dense block",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_words(block, shapes, settings, message):
    with pytest.raises(InputShapeError) as caught:
        block(shapes, **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_heads": 4},
            "self_attention_seq cannot split 6 features into 4 equal heads; "
            "change 'num_heads', or 'hidden_units' where it has them",
        ),
        (
            {"hidden_units": 8, "residual": True},
            "self_attention_seq cannot add its input of 6 features to its output of 8; "
            "leave out 'residual' or 'hidden_units'",
        ),
        ({"num_heads": 0}, "'num_heads' must be a positive integer, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        SelfAttentionSeqBlock([(4, 6)], **settings)
    assert str(caught.value) == message


def test_a_graph_names_masks_by_argument():
    legal = Port((None,), torch.int64, 2)
    graph = Graph({"entities": (None, 6), "own": (5,), "legal": legal})
    seen = {"key_padding_mask": "legal"}
    graph.add("encoded", "transformer_encoder", {"x": "entities", **seen}, num_heads=2)
    graph.add("found", "cross_attention", {"query": "own", "context": "encoded", **seen})
    graph.add("pooled", "masked_global_pooling", {"mask": "legal", "x": "encoded"})
    net = InferenceBlock(graph, outputs=["found", "pooled"]).eval()
    assert net.out_shapes == {"found": (5,), "pooled": (6,)}
    entities, own = torch.randn(3, 7, 6), torch.randn(3, 5)
    mask = torch.zeros(3, 7, dtype=torch.int64)
    mask[0], mask[1, :4] = 1, 1
    y = net({"entities": entities, "own": own, "legal": mask})
    short = net({"entities": entities[1, :4], "own": own[1], "legal": mask[1, :4]})
    for name, value in y.items():
        torch.testing.assert_close(value[1], short[name], atol=1e-5, rtol=1e-5)
        assert torch.equal(value[2], torch.zeros_like(value[2]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_masks_of_any_kind_are_let_in(dtype):
    ports = [Port(shape) for shape in SHAPES]
    MultiHeadAttentionBlock.check_ports([*ports, Port((KEYS,), dtype, 2)])
    with pytest.raises(InputShapeError) as caught:
        MultiHeadAttentionBlock.check_ports([*ports[:2], Port((KEYS,), torch.uint8)])
    assert str(caught.value) == (
        "multi_head_attention takes scaled numbers, got uint8 (7,); put a scale_image block after each uint8 observation "
        "that it is made of"
    )


def test_a_vector_is_a_sequence_of_one():
    block: Any = SelfAttentionSeqBlock([(4,)], num_heads=2, return_weights=True, residual=True)
    x = torch.randn(5, 2, 4)
    y, weights = block(x)
    attention = block.attention
    torch.testing.assert_close(y, x + attention.output(attention.value(x)))
    assert torch.equal(weights, torch.ones(5, 2, 2, 1, 1))


def test_a_gain_begins_where_it_is_set():
    block: Any = SelfAttentionSeqBlock([(5, 4)], residual=True, init_gain=0.0)
    x = torch.randn(2, 5, 4)
    assert torch.equal(block(x), x)
    block.reset_parameters()
    block.gain.data.fill_(0.5)
    torch.testing.assert_close(block(x), x + 0.5 * block.attention(x, x, x)[0])
    image: Any = SelfAttentionConvBlock([(4, 2, 3)], init_gain=2.0)
    image.reset_parameters()
    assert image.gain.tolist() == [2.0]
