"""composer train --trainer torchrl --device: everything but the environments is on the device of the task."""

from pathlib import Path

import pytest
import torch
from torchrl.collectors import Collector

import composer
from composer.adapters.torchrl.training import TorchrlTrainer
from composer.cli.commands import main
from composer.training.trainer import Task
from tests.composer.adapters.torchrl.test_training import (
    AIM,
    AIMING,
    ALONE,
    REMEMBERING,
    VALUES_OF_SORT,
)
from tests.helpers.other_device import elsewhere
from tests.helpers.training_runs import ALLOW, FORGETFUL, SORT

pytestmark = pytest.mark.usefixtures("run_folder")
ONCE = {"frames_per_batch": 32, "learning_starts": 32, "updates": 1, "batch_size": 16}
RUNS = {
    "ppo": (SORT, {"frames_per_batch": 32, "minibatch_size": 16, "epochs": 2}),
    "ppo with memory and masks": (FORGETFUL, {"frames_per_batch": 32, "epochs": 1}),
    "a2c": (SORT, {"frames_per_batch": 32}),
    "dqn": (VALUES_OF_SORT, ONCE),
    "dqn with memory": (REMEMBERING, {**ONCE, "sequence_length": 8}),
    "sac": (AIM, ONCE),
    "sac of one critic": (ALONE, ONCE),
    "sac with memory": (AIMING, {**ONCE, "sequence_length": 8}),
}


def trained(name, device):
    """The trainer after 32 steps and, restored, 32 more."""
    spec, settings = RUNS[name]
    model = composer.compose(spec, allow=ALLOW, seed=0)
    task = Task(
        spec="", environment=model.spec.environment, algorithm=name.split()[0], steps=64, envs=2,
        settings=settings, device=device,
    )  # fmt: skip
    trainer = TorchrlTrainer(task, model)
    trainer.learn(32, lambda *report: True)
    trainer.restore(trainer.state(), 32)
    trainer.learn(64, lambda *report: True)
    trainer.close()
    return trainer


SHORT = ("ppo", "dqn with memory")
NAMES = [n if n in SHORT else pytest.param(n, marks=pytest.mark.full) for n in RUNS]


@pytest.mark.parametrize("name", NAMES)
def test_another_device_trains_the_weights_that_the_cpu_trains(name, monkeypatch):
    """On a device that refuses tensors of the CPU, as CUDA does."""
    collectors = []
    init = Collector.__init__

    def recorded(self, *arguments, **keywords):
        collectors.append(keywords)
        init(self, *arguments, **keywords)

    monkeypatch.setattr(Collector, "__init__", recorded)
    monkeypatch.setattr(Collector, "_get_sync_fn", lambda *device: lambda: None)
    expected = trained(name, "cpu").model.state_dict()
    with elsewhere() as device:
        trainer = trained(name, device)
        state = trainer.model.state_dict()
        assert {value.device.type for value in state.values()} == {device}
        loss = trainer._algorithm.loss
        assert {p.device.type for p in loss.parameters()} == {device}
        buffer = getattr(trainer._algorithm, "_buffer", None)
        if buffer is not None:
            assert buffer.sample().device.type == device
            assert {step.device.type for step in trainer.state()["buffer"].values()} == {"cpu"}
        state = {key: value.cpu() for key, value in state.items()}
    assert [str(m["env_device"]) for m in collectors] == ["None", "None", "cpu", "cpu"]
    for kind in ("policy_device", "storing_device"):
        assert [m[kind] for m in collectors] == [None, None, "elsewhere", "elsewhere"]
    assert all(torch.allclose(state[key], expected[key], atol=1e-4) for key in expected)


def test_only_a_device_that_is_not_here_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    Path("agent.yaml").write_text(SORT)
    command = ["train", "agent.yaml", "--trainer", "torchrl", "--allow", "training_envs"]
    assert main([*command, "--steps", "9", "-o", "run", "--device", "cuda:1"]) == 1
    here = "PyTorch has 1 cuda device here; leave it out to train on the CPU"
    assert capsys.readouterr().err == f"composer train: --device is 'cuda:1', but {here}\n"
    task = Task(spec="", environment="", algorithm="ppo", device="cuda")
    assert TorchrlTrainer.wrong_settings(task) == []
