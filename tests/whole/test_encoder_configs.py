"""The small pretrained encoder of configs/encoders: it learns something, is used frozen, and is fine-tuned."""

import importlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import composer
from composer.cli.commands import main
from tests.helpers.paths import CONFIGS

SHORT = ["--steps", "32", "--eval-episodes", "1"]
for setting in ("n_steps=16", "batch_size=16", "n_epochs=1"):
    SHORT += ["--set-algorithm", setting]


# Runs where neither the spec nor the encoder is: loads, exports, and acts for 200 steps.
ACTS = """
import sys

import gymnasium
import numpy as np

import composer

sys.path.insert(0, sys.argv[1])
model = composer.load(sys.argv[2], allow=["environments"])
model.export("policy.onnx")
env = composer.with_previous(gymnasium.make("environments.pixels_env:StrideCatch-v0"), ["action", "reward"])
rows, over = [], True
for step in range(200):
    begins = over
    if over:
        observation, _ = env.reset(seed=step)
        state = model.policy.initial_state()
    action, state = model.policy.act(observation, state, begins, deterministic=True)
    previous = {f"previous/{key}": value[None] for key, value in observation["previous"].items()}
    seen = {"observation": observation["observation"][None], **previous, "resets": np.array([begins])}
    rows.append({**seen, "move": action["move"], "stride": action["stride"]})
    observation, _, terminated, truncated, _ = env.step(action)
    over = terminated or truncated
np.savez("seen.npz", **{key: np.stack([row[key] for row in rows]) for key in rows[0]})
"""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A copy of the folder, with an encoder that has been trained for a few steps."""
    folder = tmp_path_factory.mktemp("configs") / "encoders"
    shutil.copytree(CONFIGS / "encoders", folder, ignore=shutil.ignore_patterns("encoder"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CONFIGS)
        make_encoder = importlib.import_module("encoders.make_encoder")
        make_encoder.main(["--frames", "40", "--steps", "2", "-o", str(folder / "encoder")])
    return folder


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)


def encoder_of(model):
    state = model.policy.get_submodule("screen").body.state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def test_the_frozen_encoder_has_the_weights_of_the_folder_and_keeps_them(encoders, tmp_path):
    model = composer.compose(encoders / "frozen.yaml", allow=["environments"], seed=0)
    stored = load_file(encoders / "encoder" / "model.safetensors")
    assert encoder_of(model).keys() == stored.keys()
    assert all(torch.equal(encoder_of(model)[name], tensor) for name, tensor in stored.items())
    screen = model.train().policy.get_submodule("screen")
    assert not screen.training
    assert not any(parameter.requires_grad for parameter in screen.parameters())
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors", allow=["environments"])
    images = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(loaded.policy(images)["action"], model.policy(images)["action"])


def test_the_fine_tuned_encoder_learns_by_a_tenth(encoders):
    model = composer.compose(encoders / "finetuned.yaml", allow=["environments"], seed=0)
    screen = {id(parameter) for parameter in model.policy.get_submodule("screen").parameters()}
    for group in model.parameter_groups(0.01):
        inside = {id(parameter) in screen for parameter in group["params"]}
        assert inside == {group["lr"] < 0.005}
        assert group["lr"] == pytest.approx(0.001 if True in inside else 0.01)


@pytest.mark.full
@pytest.mark.parametrize("name", ["frozen", "finetuned"])
def test_a_run_of_composer_train_changes_the_encoder_or_does_not(name, encoders, tmp_path, capsys):
    spec = encoders / f"{name}.yaml"
    run = [str(spec), "--allow", "environments", *SHORT, "-o", str(tmp_path / name)]
    assert main(["train", *run]) == 0, capsys.readouterr()
    trained = composer.load(tmp_path / name / "model.safetensors", allow=["environments"])
    stored = load_file(encoders / "encoder" / "model.safetensors")
    moved = {n for n, tensor in encoder_of(trained).items() if not torch.equal(tensor, stored[n])}
    assert (moved == set()) == (name == "frozen")


@pytest.mark.full
def test_the_script_makes_an_encoder_that_sees(tmp_path, capsys):
    make_encoder = importlib.import_module("encoders.make_encoder")
    make_encoder.main(["-o", str(tmp_path / "encoder")])
    words = capsys.readouterr().out.split()
    assert float(words[5]) < 0.8 * float(words[-1]), words


@pytest.mark.full
def test_a_trained_policy_of_all_parts_acts_equally_on_another_machine(encoders, tmp_path, capsys):
    """A frozen encoder, the last action and reward, a GRU and dependent heads: trained, moved, and as ONNX."""
    onnxruntime = pytest.importorskip("onnxruntime")
    spec, run = encoders / "strides.yaml", tmp_path / "run"
    options = ["--algorithm", "recurrent_ppo", "--allow", "environments", *SHORT, "-o", str(run)]
    assert main(["train", str(spec), *options]) == 0, capsys.readouterr()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / "model.safetensors").rename(elsewhere / "agent.safetensors")
    trained = composer.load(elsewhere / "agent.safetensors", allow=["environments"])
    stored = load_file(encoders / "encoder" / "model.safetensors")
    assert all(torch.equal(encoder_of(trained)[name], stored[name]) for name in stored)

    script = tmp_path / "act.py"
    script.write_text(ACTS)
    command = [sys.executable, str(script), str(CONFIGS), "agent.safetensors"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(elsewhere / "policy.onnx")
    names = [value.name for value in session.get_outputs()]
    seen = np.load(elsewhere / "seen.npz")
    state = np.zeros((1, 1, 64), np.float32)
    assert len(seen["move"]) == 200
    for step in range(200):
        inputs = [value.name for value in session.get_inputs() if value.name != "memory/h"]
        given = {name: seen[name][step] for name in inputs}
        outputs = dict(zip(names, session.run(None, given | {"memory/h": state}), strict=True))
        state = outputs["next/memory/h"]
        assert outputs["action/move"][0] == seen["move"][step]
        np.testing.assert_allclose(outputs["action/stride"][0], seen["stride"][step], atol=1e-3)
