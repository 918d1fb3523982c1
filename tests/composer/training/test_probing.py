"""`composer train --probe-every`: the numbers of a probe beside those of the trainer."""

import csv
from pathlib import Path

import pettingzoo
import pytest

import composer
from composer.training import resume, train
from composer.training.trainer import TrainingError
from tests.helpers.parallel_envs import Balance
from tests.helpers.paths import CONFIGS

CARTPOLE = CONFIGS / "cartpole.yaml"
SHORT = {"steps": 128, "eval_episodes": 1, "settings": {"n_steps": 64, "batch_size": 64}}
SRANK = "probe/policy/latent/srank"


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def probed(folder="run"):
    with open(Path(folder, "progress.csv")) as file:
        return {int(row["step"]): row for row in csv.DictReader(file) if row.get(SRANK)}


def test_probes_are_rows_of_progress_and_do_not_change_what_is_trained():
    models = []
    for name, every in (("with", 64), ("without", 0)):
        train(CARTPOLE, name, probe_every=every, **SHORT)
        models.append(composer.load(f"{name}/model.safetensors"))
    assert list(probed("with")) == [64, 128]
    assert probed("without") == {}
    tensors = (model.state_dict().values() for model in models)
    assert all(a.equal(b) for a, b in zip(*tensors, strict=True))
    row = probed("with")[128]
    assert float(row["probe/policy/latent/linears.0/dormant"]) >= 0.0
    assert float(row["probe/critic/value/gradient_norm"]) > 0.0


def test_a_resumed_run_goes_on_with_its_probes():
    train(CARTPOLE, "run", probe_every=64, tensorboard=True, **SHORT)
    resume("run", steps=256)
    assert list(probed()) == [64, 128, 192, 256]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("run/tensorboard")
    events.Reload()
    assert [event.step for event in events.Scalars(SRANK)] == [64, 128, 192, 256]
    resume("run", steps=320, probe_every=0)
    assert list(probed()) == [64, 128, 192, 256]


def test_several_actors_are_probed_by_network(monkeypatch):
    monkeypatch.setitem(pettingzoo.parallel_registry, "tests/balance-v0", None)
    del pettingzoo.parallel_registry["tests/balance-v0"]
    pettingzoo.register("parallel", "tests/balance-v0", entry_point=Balance)
    layer = "{latent: {block: dense, in: observation, hidden_units: 8}}"
    spec = (
        f"version: 1\npolicy: {{separate: true, graph: {layer}, heads: {{in: latent}}}}\n"
        f"critic: {{kind: state, graph: {layer}, heads: {{in: latent}}}}\n"
    )
    train(
        spec, "run", env="pettingzoo:tests/balance_v0", trainer="composer", steps=32, eval_episodes=1,
        probe_every=16, settings={"n_steps": 16, "batch_size": 16},
    )  # fmt: skip
    header = Path("run/progress.csv").read_text().partition("\n")[0].split(",")
    names = {name for name in header if name.endswith("latent/dormant")}
    assert names == {
        "probe/policy/0/latent/dormant",
        "probe/policy/1/latent/dormant",
        "probe/critic/latent/dormant",
    }


def test_a_number_of_steps_that_cannot_be_is_refused():
    with pytest.raises(
        TrainingError, match=r"^--probe-every must be an integer of 0 or more, got -1$"
    ):
        train(CARTPOLE, "run", probe_every=-1, **SHORT)
