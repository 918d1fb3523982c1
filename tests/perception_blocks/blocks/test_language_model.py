"""Language models of transformers as a block: what they read, where their weights come from, what is refused."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from gymnasium.spaces import Dict, Discrete, MultiBinary, MultiDiscrete
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaModel, MambaModel

import composer
from composer.checkpoint.file import read_record
from composer.errors import SpecError
from perception_blocks.port import Port
from perception_blocks.registry import BLOCKS, MissingExtraError, Registry

LENGTH, TOKENS = 7, 5
FAMILIES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
    },
    "mamba": {"num_hidden_layers": 2, "hidden_size": 16},
}
every_family = pytest.mark.parametrize("family", FAMILIES)
MASKED = [(LENGTH,), (LENGTH,)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def block_of(family, in_shapes=MASKED, **settings):
    settings = {"family": family, "vocab_size": TOKENS, **FAMILIES[family], **settings}
    return BLOCKS.get("transformer")(in_shapes, **settings).eval()


def twin_of(block, **settings):
    """Another view of the same weights."""
    other = block_of(block.body.config.model_type, **settings)
    other.load_state_dict(block.state_dict())
    return other


def tokens(*leading):
    return torch.randint(TOKENS, (*leading, LENGTH))


def first(counts):
    """A mask whose rows begin with as many true elements as ``counts`` says."""
    return torch.arange(LENGTH) < torch.as_tensor(counts).unsqueeze(-1)


@every_family
def test_the_line_of_a_spec_works_literally(family):
    of_gpt2 = "n_layer: 2, n_head: 2, n_embd: 32"
    line = of_gpt2 if family == "gpt2" else "num_hidden_layers: 1, hidden_size: 32"
    line = f"{{block: transformer, family: {family}, in: [sequence, sequence_mask], {line}, read: last}}"
    spec = f"version: 1\npolicy:\n  graph:\n    latent: {line}\n  heads: {{in: latent}}"
    space = Dict(sequence=MultiDiscrete([8] * 6), sequence_mask=MultiBinary(6))
    model = composer.compose(spec, observation_space=space, action_space=Discrete(8), seed=0)
    assert 0 <= model.policy.act(space.sample()) < 8
    assert model.policy.network.module.latent.body.config.vocab_size == 8


@every_family
def test_reading_at_length_k_equals_reading_all_at_k_minus_1(family):
    last = block_of(family)
    every = twin_of(last, read="all")
    sequence = tokens(3)
    features = every(sequence, first([LENGTH] * 3))
    for k in range(1, LENGTH + 1):
        torch.testing.assert_close(
            last(sequence, first([k] * 3)), features[:, k - 1], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(last(sequence[:, :k]), features[:, k - 1], atol=1e-5, rtol=1e-5)


@every_family
def test_last_is_at_the_number_of_true_elements_minus_one(family):
    last = block_of(family)
    every = twin_of(last, read="all")
    sequence, mask = tokens(3), first([1, 4, 7])
    features = every(sequence, mask)
    index = mask.sum(-1) - 1
    torch.testing.assert_close(last(sequence, mask), features[torch.arange(3), index])


@every_family
@pytest.mark.parametrize("read", ["last", "all"])
def test_padding_makes_no_difference_wherever_it_stands(family, read):
    block = block_of(family, read=read)
    sequence = tokens(2)
    mask = first([4, 4])
    left = torch.cat([tokens(2)[:, :3] * 1000, sequence[:, :4]], dim=-1)  # no tokens of its own
    expected, got = block(sequence, mask), block(left, mask.flip(-1))
    if read == "all":
        expected, got = expected[:, :4], got[:, 3:]
    torch.testing.assert_close(got, expected)


@every_family
def test_a_sequence_without_tokens_gives_zeros_and_finite_gradients(family):
    last = block_of(family)
    every = twin_of(last, read="all")
    sequence, mask = tokens(2), first([0, 2])
    assert not last(sequence, mask)[0].any()
    features = every(sequence, mask)
    assert not features[0].any()
    assert not features[1, 2:].any()
    features.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in every.parameters() if p.grad is not None)


def test_a_sequence_space_brings_its_mask_untold():
    block = block_of("gpt2", [(None,), (None,)])
    assert block.mask_of == {"mask": 0}
    assert block(tokens(2)[:, :0], first([0, 0])[:, :0]).tolist() == [[0.0] * 16] * 2


# --- weights ----------------------------------------------------------------------------------------------------------


@every_family
def test_weights_depend_on_the_seed_and_the_name_alone(family):
    one, two = (block_of(family) for _ in range(2))
    for block in (one, two):
        block.reset_parameters(torch.Generator().manual_seed(3))
    deeper = {"gpt2": {"n_layer": 3}}.get(family, {"num_hidden_layers": 3})
    more = block_of(family, **deeper)
    more.reset_parameters(torch.Generator().manual_seed(3))
    scaled = "c_proj.weight"  # gpt2 divides it by the number of layers
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
        if not name.endswith(scaled):
            assert torch.equal(weight, more.state_dict()[name]), name
    assert one.body.embed_tokens.weight.std() < 0.03 if family == "llama" else True


@every_family
def test_an_initialiser_draws_the_matrices(family):
    block = block_of(family)
    block.take_initializer(lambda tensor, generator: tensor.fill_(0.5))
    block.reset_parameters()
    tables = [w for n, w in block.body.named_parameters() if n.endswith("weight") and w.dim() == 2]
    assert all((table == 0.5).all() for table in tables)


def saved(path, family, **settings):
    """A folder that transformers itself wrote, and the model in it."""
    model = block_of(family, **settings).body
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(path)
    return model


@every_family
def test_a_checkpoints_weights_are_kept_as_they_are(family, tmp_path):
    model = saved(tmp_path, family)
    spec = f"""
        version: 1
        policy:
          graph:
            latent: {{block: transformer, checkpoint: {tmp_path}, in: [sequence, sequence_mask]}}
          heads: {{in: latent}}"""
    space = Dict(sequence=MultiDiscrete([TOKENS] * 6), sequence_mask=MultiBinary(6))
    given = {"observation_space": space, "action_space": Discrete(8), "allow": [f"{tmp_path}/"]}
    composed = composer.compose(spec, **given, seed=0)
    later = composer.compose(spec, **given, seed=1, device="meta").materialize("cpu")
    from_python = BLOCKS.get("transformer")(MASKED, checkpoint=str(tmp_path))
    for body in (
        composed.policy.network.module.latent.body,
        later.policy.network.module.latent.body,
        from_python.body,
    ):
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, body.state_dict()[name]), name


@every_family
def test_a_saved_model_needs_the_folder_of_its_body_no_more(family, tmp_path):
    folder = tmp_path / "body"
    saved(folder, family)
    spec = f"""
        version: 1
        params: {{body: {folder}}}
        policy:
          graph:
            words:
              block: graph
              in: {{tokens: sequence, there: sequence_mask}}
              out: [latent]
              graph:
                latent: {{block: transformer, checkpoint: "${{params.body}}", in: [tokens, there]}}
          heads: {{in: latent}}
        critic:
          ensemble: 2
          graph:
            latent: {{block: transformer, checkpoint: {folder}, in: [sequence, sequence_mask]}}"""
    space = Dict(sequence=MultiDiscrete([TOKENS] * 6), sequence_mask=MultiBinary(6))
    model = composer.compose(
        spec, observation_space=space, action_space=Discrete(8), allow=[f"{folder}/"], seed=0
    )
    shutil.rmtree(folder)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    assert loaded.load_report.skipped == []
    own, again = (m.policy.network.module.words.latent.body.config for m in (model, loaded))
    said_of_the_file = {"architectures": None, "dtype": None}
    assert again.to_dict() == {**own.to_dict(), **said_of_the_file}
    seen = {"sequence": tokens(3)[:, :6], "sequence_mask": first([3, 6, 5])[:, :6]}
    for one, other in zip(model.eval()(seen), loaded.eval()(seen), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    loaded.save(tmp_path / "again.safetensors")
    first_spec, second_spec = (
        read_record(tmp_path / f"{name}.safetensors").spec for name in ("model", "again")
    )
    assert first_spec == second_spec


def test_a_checkpoint_with_a_head_gives_its_body(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, **FAMILIES["gpt2"])).eval()
    model.save_pretrained(tmp_path)
    block = BLOCKS.get("transformer")([(LENGTH,)], checkpoint=str(tmp_path), read="all").eval()
    sequence = tokens(2)
    expected = model.transformer(sequence).last_hidden_state
    torch.testing.assert_close(block(sequence), expected)


@every_family
def test_the_block_computes_what_the_library_computes(family):
    block = block_of(family, read="all")
    cls = {"gpt2": GPT2LMHeadModel, "llama": LlamaModel, "mamba": MambaModel}[family]
    model = cls(block.body.config).eval()
    body = model.transformer if family == "gpt2" else model
    body.load_state_dict(block.body.state_dict())
    sequence, mask = tokens(3), first([3, 7, 5])
    expected = body(sequence, attention_mask=mask.long()).last_hidden_state
    expected = expected.masked_fill(~mask.unsqueeze(-1), 0.0)
    torch.testing.assert_close(block(sequence, mask), expected, atol=1e-5, rtol=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(message, **settings):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BLOCKS.get("transformer")(settings.pop("in_shapes", MASKED), **settings)


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    folder = str(tmp_path)
    refused("'checkpoint': there is no folder 'gpt2'; nothing is downloaded", checkpoint="gpt2")
    refused(f"'checkpoint': the folder {folder!r} has no config.json", checkpoint=folder)
    Path(folder, "config.json").write_text("{")
    Path(folder, "pytorch_model.bin").touch()
    refused(
        f"'checkpoint': the folder {folder!r} has no *.safetensors file; other formats can run code",
        checkpoint=folder,
    )
    Path(folder, "model.safetensors").write_bytes(b"rubbish!")
    with pytest.raises(ValueError, match=r"config\.json' cannot be read: Expecting property name"):
        BLOCKS.get("transformer")(MASKED, checkpoint=folder)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    folder = str(tmp_path)
    LlamaModel(LlamaConfig(vocab_size=5, **FAMILIES["llama"])).save_pretrained(folder)
    refused(
        f"'checkpoint': {folder!r} is of the family 'llama', not 'gpt2'",
        family="gpt2",
        checkpoint=folder,
    )
    refused("'checkpoint' knows 5 tokens, the input has 9", checkpoint=folder, vocab_size=[9, 9])
    refused(
        "a checkpoint brings its own configuration; leave out 'hidden_size'",
        checkpoint=folder,
        hidden_size=16,
    )
    config = Path(folder, "config.json")
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "model_type": "bert"}))
    refused(
        f"'checkpoint': {folder!r} is of the family 'bert'; there is 'gpt2', 'llama', 'mamba'",
        checkpoint=folder,
    )
    config.write_text(json.dumps({**values, "num_hidden_layers": 3, "intermediate_size": 20}))
    with pytest.raises(ValueError, match="does not hold its body") as error:
        BLOCKS.get("transformer")(MASKED, checkpoint=folder)
    assert "layers.2.mlp.up_proj.weight (20, 16) is missing" in str(error.value)
    assert "layers.0.mlp.up_proj.weight is (24, 16), its config.json needs (20, 16)" in str(
        error.value
    )


def test_init_beside_a_checkpoint_is_refused(tmp_path):
    saved(tmp_path, "gpt2")
    spec = f"""
        version: 1
        policy:
          graph:
            latent: {{block: transformer, checkpoint: {tmp_path}, in: sequence, init: orthogonal}}
          heads: {{in: latent}}"""
    space = Dict(sequence=MultiDiscrete([TOKENS] * 6))
    with pytest.raises(SpecError) as error:
        composer.compose(
            spec, observation_space=space, action_space=Discrete(8), allow=[f"{tmp_path}/"]
        )
    expected = "a checkpoint's weights are kept as they are; leave out 'init' or 'checkpoint'"
    assert str(error.value).endswith(expected)


def test_shapes_that_are_no_sequence_are_refused():
    two = {"family": "gpt2", "vocab_size": 5}
    refused(
        "transformer takes a sequence of tokens (length,), got (3, 4)", in_shapes=[(3, 4)], **two
    )
    refused("transformer needs a mask of shape (7,), got (6,)", in_shapes=[(LENGTH,), (6,)], **two)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "perception_blocks.blocks.language_config", raising=False)
    monkeypatch.delitem(sys.modules, "perception_blocks.blocks.language_model", raising=False)
    registry = Registry("block")
    registry.register(
        "transformer", "perception_blocks.blocks.language_model:TransformerBlock", extra="llm"
    )
    expected = 'install it with: pip install "perception-composer[llm]"'
    with pytest.raises(MissingExtraError, match=re.escape(expected)):
        registry.get("transformer")


def test_a_sequence_longer_than_the_places_of_the_body_is_told_where_its_length_varies():
    block = block_of("gpt2", [(None,)], n_positions=8)
    assert block(torch.zeros(8, dtype=torch.int64)).shape == (16,)
    message = "'n_positions' must be at least 9, the length of the sequence, got 8"
    with pytest.raises(ValueError, match=f"^{message}$"):
        block(torch.zeros(9, dtype=torch.int64))


def test_the_vocabulary_comes_from_the_space():
    block = block_of("gpt2")
    port = Port((LENGTH,), torch.int64, cardinality=(6,) * LENGTH)
    with pytest.raises(ValueError, match="'vocab_size' must be at least 6, the number of values"):
        block.out_ports([port])
