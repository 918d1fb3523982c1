import math
import re
from typing import Any

import pytest
import torch

from perception_blocks.blocks.features import sinusoids
from perception_blocks.blocks.gtrxl import GtrxlBlock, shifted


def scrambled(block):
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


def gate(gate, old, new):
    """A gated recurrent unit with a matrix for each term."""
    w_keep, w_write, w_content = gate.of_new.weight.chunk(3)
    u_keep, u_write = gate.of_old.weight.chunk(2)
    keep = torch.sigmoid(w_keep @ new + u_keep @ old)
    write = torch.sigmoid(w_write @ new + u_write @ old - gate.bias)
    content = torch.tanh(w_content @ new + gate.of_kept.weight @ (keep * old))
    return (1 - write) * old + write * content


def attention(layer, steps):
    """What the last of ``steps`` (their vectors, oldest first) sees in all of them, head by head."""
    heads, share = layer.attention.shares
    normed = [layer.attention_norm(step) for step in steps]
    attention = layer.attention
    w_key, w_value = attention.keys_values.weight.chunk(2)
    query = attention.queries.weight @ normed[-1]
    table = sinusoids(len(steps), heads * share, device=torch.device("cpu"))
    result = []
    for head in range(heads):
        part = slice(head * share, (head + 1) * share)
        scores = []
        for age, step in enumerate(reversed(normed)):
            by_content = (query[part] + attention.content_bias[head, 0]) @ (w_key @ step)[part]
            place = (attention.positions.weight @ table[age])[part]
            by_distance = (query[part] + attention.position_bias[head, 0]) @ place
            scores.append((by_content + by_distance) / math.sqrt(share))
        weights = torch.softmax(torch.stack(scores), dim=0)
        values = [(w_value @ step)[part] for step in reversed(normed)]
        result.append(sum(w * v for w, v in zip(weights, values)))
    return attention.last(torch.cat(result))


def by_hand(block, x, resets):
    """The network of the paper step by step, with lists as memory."""
    memories: list[list[Any]] = [[] for _ in block.layers]
    outputs = []
    for step, reset in zip(x, resets):
        h = block.stem(step)
        for index, layer in enumerate(block.layers):
            if reset:
                memories[index] = []
            memories[index] = [*memories[index][-block.memory_length :], h]
            h = gate(layer.attention_gate, h, torch.relu(attention(layer, memories[index])))
            inner = torch.relu(layer.wide(layer.feedforward_norm(h)))
            h = gate(layer.feedforward_gate, h, torch.relu(layer.narrow(inner)))
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("memory_length", [1, 3, 20])
@pytest.mark.parametrize("starts", [[], [4], [1, 2, 5]])
def test_unroll_is_the_papers_network_step_by_step(memory_length, starts):
    torch.manual_seed(0)
    block: Any = GtrxlBlock([(3,)], hidden_units=8, num_heads=2, memory_length=memory_length)
    scrambled(block)
    x = torch.randn(7, 3)
    resets = torch.zeros(7, dtype=torch.bool)
    resets[starts] = True
    output, _ = block.unroll(x, block.initial_state(), resets)
    torch.testing.assert_close(output, by_hand(block, x, resets), atol=1e-5, rtol=1e-5)


def test_an_empty_memory_is_not_attended_to():
    """Zeros in the memory are no inputs: what is not filled does not count, whatever stands there."""
    block = scrambled(GtrxlBlock([(3,)], hidden_units=8, num_heads=2, memory_length=4))
    x, state = torch.randn(3), block.initial_state()
    rubbish = {"memory": torch.randn(2, 4, 8), "filled": torch.zeros(4)}
    torch.testing.assert_close(block.step(x, state)[0], block.step(x, rubbish)[0])
    _, end = block.step(x, state)
    assert end["filled"].tolist() == [0, 0, 0, 1]


def test_gates_start_almost_closed():
    """With a high bias the block is its stem."""
    block: Any = GtrxlBlock([(3,)], hidden_units=8, num_heads=2, gate_bias=50.0)
    x = torch.randn(5, 3)
    torch.testing.assert_close(block(x), block.stem(x))
    usual: Any = GtrxlBlock([(3,)], hidden_units=8)
    assert usual.layers[0].attention_gate.bias.eq(2).all()


def test_shifting_moves_each_row_one_further():
    x = torch.arange(1.0, 7.0).reshape(2, 3)
    assert shifted(x).tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]


def test_the_constants_survive_a_change_of_dtype():
    block = GtrxlBlock([(3,)], hidden_units=8, num_heads=2)
    before = block.distances.clone()
    assert torch.equal(block.bfloat16().float().distances, before)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        (
            (5, 3),
            {"hidden_units": 8},
            "gtrxl takes one vector (features,), got (5, 3); put a flatten block before it",
        ),
        (
            (3,),
            {"hidden_units": 8, "num_heads": 3},
            "gtrxl with hidden_units=8 cannot have num_heads=3: each head takes an equal share of the units",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(shape, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GtrxlBlock([shape], **settings)
