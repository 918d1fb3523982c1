"""A stranger's folder is a model, or is told in words: no traceback, no waiting, no weight that is not the file's."""

import json
import os
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

import composer
import composer.language
from composer.errors import SpecError
from tests.helpers.action_models import observations, spec

AT = "model.model_path: 'model_path': "
WEIGHT = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def ckpt(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "ckpt")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ckpt"


def composed(**changes):
    data = spec(config=None, model_path="ckpt", **changes)
    return composer.compose(data, allow=["./"], seed=0)


def told(**changes):
    with pytest.raises(SpecError) as caught:
        composed(**changes)
    return str(caught.value)


def change(file, **values):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **values}))


def weights(ckpt, change):
    """Change the tensors of the folder by name."""
    tensors = load_file(ckpt / "model.safetensors")
    change(tensors)
    save_file(tensors, ckpt / "model.safetensors", metadata={"format": "pt"})


# --- JSON ---

FILES = ["config.json", "generation_config.json", "tokenizer.json", "dataset_statistics.json"]
FILES += ["trainer_state.json", "below/any.json"]
NO_JSON = {
    "{": "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    "[" * 100_000: "it is nested too deeply",
    "\0": "Expecting value: line 1 column 1 (char 0)",
}


@pytest.mark.parametrize("text", NO_JSON, ids=["broken", "deep", "zero"])
@pytest.mark.parametrize("name", FILES)
def test_json_that_is_none_is_told(name, text, ckpt):
    (ckpt / name).parent.mkdir(exist_ok=True)
    (ckpt / name).write_text(text)
    assert told() == f"{AT}'ckpt/{name}' cannot be read: {NO_JSON[text]}"


@pytest.mark.parametrize("name", ["config.json", "dataset_statistics.json"])
@pytest.mark.parametrize(
    ("text", "got"),
    [("[]", "an empty list"), ("3", "the number 3"), ("null", "nothing (null)"), ("NaN", "the number nan")],
)  # fmt: skip
def test_json_that_is_no_mapping_is_told(name, text, got, ckpt):
    (ckpt / name).write_text(text)
    assert told() == f"{AT}'ckpt/{name}' must hold a mapping, got {got}"


@pytest.mark.parametrize("name", ["x.json", "chat_template.jinja", "below/vocab.txt"])
def test_nothing_is_waited_for(name, ckpt):
    (ckpt / name).parent.mkdir(exist_ok=True)
    os.mkfifo(ckpt / name)
    assert told() == f"{AT}'ckpt/{name}' cannot be read: it is not a regular file"


@pytest.mark.parametrize("name", ["vocab.txt", "chat_template.jinja", "tokenizer.model", "below"])
def test_links_lead_to_nothing_outside(name, ckpt, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("secret")
    (ckpt / name).symlink_to(outside / "secret" if name != "below" else outside)
    with pytest.raises(SpecError) as caught:
        composer.compose(spec(config=None, model_path=str(ckpt)), allow=[f"{ckpt.parent}/"], seed=0)
    assert str(caught.value).startswith(
        f"{AT}{str(ckpt / name)!r} is neither beside nor below the spec; pass allow="
    )


# --- code, and classes that are no processors ---

LEADS = {
    "nested code": ("processor_config.json", {"image_processor": {"auto_map": {"A": "x.Y"}}}, "'auto_map', which names code of its own; register the classes in a module that you allow, and remove it"),
    "a model": ("tokenizer_config.json", {"tokenizer_class": "LlamaModel"}, "'tokenizer_class': 'LlamaModel', which is no tokenizer or processor; remove it"),
    "a fast one": ("tokenizer_config.json", {"tokenizer_class": "LlamaModelFast"}, "'tokenizer_class': 'LlamaModelFast', which is no tokenizer or processor; remove it"),
    "of images": ("processor_config.json", {"image_processor": {"image_processor_type": "GPT2LMHeadModel"}}, "'image_processor_type': 'GPT2LMHeadModel', which is no tokenizer or processor; remove it"),
    "in the configuration": ("config.json", {"tokenizer_class": "AutoModel"}, "'tokenizer_class': 'AutoModel', which is no tokenizer or processor; remove it"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEADS)
def test_files_of_a_processor_lead_to_no_code_and_no_model(case, ckpt, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("this must not be called")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    name, values, message = LEADS[case]
    change(ckpt / name, **values)
    assert told() == f"{AT}'ckpt/{name}' has {message}"


def test_a_word_of_a_vocabulary_is_no_code(ckpt):
    content = json.loads((ckpt / "tokenizer.json").read_text())
    content["model"]["vocab"]["auto_map"] = 15
    (ckpt / "tokenizer.json").write_text(json.dumps(content))
    (ckpt / "modeling_tiny.py").write_text("raise SystemExit")
    composed(value_head={"hidden_units": [16]}).act(observations(), True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab": 1_000_000}, "the tokenizer has a token 1000000, 'vocab_size' of the configuration is 40"),
        ({"vocab": 41}, "the tokenizer has a token 41, 'vocab_size' of the configuration is 40"),
    ],
)  # fmt: skip
def test_tokens_that_the_model_has_not_are_told(values, message, ckpt):
    content = json.loads((ckpt / "tokenizer.json").read_text())
    content["model"]["vocab"]["pick"] = values["vocab"]
    (ckpt / "tokenizer.json").write_text(json.dumps(content))
    assert f"model.model_path: {message}" in told().split("\n")


def test_prompts_that_the_model_has_no_embeddings_of_are_told(ckpt):
    piece = {"SpecialToken": {"id": "x", "type_id": 0}}
    special = {"x": {"id": "x", "ids": [5000], "tokens": ["x"]}}
    template = {"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": special}  # fmt: skip
    change(ckpt / "tokenizer.json", post_processor=template)
    model = composed(value_head={"hidden_units": [16]})
    with pytest.raises(
        ValueError, match=r"^the prompt has the token 5000; the model has those below 40$"
    ):
        model.act(observations())
    change(ckpt / "tokenizer.json", post_processor={**template, "single": [], "special_tokens": {}})
    message = r"^a prompt must be tokens \(B, L\), whole numbers and at least one, got \(4, 0\) of (int64|float32)$"
    with pytest.raises(ValueError, match=message):
        composed(value_head={"hidden_units": [16]}).act(observations())


# --- configurations ---

ODD_CONFIGS = {
    "a method": ({"get_text_config": 3}, "TinyVlaConfig cannot be made: 'get_text_config' is a method, not a setting"),
    "of saving": ({"to_diff_dict": None}, "TinyVlaConfig cannot be made: 'to_diff_dict' is a method, not a setting"),
    "text": ({"text_config": {}}, "TinyVlaConfig cannot be made: the settings of its text model must be a mapping"),
    "labels": ({"num_labels": 10**9}, "TinyVlaConfig cannot be made: 'num_labels' is 1000000000, more than 100,000"),
    "labels below": ({"vision_config": {"num_labels": 10**30}}, f"TinyVlaConfig cannot be made: 'num_labels' is {10**30}, more than 100,000"),
    "encoder": ({"is_encoder_decoder": True}, "TinyVlaConfig cannot be made: it is an encoder with a decoder, and an action model is a decoder"),
    "empty": ({"hidden_size": 0, "num_attention_heads": 4, "head_dim": 8}, "'tiny_vla' cannot be built: its model.embed_tokens.weight is (40, 0), without any number"),
    "places": ({"max_position_embeddings": 2}, "an action has 3 tokens by the statistics of 'bridge', 'max_position_embeddings' of the configuration is 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_CONFIGS)
def test_configurations_that_would_break_the_library_are_told(case, ckpt):
    values, message = ODD_CONFIGS[case]
    change(ckpt / "config.json", **values)
    assert told() == f"model.model_path: {message}"


@pytest.mark.parametrize("value", [1e308, "x", [[]], {"a": 1}, True])
def test_what_a_configuration_says_of_outputs_is_not_used(value, ckpt):
    change(ckpt / "config.json", output_hidden_states=value, output_attentions=value)
    model = composed(value_head={"hidden_units": [16]})
    model.act(observations(), True)
    assert model.prove() < 1e-5


# --- weights ---

DTYPES = {
    torch.int64: "I64", torch.int8: "I8", torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_another_kind_are_told(dtype, ckpt):
    weights(ckpt, lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].to(dtype)}))
    assert told() == (
        f"{AT}'ckpt' holds weights of another architecture: {WEIGHT} is of the dtype {DTYPES[dtype]}, it must be one "
        "of F64, F32, F16, BF16"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_weights_of_another_precision_are_taken(dtype, ckpt):
    weights(ckpt, lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].to(dtype)}))
    model = composed(value_head={"hidden_units": [16]})
    expected = load_file(ckpt / "model.safetensors")[WEIGHT].float()
    assert torch.equal(model.hf.get_parameter(WEIGHT), expected)


def test_a_weight_that_two_files_hold_is_told(ckpt):
    (ckpt / "model.safetensors").rename(ckpt / "one.safetensors")
    save_file({WEIGHT: torch.ones(32, 32)}, ckpt / "two.safetensors")
    assert told() == (
        f"{AT}both 'one.safetensors' and 'two.safetensors' in 'ckpt' hold {WEIGHT}; remove the file that is not of "
        "this model"
    )


@pytest.mark.parametrize("name", ["../../other.safetensors", "/etc/other.safetensors", "other.bin"])
def test_an_index_that_leads_elsewhere_is_told(name, ckpt):
    weight_map = dict.fromkeys(load_file(ckpt / "model.safetensors"), name)
    (ckpt / "model.safetensors").rename(ckpt / "one.safetensors")
    (ckpt / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert told() == (
        f"{AT}'ckpt/model.safetensors.index.json' names {name!r}, which is no safetensors file of the folder"
    )


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_weights_that_are_not_finite_give_no_action(value, deterministic, ckpt):
    weights(ckpt, lambda tensors: tensors[WEIGHT].view(-1)[:1].fill_(float(value)))
    model = composed(value_head={"hidden_units": [16]})
    message = "the model's logits of actions are not finite: its weights or inputs have NaN or infinity in them"
    with pytest.raises(ValueError, match=f"^{message}$"):
        model.act(observations(), deterministic)


HEADS = {
    "junk": (b"junk", "'model_path': 'ckpt/value_head.safetensors' cannot be read: Error while deserializing header: header too small"),
    "missing": (lambda head: head.pop("mlp.0.bias"), "the folder's value head has other weights than this one, such as mlp.0.bias; remove 'value_head.safetensors'"),
    "more": (lambda head: head.update(more=torch.ones(2)), "the folder's value head has other weights than this one, such as more; remove 'value_head.safetensors'"),
    "whole numbers": (lambda head: head.update({"mlp.0.weight": head["mlp.0.weight"].long()}), "the folder's value head has other weights than this one, such as mlp.0.weight; remove 'value_head.safetensors'"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADS)
def test_value_heads_that_are_none_are_told(case, ckpt):
    altered, message = HEADS[case]
    file = ckpt / "value_head.safetensors"
    if isinstance(altered, bytes):
        file.write_bytes(altered)
    else:
        head = load_file(file)
        altered(head)
        save_file(head, file)
    key = "model.model_path" if case == "junk" else "model.value_head"
    assert told(value_head={"hidden_units": [16]}) == f"{key}: {message}"
    file.unlink()
    composed(value_head={"hidden_units": [16]})


def test_a_value_head_that_is_not_finite_is_told_so(ckpt):
    head = load_file(ckpt / "value_head.safetensors")
    head["mlp.0.bias"].fill_(torch.nan)
    save_file(head, ckpt / "value_head.safetensors")
    message = "^values are not finite: the model's weights have NaN or infinity in them$"
    with pytest.raises(composer.language.ProofError, match=message):
        composed(value_head={"hidden_units": [16]}).prove()


def test_a_value_head_is_written_in_the_place_of_add_value_head(ckpt):
    assert told(value_head=None, add_value_head=True) == (
        "model.model_path: the folder's value head has hidden_units [16], the spec asks for [512, 128]; write "
        "value_head: {hidden_units: [16]} in the place of add_value_head, or remove 'value_head.safetensors'"
    )
    composed(value_head={"hidden_units": [16]})


def test_the_values_of_two_heads_are_checked_at_once():
    with pytest.raises(SpecError) as caught:
        composer.compose(spec(value_head={"hidden_unit": 3}, add_value_head=True))
    assert str(caught.value) == (
        "model.add_value_head: 'value_head' and 'add_value_head' exclude one another; keep one of them\n"
        "model.value_head.hidden_unit: 'hidden_unit' is not a key of a value head; did you mean 'hidden_units'?"
    )


# --- names that transformers converts ---


def test_a_folder_whose_names_transformers_converts(tmp_path, monkeypatch):
    """By the names that the library writes at first it is told, and by its modules' own it is read."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    from composer.language import register_hf
    from tests.helpers.action_models import SIZES, STATISTICS

    monkeypatch.chdir(tmp_path)
    register_hf("llava", config=LlavaConfig, model=Llava, replace=True)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)  # fmt: skip
    text = LlamaConfig(vocab_size=40, **SIZES)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=1)
    config.norm_stats, config.n_action_bins = STATISTICS, 8
    torch.manual_seed(0)
    theirs = Llava(config).eval()
    theirs.save_pretrained("theirs")
    data = {"version": 1, "model": {"model_type": "llava", "model_path": "theirs"}}
    with pytest.raises(SpecError) as caught:
        composer.compose(data, allow=["./"], seed=0)
    assert str(caught.value).endswith(
        "; if transformers renames such weights as it reads them, load the folder by its from_pretrained, write it by "
        "save_pretrained(other, save_original_format=False), and name that one"
    )
    Llava.from_pretrained("theirs").save_pretrained("ours", save_original_format=False)
    data["model"]["model_path"] = "ours"
    model = composer.compose(data, allow=["./"], seed=0)
    for name, weight in theirs.state_dict().items():
        assert torch.equal(model.hf.state_dict()[name], weight), name
    model.save_pretrained("again")
    data["model"]["model_path"] = "again"
    again, back = composer.compose(data, allow=["./"], seed=0), Llava.from_pretrained("again")
    for name, weight in theirs.state_dict().items():
        assert torch.equal(again.hf.state_dict()[name], weight), name
        assert torch.equal(back.state_dict()[name], weight), name
