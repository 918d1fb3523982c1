"""Families of language models: what transformers computes, and its tensors, here; everything else is refused by name."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from perception_blocks import DecoderBlock
from perception_blocks.activations import make_activation
from perception_blocks.blocks.families import (
    FAMILIES,
    FamilyError,
    complete_settings,
    family_of,
    told_settings,
)
from perception_blocks.blocks.family_proof import prove
from perception_blocks.blocks.family_tables import ACTIVATIONS
from perception_blocks.blocks.family_weights import WeightMap
from perception_blocks.settings import SettingsError
from tests.helpers.language_models import (
    FORMS,
    PLACES,
    SIZES,
    WIDTH,
    WORDS,
    hf_config,
    hf_model,
    only_built_in,
    saved,
    tokens,
)
from tests.helpers.language_models import LLAMA3 as SCALED


@pytest.fixture(autouse=True)
def _families(monkeypatch):
    only_built_in(monkeypatch)


every_form = pytest.mark.parametrize("form", FORMS)
LLAMA3 = {key: value for key, value in SCALED.items() if key != "rope_theta"}
LLAMA = {"model_type": "llama", **SIZES}
GPT2 = hf_config("gpt2").to_dict()


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


def test_activations_are_those_of_transformers():
    x = torch.linspace(-6, 6, 101)
    for name, ours in ACTIVATIONS.items():
        torch.testing.assert_close(make_activation(ours)(x), ACT2FN[name](x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 500.0}, 500.0),  # transformers 4
        ({"rope_theta": 500.0, "rope_scaling": None}, 500.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 500.0),  # 5
        ({"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 7.0}, 500.0),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 500.0}, 500.0),
    ],
)
def test_rope_theta_stands_in_one_of_two_places(keys, theta):
    assert FAMILIES.get("llama").read({**LLAMA, **keys})["rope_theta"] == theta


OF_LLAMA = {
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
    "intermediate_size": 172, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 32,
    "pretraining_tp": 1, "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": True,
}  # fmt: skip
# As repositories have them, from several versions of transformers, but smaller.
CONFIGS = {
    "the first llama": {**OF_LLAMA, "rms_norm_eps": 1e-6, "max_sequence_length": 2048},
    "llama 2": {
        **OF_LLAMA, "max_position_embeddings": 4096, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
        "rope_scaling": None, "tie_word_embeddings": False,
    },
    "code llama": {
        **OF_LLAMA, "max_position_embeddings": 16384, "num_key_value_heads": 4, "rope_theta": 1000000,
    },
    "llama 3.2": {
        **OF_LLAMA, "attention_bias": False, "head_dim": 16, "max_position_embeddings": 131072, "mlp_bias": False,
        "num_key_value_heads": 2, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
    },
    "deepseek coder": {
        **OF_LLAMA, "max_position_embeddings": 16384, "rope_theta": 100000, "rope_scaling": {"factor": 4.0, "type": "linear"},
    },
    "mistral": {**OF_LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 4096},
    "mistral without a window": {
        **OF_LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None, "rope_theta": 1e6,
    },
    "qwen 2": {
        **OF_LLAMA, "model_type": "qwen2", "num_key_value_heads": 2, "max_position_embeddings": 131072,
        "max_window_layers": 24, "sliding_window": 131072, "use_sliding_window": False, "rope_theta": 1e6,
    },
    "gemma": {
        **OF_LLAMA, "model_type": "gemma", "head_dim": 32, "num_key_value_heads": 1, "hidden_act": "gelu",
    },
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 31,
        "embd_pdrop": 0.1, "eos_token_id": 31, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2", "n_ctx": 1024, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_type": "cls_index", "task_specific_params": {}, "vocab_size": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_as_repositories_have_them(name):
    """They are read as transformers reads them, which fills in what is not said."""
    values = CONFIGS[name]
    family = family_of(values)
    full = family.model_class.config_class.from_dict(values).to_dict()
    assert family.read(values) == family.read(full)


# --- folders ----------------------------------------------------------------------------------------------------------


def names_and_tensors(folder):
    return DecoderBlock([(5,)], checkpoint=str(folder)).state_dict()


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_shards_are_read_by_their_index(form, tmp_path):
    model = hf_model(form)
    whole = names_and_tensors(saved(model, tmp_path / "whole"))
    folder = tmp_path / "shards"
    saved(model, folder, max_shard_size="8KB")
    assert len([*folder.glob("model-*.safetensors")]) > 2
    # Some folders hold the weights a second time, by other names.
    save_file({"layers.0.wq.weight": torch.zeros(2)}, folder / "consolidated.safetensors")
    shards = names_and_tensors(folder)
    assert shards.keys() == whole.keys()
    assert all(torch.equal(shards[name], whole[name]) for name in whole)


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_a_file_of_the_body_alone_has_no_prefix(form, tmp_path):
    model = hf_model(form)
    whole = names_and_tensors(saved(model, tmp_path / "whole"))
    body = names_and_tensors(saved(model.base_model, tmp_path / "body"))
    assert all(torch.equal(body[name], whole[name]) for name in whole)


def test_constants_of_earlier_files_mean_nothing(tmp_path):
    folder = Path(saved(hf_model("gpt2"), tmp_path))
    before = names_and_tensors(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, PLACES, PLACES)
    tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors")
    after = names_and_tensors(folder)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_max_length_reserves_fewer_places(form, tmp_path):
    model, x = hf_model(form), tokens(2, 8)
    block = DecoderBlock([()], checkpoint=saved(model, tmp_path), max_length=8).eval()
    assert block.max_length == block.settings["max_length"] == 8
    y, _ = block.unroll(x, block.initial_state(2))
    expected = model(input_ids=x).logits
    logits = y @ model.get_output_embeddings().weight.T
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    folder = saved(hf_model("llama"), tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")

    def refuse(*arguments, **keywords):
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse)
    DecoderBlock([()], checkpoint=folder)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(message, kind=SettingsError, **settings):
    with pytest.raises(kind) as error:
        DecoderBlock([()], **{"vocab_size": 5, **settings})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({**LLAMA, "rope_scaling": {"type": kind, "factor": 2.0}}, f"its rotary positions are scaled by the 'rope_type' {kind!r}; a decoder has 'linear', 'llama3'")
        for kind in ("dynamic", "yarn", "longrope", "su", "proportional", "mrope")
    ]
    + [
        ({**LLAMA, "rope_parameters": {"rope_type": "yarn"}}, "its rotary positions are scaled by the 'rope_type' 'yarn'; a decoder has 'linear', 'llama3'"),
        ({**LLAMA, "rope_parameters": {"rope_type": "linear"}}, "'rope_scaling': 'rope_type' 'linear' needs the setting 'factor' (a positive number)"),
        ({**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": "two"}}, "'rope_scaling': 'factor' must be a positive number, got 'two'"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "'rope_parameters' are those of several kinds of layers; a decoder has one"),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "'partial_rotary_factor' is 0.5; a decoder turns all features of a head"),
        ({**LLAMA, "rope_parameters": [1]}, "'rope_parameters' must be a mapping, got [1]"),
        ({**LLAMA, "hidden_act": "relu2"}, "the activation is 'relu2'; did you mean 'relu'?"),
        ({**LLAMA, "hidden_act": 3}, "the activation is 3; there is 'silu', 'swish', 'gelu', 'gelu_pytorch_tanh', 'gelu_new', 'gelu_fast', 'relu', 'tanh', 'sigmoid', 'mish'"),
        ({**LLAMA, "num_local_experts": 8}, "it is a mixture of experts ('num_local_experts' is 8), which a decoder is not"),
        ({**LLAMA, "model_type": "mixtral"}, "it is a mixture of experts (its model type is 'mixtral'), which a decoder is not"),
        ({**LLAMA, "model_type": "qwen2_moe"}, "it is a mixture of experts (its model type is 'qwen2_moe'), which a decoder is not"),
        ({**LLAMA, "model_type": "deepseek", "n_routed_experts": 64}, "it is a mixture of experts ('n_routed_experts' is 64), which a decoder is not"),
        ({**LLAMA, "model_type": "lama"}, "its model type is 'lama'; did you mean 'llama'?"),
        ({**LLAMA, "model_type": None}, "its model type is None; there is 'gpt2', 'llama', 'codellama', 'deepseek', 'qwen2', 'mistral', 'gemma'; register_family adds others"),
        ({key: value for key, value in LLAMA.items() if key != "hidden_size"}, "its config.json has no 'hidden_size'"),
        ({**LLAMA, "hidden_size": "wide"}, "'settings' of the family 'llama' failed: TypeError: unsupported operand type(s) for //: 'str' and 'int'"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "'num_layers' must be an integer between 1 and 1000, got 1000000000"),
        ({**LLAMA, "model_type": "gemma", "use_bidirectional_attention": True}, "'use_bidirectional_attention' is true; a decoder is causal"),
        ({**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "only some layers have a sliding window; a decoder has one for all"),
        ({**GPT2, "scale_attn_weights": False}, "'scale_attn_weights' is False, which a decoder cannot have"),
        ({**GPT2, "add_cross_attention": True}, "'add_cross_attention' is True, which a decoder cannot have"),
    ],
)  # fmt: skip
def test_configurations_that_a_decoder_cannot_have(values, reason, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values))
    folder = str(tmp_path)
    message = f"'checkpoint': {folder!r} is no model for a decoder: {reason}"
    refused(message, checkpoint=folder)


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("config.json", {**LLAMA, "auto_map": {"AutoConfig": "x.Y"}}, "'{}/config.json' has 'auto_map', which names code of its own; register the classes in a module that you allow, and remove it"),
        ("config.json", {**LLAMA, "attn_implementation": "someone/kernel"}, "'{}/config.json' has 'attn_implementation': 'someone/kernel', code that would be downloaded; remove it"),
        ("config.json", {**LLAMA, "quantization_config": {}}, "'{}/config.json' has 'quantization_config'; quantized weights are not read: save the model without it"),
        ("config.json", [1], "'{}/config.json' must hold a mapping, got a list"),
        ("tokenizer_config.json", {"auto_map": {}}, "'{}/tokenizer_config.json' has 'auto_map', which names code of its own; register the classes in a module that you allow, and remove it"),
        ("model.safetensors.index.json", {}, "'{}/model.safetensors.index.json' has no 'weight_map'"),
        ("model.safetensors.index.json", {"weight_map": {"x": "../other.safetensors"}}, "'{}/model.safetensors.index.json' names '../other.safetensors', which is no safetensors file of the folder"),
        ("model.safetensors.index.json", {"weight_map": {"x": "model.bin"}}, "'{}/model.safetensors.index.json' names 'model.bin', which is no safetensors file of the folder"),
        ("model.safetensors.index.json", {"weight_map": {"x": "a.safetensors"}}, "'{}/model.safetensors.index.json' names 'a.safetensors', which is not there"),
    ],
)  # fmt: skip
def test_a_crafted_folder_is_refused(file, values, reason, tmp_path):
    name = "part.safetensors" if "index" in file else "model.safetensors"
    save_file({"x": torch.zeros(1)}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / file).write_text(json.dumps(values))
    folder = str(tmp_path)
    refused(f"'checkpoint': {reason.format(folder)}", checkpoint=folder)


KINDS = {torch.int64: "I64", torch.float8_e4m3fn: "F8_E4M3", torch.complex64: "C64"}


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_weights_of_another_kind_are_told(dtype, tmp_path):
    folder = saved(hf_model("llama"), tmp_path)
    name, file = "model.norm.weight", Path(folder, "model.safetensors")
    weights = load_file(file)
    save_file({**weights, name: weights[name].to(dtype)}, file, metadata={"format": "pt"})
    must = f"{name} is of the dtype {KINDS[dtype]}, it must be one of F64, F32, F16, BF16"
    with pytest.raises(SettingsError) as error:
        DecoderBlock([()], checkpoint=folder)
    assert str(error.value) == f"'checkpoint': {folder!r}: {must}"


def test_json_that_is_nested_too_deeply_is_told(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(SettingsError, match=r"config\.json' cannot be read: "):
        DecoderBlock([()], vocab_size=5, checkpoint=str(tmp_path))


def changed(folder, **tensors):
    """The weights in ``folder`` again, with some others; None is left out."""
    file = Path(folder) / "model.safetensors"
    kept = {name.replace("__", "."): t for name, t in tensors.items()}
    stored = {**load_file(file), **kept}
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, file)


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    folder = saved(hf_model("llama"), tmp_path)
    changed(
        folder,
        model__norm__weight=None,
        model__embed_tokens__weight=torch.zeros(3, WIDTH),
        model__layers__0__self_attn__q_proj__bias=torch.zeros(WIDTH),
        model__layers__7__mlp__up_proj__weight=torch.zeros(2),
    )
    refused(
        f"'checkpoint': {folder!r}: the weights are not those of this model of the family 'llama': "
        "model.embed_tokens.weight is (3, 32), its config needs (40, 32); "
        "model.layers.0.self_attn.q_proj.bias is in no row; model.layers.7.mlp.up_proj.weight is in no row; "
        "model.norm.weight is missing",
        checkpoint=folder,
    )


def test_a_tensor_by_two_names_is_told(tmp_path):
    folder = saved(hf_model("gpt2"), tmp_path)
    changed(folder, wpe__weight=torch.zeros(PLACES, WIDTH))
    refused(
        f"'checkpoint': {folder!r}: the weights are not those of this model of the family 'gpt2': "
        "wpe.weight is there twice, with and without its prefix",
        checkpoint=folder,
    )


def test_a_head_that_is_tied_equals_the_embedding():
    weights = weight_map("gemma")
    theirs = {name: tensor.clone() for name, tensor in hf_model("gemma").state_dict().items()}
    assert "head.weight" not in weights.to_decoder(theirs)
    theirs["lm_head.weight"][3, 1] += 1
    message = "the head differs from the embedding, to which the config ties it"
    with pytest.raises(FamilyError, match=message):
        weights.to_decoder(theirs)


def test_a_head_that_is_tied_in_a_folder_equals_the_embedding(tmp_path):
    folder = saved(hf_model("gemma"), tmp_path)
    head = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    changed(folder, lm_head__weight=head)
    assert DecoderBlock([()], checkpoint=folder, tied_head=True).features == WORDS
    changed(folder, lm_head__weight=head + 1)
    assert DecoderBlock([()], checkpoint=folder).features == WIDTH  # which is not about the head
    refused(
        f"'checkpoint': {folder!r}: the weights are not those of this model of the family 'gemma': the head differs "
        "from the embedding, to which the config ties it",
        checkpoint=folder,
        tied_head=True,
    )


def test_parts_of_a_row_are_not_saved_alone():
    weights = weight_map("gpt2")
    ours = weights.to_decoder(hf_model("gpt2").state_dict())
    query = "layers.1.self_attn.q_proj.bias"
    with pytest.raises(FamilyError) as error:
        weights.from_decoder({query: ours[query], "norm.bias": ours["norm.weight"][:3], "x": ours["norm.bias"]}, whole=False)  # fmt: skip
    assert str(error.value) == (
        "the weights are not those of this model of the family 'gpt2': x is in no row; norm.bias is (3,), its config "
        "needs (32,); transformer.h.1.attn.c_attn.bias needs 'layers.1.self_attn.k_proj.bias', "
        "'layers.1.self_attn.v_proj.bias' too"
    )


def test_settings_beside_a_checkpoint(tmp_path):
    folder = saved(hf_model("llama"), tmp_path)
    refused("a checkpoint brings its own configuration; leave out 'width'", checkpoint=folder, width=64)  # fmt: skip
    refused("'checkpoint' knows 40 tokens, the input has 41", checkpoint=folder, vocab_size=[3, 41])
    refused(
        f"'checkpoint': {folder!r} is of the family 'llama', not 'gpt2'",
        checkpoint=folder,
        family="gpt2",
    )
    refused(
        f"'checkpoint': {folder!r} is no model for a decoder: it has places for 24 tokens, and 'max_length' is 25",
        checkpoint=folder,
        max_length=25,
    )
    refused(
        f"'tied_head': the head of {folder!r} has weights of its own; leave out 'tied_head'",
        checkpoint=folder,
        tied_head=True,
    )
    block = DecoderBlock([()], checkpoint=folder, family="codellama", vocab_size=3)
    assert block.family == "llama"
    assert block.vocab_size == WORDS
    with pytest.raises(SettingsError, match="'vocab_size'"):
        DecoderBlock([()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "lama"}, "'family' names the unknown model family 'lama'; did you mean 'llama'?"),
        ({"family": "llama", "norm": "layer"}, "'norm' of the family 'llama' is 'rms', got 'layer'; leave out 'norm'"),
        ({"family": "gemma", "norm": "rms"}, "'norm' of the family 'gemma' is 'rms_plus_one', got 'rms'; leave out 'norm'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'rope_scaling': 'rope_type' must be one of 'linear', 'llama3', got 'yarn'"),
        ({"rope_scaling": {"rope_type": "lama3"}}, "'rope_scaling': 'rope_type' must be one of 'linear', 'llama3', got 'lama3'; did you mean 'llama3'?"),
        ({"rope_scaling": {"rope_type": "linear", "factr": 2}}, "'rope_scaling': 'factr' is not a setting of 'rope_type' 'linear'; did you mean 'factor'?"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "'rope_scaling': 'high_freq_factor' must be greater than 'low_freq_factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}, "positions": "learned"}, "'rope_scaling' is for rotary positions; leave out 'rope_scaling' or 'positions'"),
        ({"family": "gpt2", "rope_scaling": {"rope_type": "linear", "factor": 2}}, "'rope_scaling' of the family 'gpt2' is null, got {'rope_type': 'linear', 'factor': 2}; leave out 'rope_scaling'"),
        ({"family": "gpt2", "num_kv_heads": 2}, "'num_kv_heads' of the family 'gpt2' is 4, got 2; leave out 'num_kv_heads'"),
        ({"family": "llama", "sliding_window": 5}, "'sliding_window' of the family 'llama' is null, got 5; leave out 'sliding_window'"),
        ({"family": "qwen2", "qkv_bias": False}, "'qkv_bias' of the family 'qwen2' is true, got false; leave out 'qkv_bias'"),
        ({"family": "gpt2", "activation": "softplus"}, "a model of the family 'gpt2' cannot have these settings: 'activation' is 'softplus', which transformers has no name for"),
    ],
)  # fmt: skip
def test_settings_that_no_model_of_the_family_has(settings, message):
    refused(message, **settings)


def test_the_family_sets_what_is_left_out():
    block = DecoderBlock([()], vocab_size=5, family="gpt2", width=16, num_layers=1)
    assert block.embed_positions.weight.shape == (64, 16)
    assert block.norm.eps == 1e-5
    assert block.layers[0].mlp.gate_proj is None
    assert not DecoderBlock([()], vocab_size=5, family="gemma").tied_head  # features, unless told


def test_the_embedding_of_a_tied_head_has_no_adapters():
    refused(
        "'lora' cannot have adapters of 'embed_tokens', which is the head too ('tied_head')",
        family="gpt2",
        tied_head=True,
        lora={"targets": ["embed_tokens"]},
    )
