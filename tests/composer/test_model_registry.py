"""Models by name: how they are registered, found and asked for their parts, and what is refused."""

import re
import subprocess
import sys

import pytest
import torch

from composer.errors import SpecError
from composer.model_registry import ModelRecord, ModelRegistry, find_model
from perception_blocks.registry import NameTakenError, UnknownNameError
from tests.helpers.paths import ROOT

CONFIGS = ROOT / "configs"
SIZES = {"vocabulary_size": 8, "max_length": 16}


@pytest.fixture
def models():
    return ModelRegistry()


def refused(message, action, error=ValueError):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        action()


def test_a_record_unpacks_as_six(models):
    models.register("mine", actor=len, vocabulary="tokens.txt")
    actor, critic, actor_critic, vocabulary, weights, tokenizer = models.get("mine")
    assert (actor, vocabulary) == (len, "tokens.txt")
    assert (critic, actor_critic, weights, tokenizer) == (None, None, None, None)
    assert len(models.get("mine")) == 6


def test_a_missing_part_is_said_when_it_is_asked_for(models):
    models.register("mine", actor=len, vocabulary="tokens.txt")
    record = models.get("mine")
    refused(
        "the model 'mine' has no weights file; it has an actor factory, a vocabulary file",
        lambda: record.weights,
    )
    assert not hasattr(record, "tokenizer")
    models.register("none", actor=None, vocabulary="tokens.txt")
    refused(
        "the model 'none' has no actor factory; it has a vocabulary file",
        lambda: models.get("none").actor,
    )
    refused(
        "the model 'empty' has no actor factory; it has no part at all",
        lambda: ModelRecord("empty", {}).actor,
    )
    refused(
        "a model has no 'wieghts'; did you mean 'weights'?", lambda: record.wieghts, AttributeError
    )


def test_decorators_register_factories_of_one_name(models):
    @models.register("mine", "actor", weights="prior.safetensors")
    def make_actor(**sizes):
        return "training", "inference"

    @models.register("mine", "critic")
    def make_critic(**sizes):
        return "training", "inference"

    record = models.get("mine")
    assert (record.actor, record.critic) == (make_actor, make_critic)
    assert record.weights == "prior.safetensors"
    assert record.actor(**SIZES) == ("training", "inference")
    refused(
        "the model 'mine' has its critic factory already; choose another name, or pass replace=True",
        lambda: models.register("mine", "critic")(make_critic),
        NameTakenError,
    )
    models.register("mine", critic=len, replace=True)
    assert list(models.get("mine")) == [None, len, None, None, None, None]


def test_parts_are_imported_by_their_path_when_they_are_asked_for(models, tmp_path, monkeypatch):
    text = "from os import getcwd\nfrom composer.model_registry import ModelRecord\n"
    text += "def make_actor(**sizes): return 'training', 'inference'\nmine = ModelRecord('mine', {'actor': make_actor})\n"
    (tmp_path / "my_models.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    models.register("mine", actor="my_models.make_actor", allow=["my_models"])
    models.register("closed", actor="my_models.make_actor")
    models.register("stranger", actor="my_models.getcwd", allow=["my_models"])
    assert "my_models" not in sys.modules
    assert models.get("mine").actor() == ("training", "inference")
    outside = "'my_models.make_actor' is outside the allowed modules (none); pass allow=['my_models'] or --allow my_models if you trust it"
    refused(outside, lambda: models.get("closed").actor)
    with pytest.raises(
        ValueError, match=r"'my_models\.getcwd' lives in 'posix', outside the allowed"
    ):
        models.get("stranger").actor  # noqa: B018
    assert find_model("my_models.mine", ["my_models"]).actor() == ("training", "inference")
    refused(
        "'my_models.make_actor' is no ModelRecord but a function",
        lambda: find_model("my_models.make_actor", ["my_models"]),
    )


@pytest.mark.parametrize("name", ["token_gru", "token_gpt2"])
def test_a_spec_is_a_model(models, name, monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    models.register(name, spec=CONFIGS / f"{name}.yaml", allow=["environments"], weights="w")
    record = find_model({"model": name, "steps": 3}, models=models)
    four = record.actor_critic(**SIZES, seed=0)
    assert len(four) == 4
    training, inference = record.actor(**SIZES, seed=0)
    sequence = torch.randint(8, (2, 16))
    logits = training(sequence)["action"]
    assert logits.shape == (2, 16, 8)
    assert torch.equal(four[0](sequence)["action"], logits)
    assert four[2](sequence)["value"].shape == (2, 16, 1)
    assert {id(p) for p in training.parameters()} == {id(p) for p in inference.parameters()}
    shared = {"token_gru": "memory", "token_gpt2": "latent"}[name]
    refused(
        f"this critic reads '{shared}' of its policy; make the views of both: "
        "token_views(policy, critic), or the factory 'actor_critic' of a model",
        lambda: record.critic(**SIZES, seed=0),
    )


def test_a_spec_that_nobody_registered_is_found_by_its_file(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    record = find_model({"model": str(CONFIGS / "token_gru.yaml")}, ["environments"])
    assert record.name == "token_gru"
    training, _ = record.actor(**SIZES, overrides=["params.cell=lstm"])
    assert "LstmBlock" in repr(training)
    with pytest.raises(SpecError, match="above the limit of 1 tensors; if it is meant"):
        record.actor(**SIZES, limits={"tensors": 1})
    assert find_model(record) is record


def test_a_spec_without_a_critic_has_none():
    spec = {
        "version": 1,
        "policy": {
            "graph": {
                "token": {"block": "embedding", "in": "observation", "embedding_dim": 4},
                "memory": {"block": "gru", "in": "token", "hidden_units": 4},
            },
            "heads": {"in": "memory"},
        },
        "ignore": ["sequence", "sequence_mask", "action_mask"],
    }
    record = find_model(spec)
    assert len(record.actor(**SIZES)) == 2
    refused(
        "the model 'spec' has no critic factory; it has an actor factory", lambda: record.critic
    )


def test_what_is_no_model_is_refused(models):
    models.register("token_gru", actor=len)
    refused(
        "unknown model 'token_gur'; did you mean 'token_gru'?",
        lambda: find_model("token_gur", models=models),
        UnknownNameError,
    )
    refused(
        "unknown model 'x'; known are 'token_gru'",
        lambda: find_model("x", models=models),
        UnknownNameError,
    )
    refused(
        "a training config names its 'model'; this one has no such key",
        lambda: find_model({"modell": "x"}),
    )
    refused("'model' is a name, a dotted path or a spec, got a int", lambda: find_model(3))
    refused(
        "the model 'mine' cannot have a part 'wieghts'; did you mean 'weights'?",
        lambda: models.register("mine", wieghts="prior.safetensors"),
    )
    refused(
        "the model 'mine' cannot have a part 'wieghts'; did you mean 'weights'?",
        lambda: ModelRecord("mine", {"wieghts": "prior.safetensors"}),
    )
    refused(
        "the model 'mine': its actor factory must be a function or a dotted path, got 3",
        lambda: models.register("mine", actor=3),
    )
    refused(
        "the model 'mine' has a spec and is a decorator of its 'actor'; register one, then the other",
        lambda: models.register("mine", "actor", spec=CONFIGS / "token_gru.yaml"),
    )
    refused(
        "the model 'mine' has nothing to register; give its parts or a spec, or name the part that is "
        "decorated: register('mine', 'actor')",
        lambda: models.register("mine"),
    )
    assert "mine" not in models  # what was refused left nothing behind


def test_a_spec_whose_critic_is_null_has_no_critic_factory(models):
    network = {"template": {}}
    models.register("mine", spec={"version": 1, "policy": network, "critic": None})
    refused(
        "the model 'mine' has no critic factory; it has an actor factory",
        lambda: models.get("mine").critic,
    )


def test_a_path_that_leads_to_no_factory_is_refused(models):
    models.register("mine", actor="string.digits", allow=["string"])
    refused(
        "the model 'mine': its actor factory 'string.digits' must be a function, got a str",
        lambda: models.get("mine").actor,
    )


def test_a_vocabulary_file_that_does_not_fit_is_refused(models, tmp_path):
    path = tmp_path / "tokens.txt"
    models.register("mine", vocabulary=path)
    record = models.get("mine")
    refused(f"the model 'mine': there is no vocabulary file {str(path)!r}", record.tokens)
    path.touch()
    refused(f"the model 'mine': the vocabulary file {str(path)!r} is empty", record.tokens)
    path.write_bytes(b"^\n\xff")
    refused(
        f"the model 'mine': the vocabulary file {str(path)!r} is no text in UTF-8: its byte 3 is 0xff",
        record.tokens,
    )
    path.write_text("^\n$\nC\nC\n$\n")
    refused(
        f"the model 'mine': the vocabulary file {str(path)!r} holds '$', 'C' more than once",
        record.tokens,
    )
    path.write_text("^\n$\nC\nN\n")
    assert record.tokens(4) == ["^", "$", "C", "N"]
    path.write_bytes("a\u2028b\r\n\r\nc".encode())  # a token may be such a character, or empty
    assert record.tokens(3) == ["a\u2028b", "", "c"]
    path.write_text("^\n$\nC\nN\n")
    refused(
        f"the model 'mine': 'vocabulary_size' is 8, but the vocabulary file {str(path)!r} has 4 tokens",
        lambda: record.tokens(8),
    )


def test_naming_a_model_needs_no_torch():
    code = (
        "import sys; from composer.model_registry import MODELS, find_model\n"
        f"MODELS.register('mine', spec={str(CONFIGS / 'token_gru.yaml')!r})\n"
        "find_model({'model': 'mine'}).actor\n"
        "sys.exit('torch' in sys.modules or 'gymnasium' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
