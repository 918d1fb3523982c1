"""Pretrained language models as specs and weights, and back into folders of transformers."""

import copy
import json
import pickle
import shutil

import pytest
import tokenizers
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

import composer
from composer.adapters.tokens import token_spaces
from composer.atomic import WriteError
from composer.errors import SpecError
from composer.language import FamilyError, from_hf, pretrained, to_hf, token_spec
from composer.network.sharded import mark_sharded
from composer.policy import token_views
from composer.policy.sequence_view import PackedView
from tests.helpers.language_models import (
    FORMS,
    PLACES,
    SIZES,
    WORDS,
    hf_config,
    hf_model,
    only_built_in,
    saved,
    tokens,
)


@pytest.fixture(autouse=True)
def _families(monkeypatch):
    only_built_in(monkeypatch)


every_form = pytest.mark.parametrize("form", FORMS)
OBSERVATIONS, ACTIONS = token_spaces(WORDS, PLACES)
SPACES = {"observation_space": OBSERVATIONS, "action_space": ACTIONS}


def composed(spec, seed=0, **how):
    return composer.compose(spec, **SPACES, seed=seed, **how).eval()


def logits_of(model, x):
    with torch.no_grad():
        return token_views(model.policy)[0](x)["action"]


def values_of(model, x):
    with torch.no_grad():
        return token_views(model.critic)[0](x)["value"].squeeze(-1)


@every_form
def test_a_folder_is_a_policy_and_is_written_as_it_was(form, tmp_path):
    theirs = hf_model(form)
    spec, tensors = from_hf(saved(theirs, tmp_path / "read"))
    model = composed(spec)
    model.load_state_dict(tensors)
    x = tokens(3, PLACES)
    with torch.no_grad():
        expected = theirs(input_ids=x).logits
    torch.testing.assert_close(logits_of(model, x), expected, atol=1e-4, rtol=0)
    to_hf(model, tmp_path / "written")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "written").eval()
    assert type(again) is type(theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(again(input_ids=x).logits, expected)


@every_form
def test_a_model_in_memory_is_what_its_folder_is(form, tmp_path):
    theirs = hf_model(form)
    spec, tensors = from_hf(theirs)
    other_spec, others = from_hf(saved(theirs, tmp_path))
    assert spec == other_spec
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@every_form
def test_a_critic_is_a_classifier_with_one_label(form, tmp_path):
    theirs = hf_model(form, "SequenceClassification", num_labels=1, pad_token_id=WORDS - 1)
    spec, tensors = from_hf(saved(theirs, tmp_path / "read"), is_critic=True)
    assert "tied_head" not in spec["critic"]["graph"]["latent"]
    model = composed(spec)
    lost = model.load_state_dict(tensors, strict=False)
    assert lost.unexpected_keys == []
    assert all(name.startswith("policy.") for name in lost.missing_keys)
    assert model.critic.get_submodule("heads.value.linear").weight.shape[0] == 1
    assert model.critic.get_submodule("heads.value.linear").bias is None
    x = tokens(3, PLACES) % (WORDS - 1)  # none is padding
    with torch.no_grad():
        expected = theirs(input_ids=x).logits.squeeze(-1)
    torch.testing.assert_close(values_of(model, x)[:, -1], expected, atol=1e-4, rtol=0)
    to_hf(model, tmp_path / "written")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "written").eval()
    again.config.pad_token_id = WORDS - 1
    with torch.no_grad():
        assert torch.equal(again(input_ids=x).logits.squeeze(-1), expected)


@every_form
def test_a_critic_begins_with_the_body_of_an_actor(form):
    spec, tensors = from_hf(hf_model(form), is_critic=True, init_critic_from_actor=True)
    actor_spec, actor = from_hf(hf_model(form))
    together = composed({**actor_spec, "critic": spec["critic"]})
    together.load_state_dict({**actor, **tensors})
    x = tokens(2, 9)
    assert not values_of(together, x).any()
    for name, tensor in tensors.items():
        if not name.endswith("linear.weight"):
            assert torch.equal(tensor, actor[name.replace("critic.", "policy.")]), name


@every_form
def test_a_family_without_weights_composes(form, tmp_path):
    family = FORMS[form][0]
    model = composed(token_spec({"family": family, "width": 32, "max_length": PLACES}))
    to_hf(model, tmp_path / "written")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "written").eval()
    x = tokens(2, 9)
    with torch.no_grad():
        expected = again(input_ids=x).logits
    torch.testing.assert_close(logits_of(model, x), expected, atol=1e-4, rtol=0)
    critic = composed(token_spec({"family": family}, is_critic=True))
    to_hf(critic.critic, tmp_path / "critic")


def test_the_spec_of_an_experiment_composes():
    decoder = {"family": "llama", "width": 32, "num_layers": 2, "num_heads": 4}
    spec = token_spec(decoder)
    assert spec == {
        "version": 1,
        "policy": {
            "graph": {"latent": {"block": "decoder", "in": "observation", **decoder}},
            "heads": {"action": {"block": "linear_output", "in": "latent", "bias": False}},
        },
        "ignore": ["sequence", "sequence_mask", "action_mask"],
    }
    model = composed(spec)
    seen = {**OBSERVATIONS.sample(), "observation": 3}
    token, state = model.policy.act(seen, model.policy.initial_state())
    assert 0 <= token < WORDS
    assert state["latent/length"].tolist() == [1]


@pytest.mark.parametrize("form", ["gemma", "gpt2, not tied, inner"])
def test_packed_sequences_are_read_alone(form):
    model = composed(from_hf(hf_model(form))[0])
    lengths = torch.tensor([3, 1, 6])
    x = tokens(10)
    with torch.no_grad():
        packed = PackedView(model.policy)(x, lengths)["action"]
    alone = [logits_of(model, part.unsqueeze(0))[0] for part in x.split(lengths.tolist())]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_tied_head_is_trained_as_one():
    theirs = hf_model("gemma")
    spec, tensors = from_hf(theirs)
    model = composed(spec)
    model.load_state_dict(tensors)
    x = tokens(2, 9)
    token_views(model.policy)[0](x)["action"].square().mean().backward()
    theirs(input_ids=x).logits.square().mean().backward()
    weight = model.get_parameter("policy.latent.embed_tokens.weight")
    expected = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(weight.grad, expected, atol=1e-4, rtol=1e-4)


def test_weights_keep_their_dtype(tmp_path):
    spec, tensors = from_hf(hf_model("llama").bfloat16())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    model = composed(spec, dtype=torch.bfloat16)
    model.load_state_dict(tensors)
    to_hf(model, tmp_path / "written")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.lm_head.weight, tensors["policy.heads.action.linear.weight"])


def test_adapters_are_added_to_what_is_written(tmp_path):
    settings = {"family": "llama", "width": 32, "lora": {"rank": 2, "targets": ["q_proj"]}}
    model = composed(token_spec(settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_hf(model, tmp_path / "written")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    x = tokens(2, 9)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "written")(input_ids=x).logits
    torch.testing.assert_close(logits_of(model, x), expected, atol=1e-4, rtol=0)


def test_a_checkpoint_in_a_spec_is_saved_without_its_folder(tmp_path):
    theirs = hf_model("mistral, with a window")
    folder = saved(theirs, tmp_path / "read")
    spec = token_spec({"checkpoint": folder, "max_length": 12})
    allow = [f"{tmp_path}/"]
    model = composed(spec, allow=allow)
    later = composed(spec, allow=allow, device="meta").materialize("cpu")
    model.save(tmp_path / "model.safetensors")
    shutil.rmtree(folder)
    loaded = composer.load(tmp_path / "model.safetensors").eval()
    assert "checkpoint" not in loaded.source.data["policy"]["graph"]["latent"]
    x = tokens(2, 12)
    with torch.no_grad():
        hidden = theirs.base_model(input_ids=x).last_hidden_state
    head = model.get_parameter("policy.heads.action.linear.weight").detach()
    for each in (model, later.eval(), loaded):
        torch.testing.assert_close(logits_of(each, x), hidden @ head.T, atol=1e-4, rtol=0)
    to_hf(loaded, tmp_path / "written")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    assert again.config.sliding_window == 5
    assert torch.equal(again.model.norm.weight, theirs.model.norm.weight)


def test_init_beside_a_checkpoint_is_refused(tmp_path):
    spec = token_spec({"checkpoint": saved(hf_model("llama"), tmp_path), "init": "orthogonal"})
    with pytest.raises(SpecError) as error:
        composed(spec, allow=[f"{tmp_path}/"])
    why = "a checkpoint's weights are kept as they are; leave out 'init' or 'checkpoint'"
    assert str(error.value) == f"policy.graph.latent.init: {why}"


def test_a_folder_that_the_caller_does_not_allow_is_not_read(tmp_path):
    folder = saved(hf_model("llama"), tmp_path)
    with pytest.raises(SpecError, match=r"allow=\["):
        composed(f"version: 1\npolicy: {token_spec({'checkpoint': folder})['policy']}\n")


def test_a_composed_model_is_pickled_and_copied():
    model = composed(token_spec({"family": "gpt2", "width": 32}))
    x = tokens(2, 5)
    for again in (pickle.loads(pickle.dumps(model.policy)), copy.deepcopy(model.policy)):
        with torch.no_grad():
            assert torch.equal(token_views(again)[0](x)["action"], logits_of(model, x))


def test_special_tokens_are_those_of_the_tokenizer(tmp_path):
    words = {f"w{index}": index for index in range(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="w1", eos_token="w2", pad_token="w3"
    )
    to_hf(composed(token_spec({"family": "qwen2"})), tmp_path / "written", tokenizer)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "written").config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)
    assert AutoTokenizer.from_pretrained(tmp_path / "written").eos_token_id == 2


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(message, function, *arguments, kind=FamilyError, **keywords):
    with pytest.raises(kind) as error:
        function(*arguments, **keywords)
    assert str(error.value) == message


NOT_ITS_OWN = "the weights are not those of this model of the family 'llama': "


def test_heads_of_the_other_kind_are_refused(tmp_path):
    actor = saved(hf_model("llama"), tmp_path / "actor")
    critic = saved(hf_model("llama", "SequenceClassification", num_labels=1), tmp_path / "critic")
    two = saved(hf_model("llama", "SequenceClassification", num_labels=2), tmp_path / "two")
    refused(
        f"{actor!r}: {NOT_ITS_OWN}lm_head.weight is in no row; score.weight is missing; it is no critic: pass "
        "init_critic_from_actor=True to begin one with its body",
        from_hf,
        actor,
        is_critic=True,
    )
    refused(
        f"{critic!r}: {NOT_ITS_OWN}score.weight is in no row; lm_head.weight is missing; it is a critic: pass is_critic=True",
        from_hf,
        critic,
    )
    refused(
        f"{critic!r}: it is a critic already; leave out init_critic_from_actor",
        from_hf,
        critic,
        is_critic=True,
        init_critic_from_actor=True,
    )
    refused(
        f"{two!r}: {NOT_ITS_OWN}score.weight is (2, 32), its config needs (1, 32)",
        from_hf,
        two,
        is_critic=True,
    )
    needs_both = "init_critic_from_actor is for a critic; pass is_critic=True too"
    refused(needs_both, from_hf, actor, init_critic_from_actor=True)
    places = "is no model for a decoder: it has places for 24 tokens, and 'max_length' is 25"
    refused(f"{actor!r} {places}", from_hf, actor, max_length=25)
    for wrong in (0, "12", True):
        why = f"is no model for a decoder: 'max_length' must be a positive integer, got {wrong!r}"
        refused(f"{actor!r} {why}", from_hf, actor, max_length=wrong)


def test_what_is_no_language_model_is_refused(tmp_path):
    refused("there is no folder 'gpt2'; nothing is downloaded", from_hf, "gpt2")
    refused(
        "from_hf takes a folder or a model of transformers, got an object of type 'Linear'",
        from_hf,
        torch.nn.Linear(2, 2),
    )
    with torch.device("meta"):
        empty = LlamaForCausalLM(hf_config("llama"))
    refused("LlamaForCausalLM has no weights yet: it is on the meta device", from_hf, empty)
    mixture = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))
    refused(
        "MixtralForCausalLM is no model for a decoder: it is a mixture of experts ('num_local_experts' is 2), which a "
        "decoder is not",
        from_hf,
        mixture,
    )
    folder = tmp_path / "odd"
    saved(hf_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 3}))
    refused(
        f"{str(folder)!r} is no model for a decoder: 'num_kv_heads' must divide num_heads=4, got 3",
        from_hf,
        folder,
    )


def test_models_that_no_family_has_are_not_written(tmp_path):
    llama = token_spec({"family": "llama"})
    node, head = llama["policy"]["graph"]["latent"], llama["policy"]["heads"]["action"]
    plain = {**llama, "policy": {"graph": {"latent": {**node, "family": None}}, "heads": {"action": head}}}  # fmt: skip
    more = {
        "graph": {"latent": node, "last": {"block": "dense", "in": "latent", "hidden_units": 8}}
    }
    deeper = {**llama, "policy": {**more, "heads": {"action": {**head, "in": "last"}}}}
    biased = {**llama, "policy": {**llama["policy"], "heads": {"in": "latent"}}}
    other = {**llama, "policy": token_spec({}, is_critic=True)["policy"]}
    target = tmp_path / "written"
    refused(
        "the decoder of this model has no 'family'; set one of 'gpt2', 'llama', 'codellama', 'deepseek', 'qwen2', "
        "'mistral', 'gemma'",
        to_hf,
        composed(plain),
        target,
    )
    needs = "to_hf writes a decoder and a linear head without bias; this policy has"
    refused(f"{needs} 'last', 'action'", to_hf, composed(deeper), target)
    refused(f"{needs} 'action'", to_hf, composed(biased), target)
    wrong = "to_hf takes a model of from_hf or token_spec; there is no decoder in an object of type"
    refused(f"{wrong} 'Model'", to_hf, composed(other), target)
    refused(f"{wrong} 'Linear'", to_hf, torch.nn.Linear(2, 2), target)
    odd = composed(token_spec({"family": "llama", "width": 18, "num_heads": 4, "head_dim": 4}))
    reason = "The hidden size (18) is not a multiple of the number of attention heads (4)."
    refused(f"LlamaConfig does not take this model: {reason}", to_hf, odd, target)
    empty = "this model has no weights yet; call model.materialize() first"
    refused(empty, to_hf, composed(llama, device="meta"), target)
    assert not target.exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    model = composed(token_spec({"family": "llama", "width": 16}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    taken = f"{str(tmp_path / 'full')!r} cannot be written: it is there already; remove it or choose another name"
    refused(taken, to_hf, model, tmp_path / "full", kind=WriteError)
    lost = tmp_path / "nowhere" / "x"
    refused(
        f"{str(lost)!r} cannot be written: there is no folder {str(lost.parent)!r}",
        to_hf,
        model,
        lost,
        kind=WriteError,
    )
    for error, kind in (
        (OSError(28, "No space left on device"), WriteError),
        (SafetensorError("I/O error: No space left on device"), WriteError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        def fail(tensors, path, error=error, **keywords):
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(pretrained, "save_file", fail)
        with pytest.raises(kind):
            to_hf(model, tmp_path / "written")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_sharded_model_is_not_written(tmp_path):
    model = composed(token_spec({"family": "llama", "width": 16}))
    mark_sharded(model)
    with pytest.raises(ValueError, match=r"^to_hf\(\) needs all weights in one process"):
        to_hf(model, tmp_path / "written")
