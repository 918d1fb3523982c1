import pickle
import re
import socket

import pytest
import torch
from networks.tiny_vla import (  # pyright: ignore[reportMissingImports]  (of configs/)
    TinyProcessor,
    TinyVla,
    TinyVlaConfig,
)
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GPT2LMHeadModel,
    LlamaConfig,
)

import composer
from composer.language import ActionBins, OpenVlaBins, register_hf
from perception_blocks.registry import NameTakenError
from tests.helpers.action_models import CONFIG, observations, spec


def test_nothing_is_downloaded_or_unpickled(monkeypatch, folder, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("this must not be called")

    for owner, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data = spec(config=None, model_path=str(folder), lora={"rank": 2})
    model = composer.compose(data, allow=[f"{folder}/"], seed=0)
    assert model.prove() < 1e-5
    model.save(tmp_path / "model.safetensors")
    model.save(tmp_path / "adapters.safetensors", adapters_only=True)
    model.save_pretrained(tmp_path / "again")
    loaded = composer.load(tmp_path / "model.safetensors")
    loaded.load_weights(tmp_path / "adapters.safetensors")
    loaded.act(observations())


def test_transformers_knows_what_is_registered(folder):
    assert type(AutoConfig.from_pretrained(folder, local_files_only=True)) is TinyVlaConfig
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    assert type(model) is TinyVla
    assert type(AutoProcessor.from_pretrained(folder, local_files_only=True)) is TinyProcessor


def test_sampling_settings_of_a_folder_are_not_used(folder, tmp_path):
    import json
    import shutil

    place = tmp_path / "ckpt"
    shutil.copytree(folder, place)
    settings = {"do_sample": True, "temperature": 0.01, "top_k": 1, "eos_token_id": 33}
    (place / "generation_config.json").write_text(json.dumps(settings))
    given = composer.compose(
        spec(config=None, model_path=str(place)), allow=[f"{tmp_path}/"], seed=0
    )
    plain = composer.compose(
        spec(config=None, model_path=str(folder)), allow=[f"{folder}/"], seed=0
    )
    tokens = []
    for model in (given, plain):
        torch.manual_seed(0)
        tokens.append(model.predict_tokens(**model.inputs(observations())).actions)
    assert torch.equal(*tokens)


def test_bins_of_the_users_own():
    class OtherConfig(TinyVlaConfig):
        model_type = "other_bins_vla"

    class Other(TinyVla):
        config_class = OtherConfig

    register_hf(
        "other_bins_vla", config=OtherConfig, model=Other, processor=TinyProcessor, bins=OpenVlaBins
    )
    assert type(composer.compose(spec(model_type="other_bins_vla"), seed=0).bins) is OpenVlaBins
    assert type(composer.compose(spec(), seed=0).bins) is ActionBins


def test_a_name_that_is_taken():
    class Another(TinyVlaConfig):
        """Of the same model type."""

    message = "the model type 'tiny_vla' is taken by networks.tiny_vla.TinyVlaConfig; choose another, or pass replace=True"
    with pytest.raises(NameTakenError, match=f"^{re.escape(message)}$"):
        register_hf("tiny_vla", config=Another, model=TinyVla)

    class Llama(LlamaConfig):
        """Of a name of the library's own."""

    with pytest.raises(NameTakenError, match="the model type 'llama' is taken by transformers"):
        register_hf("llama", config=Llama, model=TinyVla)
    register_hf("tiny_vla", config=TinyVlaConfig, model=TinyVla, image_processor=__import__("networks.tiny_vla", fromlist=["x"]).TinyImageProcessor, processor=TinyProcessor)  # fmt: skip


WRONG = {
    "name": ({"model_type": "my_vla"}, "the config 'TinyVlaConfig' has model_type 'tiny_vla', not 'my_vla'; they must be equal"),
    "no text": ({"model_type": 3}, "register_hf takes a model type first, got the number 3"),
    "no generate": ({"model": torch.nn.Linear}, "the model 'Linear' has no generate; derive it from GenerationMixin"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_classes_that_do_not_fit(case):
    changes, message = WRONG[case]
    given = {"model_type": "tiny_vla", "config": TinyVlaConfig, "model": TinyVla, **changes}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        register_hf(given.pop("model_type"), **given)


def test_a_type_of_the_librarys_own_may_be_an_action_model():
    from transformers import GPT2Config

    register_hf("gpt2", config=GPT2Config, model=GPT2LMHeadModel)
    model = {
        "model_type": "gpt2",
        "config": {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2},
    }
    with pytest.raises(composer.SpecError, match="there are no statistics of actions"):
        composer.compose({"version": 1, "model": model}, seed=0)
    assert CONFIG["vocab_size"] == 40
