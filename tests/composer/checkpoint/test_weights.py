"""Weights by name and by position, and what the report says of those that were left out."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import composer
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.weights import load_weights
from tests.helpers.paths import ROOT


class Net(nn.Module):
    def __init__(self, tokens=5, names=("table", "head")):
        super().__init__()
        self.add_module(names[0], nn.Embedding(tokens, 3))
        self.add_module(names[1], nn.Linear(3, tokens))


def same(one, two):
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_weights_load_by_name(tmp_path):
    net, other = Net(), Net()
    report = load_weights(other, net.state_dict(), strict=True)
    assert same(net, other)
    assert str(report) == "3 tensors loaded, 0 differences"
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    fresh = Net()
    load_weights(fresh, tmp_path / "net.safetensors")
    assert same(net, fresh)


def test_weights_load_by_position_whatever_they_are_called():
    net, other = Net(), Net(names=("wte", "out"))
    report = load_weights(other, net.state_dict(), by="position", strict=True)
    assert same(net, other)
    assert report.loaded == ["wte.weight", "out.weight", "out.bias"]


def test_the_report_says_what_was_left_out_and_why():
    weights = {**Net().state_dict(), "head.scale": torch.ones(2)}
    weights["head.bais"] = weights.pop("head.bias")
    report = load_weights(Net(), weights)
    assert str(report) == "\n  ".join(
        [
            "1 tensor loaded, 4 differences",
            "head.bias (5,) is not in the mapping; the mapping has 'head.bais'",
            "head.scale (2,) is in the mapping, the model has no such tensor",
            "head.bais (5,) is in the mapping, the model has no such tensor",
            "head.weight (5, 3) fits, but not all of 'head' does",
        ]
    )
    weights = {**Net().state_dict(), "table.weight": torch.zeros(5, 3, dtype=torch.int64)}
    assert load_weights(Net(), weights).skipped == [
        "table.weight is torch.int64 in the mapping, the model needs torch.float32"
    ]


def test_the_report_counts_in_proper_words_and_names_the_source(tmp_path):
    weights = Net().state_dict()
    weights["head.scale"] = torch.ones(2)
    difference = "head.scale (2,) is in the {}, the model has no such tensor"
    start = "3 tensors loaded, 1 difference\n  "
    assert str(load_weights(Net(), weights)) == start + difference.format("mapping")
    save_file(weights, tmp_path / "net.safetensors")
    report = load_weights(Net(), tmp_path / "net.safetensors")
    assert str(report) == start + difference.format("file")


def test_the_report_of_positions_names_both():
    weights = {**Net(names=("wte", "out")).state_dict(), "more": torch.ones(2)}
    weights["out.weight"] = torch.zeros(6, 3)
    report = load_weights(Net(), weights, by="position")
    assert report.loaded == ["table.weight"]
    assert report.skipped == [
        "head.weight is (6, 3) in the mapping, as 'out.weight', the model needs (5, 3)",
        "more (at position 3) (2,) is in the mapping, the model has no such tensor",
        "head.bias (5,) fits, but not all of 'head' does",
    ]


def refused(message, *arguments, **keywords):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(*arguments, **keywords)


def test_weights_of_another_network_are_refused_and_nothing_changes():
    net, before = Net(), Net()
    before.load_state_dict(net.state_dict())
    refused(
        "nothing of the weights fits: they are of another network\n"
        "  table.weight is (6, 3) in the mapping, the model needs (5, 3)\n"
        "  head.weight is (6, 3) in the mapping, the model needs (5, 3)\n"
        "  head.bias is (6,) in the mapping, the model needs (5,)",
        net,
        Net(6).state_dict(),
    )
    with pytest.raises(CheckpointError, match="strict=False loads what fits"):
        load_weights(net, {**net.state_dict(), "more": torch.ones(1)}, strict=True)
    assert same(net, before)


def test_what_holds_no_weights_is_refused(tmp_path):
    net, path = Net(), str(tmp_path / "net.safetensors")
    refused(f"there is no file {path!r}", net, path)
    save_file(net.state_dict(), path)
    refused(
        f"{path!r} is a file, and safetensors files keep no order: load it by name, or give a mapping whose order is "
        "that of the module",
        net,
        path,
        by="position",
    )
    refused(
        "the weights hold what is no tensor at 'model', 'step'; give the state_dict itself",
        net,
        {"model": {}, "step": 3},
    )
    refused("weights are a safetensors file or a mapping of tensors, got a int", net, 3)
    refused(
        "'by' is 'name' or 'position', got 'positon'; did you mean 'position'?",
        net,
        {},
        by="positon",
    )
    refused(
        "no name of the weights begins with 'tabel.'; did you mean 'table.'?",
        net,
        net.state_dict(),
        prefix="tabel.",
    )


def test_a_part_of_a_saved_model_is_taken_by_its_prefix(tmp_path):
    config = ROOT / "configs" / "cartpole.yaml"
    model, other = composer.compose(config, seed=0), composer.compose(config, seed=1)
    model.save(tmp_path / "model.safetensors")
    load_weights(other.policy, tmp_path / "model.safetensors", prefix="policy.", strict=True)
    assert same(model.policy, other.policy)
    assert not same(model.critic, other.critic)


OLD = """
version: 1
environment: CartPole-v1
policy:
  graph:
    body: {block: dense, in: observation, hidden_units: [8, 8]}
    latent: {block: dense, in: body, hidden_units: 6}
  heads: {in: latent}
critic:
  ensemble: 2
  graph: {body: {block: dense, in: observation, hidden_units: [8, 8]}}
"""


def test_a_node_is_loaded_whole_or_not_at_all(tmp_path):
    old = composer.compose(OLD, seed=0)
    old.save(tmp_path / "old.safetensors")
    model = composer.compose(
        OLD.replace("hidden_units: [8, 8]}\n    lat", "hidden_units: [8, 7]}\n    lat"), seed=1
    )
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = model.load_weights(tmp_path / "old.safetensors", strict=False)
    assert str(report) == (
        "8 tensors loaded, 6 differences\n"
        "  policy.body.linears.1.weight is (8, 8) in the file, the model needs (7, 8)\n"
        "  policy.body.linears.1.bias is (8,) in the file, the model needs (7,)\n"
        "  policy.latent.linears.0.weight is (6, 8) in the file, the model needs (6, 7)\n"
        "  policy.body.linears.0.weight (8, 4) fits, but not all of 'policy/body' does\n"
        "  policy.body.linears.0.bias (8,) fits, but not all of 'policy/body' does\n"
        "  policy.latent.linears.0.bias (6,) fits, but not all of 'policy/latent' does"
    ).replace("8 tensors", f"{len(report.loaded)} tensors")
    for name, tensor in model.state_dict().items():
        expected = old.state_dict() if name in report.loaded else fresh
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    "rename",
    [
        {"body": "trunk"},
        {
            "policy/body": "policy/trunk",
            "critic/ensemble/0/body": "critic/ensemble/0/trunk",
            "critic/ensemble/1/body": "critic/ensemble/1/trunk",
        },
    ],
)
def test_renamed_nodes_keep_their_weights(rename, tmp_path):
    old = composer.compose(OLD, seed=0)
    old.save(tmp_path / "old.safetensors")
    model = composer.compose(OLD.replace("body", "trunk"), seed=1)
    report = model.load_weights(tmp_path / "old.safetensors", rename=rename)
    assert report.skipped == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[name.replace("trunk", "body")])


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"bod": "trunk"}, "'old.safetensors' has no node 'bod' to rename; did you mean 'body'?"),
        ({"body": "latnet"}, "the model has no weights of a node 'latnet'; did you mean 'latent'?"),
        (
            {"policy/body": "policy/latnet"},
            "the model has no weights of a node 'policy/latnet'; did you mean 'latent'?",
        ),
        (
            {"policy/body": "trunk"},
            "rename maps a node to a node or a path to a path, got 'policy/body' to 'trunk'; write "
            "{'policy/old': 'policy/new'}",
        ),
        (
            {"policy/body": "policy/heads/action"},
            None,
        ),
    ],
)
def test_new_names_that_cannot_be(rename, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    composer.compose(OLD, seed=0).save("old.safetensors")
    with pytest.raises(CheckpointError) as caught:
        composer.compose(OLD).load_weights("old.safetensors", rename=rename)
    assert message is None or str(caught.value) == message


def test_two_nodes_of_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = OLD.replace(
        "body: {block: dense, in: observation, hidden_units: [8, 8]}\n    latent: {block: dense, in: body, hidden_units: 6}",
        "body: {block: dense, in: observation, hidden_units: 4}\n    latent: {block: dense, in: body, hidden_units: 4}",
    )
    composer.compose(text, seed=0).save("old.safetensors")
    with pytest.raises(CheckpointError) as caught:
        composer.compose(text).load_weights("old.safetensors", rename={"body": "latent"})
    assert str(caught.value) == (
        "with these new names 'old.safetensors' has 'policy.latent.linears.0.bias' twice; rename the other node as well"
    )


def test_only_names_of_the_same_shape_and_network_are_proposed(tmp_path):
    old = composer.compose(OLD, seed=0)
    old.save(tmp_path / "old.safetensors")
    model = composer.compose(OLD.replace("body", "bodies"), seed=1)
    report = model.load_weights(tmp_path / "old.safetensors", strict=False)
    hints = [line for line in report.skipped if "the file has" in line]
    assert hints
    for line in hints:
        ours, theirs = line.split()[0], line.split("'")[-2]
        assert ours.split(".")[0] == theirs.split(".")[0]
        assert model.state_dict()[ours].shape == old.state_dict()[theirs].shape
