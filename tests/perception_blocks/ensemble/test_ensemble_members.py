"""Networks that are made into an ensemble: copies of one form run as one call, others stay what they are."""

import copy
import re

import pytest
import torch
from torch.nn.utils import parametrize

from perception_blocks import Graph, InferenceBlock
from perception_blocks.ensemble.ensemble import EnsembleBlock


def dense(units=4, activation="relu", outputs=2):
    graph = Graph({"x": (3,)})
    graph.add("y", "dense", "x", hidden_units=[units, outputs], activation=activation)
    return InferenceBlock(graph, ["y"])


def frozen(network):
    return network.requires_grad_(False)


def hooked(network):
    network.get_submodule("y").register_forward_hook(lambda module, args, output: output * 2)
    return network


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: dense(activation="tanh"), "copy 1 has other settings than copy 0"),
        (lambda: dense(units=5), "copy 1 has other settings than copy 0"),
        (lambda: frozen(dense()), "copy 1 has other frozen weights than copy 0"),
        (lambda: dense().eval(), "copy 1 has another mode (train or eval) than copy 0"),
        (lambda: hooked(dense()), "copy 1 has other hooks than copy 0"),
    ],
)
def test_networks_that_differ_stay_what_they_are_one_by_one(other, reason):
    networks = [dense(), other(), dense()]
    learns = [p.requires_grad for net in networks for p in net.parameters()]
    alone = copy.deepcopy(networks)
    ensemble = EnsembleBlock(networks)
    assert ensemble.why_looped == reason
    x = torch.randn(5, 3)
    expected = torch.stack([net({"x": x})["y"] for net in alone], dim=1)
    assert torch.equal(ensemble({"x": x})["y"], expected)
    assert [p.requires_grad for p in ensemble.parameters()] == learns


def test_an_ensemble_is_in_the_mode_of_its_networks():
    assert not EnsembleBlock([dense().eval(), dense().eval()]).training
    assert EnsembleBlock([dense(), dense()]).training


def test_networks_of_other_outputs_are_no_ensemble():
    message = "the networks of an ensemble have the same outputs; network 1 has {'y': (7,)}, network 0 {'y': (2,)}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        EnsembleBlock([dense(), dense(outputs=7)])
    with pytest.raises(ValueError, match=r"^an ensemble needs at least one network, got none$"):
        EnsembleBlock([])


@pytest.mark.parametrize("activation", ["relu", "tanh"])  # stacked, and one by one
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "'rows' names no copy; leave it out to run all of them"),
        ([0, 3], "'rows' names copy 3; there are 3, counted from 0"),
        (
            [0],
            "'rows' is of length 1, but 'x' has the shape (2, 5, 3); its first axis has an entry for each "
            "of the rows",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(activation, rows, message):
    networks = [dense(), dense(activation=activation), dense()]
    ensemble = EnsembleBlock(networks, own_inputs=True)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ensemble({"x": torch.randn(2, 5, 3)}, rows=rows)


def test_a_stack_is_not_parametrized():
    ensemble = EnsembleBlock([dense(), dense()])
    (key, *_) = ensemble._parameters
    parametrize.register_parametrization(ensemble, key, torch.nn.Tanh())
    message = (
        f"{key!r} of an ensemble is parametrized, which its stacks cannot be; parametrize each network "
        "and make the ensemble of them, whose copies then run one by one"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ensemble({"x": torch.randn(5, 3)})


def test_networks_that_are_parametrized_make_an_ensemble():
    networks = [dense(), dense()]
    for network in networks:
        layer = next(m for m in network.modules() if isinstance(m, torch.nn.Linear))
        parametrize.register_parametrization(layer, "weight", torch.nn.Tanh())
    x = torch.randn(5, 3)
    expected = torch.stack([net({"x": x})["y"] for net in networks], dim=1)
    ensemble = EnsembleBlock(networks)
    assert ensemble.why_looped is not None
    assert torch.equal(ensemble({"x": x})["y"], expected)
