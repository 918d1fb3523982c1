import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from perception_blocks.blocks.lora import (
    Lora,
    adapter_names,
    base_name,
    draw_adapters,
    freeze,
    inject,
    merge,
    merged_weights,
    without_adapters,
)
from perception_blocks.registry import MissingExtraError
from perception_blocks.settings import SettingsError

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
TOKENS = torch.arange(12).reshape(2, 6)
MADE = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8, tie_word_embeddings=False)),
}  # fmt: skip


def body(kind="llama"):
    torch.manual_seed(0)
    return MADE[kind]().eval()


def train(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in adapter_names(model):
            parameter = model.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("targets", [None, ("lm_head",), ("wte", "embed_tokens")])
def test_adapters_change_no_output_at_first_and_no_other_weight(kind, targets):
    if targets == ("wte", "embed_tokens"):
        targets = ("wte",) if kind == "gpt2" else ("embed_tokens",)
    model, plain = body(kind), body(kind)
    inject(model, Lora(2, targets=targets))
    draw_adapters(model, seed=0)
    assert torch.equal(model(TOKENS).logits, plain(TOKENS).logits)
    weights = plain.state_dict()
    kept = {base_name(n): p for n, p in model.state_dict().items() if n not in adapter_names(model)}
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in weights)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(adapter_names(model)) != set()
    assert not torch.equal(train(model)(TOKENS).logits, plain(TOKENS).logits)


def test_the_usual_layers_have_adapters_and_the_head_over_the_vocabulary_has_none():
    model = body()
    inject(model, Lora(2))
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in adapter_names(model)}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_each_adapter_is_drawn_by_its_own_name():
    one, more = body(), body()
    inject(one, Lora(4, targets=("q_proj",)))
    inject(more, Lora(4, targets=("q_proj", "v_proj")))
    for model in (one, more):
        draw_adapters(model, seed=3)
    for name in adapter_names(one):
        assert torch.equal(one.get_parameter(name), more.get_parameter(name))
    first = one.get_parameter("model.layers.0.self_attn.q_proj.lora_A.default.weight")
    second = one.get_parameter("model.layers.1.self_attn.q_proj.lora_A.default.weight")
    assert not torch.equal(first, second)
    assert torch.cat([first, second]).std().item() == pytest.approx(1 / 4, rel=0.15)


def test_alpha_scales_what_the_adapters_add():
    outputs = []
    for alpha in (2.0, 4.0):
        model = body()
        inject(model, Lora(2, alpha, ("q_proj",)))
        train(model)
        outputs.append(merged_weights(model)["model.layers.0.self_attn.q_proj.weight"])
    plain = body().state_dict()["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(outputs[1] - plain, 2 * (outputs[0] - plain))


@pytest.mark.parametrize("kind", MADE)
def test_merged_adapters_give_the_same_output_and_leave_nothing_of_peft(kind):
    model = body(kind)
    inject(model, Lora(2))
    train(model)
    expected = model(TOKENS).logits
    names, weights = list(body(kind).state_dict()), merged_weights(model)
    assert list(weights) == names
    assert torch.equal(model(TOKENS).logits, expected)
    merge(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(TOKENS).logits, expected)
    assert not any(type(part).__module__.startswith("peft") for part in model.modules())
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weights[name], weight)


def test_without_adapters_the_body_is_what_it_was():
    model, plain = body(), body()
    inject(model, Lora(2))
    train(model)
    changed = model(TOKENS).logits
    with without_adapters(model):
        assert list(model.state_dict()) == list(plain.state_dict())
        assert torch.equal(model(TOKENS).logits, plain(TOKENS).logits)
    assert torch.equal(model(TOKENS).logits, changed)


def test_adapters_have_the_dtype_of_their_layers():
    model = body().to(torch.bfloat16)
    inject(model, Lora(2))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_frozen_parts_have_no_adapters():
    model = body()
    inject(model, Lora(2, targets=("q_proj",)), frozen=["model.layers.0"])
    freeze(model, ["model.layers.0"])
    assert {name.split(".")[2] for name in adapter_names(model)} == {"1"}


def test_a_name_is_no_pattern_and_ends_at_dots():
    model = body()
    inject(model, Lora(2, targets=("layers.1.self_attn.q_proj",)))
    assert {name.partition(".lora_")[0] for name in adapter_names(model)} == {
        "model.layers.1.self_attn.q_proj"
    }
    with pytest.raises(
        SettingsError, match=re.escape("'lora' targets '.*q_proj', which no module is called")
    ):
        inject(body(), Lora(2, targets=(".*q_proj",)))


WRONG = {
    "target": (Lora(2, targets=("q_prj", "norm")), (), "'lora' targets 'q_prj', which no module is called; did you mean 'q_proj'?; 'lora' targets 'norm', a LlamaRMSNorm: it takes linear layers, convolutions and embeddings"),
    "all frozen": (Lora(2), ("model",), "'lora' finds none of the usual layers here; name its 'targets', such as lm_head"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_targets_that_nothing_has(case):
    lora, frozen, message = WRONG[case]
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        inject(body(), lora, frozen)


def test_frozen_paths_that_nothing_has():
    message = (
        "'freeze' names 'model.layer', which no module is called; did you mean 'model.layers'?"
    )
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        freeze(body(), ["model.norm", "model.layer"])


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(
        MissingExtraError, match=re.escape('pip install "perception-composer[llm]"')
    ):
        inject(body(), Lora(2))
