"""A shard checkpoint becomes a folder again and again, by processes that are killed: ``killed_folders.py FOLDER``."""

import os
import sys
from pathlib import Path

from tests.helpers.paths import CONFIGS

sys.path.append(str(CONFIGS))

import torch
from transformers import PreTrainedModel

import composer
import composer.parallel
from composer.language import action_files
from tests.helpers.action_models import TinyProcessor, TinyVla, spec

HOME = Path(sys.argv[1])
TARGET = HOME / "folder"
STEPS = ((action_files, "save_file"), (PreTrainedModel, "save_pretrained"))
STEPS += ((TinyProcessor, "save_pretrained"),)
STEPS += tuple((os, name) for name in ("mkdir", "rename", "replace"))


def killed_at(place):
    """Consolidate in a child that ends without a word at its ``place``-th step; returns whether it got to the end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == place:
            os._exit(9)

    def counted(function):
        def call(*arguments, **keywords):
            step()
            result = function(*arguments, **keywords)
            step()
            return result

        return call

    for home, name in STEPS:
        setattr(home, name, counted(getattr(home, name)))
    composer.parallel.consolidate(HOME / "shards", TARGET)
    os._exit(0)


torch.set_num_threads(1)
model = composer.compose(spec(), seed=0)
composer.parallel.save(HOME / "shards", model)
at, finished = 0, False
while not finished:
    at += 1
    there = TARGET.exists()
    if there:
        break
    finished = killed_at(at)
assert at > 10, at
theirs = TinyVla.from_pretrained(TARGET, local_files_only=True)
assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.hf.parameters()))
assert (TARGET / "value_head.safetensors").is_file()
assert sorted(os.listdir(HOME)) == ["folder", "shards"], os.listdir(HOME)
print("killed", at - 1, "times")
