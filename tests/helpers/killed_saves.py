"""A checkpoint is replaced by processes that are killed at one point of it after the other: ``killed_saves.py FOLDER``."""

import os
import sys
from functools import partial
from pathlib import Path

import torch

import composer
import composer.parallel
from composer.checkpoint.container import CheckpointError
from composer.parallel import state
from tests.helpers.killing import is_done_before

FOLDER = Path(sys.argv[1]) / "checkpoint"
SPEC = {
    "version": 1,
    "environment": "CartPole-v1",
    "policy": {
        "graph": {"h": {"block": "dense", "in": "observation", "hidden_units": 3}},
        "heads": {"in": "h"},
    },
}
STEPS = ((state, "write_file"), (state, "replace_with"))
STEPS += tuple((os, name) for name in ("mkdir", "rename", "replace", "fsync", "unlink"))


def weights_of(seed):
    return composer.compose(SPEC, seed=seed)


def killed_everywhere(known):
    """Save until a save gets to its end; ``known`` is in the folder, and is there until something else is."""
    place = 0
    while True:
        place += 1
        mine = place + 1000 * (known is not None)
        save = partial(composer.parallel.save, FOLDER, weights_of(mine), extra={"seed": mine})
        finished = is_done_before(place, STEPS, save)
        model = weights_of(0)
        try:
            extra, said = composer.parallel.load(FOLDER, model), ""
        except CheckpointError as error:
            extra, said = None, str(error)
        if extra is None:
            assert "is no checkpoint of shards" in said, said
            assert known is None, f"the checkpoint was lost at step {place}"
            assert not FOLDER.exists()
        else:
            assert extra["seed"] in (known, mine), (extra, known, mine)
            expected = weights_of(extra["seed"]).state_dict()
            assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
            known = extra["seed"]
        if finished:
            assert known == mine
            return known


torch.set_num_threads(1)
first = killed_everywhere(None)
second = killed_everywhere(first)
assert first is not None
assert second is not None
assert first > 10
assert second > 1010
assert os.listdir(FOLDER.parent) == ["checkpoint"], os.listdir(FOLDER.parent)
print("killed", first + second - 1000, "times")
