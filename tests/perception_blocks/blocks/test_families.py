"""Families of language models: what transformers computes, and its tensors, here; everything else is refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from perception_blocks import DecoderBlock
from perception_blocks.blocks.families import (
    FAMILIES,
    WeightMap,
    complete_settings,
    family_of,
    told_settings,
)
from perception_blocks.blocks.family_proof import prove
from tests.helpers.language_models import (
    FORMS,
    PLACES,
    SIZES,
    WORDS,
    hf_config,
    hf_model,
    saved,
)

every_form = pytest.mark.parametrize("form", FORMS)
LLAMA = {"model_type": "llama", **SIZES}
GPT2 = hf_config("gpt2").to_dict()


def tokens(*shape):
    return torch.randint(WORDS, shape, generator=torch.Generator().manual_seed(1))


def weight_map(form, head="tokens"):
    family = family_of(hf_config(form).to_dict())
    return WeightMap(family, family.read(hf_config(form).to_dict()), head)


def stored(model, folder):
    return load_file(Path(saved(model, folder)) / "model.safetensors")


# --- numbers and names ------------------------------------------------------------------------------------------------


@every_form
@torch.no_grad()
def test_a_checkpoint_computes_the_logits_of_transformers(form, tmp_path):
    model = hf_model(form)
    folder, x = saved(model, tmp_path), tokens(3, PLACES)
    expected = model(input_ids=x).logits
    block = DecoderBlock([(PLACES,)], checkpoint=folder).eval()
    logits = block(x) @ model.get_output_embeddings().weight.T
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    step = DecoderBlock([()], checkpoint=folder, max_length=PLACES).eval()
    features, _ = step.unroll(x, step.initial_state(3))
    torch.testing.assert_close(features, block(x), atol=1e-4, rtol=0)
    if block.folder.settings["tied_head"]:
        tied = DecoderBlock([(PLACES,)], checkpoint=folder, tied_head=True).eval()
        assert tied.out_shapes == [(PLACES, WORDS)]
        torch.testing.assert_close(tied(x), expected, atol=1e-4, rtol=0)


@every_form
def test_tensors_go_back_by_equal_names_and_bits(form, tmp_path):
    theirs = stored(hf_model(form), tmp_path)
    weights = weight_map(form)
    back = weights.from_decoder(weights.to_decoder(theirs))
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(back[name], tensor), name


@every_form
def test_any_subset_of_names_converts(form, tmp_path):
    theirs = stored(hf_model(form), tmp_path)
    weights = weight_map(form)
    whole = weights.to_decoder(theirs)
    union = {}
    for name, tensor in theirs.items():
        part = weights.to_decoder({name: tensor}, whole=False)
        assert torch.equal(weights.from_decoder(part, whole=False)[name], tensor)
        union |= part
    assert union.keys() == whole.keys()
    assert all(torch.equal(union[name], whole[name]) for name in whole)


@every_form
def test_names_of_parts_are_all_names(form, tmp_path):
    theirs = stored(hf_model(form), tmp_path)
    family = weight_map(form).family
    parts = [family.embedding_names(2), family.block_names(0), family.block_names(1), family.head_names(2)]  # fmt: skip
    flat = [name for part in parts for name in part]
    assert len(set(flat)) == len(flat)
    assert theirs.keys() <= set(flat)


@pytest.mark.parametrize("name", ["gpt2", "llama", "codellama", "deepseek", "qwen2", "mistral", "gemma"])  # fmt: skip
def test_a_built_in_family_proves_itself(name):
    prove(FAMILIES.get(name))


def test_aliases_are_the_same_family():
    assert FAMILIES.get("codellama") is FAMILIES.get("deepseek") is FAMILIES.get("llama")


@every_form
def test_settings_and_configurations_are_inverse(form):
    values = hf_config(form).to_dict()
    family = family_of(values)
    settings = family.read(values)
    assert family.read(family.write(settings)) == settings
    told = told_settings(family, settings)
    assert complete_settings(family.name, told) == {**settings, "family": family.name}


@every_form
def test_defaults_are_those_of_transformers(form):
    """A file may leave out what its class has a default for."""
    family = family_of(hf_config(form).to_dict())
    written = family.write(family.read(hf_config(form).to_dict()))
    optional = ("max_position_embeddings", "n_positions", "hidden_act", "activation_function", "rms_norm_eps", "layer_norm_epsilon", "head_dim", "sliding_window", "tie_word_embeddings", "rope_theta", "rope_parameters", "attention_bias", "mlp_bias", "n_inner", "use_sliding_window", "max_window_layers")  # fmt: skip
    few = {key: value for key, value in written.items() if key not in optional}
    full = family.model_class.config_class(**few).to_dict()
    assert family.read(few) == family.read(full)
