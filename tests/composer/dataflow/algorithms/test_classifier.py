"""A sequence classifier from a local folder as a reward."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from composer.dataflow import INTERFACES, Context, RewardError, Sample
from perception_blocks.settings import SettingsError

SIZES = {"vocab_size": 6, "pad_token_id": 4, "max_position_embeddings": 5}
BERT = BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
    id2label={0: "negative", 1: "neutral", 2: "positive"}, **SIZES,
)  # fmt: skip
LLAMA = LlamaConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=1, **SIZES
)  # fmt: skip
GPT2 = GPT2Config(
    n_embd=8, n_layer=1, n_head=2, vocab_size=6, pad_token_id=4, n_positions=5, num_labels=2
)
MODELS = [
    (BERT, BertForSequenceClassification),
    (LLAMA, LlamaForSequenceClassification),
    (GPT2, GPT2ForSequenceClassification),
]


def saved(folder, letters, config=BERT, cls=BertForSequenceClassification):
    """A tiny model with drawn weights, in a folder."""
    torch.manual_seed(0)
    model = cls(config).eval()
    model.save_pretrained(folder)
    letters.save_pretrained(folder)
    return model


def classifier(*arguments, **settings):
    return INTERFACES.get("classifier")(*arguments, **settings)


def a_sample():
    """``abc`` and its end, and ``ba``."""
    ids = torch.tensor([0, 1, 2, 5, 1, 0])
    return Sample.of(["x", "y"], {"ids": [[4], [2]]}, {"ids": ids})


@pytest.fixture
def context(letters):
    return Context(torch.Generator(), 3, letters, call="rew_inf")


@pytest.mark.parametrize(("config", "cls"), MODELS)
def test_rewards_are_the_logits_of_the_last_label(tmp_path, letters, context, config, cls):
    model = saved(tmp_path, letters, config, cls)
    got = classifier(str(tmp_path)).inference(None, a_sample(), context)["rewards"]
    for reward, ids in zip(got, ([0, 1, 2], [1, 0])):
        torch.testing.assert_close(reward, model(torch.tensor([ids])).logits[0, -1])
    by_one = classifier(str(tmp_path), batch_size=1).inference(None, a_sample(), context)["rewards"]
    torch.testing.assert_close(by_one, got)


@pytest.mark.parametrize("label", ["negative", 0])
def test_a_label_by_name_or_number(tmp_path, letters, context, label):
    model = saved(tmp_path, letters)
    got = classifier(str(tmp_path), label).inference(None, a_sample(), context)["rewards"]
    torch.testing.assert_close(got[0], model(torch.tensor([[0, 1, 2]])).logits[0, 0])


def test_a_text_that_is_too_long_is_cut(tmp_path, letters, context):
    model = saved(tmp_path, letters)
    long = Sample.of(["x"], {"ids": [[9]]}, {"ids": torch.arange(9) % 3})
    got = classifier(str(tmp_path)).inference(None, long, context)["rewards"]
    torch.testing.assert_close(got[0], model(torch.tensor([[0, 1, 2, 0, 1]])).logits[0, -1])


def test_drawing_weights_moves_no_random_state(tmp_path, letters):
    saved(tmp_path, letters)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    classifier(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_are_no_numbers(tmp_path, letters, context):
    saved(tmp_path, letters)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"].fill_(float("nan"))
    save_file(tensors, file, {"format": "pt"})
    message = f"call 'rew_inf' in iteration 3: the classifier {str(tmp_path)!r} gives nan for item 'x', the text 'abc'"
    with pytest.raises(RewardError, match=f"^{re.escape(message)}; a reward is a finite number$"):
        classifier(str(tmp_path)).inference(None, a_sample(), context)


def test_an_unknown_label(tmp_path, letters):
    saved(tmp_path, letters)
    with pytest.raises(
        SettingsError, match=r"^'label': the classifier has no 'postive'; did you mean 'positive'"
    ):
        classifier(str(tmp_path), "postive")
    with pytest.raises(SettingsError, match=r"no 3; it has 'negative', 'neutral', 'positive'$"):
        classifier(str(tmp_path), 3)


def broken(folder, letters, how):
    saved(folder, letters)
    config, weights = folder / "config.json", folder / "model.safetensors"
    values = json.loads(config.read_text())
    if how == "code":
        config.write_text(json.dumps({**values, "auto_map": {"AutoModel": "evil.Model"}}))
    elif how == "no classifier":
        config.write_text(json.dumps({**values, "model_type": "clip"}))
    elif how == "no head":
        kept = {k: v for k, v in load_file(weights).items() if not k.startswith("classifier")}
        save_file(kept, weights, {"format": "pt"})
    elif how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "no folder":
        return str(folder / "nothing")
    return str(folder)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("code", "has 'auto_map', which names code of its own"),
        ("no classifier", "is no sequence classifier: "),
        ("no head", "holds weights of another architecture: classifier.weight (3, 8) is missing; classifier.bias (3,) is missing"),
        ("pickle", "has no *.safetensors file; other formats can run code"),
        ("no folder", "nothing'; nothing is downloaded"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used(tmp_path, letters, how, message):
    with pytest.raises(SettingsError, match=re.escape(message)) as error:
        classifier(broken(tmp_path, letters, how))
    assert str(error.value).startswith("'path': ")
