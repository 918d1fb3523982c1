"""Pretrained language models as specs and weights, and back into folders of transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import composer
from composer.adapters.tokens import token_spaces
from composer.language import from_hf, to_hf, token_spec
from composer.policy import token_views
from tests.helpers.language_models import FORMS, PLACES, WORDS, hf_model, saved

every_form = pytest.mark.parametrize("form", FORMS)
SPACES = dict(zip(("observation_space", "action_space"), token_spaces(WORDS, PLACES)))


def composed(spec, seed=0, **how):
    return composer.compose(spec, **SPACES, seed=seed, **how).eval()


def tokens(*shape):
    return torch.randint(WORDS, shape, generator=torch.Generator().manual_seed(1))


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
    seen = {**SPACES["observation_space"].sample(), "observation": 3}
    token, state = model.policy.act(seen, model.policy.initial_state())
    assert 0 <= token < WORDS
    assert state["latent/length"].tolist() == [1]
