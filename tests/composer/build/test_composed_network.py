"""compose_network: from shapes to a checked network without actions, and every message on the way."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import composer
from composer.checkpoint.file import CheckpointError
from composer.cli.commands import main
from composer.errors import SpecError
from perception_blocks.port import Port

GRAPH = """\
version: 1
network:
  graph:
    latent: {block: dense, in: observation, hidden_units: [16, 8]}
  heads: {in: latent}
"""
WITHOUT_HEADS = GRAPH.replace("  heads: {in: latent}\n", "")
TEMPLATE = "version: 1\nnetwork: {template: {}}\n"
MEMORY = "version: 1\nnetwork: {template: {memory: {block: gru, hidden_units: 7}}}\n"
IN, OUT = {"observation": 5}, {"logits": 4}


class Doubled(torch.nn.Module):
    """A class of the user's: the injected shapes decide."""

    def __init__(self, obs_shapes, output_shapes):
        super().__init__()
        (self.width,) = output_shapes["logits"]
        (self.features,) = obs_shapes["observation"]
        self.linear = torch.nn.Linear(self.features, self.width)

    def forward(self, inputs):
        return {"logits": self.linear(inputs["observation"])}


@given(
    leading=st.lists(st.integers(0, 3), max_size=2),
    features=st.integers(1, 6),
    rows=st.integers(1, 5),
    width=st.integers(1, 5),
    hidden=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_what_comes_out_has_the_shapes_that_were_asked_for(leading, features, rows, width, hidden):
    spec = {
        "version": 1,
        "network": {
            "graph": {
                "flat": {"block": "flatten", "in": "window"},
                "both": {"block": "concat", "in": ["flat", "speed"]},
                "latent": {"block": "dense", "in": "both", "hidden_units": hidden},
            },
            "heads": {"in": "latent"},
        },
    }
    shapes = {"window": (rows, features), "speed": features}
    network = composer.compose_network(spec, shapes, {"q": width, "latent": None}, seed=0)
    inputs = {
        "window": torch.ones(*leading, rows, features),
        "speed": torch.ones(*leading, features),
    }
    outputs = network(inputs)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "q": (*leading, width), "latent": (*leading, hidden)
    }  # fmt: skip
    assert network.out_shapes == {"q": (width,), "latent": (hidden,)}
    assert network.in_shapes == {"window": (rows, features), "speed": (features,)}


def test_the_seed_decides_the_weights_also_when_they_are_made_later():
    now = composer.compose_network(GRAPH, IN, OUT, seed=3)
    later = composer.compose_network(GRAPH, IN, OUT, seed=3, device="meta").materialize()
    for name, weight in now.state_dict().items():
        torch.testing.assert_close(later.state_dict()[name], weight, rtol=0, atol=0)
    other = composer.compose_network(GRAPH, IN, OUT, seed=4)
    assert not torch.equal(
        other.state_dict()["latent.linears.0.weight"], now.latent.linears[0].weight
    )
    with pytest.raises(ValueError, match=r"^this network has its weights already$"):
        later.materialize()


def test_copies_compute_the_same():
    network = composer.compose_network(GRAPH, IN, OUT, seed=0)
    inputs = {"observation": torch.randn(3, 5)}
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(twin(inputs), network(inputs), rtol=0, atol=0)


def test_memory_goes_in_and_out_and_unrolls_as_it_steps():
    network = composer.compose_network(MEMORY, IN, {"logits": 4, "memory": 7}, seed=0)
    assert network.has_memory
    assert network.state_shapes == {"memory/h": (1, 7)}
    x, resets = torch.randn(2, 6, 5), torch.rand(2, 6) < 0.3
    outputs, last = network.unroll({"observation": x}, network.initial_state(2), resets)
    state, steps = network.initial_state(2), []
    for t in range(6):
        out, state = network({"observation": x[:, t]}, state, resets[:, t])
        steps.append(out["logits"])
    torch.testing.assert_close(outputs["logits"], torch.stack(steps, 1))
    torch.testing.assert_close(last, state)


def test_integers_arrays_and_another_dtype_are_read():
    spec = {
        "version": 1,
        "network": {
            "graph": {
                "kinds": {"block": "one_hot", "in": "kind"},
                "both": {"block": "concat", "in": ["kinds", "speed"]},
            }
        },
    }
    kind = {"shape": (), "choices": 3}
    for given_kind in (kind, Port((), dtype=torch.int64, cardinality=3)):
        network = composer.compose_network(spec, {"kind": given_kind, "speed": 2}, {"both": 5})
        network = network.to(torch.float64)
        out = network({"kind": np.array([2, 0]), "speed": np.ones((2, 2), np.float32)})["both"]
        assert out.dtype == torch.float64
        assert out.tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("spec", "inputs", "outputs"),
    [
        (GRAPH, IN, {"logits": 4, "latent": None}),
        (MEMORY, IN, OUT),
        ({"version": 1, "network": {"_target_": Doubled}}, {"observation": 5}, OUT),
        (
            "version: 1\nnetwork: {graph: {code: {block: one_hot, in: kind}}}\n",
            {"kind": {"shape": (), "choices": 5}},
            {"code": None},
        ),
        (
            "version: 1\nnetwork: {graph: {mean: {block: deep_set, in: things, hidden_units: 4}}}\n",
            {"things": (None, 3)},
            {"mean": None},
        ),
    ],
    ids=["graph", "memory", "class", "choices", "varying"],
)
def test_a_network_that_was_saved_is_loaded_as_it_was(spec, inputs, outputs, tmp_path):
    file, allow = tmp_path / "network.safetensors", [__name__]
    network = composer.compose_network(
        spec, inputs, outputs, allow=allow, seed=3, dtype=torch.float64
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter).requires_grad_(False)
    network.save(file)
    again = composer.load_network(file, allow)
    assert (again.in_shapes, again.out_shapes) == (network.in_shapes, network.out_shapes)
    assert (again.seed, again.dtype) == (3, torch.float64)
    state = again.state_dict()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    bytes_of_it = file.read_bytes()
    again.save(file)
    assert file.read_bytes() == bytes_of_it


def test_a_network_and_a_model_are_not_loaded_as_the_other(tmp_path, capsys):
    file, model_file = str(tmp_path / "network.safetensors"), str(tmp_path / "model.safetensors")
    composer.compose_network(GRAPH, IN, OUT, seed=0).save(file)
    model = {"version": 1, "environment": "CartPole-v1", "policy": {"template": {}}}
    composer.compose(model, seed=0).save(model_file)
    with pytest.raises(CheckpointError) as error:
        composer.load(file)
    assert str(error.value) == (
        f"{file!r} is a network without actions, which composer.load_network loads"
    )
    with pytest.raises(CheckpointError) as error:
        composer.load_network(model_file)
    assert str(error.value) == f"{model_file!r} is a model, which composer.load loads"
    composer.load_network(file)
    composer.load(model_file)
    assert main(["check", file]) == 0
    assert capsys.readouterr().out == f"{file}: good; 268 parameters\n"
    assert main(["export", file, "-o", str(tmp_path / "network.onnx")]) == 1
    assert capsys.readouterr().err == (
        f"composer export: {file} describes a network without actions, and composer export takes a model; "
        "composer.load_network loads it\n"
    )


def test_what_cannot_be_saved_or_loaded_is_told(tmp_path):
    file = tmp_path / "network.safetensors"
    image = Port((3, 8, 8), dtype=torch.uint8)
    spec = "version: 1\nnetwork: {graph: {flat: {block: flatten, in: image}}}\n"
    network = composer.compose_network(spec, {"image": image}, {"flat": None})
    with pytest.raises(CheckpointError) as error:
        network.save(file)
    assert str(error.value) == (
        "cannot be saved: the input 'image' is a Port that says more than a shape or choices, which a spec has no words "
        "for; give it to compose_network as a shape"
    )
    composer.compose_network(spec, {"image": (3, 8, 8)}, {"flat": None}).save(file)
    composer.compose_network({"version": 1, "network": {"_target_": Doubled}}, IN, OUT).save(file)
    with pytest.raises(SpecError, match="is outside the allowed modules"):
        composer.load_network(file)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError):
        composer.load_network(file, [__name__])
    with pytest.raises(CheckpointError, match="call materialize first"):
        composer.compose_network(GRAPH, IN, OUT, device="meta").save(file)


def test_a_class_gets_the_shapes_and_answers_with_them():
    network = composer.compose_network({"version": 1, "network": {"_target_": Doubled}}, IN, OUT)
    assert network({"observation": torch.zeros(5)})["logits"].shape == (4,)


def test_the_table_names_the_lines_and_the_picture_has_the_network(tmp_path):
    network = composer.compose_network(GRAPH, IN, OUT)
    lines = network.summary().splitlines()
    assert lines[2].split() == ["latent", "dense", "(5,)", "->", "(8,)", "232", "86.6", "%", "416", "4:13"]  # fmt: skip
    text = network.draw(tmp_path / "network.dot").read_text()
    assert all(name in text for name in ("observation", "latent", "logits", "network"))


FILE = """\
version: 1
network:
  inputs: {observation: [5], kind: {shape: [], choices: 3}}
  outputs: {logits: 4, latent: null}
  template: {}
"""


def test_the_spec_may_say_what_goes_in_and_comes_out_and_arguments_come_first():
    network = composer.compose_network(FILE)
    assert network.in_shapes == {"observation": (5,), "kind": ()}
    assert network.out_shapes == {"logits": (4,), "latent": (64,)}
    assert composer.compose_network(FILE, IN, {"logits": 2}).out_shapes == {"logits": (2,)}
    overrides = ["network.outputs.logits=3"]
    assert composer.compose_network(FILE, overrides=overrides).out_shapes["logits"] == (3,)


@pytest.mark.parametrize(
    ("spec", "inputs", "outputs", "message"),
    [
        (
            GRAPH, IN, {**OUT, "latent": 7},
            "<spec>:4:13: the value 'latent' has the shape (8,), but outputs={'latent': 7} needs (7,)",
        ),
        (
            GRAPH.replace("{in: latent}", "{logits: {in: latent, output_units: 3}}"), IN, OUT,
            "<spec>:5:19: the head 'logits' has the shape (3,), but outputs={'logits': 4} needs (4,)",
        ),
        (
            GRAPH.replace("{in: latent}", "{logit: {in: latent}}"), IN, OUT,
            "<spec>:5:3: there is no head for the output 'logits'\n"
            "<spec>:5:11: 'logit' is no output; did you mean 'logits'?",
        ),
        (
            GRAPH, {"obs": 5}, OUT,
            "<spec>:4:32: 'latent' reads 'observation', which is neither an input nor a node's output; there is 'obs'",
        ),
        (
            GRAPH, {"observation": (3, 5)}, OUT,
            "<spec>:4:32: block 'latent' gets (3, 5) from 'observation'; dense takes one vector (features,). Put a flatten "
            "block before it.",
        ),
        (
            GRAPH, {**IN, "x": 4}, OUT,
            "<spec>:2:1: nothing reads the input 'x'; leave it out of 'inputs', or read it",
        ),
        (
            WITHOUT_HEADS, IN, {"latnt": 8},
            "<spec>:3:3: the graph makes no value 'latnt'; did you mean 'latent'?",
        ),
        (
            WITHOUT_HEADS, IN, OUT,
            "<spec>:3:3: the graph makes no value 'logits'; it has 'latent'; a head makes another: heads: {in: latent}",
        ),
        (
            GRAPH, IN, {"logits": None},
            "<spec>:5:3: the head 'logits' needs a width; write outputs: {logits: 4} or outputs={'logits': 4}",
        ),
        (
            GRAPH, IN, {"logits": ()},
            "<spec>:5:10: the head 'logits' has the shape (1,), but outputs={'logits': ()} needs ()",
        ),
        (
            TEMPLATE, IN, {"memory": 4},
            "<spec>:2:10: the template makes no value 'memory' to share; it has 'latent'",
        ),
        (
            TEMPLATE.replace("template: {}", "template: {}, shares: [latent], input: {a: 3}"), IN, OUT,
            "<spec>:2:25: 'shares' is not a key of a network; it belongs in 'policy'\n"
            "<spec>:2:43: 'input' is not a key of a network; did you mean 'inputs'?",
        ),
        (
            TEMPLATE, None, None,
            "<spec>:2:1: it is not known what the network reads; write inputs: {observation: [8]} in it, or give "
            "inputs={'observation': (8,)}\n"
            "<spec>:2:1: it is not known what comes out of the network; write outputs: {logits: 4} in it, or give "
            "outputs={'logits': 4}",
        ),
        (
            TEMPLATE.replace("template: {}", "template: {}, inputs: {a: x}, outputs: {b: -1}"), None, None,
            "<spec>:2:37: the input 'a' must be a size such as 8, a shape such as [3, 64, 64], or {shape: [], choices: 5} "
            "for integers, got the text 'x'\n"
            "<spec>:2:54: the output 'b' must be a width such as 4, a shape, or null for any, got the number -1",
        ),
        (
            "version: 1\npolicy: {template: {}}\n", IN, OUT,
            "<spec>:2:1: 'policy' belongs to a model, which composer.compose builds; for a network without actions write "
            "network: {graph: ..., heads: ...}",
        ),
        (
            TEMPLATE + "critic: {template: {}}\n", IN, OUT,
            "<spec>:3:1: 'critic' has no place beside 'network'; leave one of them out",
        ),
        (
            TEMPLATE.replace("network", "netwrk"), IN, OUT,
            "<spec>:2:1: 'netwrk' is not a key of a spec of a network; did you mean 'network'?",
        ),
        ("version: 1\n", IN, OUT, "<spec>:1:1: the spec has no 'network'; write network: {graph: ..., heads: ...}"),
        (
            "network: 3\n", IN, OUT,
            "<spec>:1:1: the spec has no 'version'; write version: 1\n"
            "<spec>:1:10: 'network' must be a mapping with a 'graph', a '_target_' or a 'template', got the number 3",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_network_is_told(spec, inputs, outputs, message):
    with pytest.raises(SpecError) as error:
        composer.compose_network(spec, inputs, outputs)
    assert sorted(str(error.value).splitlines()) == sorted(message.splitlines())


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([5], OUT, "inputs maps names to shapes such as {'observation': (8,)}, got [5]"),
        ({"a": "b"}, OUT, "inputs maps names to shapes such as {'observation': (8,)}, got 'b' for 'a'"),
        (IN, 4, "outputs maps names to widths such as {'logits': 4}, got 4"),
        (IN, {"a": 0}, "outputs maps names to widths such as {'logits': 4}, got 0 for 'a'"),
    ],
)  # fmt: skip
def test_arguments_that_are_no_shapes_are_refused(inputs, outputs, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        composer.compose_network(GRAPH, inputs, outputs)


def test_calls_that_do_not_fit_are_refused():
    network = composer.compose_network(GRAPH, IN, OUT)
    with pytest.raises(ValueError, match=r"^the network reads 'observation', got 'obs'$"):
        network({"obs": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"^this network has no memory; call it without a state$"):
        network({"observation": torch.zeros(5)}, {"h": torch.zeros(1)})
    message = "this network has memory; call network(inputs, state, resets), beginning with initial_state(batch_size)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        composer.compose_network(MEMORY, IN, OUT)({"observation": torch.zeros(5)})


def test_compose_tells_who_builds_a_network():
    message = (
        "<spec>:2:1: 'network' is a network without actions, which composer.compose_network builds; a model has a "
        "'policy' and perhaps a 'critic'"
    )
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        composer.compose(GRAPH, "CartPole-v1")


def test_the_command_line_checks_shows_and_draws_a_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.yaml").write_text(FILE)
    assert main(["check", "net.yaml"]) == 0
    assert capsys.readouterr().out == "net.yaml: good; 4,996 parameters\n"
    assert main(["show", "net.yaml"]) == 0
    out = capsys.readouterr().out
    assert "  5:13\n" in out
    assert "spec        net.yaml\n" in out
    assert main(["draw", "net.yaml", "-o", "net.dot"]) == 0
    assert main(["check", "net.yaml", "--env", "CartPole-v1"]) == 1
    assert capsys.readouterr().err == (
        "composer check: net.yaml describes a network without actions, which has no environment; leave out --env\n"
    )
    assert main(["export", "net.yaml", "-o", "net.onnx"]) == 1
    assert capsys.readouterr().err == (
        "composer export: net.yaml describes a network without actions, and composer export takes a model; "
        "composer.compose_network builds it\n"
    )
