"""LoRA and frozen modules as settings of decoder and transformer: what is trained, drawn, saved, merged and refused."""

import json
import re

import pytest
import torch
from gymnasium.spaces import Dict, Discrete, MultiBinary, MultiDiscrete
from safetensors.torch import save_file

import composer
from composer.checkpoint import CheckpointError
from composer.checkpoint.file import fill_whole
from composer.errors import SpecError
from composer.source.dump import dump_flow
from perception_blocks.blocks.adapted import refuse_other_kind
from perception_blocks.registry import BLOCKS, MissingExtraError

LLAMA = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 20}
KINDS = {
    "decoder": ("decoder", {"width": 16, "max_length": 12}, ["q_proj", "v_proj"], "layers.0"),
    "llama": (
        "transformer",
        {"family": "llama", "num_hidden_layers": 2, **LLAMA},
        ["q_proj", "v_proj"],
        "layers.0",
    ),
    "gpt2": (
        "transformer",
        {"family": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2},
        ["c_attn"],
        "h.0",
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
TOKENS = torch.arange(6).reshape(1, 6) % 7


def block(kind, **changes):
    name, settings, _, _ = KINDS[kind]
    torch.manual_seed(0)
    made = BLOCKS.get(name)([(6,)], vocab_size=7, **settings, **changes).eval()
    made.reset_parameters(torch.Generator().manual_seed(3))
    return made


def lora(kind, **changes):
    return {"rank": 2, "targets": KINDS[kind][2], **changes}


def trained(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def moved(module):
    """``module`` with adapters that change what it computes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    return module


@every_kind
def test_adapters_change_no_output_at_first_and_no_other_weight(kind):
    plain, adapted = block(kind), block(kind, lora=lora(kind))
    assert torch.equal(plain(TOKENS), adapted(TOKENS))
    weights = {
        n.replace(".base_layer.", "."): p
        for n, p in adapted.state_dict().items()
        if ".lora_" not in n
    }
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in plain.state_dict().items())
    assert not torch.equal(moved(adapted)(TOKENS), plain(TOKENS))


@every_kind
def test_exactly_the_adapters_are_trained_and_none_where_it_is_frozen(kind):
    path = KINDS[kind][3]
    adapted = trained(block(kind, lora=lora(kind)))
    assert adapted
    assert all(".lora_" in name for name in adapted)
    frozen = block(kind, lora=lora(kind), freeze=[path])
    assert trained(frozen) == {name for name in adapted if f"{path}." not in name}
    only = block(kind, freeze=[path])
    names = {name for name, _ in only.named_parameters()}
    assert trained(only) == {name for name in names if f"{path}." not in name} != names


@every_kind
def test_merged_adapters_compute_the_same_in_the_blocks_own_weights(kind):
    path = KINDS[kind][3]
    plain, adapted = block(kind), moved(block(kind, lora=lora(kind), freeze=[path]))
    expected = adapted(TOKENS)
    adapted.merge_adapters()
    torch.testing.assert_close(adapted(TOKENS), expected, atol=1e-5, rtol=1e-5)
    assert list(adapted.state_dict()) == list(plain.state_dict())
    assert trained(adapted) == trained(block(kind, freeze=[path]))
    adapted.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(adapted(TOKENS), plain(TOKENS))


SPACES = {
    "observation_space": Dict(sequence=MultiDiscrete([7] * 6), sequence_mask=MultiBinary(6)),
    "action_space": Discrete(7),
}


def model(kind, allow=(), **changes):
    name, settings, _, _ = KINDS[kind]
    inputs = "sequence" if name == "decoder" else ["sequence", "sequence_mask"]
    latent = {"block": name, "in": inputs, **settings, **changes}
    graph = {"latent": latent}
    if name == "decoder":
        graph["last"] = {"block": "slice", "in": "latent", "dim": 0, "index": -1}
    ignored = {"ignore": ["sequence_mask"]} if name == "decoder" else {}
    policy = {"graph": graph, "heads": {"in": list(graph)[-1]}}
    return composer.compose(
        {"version": 1, **ignored, "policy": policy}, **SPACES, allow=allow, seed=0
    ).eval()


SEEN = {"sequence": TOKENS, "sequence_mask": torch.ones(1, 6, dtype=torch.bool)}


@every_kind
def test_a_model_is_rebuilt_from_its_spec_and_merged_into_a_file_without_peft(
    kind, tmp_path, monkeypatch
):
    made = moved(model(kind, lora=lora(kind)))
    plain = model(kind)
    heads = {f"policy.heads.action.linear.{part}" for part in ("weight", "bias")}
    assert {name for name in trained(made) if ".lora_" not in name} == heads
    expected = made.policy(SEEN)["action"]
    made.save(tmp_path / "adapted.safetensors")
    again = composer.load(tmp_path / "adapted.safetensors").eval()
    assert torch.equal(again.policy(SEEN)["action"], expected)
    assert trained(again) == trained(made)
    again.merge_adapters()
    again.merge_adapters()  # there are none to merge
    again.save(tmp_path / "merged.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    merged = composer.load(tmp_path / "merged.safetensors").eval()
    torch.testing.assert_close(merged.policy(SEEN)["action"], expected, atol=1e-5, rtol=1e-5)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert trained(merged) == trained(plain)
    with pytest.raises((SpecError, MissingExtraError), match="peft"):
        composer.load(tmp_path / "adapted.safetensors")


@every_kind
def test_adapters_alone_are_saved_and_loaded_into_a_model_of_the_same_weights(kind, tmp_path):
    made = moved(model(kind, lora=lora(kind)))
    expected, path = made.policy(SEEN)["action"], tmp_path / "adapters.safetensors"
    made.save(path, adapters_only=True)
    made.save(tmp_path / "all.safetensors")
    assert path.stat().st_size < (tmp_path / "all.safetensors").stat().st_size
    again = model(kind, lora=lora(kind))
    again.load_weights(path)
    assert torch.equal(again.policy(SEEN)["action"], expected)
    begun = model(kind, [f"{tmp_path}/"], lora=lora(kind, path=str(path)))
    assert torch.equal(begun.policy(SEEN)["action"], expected)
    with pytest.raises(CheckpointError, match="has adapters only; compose the model from its spec"):
        composer.load(path)
    with pytest.raises(CheckpointError, match="has adapters only; compose the model from its spec"):
        fill_whole(again, path)  # as the command line does
    with pytest.raises(CheckpointError, match="the model has no adapters; leave out adapters_only"):
        model(kind).save(path, adapters_only=True)


@every_kind
@pytest.mark.parametrize("adapters_only", [True, False])
def test_a_file_with_adapters_says_what_a_model_without_them_lacks(kind, adapters_only, tmp_path):
    path = tmp_path / "file.safetensors"
    made = moved(model(kind, lora=lora(kind, rank=2)))
    made.save(path, adapters_only=adapters_only)
    override = f"policy.graph.latent.lora={dump_flow(lora(kind, rank=2))}"
    lacks = "has adapters only" if adapters_only else "has weights with adapters"
    message = (
        f"{str(path)!r} {lacks}, and this model has none; compose the model with the 'lora' of the file's own spec: "
        f"overrides={[override]}"
    )
    message += "" if adapters_only else ", or call merge_adapters() on the model that is saved"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        model(kind).load_weights(path)
    spec = model(kind).source.data
    again = composer.compose(spec, **SPACES, overrides=[override], seed=0).eval()
    again.load_weights(path)
    assert torch.equal(again.policy(SEEN)["action"], made.policy(SEEN)["action"])
    assert model(kind).load_weights(path, strict=False).loaded


@every_kind
@pytest.mark.parametrize("adapters_only", [True, False])
def test_adapters_of_another_scale_are_told(kind, adapters_only, tmp_path):
    """Their weights do not show by what they are multiplied."""
    path = tmp_path / "adapters.safetensors"
    moved(model(kind, lora=lora(kind, rank=2, alpha=4))).save(path, adapters_only=adapters_only)
    message = (
        f"the adapters in {str(path)!r} are multiplied by 2.0, those of this model by 1; write the 'rank' and 'alpha' "
        "that they were made with"
    )
    other = model(kind, lora=lora(kind, rank=2, alpha=2))
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            other.load_weights(path, strict=strict)
    with pytest.raises(SpecError, match=re.escape(message)):
        model(kind, [f"{tmp_path}/"], lora=lora(kind, rank=2, alpha=2, path=str(path)))
    model(kind, [f"{tmp_path}/"], lora=lora(kind, rank=2, alpha=4, path=str(path)))


def test_adapters_of_several_networks_are_told(tmp_path):
    made = moved(block("decoder", lora=lora("decoder")))
    adapters = {n: p.detach() for n, p in made.named_parameters() if ".lora_" in n}
    path = tmp_path / "both.safetensors"
    both = {
        f"{part}.latent.{n}": p.clone() for part in ("actor", "critic") for n, p in adapters.items()
    }
    save_file(both, path)
    message = (
        f"'lora': {str(path)!r} holds adapters of several networks, 'actor.latent.', 'critic.latent.'; load them with "
        "model.load_weights, or name a file that holds one network's"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        block("decoder", lora=lora("decoder", path=str(path)))
    del both[next(name for name in both if name.startswith("critic."))]
    save_file(both, path)
    begun = block("decoder", lora=lora("decoder", path=str(path)))
    assert all(torch.equal(begun.get_parameter(name), p) for name, p in adapters.items())


def test_adapters_are_read_from_a_folder_of_peft_and_from_a_file(tmp_path):
    made = moved(block("llama", lora=lora("llama")))
    adapters = {n: p.detach() for n, p in made.named_parameters() if ".lora_" in n}
    peft = {
        f"base_model.model.model.{n.removeprefix('body.')}".replace(".default", ""): p
        for n, p in adapters.items()
    }
    save_file(peft, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2}))
    save_file(
        {f"policy.latent.{n}": p for n, p in adapters.items()}, tmp_path / "agent.safetensors"
    )
    expected = made(TOKENS)
    for path in (tmp_path, tmp_path / "agent.safetensors"):
        assert torch.equal(block("llama", lora=lora("llama", path=str(path)))(TOKENS), expected)
    for message, changes in {
        f"'lora': the adapters in {str(tmp_path)!r} were made with alpha 2, not 8": {"alpha": 8},
        f"'lora': {str(tmp_path)!r} holds other adapters: "
        "layers.0.self_attn.k_proj.lora_A.default.weight is missing": {"targets": ["k_proj"]},
        f"'lora': {str(tmp_path)!r} holds other adapters: layers.0.self_attn.q_proj.lora_A.default.weight "
        "is (2, 16), it must be (3, 16)": {"rank": 3, "alpha": 2},
    }.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            block("llama", lora=lora("llama", path=str(tmp_path), **changes))


def test_a_saved_model_does_not_need_the_folder_of_its_adapters(tmp_path):
    made = moved(block("decoder", lora=lora("decoder")))
    folder = tmp_path / "adapters"
    folder.mkdir()
    adapters = {n: p.detach() for n, p in made.named_parameters() if ".lora_" in n}
    save_file(adapters, folder / "adapter_model.safetensors")
    refused = re.escape(
        f"'lora': {str(folder)!r} is neither beside nor below the spec; pass allow="
    )
    with pytest.raises(SpecError, match=refused):
        model("decoder", lora=lora("decoder", path=str(folder)))
    agent = model("decoder", [f"{folder}/"], lora=lora("decoder", path=str(folder)))
    expected = agent.policy(SEEN)["action"]
    assert not torch.equal(expected, model("decoder").policy(SEEN)["action"])
    agent.save(tmp_path / "agent.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    again = composer.load(tmp_path / "agent.safetensors").eval()
    assert torch.equal(again.policy(SEEN)["action"], expected)


@every_kind
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rang": 2}}, "'lora': 'rang' is not a setting of 'lora'; did you mean 'rank'?"),
        ({"lora": {"rank": 0}}, "'lora': 'rank' must be a positive integer, got 0"),
        ({"lora": {"alpha": -1}}, "'lora': 'alpha' must be a positive number or null, got -1"),
        ({"lora": {"targets": "q_proj"}}, "'lora': 'targets' must be a list of texts or null, got 'q_proj'"),
        ({"lora": 8}, "'lora' must be a mapping or null, got 8"),
        ({"lora": {"path": "nowhere"}}, "'lora': there is no 'nowhere'"),
        ({"freeze": "layers"}, "'freeze' must be a list of texts or null, got 'layers'"),
    ],
)  # fmt: skip
def test_what_lora_and_freeze_cannot_be_is_said(kind, changes, message):
    if changes.get("lora") == {"path": "nowhere"}:
        changes = {"lora": lora(kind, path="nowhere")}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        block(kind, **changes)


def test_names_that_no_module_has_are_told_with_the_nearest():
    for changes, message in [
        (
            {"lora": {"targets": ["q_prj"]}},
            "'lora' targets 'q_prj', which no module is called; did you mean 'q_proj'?",
        ),
        (
            {"freeze": ["layer.0"]},
            "'freeze' names 'layer.0', which no module is called; did you mean 'layers.0'?",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            block("decoder", **changes)


@torch.no_grad()
def test_a_decoder_with_adapters_steps_as_it_unrolls():
    made = moved(
        BLOCKS.get("decoder")([()], vocab_size=7, width=16, max_length=12, lora={"rank": 2}).eval()
    )
    x, resets = torch.randint(7, (2, 9)), torch.rand(2, 9) < 0.3
    expected, _ = made.unroll(x, made.initial_state(2), resets)
    state = made.initial_state(2)
    for t in range(9):
        y, state = made.step(x[:, t], state, resets[:, t])
        torch.testing.assert_close(y, expected[:, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_drawn_layer_by_layer_it_is_drawn_as_at_once(kind):
    """As weights are that are made on many processes."""
    made, expected = block(kind, lora=lora(kind)), block(kind, lora=lora(kind))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(torch.nan)
    expected.reset_parameters(torch.Generator().manual_seed(5))
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5)))
    layers = made.layer_names()
    for name in layers:
        made.reset_part(name, seed)
    made.reset_part("", seed, without=layers)
    for name, weight in expected.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "'adapter_config.json' in 'folder' cannot be read: Expecting property name"),
        ("[" * 100_000, "'adapter_config.json' in 'folder' cannot be read: it is nested too deeply"),
        ("[8]", "'adapter_config.json' in 'folder' must hold a mapping, got a list"),
        ('{"lora_alpha": "x"}', "'adapter_config.json' in 'folder' must say 'lora_alpha' as a number, got the text 'x'"),
        ('{"lora_alpha": 2}', "the adapters in 'folder' were made with alpha 2, not 8"),
        (f'{{"lora_alpha": 1{"0" * 400}}}', f"the adapters in 'folder' were made with alpha 1{'0' * 36}..., not 8"),
        ('{"lora_alpha": NaN}', "the adapters in 'folder' were made with alpha nan, not 8"),
        ('{"lora_alpha": 8, "use_rslora": true}', "'adapter_config.json' in 'folder' says 'use_rslora', adapters of a kind that is not read here; merge them in peft, or train others"),
        ('{"peft_type": "IA3"}', "'adapter_config.json' in 'folder' says 'peft_type', adapters of a kind that is not read here; merge them in peft, or train others"),
    ],
)  # fmt: skip
def test_a_configuration_of_adapters_that_is_none_is_told(text, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        refuse_other_kind("folder", tmp_path, 8.0)


@pytest.mark.parametrize("text", ["{}", '{"lora_alpha": 8}', '{"lora_alpha": null}'])
def test_a_configuration_of_adapters_that_fits_is_taken(text, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    refuse_other_kind("folder", tmp_path, 8.0)
