"""A body of transformers gets its weights layer by layer, and they are those that it gets as a whole."""

import pytest
import torch

import composer.parallel
from perception_blocks import TransformerBlock
from perception_blocks.init import initializer

BODIES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
    },
    "mamba": {"num_hidden_layers": 2, "hidden_size": 16},
}


def block_of(family):
    return TransformerBlock([(6,)], family=family, vocab_size=9, **BODIES[family])


@pytest.mark.parametrize("init", [None, "orthogonal"])
@pytest.mark.parametrize("family", BODIES)
def test_weights_by_layer_are_those_of_the_whole(family, init):
    whole, parts = block_of(family), block_of(family)
    for block in (whole, parts):
        block.initializer = initializer(init)
    whole.reset_parameters(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for tensor in (*parts.parameters(), *parts.buffers()):
            tensor.fill_(7)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3)))
    names = parts.layer_names()
    assert len(names) == 2
    for name in names:
        parts.reset_part(name, seed)
    parts.reset_part("", seed, without=names)
    assert [*parts.body.state_dict()] == [*whole.body.state_dict()]
    for name, tensor in whole.named_parameters():
        assert torch.equal(tensor, parts.get_parameter(name)), name
    for name, tensor in whole.named_buffers():
        assert torch.equal(tensor, parts.get_buffer(name)), name


def test_a_checkpoint_is_read_by_layer_too(tmp_path):
    whole = block_of("llama")
    whole.body.save_pretrained(tmp_path)
    parts = TransformerBlock([(6,)], checkpoint=str(tmp_path))
    with torch.no_grad():
        for tensor in parts.parameters():
            tensor.fill_(7)
    names = parts.layer_names()
    for name in names:
        parts.reset_part(name, 0)
    parts.reset_part("", 0, without=names)
    assert all(
        torch.equal(t, parts.body.state_dict()[n]) for n, t in whole.body.state_dict().items()
    )


def test_a_device_is_refused():
    with pytest.raises(ValueError, match="the device") as error:
        composer.parallel.compose({}, device="cpu")
    assert str(error.value) == (
        "the device is that of the processes; composer.parallel.start(backend) chooses it"
    )
