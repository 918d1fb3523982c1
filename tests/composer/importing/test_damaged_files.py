"""Files whose values are of other kinds, or whose bytes are damaged: they are read, or refused in words."""

import copy
import json
import random
import zipfile

import pytest
import yaml
from stable_baselines3 import PPO

from composer.checkpoint.container import CheckpointError
from composer.errors import SpecError
from composer.importing import import_config, read_checkpoint
from tests.composer.importing.test_mlagents import WALKER
from tests.composer.importing.test_rllib import OLD
from tests.composer.importing.test_sb3_zoo import PPO as ZOO

NEW = """
model_config:
  fcnet_hiddens: [8]
  head_fcnet_hiddens: [4]
  fcnet_kernel_initializer: orthogonal_
  fcnet_kernel_initializer_kwargs: {gain: 2}
  use_lstm: true
  conv_filters: [[4, 3, 1], [4, [3, 3], 2]]
  free_log_std: true
"""
FILES = {
    "ppo.yml": (ZOO.replace("!!float ", ""), ["Hopper-v4", "Walker-v4", "atari", "Fetch"]),
    "sac.yml": (ZOO.replace("!!float ", ""), ["Hopper-v4", "atari", "Fetch"]),
    "old.yaml": (OLD, [None]),
    "new.yaml": (NEW, [None]),
    "behaviors.yaml": (WALKER, ["Walker", "Crawler"]),
}
OTHERS = [None, True, 0, -1, 1e99, "", "x", "${a}", [], [1], [[1]], {}, {"a": 1}, 2**80, "dict("]


def changed(value, draw):
    """``value`` with other values in it here and there, and others left out."""
    if draw.random() < 0.08:
        return draw.choice(OTHERS)
    if isinstance(value, dict):
        return {k: changed(v, draw) for k, v in value.items() if draw.random() > 0.03}
    if isinstance(value, list):
        return [changed(each, draw) for each in value if draw.random() > 0.03]
    return value


def is_read(read, *arguments, **keywords):
    try:
        read(*arguments, **keywords)
    except (SpecError, CheckpointError):
        return False
    return True


@pytest.mark.parametrize("file", FILES)
def test_a_configuration_of_other_values_is_read_or_refused(file, tmp_path):
    text, names = FILES[file]
    data, read = yaml.safe_load(text), []
    for seed in range(30):
        draw = random.Random(seed)
        (tmp_path / file).write_text(yaml.safe_dump(changed(copy.deepcopy(data), draw)))
        kind = draw.choice([None, "rllib" if file in ("old.yaml", "new.yaml") else None])
        read.append(is_read(import_config, tmp_path / file, kind, draw.choice(names)))
    assert {*read} == {True, False}


def test_a_damaged_agent_is_read_or_refused(tmp_path):
    PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").save(tmp_path / "agent.zip")
    whole, other = (tmp_path / "agent.zip").read_bytes(), tmp_path / "other.zip"
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    read = []
    for seed in range(30):
        draw = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        other.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
        read += [is_read(import_config, other), is_read(read_checkpoint, other)]
        with zipfile.ZipFile(other, "w") as archive:
            for name, part in parts.items():
                new = json.dumps(changed(json.loads(part), draw)) if name == "data" else part
                archive.writestr(name, new)
        read.append(is_read(import_config, other))
    assert {*read} == {True, False}
