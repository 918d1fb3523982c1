"""The models that an experiment names: where their architecture and weights come from, and what is wrong with them."""

import re
from dataclasses import replace

import pytest
import torch

from composer.dataflow.running.model_building import ModelBuildError, build_model
from composer.errors import SpecError
from composer.language import to_hf
from composer.source.load import load_source
from perception_blocks.settings import SettingsError
from tests.helpers.experiment_models import DECODER, GPT2, GRU, ORIGINS, VOCABULARY, Words, entry
from tests.helpers.language_models import WORDS, hf_model, saved


def models(*entries, seed=0, **settings):
    named = {each.name: each for each in entries}
    return [build_model(each, named, seed, **settings) for each in entries]


def weights(model):
    return dict(model.network.state_dict())


def equal(left, right):
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def body_is_equal(critic, actor):
    critic, actor = weights(critic), weights(actor)
    shared = [name for name in critic if name in actor]
    assert len(shared) >= 3
    return all(torch.equal(critic[name], actor[name]) for name in shared)


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_model_like_another_begins_with_its_weights(origin):
    actor, ref, critic, second, body = models(
        entry("actor", ORIGINS[origin]),
        entry("ref", like="actor"),
        entry("critic", like="actor", is_critic=True),
        entry("second", like="critic", is_critic=True),
        entry("body", like="ref", is_critic=True, init_critic_from_actor=True),
        tokenizer=Words(),
    )
    assert equal(ref, actor)
    assert equal(second, critic)
    assert not body_is_equal(critic, actor)
    assert body_is_equal(body, actor)
    assert all(m.is_critic for m in (critic, second, body))


def test_weights_follow_from_the_seed_and_the_name():
    (actor,), (again,), (other_seed,) = (
        models(entry("actor", {"decoder": DECODER}), seed=s) for s in (1, 1, 2)
    )
    (other_name,) = models(entry("agent", {"decoder": DECODER}), seed=1)
    assert equal(actor, again)
    assert not equal(actor, other_seed)
    assert not equal(actor, other_name)


def test_the_vocabulary_is_the_tokenizers():
    settings = {key: value for key, value in DECODER.items() if key != "vocab_size"}
    (actor,) = models(entry("actor", {"decoder": settings}), tokenizer=Words(11, eos_token_id=4))
    assert (actor.vocabulary_size, actor.end_token, actor.longest) == (11, 4, DECODER["max_length"])


def test_files_of_ours_are_found_beside_the_experiment(tmp_path):
    (actor,) = models(entry("actor", {"decoder": DECODER}), seed=5)
    actor.model.save(tmp_path / "actor.safetensors")
    (tmp_path / "agent.yaml").write_text(load_source(GRU).to_yaml())
    (tmp_path / "experiment.yaml").write_text("version: 1\n")
    source = load_source(tmp_path / "experiment.yaml")
    saved, critic, agent, judge = models(
        entry("saved", {"checkpoint": "actor.safetensors"}),
        entry("critic", like="saved", is_critic=True, init_critic_from_actor=True),
        entry("agent", {"spec": "agent.yaml"}),
        entry("judge", {"spec": "agent.yaml"}, is_critic=True),
        source=source,
        tokenizer=Words(),
    )
    assert equal(saved, actor)
    assert body_is_equal(critic, actor)
    assert agent.vocabulary_size == judge.vocabulary_size == VOCABULARY
    message = (
        "model 'critic' is_critic, and 'actor.safetensors' has no critic; write init_critic_from_actor: true to begin "
        "with the body of its policy"
    )
    with pytest.raises(ModelBuildError, match=f"^{re.escape(message)}$"):
        models(entry("critic", {"checkpoint": "actor.safetensors"}, is_critic=True), source=source)
    critic.model.save(tmp_path / "critic.safetensors")
    (again,) = models(
        entry("again", {"checkpoint": "critic.safetensors"}, is_critic=True), source=source
    )
    assert equal(again, critic)


def test_folders_of_hugging_face(tmp_path):
    theirs = hf_model("llama")
    saved(theirs, tmp_path / "lm")
    judge = hf_model("llama", "SequenceClassification", num_labels=1, pad_token_id=WORDS - 1)
    saved(judge, tmp_path / "rm")
    lm, rm = {"checkpoint": str(tmp_path / "lm")}, {"checkpoint": str(tmp_path / "rm")}
    actor, ref, critic, reward = models(
        entry("actor", lm),
        entry("ref", like="actor"),
        entry("critic", like="actor", is_critic=True, init_critic_from_actor=True),
        entry("reward", rm, is_critic=True),
        tokenizer=Words(WORDS),
    )
    ids = torch.randint(WORDS - 1, (9,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(input_ids=ids[None]).logits[0]
        torch.testing.assert_close(actor.logits(ids, [9]), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(ref.logits(ids, [9]), expected, atol=1e-4, rtol=0)
        score = judge(input_ids=ids[None]).logits[0, 0]
        torch.testing.assert_close(reward.scores(ids, [9])[-1], score, atol=1e-4, rtol=0)
    assert body_is_equal(critic, actor)


def test_what_is_wrong_with_a_folder_is_told(tmp_path):
    saved(hf_model("llama"), tmp_path / "lm")
    lm = {"checkpoint": str(tmp_path / "lm")}
    with pytest.raises(
        ModelBuildError,
        match=r"^model 'a': .*; it is no critic: write init_critic_from_actor: true to begin",
    ):
        models(entry("a", lm, is_critic=True))
    path = str(tmp_path / "lm")
    message = f"model 'a': its tokenizer has 99 tokens, and {path!r} knows {WORDS}"
    with pytest.raises(ModelBuildError, match=f"^{re.escape(message)}$"):
        models(entry("a", lm), tokenizer=Words(99))


def test_a_family_is_that_of_a_decoder(tmp_path):
    settings = {"family": "gpt2", "width": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 8}
    (actor,) = models(entry("actor", {"decoder": settings}))
    actor.model.save(tmp_path / "actor.safetensors")
    tied = entry("saved", {"checkpoint": str(tmp_path / "actor.safetensors")})
    critic = entry("critic", like="saved", is_critic=True, init_critic_from_actor=True)
    assert body_is_equal(models(tied, critic)[1], actor)
    to_hf(actor.model, tmp_path / "out")
    (again,) = models(entry("again", {"checkpoint": str(tmp_path / "out")}))
    assert equal(again, actor)
    wrong = entry("actor", {"decoder": {**settings, "family": "gpt"}})
    with pytest.raises(SpecError, match=r"^models\.actor\.decoder\.family: .*gpt2"):
        models(wrong)


def test_on_the_meta_device_only_shapes_are_checked():
    (critic,) = models(
        entry("critic", {"spec": GPT2}, is_critic=True, init_critic_from_actor=True),
        tokenizer=Words(),
        device="meta",
    )
    assert all(p.is_meta for p in critic.parameters())


WRONG = [
    (entry("a", like="b"), "model 'a' is like 'b', which is no model"),
    (
        entry("actor", like="actr"),
        "model 'actor' is like 'actr', which is no model; did you mean 'actor'?",
    ),
    (entry("a", like="a"), "models are like each other in a circle: 'a', 'a'"),
    (entry("a"), "model 'a' needs one of 'decoder', 'checkpoint', 'spec' and 'like', got none"),
    (
        entry("a", {"model_type": "tiny_vla"}),
        "model 'a': models of tokens do not come from 'model_type'; give 'decoder', 'checkpoint' or 'spec'",
    ),
    (
        entry("a", {"decoder": 3}),
        "model 'a': 'decoder' takes the settings of the block, got the number 3",
    ),
    (
        entry("a", {"decoder": {}}),
        "model 'a' has no vocabulary; write vocabulary: and a file with a token in each line",
    ),
    (
        entry("a", {"checkpoint": 3}),
        "model 'a': 'checkpoint' is a file of model.save, or a folder of Hugging Face, got the number 3",
    ),
    (
        replace(entry("a", {"decoder": DECODER}), max_length=10**9),
        "model 'a' has a 'max_length' of 1,000,000,000 tokens; it may have 33,554,432",
    ),
    (
        replace(entry("a", {"decoder": DECODER}), max_length=1),
        "model 'a': 'max_length' must be a whole number of at least 2, got 1",
    ),
    (
        entry("a", {"decoder": DECODER | {"vocab_size": 10**12}}),
        "model 'a' has a vocabulary of 1,000,000,000,000 tokens; it may have 33,554,432",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_is_wrong_with_a_model_is_told(wrong, message):
    with pytest.raises(ModelBuildError, match=f"^{re.escape(message)}$"):
        build_model(wrong, {wrong.name: wrong})


@pytest.mark.parametrize("is_critic", [False, True])
def test_a_vocabulary_that_is_larger_than_the_model_is_told(is_critic):
    wrong = entry("a", {"decoder": DECODER}, is_critic=is_critic)
    message = (
        "model 'a' knows 16 tokens, and its tokenizer has 17; give it a larger 'vocab_size', or none, or another "
        "'vocabulary'"
    )
    with pytest.raises(ModelBuildError, match=f"^{re.escape(message)}$"):
        build_model(wrong, {"a": wrong}, tokenizer=Words(VOCABULARY + 1))


@pytest.mark.parametrize("kind", ["checkpoint", "spec"])
def test_files_outside_are_told_with_the_model(tmp_path, kind):
    wrong = entry("a", {kind: "/etc/passwd"})
    (tmp_path / "mine.yaml").write_text("version: 1\n")
    message = (
        "model 'a': '/etc/passwd' is neither beside nor below the spec; pass allow=['/etc/'] or --allow /etc/ if the "
        "spec may read it"
    )
    with pytest.raises(ModelBuildError, match=f"^{re.escape(message)}$"):
        build_model(wrong, {"a": wrong}, source=load_source(tmp_path / "mine.yaml"))


def test_what_is_no_checkpoint_is_told_with_the_model(tmp_path):
    (tmp_path / "mine.yaml").write_text("version: 1\n")
    wrong = entry("a", {"checkpoint": "mine.yaml"})
    with pytest.raises(
        ModelBuildError, match=r"^model 'a': '.*mine\.yaml' is a spec, not a checkpoint; "
    ):
        build_model(wrong, {"a": wrong}, source=load_source(tmp_path / "mine.yaml"))


def test_a_policy_that_gives_no_critic_is_told():
    wrong = replace(
        entry("a", is_critic=True), origin={"spec": {"version": 1, "policy": {"template": {}}}}
    )
    message = (
        "model 'a' is_critic, and its spec has neither a 'critic' nor a policy with a 'graph' and 'heads: {in: ...}' "
        "to make one from"
    )
    with pytest.raises(ModelBuildError, match=f"^{re.escape(message)}$"):
        build_model(wrong, {"a": wrong}, tokenizer=Words())


def test_wrong_settings_of_a_decoder_are_told_where_they_stand(tmp_path):
    file = tmp_path / "ppo.yaml"
    file.write_text(
        "version: 1\nmodels:\n  actor:\n    decoder: {vocab_size: 8, widht: 3, num_layers: 0}\n"
    )
    source = load_source(file)
    wrong = entry("actor", {"decoder": source.data["models"]["actor"]["decoder"]}, is_critic=True)
    with pytest.raises(SpecError) as caught:
        build_model(wrong, {"actor": wrong}, source=source)
    assert [(p.position.line, p.position.column, p.message) for p in caught.value.problems] == [
        (4, 37, "'widht' is not a setting of block 'decoder'; did you mean 'width'?"),
        (4, 52, "'num_layers' must be an integer between 1 and 1000, got 0"),
    ]


def test_a_model_that_is_frozen_whole_is_not_trained():
    frozen = {**DECODER, "tied_head": True, "freeze": ["embed_tokens", "layers", "norm"]}
    message = "all weights are frozen, so there is nothing to train; leave out 'lr'"
    with pytest.raises(ModelBuildError, match=f"^{re.escape(message)}$"):
        models(entry("a", {"decoder": frozen}, optimizer={"lr": 0.1}))


def test_wrong_settings_of_an_optimiser_are_told():
    wrong = entry(
        "a", {"decoder": DECODER}, optimizer={"lr": 0.1, "beta2": 1.0, "weight_decya": 0.1}
    )
    message = (
        "'beta2' must be a number between 0 and 1, got 1.0; 'weight_decya' is not a setting of the optimiser; did you "
        "mean 'weight_decay'?"
    )
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        build_model(wrong, {"a": wrong})
