"""A run is killed at one point after the other, and resumed: ``killed_runs.py FOLDER FIRST STEP``."""

import os
import shutil
import sys
from pathlib import Path

import torch

import composer
from composer.training import recorder
from composer.training.curve import LearningCurve
from composer.training.folder import RunFolder
from composer.training.session import resume, train
from tests.helpers import counting_trainer
from tests.helpers.killing import is_done_before
from tests.helpers.paths import CONFIGS

HOME, place, stride = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
STEPS = tuple((os, name) for name in ("mkdir", "rename", "replace", "unlink"))
OPTIONS = {
    "trainer": "counting", "algorithm": "count", "steps": 60, "eval_every": 20, "checkpoint_every": 20, "keep": 2,
}  # fmt: skip
torch.set_num_threads(1)
counting_trainer.register()
recorder.evaluate = counting_trainer.made_up
LearningCurve.draw = lambda self, path, title: Path(path).write_bytes(
    b"a picture"
)  # drawing takes long
recorder.SAVE_EVERY = recorder.SAVING_SHARE = 0  # a save after every report
start = composer.compose(CONFIGS / "cartpole.yaml", seed=0)


def work():
    train(composer.compose(CONFIGS / "cartpole.yaml", seed=0), HOME / "run", **OPTIONS)


killed = whole = 0
while not whole:
    shutil.rmtree(HOME / "run", ignore_errors=True)
    whole = is_done_before(place, STEPS, work)
    killed += not whole
    place += stride
    if not (HOME / "run").exists():
        continue
    folder = RunFolder.open(HOME / "run")
    assert folder.load()["steps"] % 10 == 0
    if not (HOME / "run/evaluation.json").exists():
        resume(HOME / "run")
    for name, steps in (("model", 60), ("best", 40)):
        model = composer.load(HOME / f"run/{name}.safetensors")
        assert counting_trainer.worth(model, start) == steps, (place, name)
    steps = [step for step, _ in folder.checkpoints()]
    assert steps == [40, 60], (place, steps)
    for step, file in folder.checkpoints():
        assert counting_trainer.worth(composer.load(file), start) == step
    lines = (HOME / "run/evaluations.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:3] for line in lines] == [
        ["20", "2", "1.0"], ["40", "2", "5.0"], ["60", "2", "3.0"],
    ], (place, lines)  # fmt: skip
    progress = (HOME / "run/progress.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in progress[1:]][-1] == "60"
    assert sorted(os.listdir(HOME)) == ["run"], os.listdir(HOME)
print("killed", killed, "times")
