"""Where there is no exported file: the words that say so, and what stays as it was."""

import errno
import os
import sys

from torch import nn

from composer.cli.commands import main
from perception_blocks import BLOCKS, PerceptionBlock
from tests.composer.export.test_exporting import CONFIGS, MLP, message, mlp


def test_an_unknown_ending_is_refused(tmp_path):
    path = str(tmp_path / "model.pt")
    expected = f"{path!r} must end in .onnx or .pt2, which says what kind of file it is"
    assert message(mlp(), path) == expected


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    expected = (
        "an .onnx file needs 'onnxscript'; "
        'install it with: pip install "perception-composer[onnx]"'
    )
    assert message(mlp(), tmp_path / "model.onnx") == expected


def test_everything_that_stands_in_the_way_is_said_at_once(tmp_path):
    model = mlp(spec=MLP.partition("critic:")[0], device="meta")
    path = str(tmp_path / "model.pt2")
    assert message(model, path, part="critic", unroll=0).splitlines() == [
        f"{path!r} cannot be exported: part='critic' needs a critic, and the spec has none",
        "  unroll is a number of steps, got 0",
    ]
    expected = "the model has no weights yet; call materialize first"
    assert message(model, path) == f"{path!r} cannot be exported: {expected}"
    unknown = "part is one of 'policy' (logits and the deterministic action), 'critic' (values), 'model' (both), got 'all'"
    assert unknown in message(mlp(), path, part="all")


def test_a_folder_that_is_not_there_is_said(tmp_path):
    folder = str(tmp_path / "none")
    expected = f"'{folder}/model.pt2' cannot be written: there is no folder {folder!r}"
    assert message(mlp(), f"{folder}/model.pt2") == expected


class Limited(PerceptionBlock):
    """A block that says itself that it cannot be exported."""

    limits = {"export": "its library has no rule for it"}

    def forward(self, x_F):
        return x_F


def test_a_block_that_cannot_be_exported_is_named_with_the_reason(tmp_path):
    BLOCKS.register("limited", Limited)
    spec = MLP.replace(
        "dense, in: observation, hidden_units: [16], activation: tanh", "limited, in: observation"
    )
    path = str(tmp_path / "model.pt2")
    expected = "'policy.latent' is a block 'limited', which cannot: its library has no rule for it"
    assert message(mlp(spec=spec), path) == f"{path!r} cannot be exported: {expected}"


class LooksAtData(nn.Module):
    """What it computes depends on what the numbers are."""

    def __init__(self, in_features=4):
        super().__init__()
        self.linear = nn.Linear(in_features, 4)

    def forward(self, x):
        return self.linear(x) if x.is_meta or float(x.sum()) > 0 else x


class Decides(nn.Module):
    """A policy that acts by itself, on observations of its own making."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.inner = LooksAtData()
        self.out = nn.Linear(4, 2)

    def forward(self, inputs):
        return {"action": self.out(self.inner(inputs["observation"]))}


class Acts(Decides):
    def act(self, observation):
        return 0

    def preprocess(self, observation):
        return observation


def test_a_class_that_cannot_be_traced_is_named(tmp_path):
    spec = {"version": 1, "policy": {"_target_": Decides}}
    text = message(mlp(spec=spec), tmp_path / "model.pt2")
    assert text.startswith("'policy.inner' (LooksAtData) cannot be traced: GuardOnDataDependent")


def test_a_class_that_acts_by_itself_is_named(tmp_path):
    spec = {"version": 1, "policy": {"_target_": Acts}}
    path = str(tmp_path / "model.pt2")
    assert message(mlp(spec=spec), path).splitlines() == [
        f"{path!r} cannot be exported: 'Acts' defines act(), which decides how it acts and is Python that no file holds",
        "  'Acts' defines preprocess(), which decides what it reads and is Python that no file holds",
    ]


def test_an_actor_of_a_model_with_one_policy_is_refused(tmp_path):
    expected = "this model has one policy, and no separate one for 'left'"
    assert message(mlp(), tmp_path / "model.pt2", actor="left") == expected


def test_where_nothing_can_be_written_the_command_says_so(monkeypatch, tmp_path, capsys):
    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("composer.atomic._locked_file", refuse)
    assert main(["export", str(CONFIGS / "cartpole.yaml"), "-o", "agent.pt2"]) == 1
    message = "composer export: 'agent.pt2' cannot be written: Permission denied\n"
    assert capsys.readouterr().err == message
    assert list(tmp_path.iterdir()) == []
