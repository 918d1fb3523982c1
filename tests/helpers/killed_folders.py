"""A shard checkpoint becomes a folder again and again, by processes that are killed: ``killed_folders.py FOLDER``."""

import os
import sys
from functools import partial
from pathlib import Path

from tests.helpers.paths import CONFIGS

sys.path.append(str(CONFIGS))

import torch
from transformers import PreTrainedModel

import composer
import composer.parallel
from composer.language import action_files
from tests.helpers.action_models import TinyProcessor, TinyVla, spec
from tests.helpers.killing import is_done_before

HOME = Path(sys.argv[1])
TARGET = HOME / "folder"
STEPS = ((action_files, "save_file"), (PreTrainedModel, "save_pretrained"))
STEPS += ((TinyProcessor, "save_pretrained"),)
STEPS += tuple((os, name) for name in ("mkdir", "rename", "replace"))


torch.set_num_threads(1)
model = composer.compose(spec(), seed=0)
composer.parallel.save(HOME / "shards", model)
consolidate = partial(composer.parallel.consolidate, HOME / "shards", TARGET)
place = 0
while not TARGET.exists():
    place += 1
    is_done_before(place, STEPS, consolidate)
assert place > 10, place
theirs = TinyVla.from_pretrained(TARGET, local_files_only=True)
assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), model.hf.parameters()))
assert (TARGET / "value_head.safetensors").is_file()
assert sorted(os.listdir(HOME)) == ["folder", "shards"], os.listdir(HOME)
print("killed", place, "times")
