"""A script for several processes: the example trains the tiny action model, sharded, and prints the rewards as JSON."""

import json
import sys

from tests.helpers.paths import CONFIGS

sys.path.append(str(CONFIGS))

import action_ppo  # pyright: ignore[reportMissingImports]  (of configs/)

import composer.parallel

with composer.parallel.start() as mesh:
    model = composer.parallel.shard(action_ppo.make(lora=2), mesh)
    rewards = action_ppo.train(model, 5, batch=16, rank=mesh.rank, processes=mesh.size)
    print(json.dumps(rewards))
