"""A body of transformers gets its weights layer by layer, and they are those that it gets as a whole."""

import pytest
import torch

import composer
import composer.parallel
from perception_blocks import TransformerBlock
from perception_blocks.init import initializer
from tests.helpers.paths import CONFIGS

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


LORA = {"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("more", [{}, {"lora": LORA}, {"lora": {**LORA, "path": "adapters"}}])
@pytest.mark.parametrize("tied", [False, True])
def test_an_action_model_is_read_layer_by_layer(tmp_path, monkeypatch, tied, more):
    monkeypatch.syspath_prepend(CONFIGS)
    from tests.helpers.action_models import CONFIG, spec

    config = {**CONFIG, "tie_word_embeddings": tied}
    drawn = composer.compose(spec(config=config, lora=LORA), seed=3)
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.add_(0.01)
    drawn.save(tmp_path / "adapters", adapters_only=True)
    drawn.save_pretrained(tmp_path / "whole")
    split = composer.compose(
        spec(config=None, model_path=str(tmp_path / "whole")), allow=[f"{tmp_path}/"]
    )
    split.hf.save_pretrained(tmp_path / "split", max_shard_size="20KB")
    split.processor.save_pretrained(tmp_path / "split")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 3
    monkeypatch.chdir(tmp_path)
    data = spec(config=None, model_path="split", **more)
    arguments = {"allow": [f"{tmp_path}/"], "seed": 5}
    whole, parts = (
        composer.compose(data, **arguments),
        composer.compose(data, **arguments, device="meta"),
    )

    device = torch.device("cpu")
    assert parts.prepare_parts()
    assert all(p.is_meta for p in parts.parameters())
    layers = list(parts.hf.model.layers)
    for count, layer in enumerate(layers):
        parts.materialize_part(layer, device)
        held = {id(p) for p in parts.parameters() if not p.is_meta}
        assert held == {id(p) for part in layers[: count + 1] for p in part.parameters()}
    parts.materialize_rest(device)
    for ours, theirs in zip(
        (parts.named_parameters, parts.named_buffers), (whole.named_parameters, whole.named_buffers)
    ):
        ours, theirs = dict(ours()), dict(theirs())
        assert list(ours) == list(theirs)
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
            assert tensor.requires_grad == theirs[name].requires_grad


def test_an_action_model_that_draws_its_weights_is_made_as_a_whole(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    from tests.helpers.action_models import spec

    assert not composer.compose(spec(), device="meta").prepare_parts()


def test_a_device_is_refused():
    with pytest.raises(ValueError, match="the device") as error:
        composer.parallel.compose({}, device="cpu")
    assert str(error.value) == (
        "the device is that of the processes; composer.parallel.start(backend) chooses it"
    )
