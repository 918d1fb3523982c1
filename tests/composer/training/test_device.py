"""composer train --device: a run on a device that refuses tensors of the CPU, as CUDA does, and what is resumed of it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import composer
from composer.training.resumed import restore
from composer.training.session import resume, train
from composer.training.trainer import TrainingError
from tests.composer.adapters.torchrl.test_training import AIM, VALUES_OF_SORT
from tests.helpers.other_device import elsewhere
from tests.helpers.training_runs import ALLOW, FORGETFUL, SORT

pytestmark = pytest.mark.usefixtures("run_folder")
REMEMBERS = """
version: 1
environment: training_envs:Aim-v0
normalize: [observation]
policy: {template: {memory: {block: gru, hidden_units: 4}}}
critic: {template: {memory: {block: lstm, hidden_units: 4}}}
"""
MASKED = """
version: 1
environment: environments.recall_env:Recall-v0
normalize: [place]
policy: {template: {memory: {block: gru, hidden_units: 8}}, action_mask: {action: legal}}
critic: {normalize_value: true, template: {}}
"""
OFF_POLICY = {"learning_starts": 16, "batch_size": 8}
ROLLOUT = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
RUNS = {
    "sb3 a2c": (SORT, {}),
    "sb3 ppo": (SORT, ROLLOUT),
    "sb3 dqn": (VALUES_OF_SORT, OFF_POLICY),
    "sb3 sac": (AIM, OFF_POLICY),
    "sb3 maskable_ppo": (FORGETFUL, ROLLOUT),
    "sb3 recurrent_ppo": (REMEMBERS, ROLLOUT),
    "rsl_rl ppo": (REMEMBERS, {"num_steps_per_env": 16, "num_mini_batches": 2}),
    "skrl ppo": (REMEMBERS, {}),
    "rl_games ppo": (MASKED, {"horizon_length": 32, "seq_length": 16}),
    "tianshou ppo": (FORGETFUL, {"collection_step_num_env_steps": 32}),
    "torchrl a2c": (SORT, {"frames_per_batch": 32}),
}


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr("composer.training.options._device_problems", lambda device: [])
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which the device has not
    with elsewhere() as name:
        yield name


def test_a_state_that_was_read_onto_the_cpu_is_compared_with_one_that_is_there(device):
    kept = {"weight": torch.tensor([1.0, 2.0])}
    states = []
    trainer: Any = SimpleNamespace(
        state=lambda: {"weight": torch.tensor([0.0, 0.0], device=device)},
        restore=lambda *state: states.append(state),
    )
    saved: Any = {"trainer": kept, "steps": 8}
    folder: Any = SimpleNamespace(path="run")
    restore(trainer, saved, folder)
    assert states == [(kept, 8)]
    kept["weight"][0] = torch.nan
    message = "what is in 'run' does not fit the run: weight is NaN or infinite"
    with pytest.raises(TrainingError, match=f"^{message}$"):
        restore(trainer, saved, folder)


@pytest.mark.full
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_resumed_there(name, device, monkeypatch):
    monkeypatch.setattr("torchrl.collectors.Collector._get_sync_fn", lambda *_: lambda: None)
    spec, settings = RUNS[name]
    trainer, algorithm = name.split()
    train(
        spec, "run", trainer=trainer, algorithm=algorithm, steps=64, envs=2, settings=settings,
        device=device, allow=ALLOW, eval_episodes=1, eval_every=64,
    )  # fmt: skip
    assert resume("run", steps=128, allow=ALLOW).steps >= 128
    saved = composer.load("run/model.safetensors", allow=ALLOW).state_dict()
    assert {value.device.type for value in saved.values()} == {"cpu"}
