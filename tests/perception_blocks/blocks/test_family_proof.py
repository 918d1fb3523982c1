"""A family that is registered proves itself on a tiny model; what is wrong with it is said by the names of tensors."""

import pytest
import torch
from transformers import (
    GPT2LMHeadModel,
    Phi3ForCausalLM,
    Starcoder2ForCausalLM,
)

from perception_blocks import DecoderBlock
from perception_blocks.blocks.families import FAMILIES, FamilyError
from perception_blocks.blocks.family_proof import register_family
from perception_blocks.registry import NameTakenError
from tests.helpers.language_models import only_built_in

LLAMA, GPT2 = FAMILIES.get("llama"), FAMILIES.get("gpt2")
LAYER, OURS = "model.layers.{}.", "layers.{}."


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    only_built_in(monkeypatch)


# --- families of one's own --------------------------------------------------------------------------------------------


def starcoder_settings(values):
    bias = values.get("use_bias", True)
    defaults = {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}
    return {
        **LLAMA.settings({**defaults, **values}), "norm": "layer", "eps": values.get("norm_epsilon", 1e-5), "gated": False,
        "qkv_bias": bias, "out_bias": bias, "mlp_bias": bias, "sliding_window": values.get("sliding_window"),
    }  # fmt: skip


def starcoder_config(settings):
    bias = settings["qkv_bias"] is not False
    more = {"use_bias": bias, "norm_epsilon": settings["eps"]}
    return {**LLAMA.config(settings), **more, "sliding_window": settings["sliding_window"], "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip


STARCODER = [
    *((t, o, h) for t, o, h in LLAMA.table if "mlp" not in t),
    ("model.norm.bias", "norm.bias", ""),
    *(
        (f"{LAYER}{name}.bias", f"{OURS}{name}.bias", "")
        for name in ("input_layernorm", "post_attention_layernorm")
    ),
    *(
        (f"{LAYER}mlp.{theirs}.{kind}", f"{OURS}mlp.{ours}.{kind}", "")
        for theirs, ours in (("c_fc", "up_proj"), ("c_proj", "down_proj"))
        for kind in ("weight", "bias")
    ),
]


def test_a_family_with_other_norms_and_layers():
    register_family(
        "starcoder2", hf_class=Starcoder2ForCausalLM, settings=starcoder_settings, config=starcoder_config,
        table=STARCODER, aliases=["starcoder"],
    )  # fmt: skip
    assert FAMILIES.get("starcoder") is FAMILIES.get("starcoder2")
    block = DecoderBlock([()], vocab_size=5, family="starcoder", width=16)
    assert isinstance(block.norm, torch.nn.LayerNorm)
    assert block.settings["gated"] is False


def phi_settings(values):
    return {**LLAMA.settings(values), "sliding_window": values.get("sliding_window")}


def phi_config(settings):
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    more = {"rms_norm_eps": settings["eps"] or 1e-5, "sliding_window": settings["sliding_window"]}
    return {**LLAMA.config(settings), **tokens, **more}


PHI = [
    *((t, o, h) for t, o, h in LLAMA.table if not any(p in t for p in ("q_", "k_", "v_", "gate", "up"))),
    (f"{LAYER}self_attn.qkv_proj.weight", [f"{OURS}self_attn.{p}_proj.weight" for p in "qkv"], "split"),
    (f"{LAYER}mlp.gate_up_proj.weight", [f"{OURS}mlp.{p}_proj.weight" for p in ("gate", "up")], "split"),
]  # fmt: skip


def phi(**changes):
    given = {
        "hf_class": Phi3ForCausalLM,
        "settings": phi_settings,
        "config": phi_config,
        "table": PHI,
    }
    register_family(changes.pop("name", "phi3"), **{**given, **changes})


def test_a_family_whose_tensors_are_ours_side_by_side():
    phi()
    assert FAMILIES.get("phi3").block_names(1)[-1] == "model.layers.1.mlp.gate_up_proj.weight"


def test_a_family_may_be_named_by_the_path_of_its_class():
    phi(name="mine", hf_class="transformers:Phi3ForCausalLM")
    assert FAMILIES.get("mine").model_type == "phi3"


def test_of_two_families_for_one_type_the_spec_chooses(tmp_path):
    LLAMA.model_class(LLAMA.model_class.config_class(**LLAMA.write({"vocab_size": 5}))).save_pretrained(tmp_path)  # fmt: skip
    register_family("mine", **{**other(LLAMA), "settings": LLAMA.settings})
    assert DecoderBlock([()], checkpoint=str(tmp_path)).family == "llama"
    assert DecoderBlock([()], checkpoint=str(tmp_path), family="mine").family == "mine"


def test_what_settings_do_not_say_is_as_in_every_decoder():
    def settings(values):
        unsaid = ("norm", "positions", "sliding_window", "gated", "embed_scale", "mlp_bias", "num_kv_heads")  # fmt: skip
        return {key: value for key, value in LLAMA.settings(values).items() if key not in unsaid}

    def config(settings):
        return {**LLAMA.config(settings), "num_key_value_heads": settings["num_heads"]}

    register_family("mine", hf_class=LLAMA.model_class, settings=settings, config=config, table=LLAMA.table)  # fmt: skip
    for name, value, said in (("norm", "layer", "'rms'"), ("num_kv_heads", 2, "4")):
        with pytest.raises(ValueError, match=f"^'{name}' of the family 'mine' is {said}, got "):
            DecoderBlock([()], vocab_size=5, family="mine", **{name: value})


def test_names_of_parts_may_be_given():
    names = {
        "embedding": lambda layers: ["model.embed_tokens.weight"],
        "head": lambda layers: ["model.norm.weight", "lm_head.weight"],
        "block": FAMILIES.get("llama").block_names,
    }
    with pytest.raises(FamilyError) as error:
        phi(**names)
    assert str(error.value).startswith(
        "the family 'phi3': 'embedding', 'block' and 'head' together lack 'model.layers.0.mlp.gate_up_proj.weight', "
    )
    assert "and name 'model.layers.0.mlp.gate_proj.bias', " in str(error.value)
    del names["block"]
    phi(**names)
    assert FAMILIES.get("phi3").head_names(2) == ["model.norm.weight", "lm_head.weight"]


def test_a_name_that_is_taken():
    phi()
    phi()  # a module that is imported again
    taken = "is taken by a family of Phi3ForCausalLM; choose another, or pass replace=True"
    with pytest.raises(NameTakenError) as error:
        phi(settings=lambda values: phi_settings(values))
    assert str(error.value) == f"the model family name 'phi3' {taken}"
    phi(settings=lambda values: phi_settings(values), replace=True)
    with pytest.raises(NameTakenError, match="the model family name 'llama' is taken by a family of LlamaForCausalLM"):  # fmt: skip
        phi(name="phi_3", aliases=["llama"])
    assert "phi_3" not in FAMILIES


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match=r"a model family name has only letters, digits and underscores.*got 'phi-3'"):  # fmt: skip
        phi(name="phi3", aliases=["phi-3"])
    assert "phi3" not in FAMILIES


def test_random_states_do_not_move():
    before = torch.random.get_rng_state()
    phi()
    assert torch.equal(torch.random.get_rng_state(), before)


# --- families that are wrong ------------------------------------------------------------------------------------------

FIRST_GETS = (
    "is the first whose module gets something else; look at its row and those before it, and at what 'settings' say of "
    "what is computed there"
)
FIRST_GIVES = "is the first whose module gives something else; look at its row, and at what 'settings' say of it"


def rows_of_gpt2(change):
    return [changed for row in GPT2.table if (changed := change(*row)) is not None]


def other(family, **keys):
    return {
        "hf_class": family.model_class,
        "config": family.config,
        "table": family.table,
        "settings": lambda values: {**family.settings(values), **keys},
    }


GEMMA = FAMILIES.get("gemma")
WRONG = {
    "a matrix that is not transposed": (
        {"table": rows_of_gpt2(lambda t, o, h: (t, o, "" if "attn.c_proj.weight" in t else h))},
        f"transformer.h.0.attn.c_proj.weight {FIRST_GIVES}",
    ),
    "an order of side by side": (
        {"table": rows_of_gpt2(lambda t, o, h: (t, o[::-1] if h else o, h))},
        f"transformer.h.0.attn.c_proj.weight {FIRST_GETS}",
    ),
    "two norms exchanged": (
        {"table": rows_of_gpt2(lambda t, o, h: (t.replace("ln_1", "ln_x").replace("ln_2", "ln_1").replace("ln_x", "ln_2"), o, h))},
        f"transformer.h.0.ln_1.weight {FIRST_GETS}",
    ),
    "an activation": (
        other(GPT2, activation="relu"), f"transformer.h.0.mlp.c_proj.weight {FIRST_GETS}",
    ),
    "rotary positions": (
        other(LLAMA, rope_theta=500.0), f"model.layers.0.self_attn.o_proj.weight {FIRST_GETS}",
    ),
    "a norm": (other(GEMMA, norm="rms"), f"model.layers.0.input_layernorm.weight {FIRST_GIVES}"),
    "a scale": (other(GEMMA, embed_scale=1.0), f"model.layers.0.input_layernorm.weight {FIRST_GETS}"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_other_logits_name_the_tensor(case):
    changes, where = WRONG[case]
    given = {**other(GPT2), "settings": GPT2.settings, **changes}
    with pytest.raises(FamilyError) as error:
        register_family("mine", **given)
    name = given["hf_class"].__name__
    begin, _, end = str(error.value).partition(" (they differ by ")
    assert begin == f"the family 'mine' computes other logits than {name}"
    assert end.partition("): ")[2] == where
    assert "mine" not in FAMILIES


NO_ROW = "the family 'mine' has a wrong table: the weights are not those of this model of the family 'mine': "
TABLE = "the table of the family 'mine' is wrong: "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": GPT2.table[1:]}, f"{NO_ROW}transformer.wte.weight is in no row; no row has embed_tokens.weight of the decoder"),
        ({"table": rows_of_gpt2(lambda t, o, h: None if "c_fc.bias" in t else (t, o, h))}, f"{NO_ROW}transformer.h.0.mlp.c_fc.bias is in no row; transformer.h.1.mlp.c_fc.bias is in no row; no row has layers.0.mlp.up_proj.bias of the decoder; no row has layers.1.mlp.up_proj.bias of the decoder"),
        ({"table": rows_of_gpt2(lambda t, o, h: (t, o, h.replace("t", "") if "c_fc" in t else h))}, f"{NO_ROW}transformer.h.0.mlp.c_fc.weight is (32, 48), its config needs (48, 32); transformer.h.1.mlp.c_fc.weight is (32, 48), its config needs (48, 32)"),
        ({"table": [("a", "b", "twice"), ("a{}", "b", ""), ("c", ("d", "e"), "t"), ("c", "f", ""), 3]}, f"{TABLE}a: how is one of '', 't', 'split', 't split', got 'twice'; a{{}}: both sides of a row have {{}}, or none has; b has two rows; c: several names of ours need 'split'; c has two rows; 3 is no row (their name, our names, how)"),
        ({"settings": lambda values: {"width": values["breadth"]}}, "the family 'mine' has wrong settings: its config.json has no 'breadth'"),
        ({"settings": lambda values: {**GPT2.settings(values), "eps": values["layer_norm_epsilon"]}}, "the family 'mine' has wrong settings: its config.json has no 'layer_norm_epsilon'"),
        ({"settings": lambda values: {**GPT2.settings(values), "eps": values.get("layer_norm_epsilon", 1e-6)}}, "the family 'mine': 'settings' have other defaults than GPT2LMHeadModel in 'eps'"),
        ({"settings": lambda values: {**GPT2.settings(values), "widht": 3}}, "the family 'mine' has wrong settings: 'widht' is not a setting of block 'decoder'; did you mean 'width'?"),
        ({"settings": lambda values: {k: v for k, v in GPT2.settings(values).items() if k != "width"}}, "the family 'mine' has wrong settings: 'settings' of the family 'mine' have no 'width'"),
        ({"settings": lambda values: 3}, "the family 'mine' has wrong settings: 'settings' of the family 'mine' must return a mapping, got the number 3"),
        ({"config": lambda settings: settings["width"] / 0}, "the family 'mine' has wrong settings: 'config' of the family 'mine' failed: ZeroDivisionError: division by zero"),
        ({"config": lambda settings: {**GPT2.config(settings), "n_head": 3}}, "the family 'mine' has wrong settings: GPT2LMHeadModel cannot be made from 'config': `embed_dim` must be divisible by num_heads (got `embed_dim`: 32 and `num_heads`: 3)."),
        ({"config": lambda settings: {**GPT2.config(settings), "n_inner": 40}, "settings": lambda values: {**GPT2.settings(values), "mlp_units": 48}}, f"{NO_ROW}transformer.h.0.mlp.c_fc.weight is (32, 40), its config needs (32, 48); transformer.h.0.mlp.c_fc.bias is (40,), its config needs (48,); transformer.h.0.mlp.c_proj.weight is (40, 32), its config needs (48, 32); transformer.h.1.mlp.c_fc.weight is (32, 40), its config needs (32, 48); transformer.h.1.mlp.c_fc.bias is (40,), its config needs (48,); transformer.h.1.mlp.c_proj.weight is (40, 32), its config needs (48, 32)"),
        ({"config": lambda settings: {**GPT2.config(settings), "layer_norm_epsilon": 1e-3 if settings["eps"] else 1e-5}}, "the family 'mine': 'settings' of what 'config' gives for them are others in 'eps'"),
        ({"hf_class": "GPT2LMHeadModel"}, "'hf_class' must be a class of transformers, or 'module:Class', got the text 'GPT2LMHeadModel'"),
        ({"hf_class": 3}, "'hf_class' must be a class of transformers, or 'module:Class', got the number 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_family(changes, message):
    with pytest.raises(FamilyError) as error:
        register_family("mine", **{**other(GPT2), "settings": GPT2.settings, **changes})
    assert str(error.value) == message
    assert "mine" not in FAMILIES


def test_weights_that_are_not_saved_as_they_were():
    """A constant that transformers trains, and the decoder has not, is not saved."""
    table = [*GPT2.table, ("transformer.extra", (), "")]

    class More(GPT2LMHeadModel):
        def __init__(self, config):
            super().__init__(config)
            self.transformer.extra = torch.nn.Parameter(torch.zeros(3))

    register_family("mine", **{**other(GPT2), "settings": GPT2.settings, "table": table})
    with pytest.raises(FamilyError) as error:
        register_family(
            "ours", **{**other(GPT2), "settings": GPT2.settings, "table": table, "hf_class": More}
        )
    assert str(error.value) == "the family 'ours' is not saved as it was read: 'transformer.extra'"
