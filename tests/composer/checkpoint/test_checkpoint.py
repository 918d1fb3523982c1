"""A checkpoint is one safe file that rebuilds the model, or says exactly why it does not."""

import copy
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import save_file

import composer
from composer.checkpoint.container import CheckpointError
from composer.cli.commands import main
from tests.helpers.example_models import GOLDEN

SPEC = {
    "version": 1,
    "environment": "CartPole-v1",
    "params": {"width": 8},
    "policy": {
        "graph": {
            "latent": {"block": "dense", "in": "observation", "hidden_units": ["${params.width}"]}
        },
        "heads": {"in": "latent"},
    },
    "critic": {"graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [8]}}},
}


class Tied(torch.nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.first = torch.nn.Linear(4, 4, bias=False)
        self.second = torch.nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.head = torch.nn.Linear(4, 2)

    def forward(self, inputs):
        return {"action": self.head(self.second(self.first(inputs["observation"])))}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def without_digests(path):
    """Texts and tensors of a checkpoint as older versions saved them."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digests = ("header_digest", "tensor_digests")
        return {k: v for k, v in file.metadata().items() if k not in digests}, tensors


def test_a_loaded_model_is_the_saved_one(path):
    model = composer.compose(SPEC, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    model.save(path)
    loaded = composer.load(path)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert loaded.seed == 1
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space


def test_the_header_says_what_rebuilds_the_model(path):
    composer.compose(SPEC, seed=1).save(path)
    with safe_open(path, framework="pt") as file:
        header = {key: json.loads(text) for key, text in file.metadata().items()}
        names = set(file.keys())
    assert header["format"] == "perception-composer"
    assert "hidden_units:" in header["spec"]
    assert "params" not in header["spec"]  # resolved
    assert header["seed"] == 1
    assert header["versions"]["torch"] == torch.__version__
    assert "policy.latent.linears.0.weight" in names


def test_a_dtype_survives(path):
    composer.compose(SPEC, dtype=torch.float64).save(path)
    assert next(composer.load(path).parameters()).dtype == torch.float64


def test_tied_tensors_are_stored_once_and_tied_again(path):
    spec = {"version": 1, "environment": "CartPole-v1", "policy": {"_target_": Tied}}
    model = composer.compose(spec, seed=0)
    model.save(path)
    loaded = composer.load(path, allow=[__name__])
    assert loaded.policy.network.module.first.weight is loaded.policy.network.module.second.weight
    torch.testing.assert_close(loaded(np.ones(4)), model(np.ones(4)))


def test_loading_a_class_needs_the_callers_leave(path):
    composer.compose(
        {"version": 1, "environment": "CartPole-v1", "policy": {"_target_": Tied}}
    ).save(path)
    with pytest.raises(
        composer.SpecError, match=rf"'{__name__}.Tied' is outside the allowed modules \(none\)"
    ):
        composer.load(path)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (lambda x: x * 2, "'<lambda>' at policy.graph.doubled.block has no registered name"),
        (torch.nn.Linear(4, 4), "'Linear' at policy.graph.doubled.block is a ready module"),
    ],
)
def test_what_has_no_name_is_refused_by_node(path, block, text):
    spec = copy.deepcopy(SPEC)
    spec["policy"]["graph"] = {"doubled": {"block": block, "in": "observation"}} | spec["policy"][
        "graph"
    ]
    spec["policy"]["graph"]["latent"]["in"] = "doubled"
    model = composer.compose(spec)
    with pytest.raises(CheckpointError) as caught:
        model.save(path)
    assert text in str(caught.value)
    assert not path.exists()


def test_a_save_that_fails_leaves_the_old_file_whole(path, monkeypatch):
    model = composer.compose(SPEC, seed=1)
    model.save(path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("composer.checkpoint.container._write", fail)
    with pytest.raises(CheckpointError, match=f"^'{path}' cannot be written: the disk is full$"):
        composer.compose(SPEC, seed=2).save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"m\.safetensors' cannot be written: there is no folder '.*nowhere'$"
    ):
        composer.compose(SPEC).save(tmp_path / "nowhere" / "m.safetensors")


def test_damaged_and_foreign_files_are_named(path, tmp_path):
    composer.compose(SPEC).save(path)
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello, this is no checkpoint at all",
        "header": whole[:8] + bytes(reversed(whole[8:200])) + whole[200:],
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match="is no safetensors file, or a damaged one"):
            composer.load(tmp_path / name)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(
        CheckpointError, match="is a safetensors file, but not one that this library saved"
    ):
        composer.load(tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="there is no file"):
        composer.load(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint"):
        composer.load(tmp_path)


FOLDERS = {
    "checkpoint.json": "a checkpoint of shards; composer.parallel.consolidate(folder, file) makes a file of it",
    "run.json": "the folder of a training run; its model is 'kept/model.safetensors'",
    "config.json": "a folder of Hugging Face; a spec names it, as 'model_path' or as 'checkpoint' of a transformer",
    "notes.txt": None,
}


@pytest.mark.parametrize("file", FOLDERS)
def test_a_folder_is_told_with_what_it_is(tmp_path, monkeypatch, capsys, file):
    monkeypatch.chdir(tmp_path)
    Path("kept").mkdir()
    Path("kept", file).write_text("{}")
    said = FOLDERS[file] or "a folder, not a checkpoint"
    with pytest.raises(CheckpointError, match="^" + re.escape(f"'kept' is {said}") + "$"):
        composer.load("kept")
    assert main(["show", "kept"]) == 1
    assert capsys.readouterr().err == f"'kept' is {FOLDERS[file] or 'a folder, not a file'}\n"


def test_names_of_earlier_versions_which_held_quotes_are_read(path):
    spaces_ = {"observation_space": spaces.Box(-1, 1, (2,))}
    spaces_ |= {"action_space": spaces.Dict({'a"b': spaces.Discrete(2)})}
    model = composer.compose({"version": 1, "policy": {"template": {}}}, **spaces_, seed=0)
    model.save(path)
    with safe_open(path, "pt") as file:
        header = {key: text for key, text in file.metadata().items() if "digest" not in key}
    tensors = {name.replace("%22", '"'): t for name, t in model.state_dict().items()}
    assert 'policy.heads.a"b.linear.weight' in tensors
    save_file(tensors, path, header)
    torch.testing.assert_close(composer.load(path).state_dict(), model.state_dict())


def test_a_newer_format_asks_for_an_upgrade(path):
    composer.compose(SPEC).save(path)
    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), "format_version": "99"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=header)
    with pytest.raises(
        CheckpointError, match="has the format 99; this version reads up to 1: upgrade"
    ):
        composer.load(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", None, "lacks 'format_version' in its header"),
        ("format_version", "null", "is damaged: 'format_version' in its header is None"),
        ("seed", '"7"', "is damaged: 'seed' in its header is '7'"),
        ("tied", "[]", r"is damaged: 'tied' in its header is \[\]"),
        ("tied", '{"a": []}', r"is damaged: 'tied' in its header is {'a': \[\]}"),
        ("blocks", '{"a": 5}', "is damaged: 'blocks' in its header is {'a': 5}"),
        ("spec", "[" * 100_000, "is damaged: 'spec' in its header cannot be read"),
        ("seed", "9" * 5000, "is damaged: 'seed' in its header cannot be read"),
        ("dtype", '"int32"', "is damaged: its dtype is 'int32'"),
        ("dtype", '"float8_e5m2"', "is damaged: its dtype is 'float8_e5m2'"),
        ("dtype", '"load"', "is damaged: its dtype is 'load'"),
        ("action_space", "{}", "the checkpoint's spaces cannot be read: .*unknown type of space"),
        ("observation_space", '{"type": "Box"}', "the checkpoint's spaces cannot be read: .*shape"),
        (
            "action_space",
            '{"type": "Actors", "keys": ["a"], "spaces": [{"type": "MultiBinary", "n": 2}], "which": [0]}',
            "the checkpoint's spaces cannot be read: only one of them is by actor",
        ),
    ],
)
def test_a_header_that_was_changed_is_said_to_be_damaged(path, key, value, message):
    composer.compose(SPEC).save(path)
    header, tensors = without_digests(path)
    header[key] = value
    save_file(tensors, path, metadata={k: v for k, v in header.items() if v is not None})
    with pytest.raises(CheckpointError, match=message):
        composer.load(path)


def test_integers_are_no_weights(path):
    model = composer.compose(SPEC)
    model.save(path)
    header, tensors = without_digests(path)
    save_file({name: tensor.int() for name, tensor in tensors.items()}, path, metadata=header)
    with pytest.raises(CheckpointError, match=r"is torch\.int32 in the file, the model needs "):
        model.load_weights(path)


def test_a_folder_is_no_file_to_save_to(tmp_path):
    with pytest.raises(CheckpointError, match=r"^'.*' cannot be written: it is a folder$"):
        composer.compose(SPEC).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_listed_by_node_and_key(path):
    composer.compose(SPEC, seed=1).save(path)
    other = copy.deepcopy(SPEC)
    other["params"]["width"] = 6
    other["critic"]["graph"] = {
        "latnet": {"block": "dense", "in": "observation", "hidden_units": [8]}
    }
    model = composer.compose(other, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        model.load_weights(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the weights do not fit this model; strict=False loads what fits"
    assert "  policy.latent.linears.0.weight is (8, 4) in the file, the model needs (6, 4)" in lines
    assert (
        "  critic.latnet.linears.0.bias (8,) is not in the file; the file has 'critic.latent.linears.0.bias'"
        in lines
    )
    assert (
        "  critic.latent.linears.0.bias (8,) is in the file, the model has no such tensor" in lines
    )
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)

    report = model.load_weights(path, strict=False)
    assert report.loaded == [
        "critic.heads.value.linear.weight",
        "critic.heads.value.linear.bias",
    ]
    halves = [
        "policy.heads.action.linear.bias (2,) fits, but not all of 'policy/heads/action' does"
    ]
    assert report.skipped[len(lines) - 1 :] == halves
    assert str(report).startswith("2 tensors loaded, ")


def test_a_model_without_weights_cannot_be_saved(path):
    with pytest.raises(
        CheckpointError, match="the model has no weights yet; call materialize first"
    ):
        composer.compose(SPEC, device="meta").save(path)


def test_spaces_with_infinite_bounds_and_odd_keys_survive(path):
    observed = spaces.Dict(
        {"a b": spaces.Box(-np.inf, np.inf, (2, 3)), 'q"': spaces.Discrete(3, start=-1)}
    )
    spec = {
        "version": 1,
        "ignore": ['q"'],
        "policy": {
            "graph": {"latent": {"block": "flatten_dense", "in": "a b", "hidden_units": [4]}},
            "heads": {"in": "latent"},
        },
    }
    actions = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (2,))))
    model = composer.compose(spec, observation_space=observed, action_space=actions)
    model.save(path)
    loaded = composer.load(path)
    assert loaded.observation_space == observed
    assert loaded.action_space == actions


# --- what a checkpoint needs where it is loaded ---

READS_A_FILE = """
import torch
from torch import nn
from perception_blocks import PerceptionBlock

class Network(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes, weights=None):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        if weights is not None:
            self.load_state_dict(torch.load(weights))

    def forward(self, inputs):
        return {"action": self.layer(inputs["observation"])}

class Needy(Network):
    def __init__(self, obs_shapes, action_logits_shapes, weights):
        super().__init__(obs_shapes, action_logits_shapes, weights)

class Block(PerceptionBlock):
    def __init__(self, in_shapes, *, weights: str | None = None):
        super().__init__(in_shapes, out_shapes=[(2,)])
        self.layer = nn.Linear(4, 2)
        if weights is not None:
            self.load_state_dict(torch.load(weights))

    def forward(self, x):
        return self.layer(x)

class Module(nn.Module):
    def __init__(self, weights=None):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        if weights is not None:
            self.load_state_dict(torch.load(weights))

    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture
def file_nets(tmp_path, monkeypatch):
    """A module of classes that read ``w.pt`` when they are built."""
    (tmp_path / "file_nets.py").write_text(READS_A_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "file_nets", raising=False)
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"layer.weight": torch.full((2, 4), 3.0), "layer.bias": torch.zeros(2)}, tmp_path / "w.pt"
    )


def policy_of(name):
    if name in ("Network", "Needy"):
        return {"_target_": f"file_nets.{name}", "weights": "w.pt"}
    node = {"block": f"file_nets.{name}", "in": "observation", "weights": "w.pt"}
    return {"graph": {"a": node}, "heads": {"in": "a"}}


@pytest.mark.parametrize("name", ["Network", "Block", "Module"])
def test_the_weights_file_of_a_class_is_not_needed_again(file_nets, path, name):
    spec = {"version": 1, "environment": "CartPole-v1", "policy": policy_of(name)}
    model = composer.compose(spec, allow=["file_nets"], seed=1)
    state = dict(model.state_dict())
    assert any(bool((tensor == 3).all()) for tensor in state.values())
    model.save(path)
    os.unlink("w.pt")
    loaded = composer.load(path, allow=["file_nets"])
    torch.testing.assert_close(dict(loaded.state_dict()), state, rtol=0, atol=0)
    assert main(["show", str(path), "--allow", "file_nets"]) == 0
    with pytest.raises(FileNotFoundError):
        composer.compose(spec, allow=["file_nets"])


def test_a_class_that_cannot_do_without_its_file_is_told_how(file_nets, path):
    spec = {"version": 1, "environment": "CartPole-v1", "policy": policy_of("Needy")}
    composer.compose(spec, allow=["file_nets"]).save(path)
    os.unlink("w.pt")
    with pytest.raises(FileNotFoundError) as caught:
        composer.load(path, allow=["file_nets"])
    assert caught.value.__notes__[0] == (
        "the weights are in the checkpoint: a setting of the class that names this file, with the default None for "
        "no file, would be left to that"
    )


@pytest.mark.parametrize("environment", ["nowhere_envs:Robot-v0", "Robot-v0", "pettingzoo:no/such"])
def test_the_environment_need_not_be_there(path, environment, capsys, tmp_path):
    spec = {**SPEC, "environment": environment}
    box, two = spaces.Box(-1, 1, (4,)), spaces.Discrete(2)
    composer.compose(spec, observation_space=box, action_space=two).save(path)
    assert composer.load(path).observation_space == box
    for command in (["check"], ["show"], ["draw", "-o", str(tmp_path / "x.dot")]):
        assert main([command[0], str(path), *command[1:]]) == 0
    assert main(["export", str(path), "-o", str(tmp_path / "x.pt2")]) == 0
    assert main(["init", "--from", str(path)]) == 1  # it has no template, and needed no environment
    assert "no template" in capsys.readouterr().err


def test_an_environment_of_the_callers_needs_no_permission_for_that_of_the_spec():
    spec = {**SPEC, "environment": "nowhere_envs:Robot-v0"}
    assert composer.compose(spec, env="CartPole-v1").action_space == spaces.Discrete(2)
    with pytest.raises(
        composer.SpecError, match="the environment 'nowhere_envs:Robot-v0' would run"
    ):
        composer.compose(spec)


def test_a_checkpoint_of_an_earlier_tree_gives_the_numbers_that_it_gave():
    """Memory, an ensemble, a normaliser and a critic of actions: their classes have moved, the file is what it was."""
    model = composer.load(GOLDEN / "model_0_1_0.safetensors")
    speed = np.array([[0.5, -0.25], [0.125, 1.0]], np.float32)
    observations = {"kind": np.array([1, 3]), "speed": speed}
    logits, _ = model.policy(observations, model.policy.initial_state(2))
    aim = [
        [0.2255004644, 0.1915023327, -0.1147452369, 0.1969764680],
        [0.1623997092, 0.0731339902, -0.2125664651, 0.1390778571],
    ]
    fire = [[0.2045903206, -0.3520541489], [0.2708644867, -0.2551320195]]
    torch.testing.assert_close(logits, {"aim": torch.tensor(aim), "fire": torch.tensor(fire)})
    action = {"aim": torch.tensor([[0.5, -0.5], [0.25, 0.0]]), "fire": torch.tensor([0, 1])}
    values = [[[0.4731814563], [0.1921986043]], [[0.4697267413], [0.2157208323]]]
    torch.testing.assert_close(
        model.critic(observations, action=action)["q_value"], torch.tensor(values)
    )
