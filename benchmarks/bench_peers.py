"""The same network from other builders, side by side: a step of each library's own way to run it.

skrl is installed into an environment of its own in build/, which sees the packages of this one; there the script goes
on.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from bench_eager import composed_chain, composed_mlp
from harness import Row, main, medians

SKRL = "skrl==2.1.1"
ENVIRONMENT = Path(__file__).parent.parent / "build" / "peers"
OBSERVATIONS = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
ACTIONS = gymnasium.spaces.Discrete(2)


def ours(x: Tensor, net: nn.Module) -> Callable[[], Any]:
    inputs = {"observation": x}
    return lambda: net(inputs)


def torchrl(x: Tensor, sizes: list[int], head: bool) -> Callable[[], Any]:
    """Modules that read and write the keys of a TensorDict, which is filled anew at each step."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential

    parts = []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        last = head and i == len(sizes) - 2
        layer = nn.Linear(n, m) if last else nn.Sequential(nn.Linear(n, m), nn.ReLU())
        parts.append(TensorDictModule(layer, in_keys=[f"v{i}"], out_keys=[f"v{i + 1}"]))
    net = TensorDictSequential(*parts)
    return lambda: net(TensorDict({"v0": x}, batch_size=x.shape[:1]))


def skrl(x: Tensor, sizes: list[int], head: bool) -> Callable[[], Any]:
    from skrl.utils.model_instantiators.torch import categorical_model

    layers = sizes[1:-1] if head else sizes[1:]
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": layers, "activations": "relu"}]
    space = gymnasium.spaces.Box(-np.inf, np.inf, (sizes[0],), np.float32)
    model: Any = categorical_model(
        observation_space=space,
        action_space=ACTIONS,
        device="cpu",
        network=network,
        output="ACTIONS" if head else "net",
    )
    inputs = {"observations": x}
    return lambda: model.compute(inputs)


def sb3(x: Tensor) -> Callable[[], Any]:
    """Features extractor, actor's layers and head of an actor-critic policy."""
    from stable_baselines3.common.policies import ActorCriticPolicy

    policy = ActorCriticPolicy(
        OBSERVATIONS, ACTIONS, lambda _: 1e-3, net_arch=[64, 64], activation_fn=nn.ReLU
    )

    def call() -> Tensor:
        features = policy.extract_features(x, policy.pi_features_extractor)
        return policy.action_net(policy.mlp_extractor.forward_actor(features))  # type: ignore[arg-type]

    return call


def compared(
    workload: str, us: Callable[[], Any], peers: dict[str, Callable[[], Any]]
) -> Iterator[Row]:
    with torch.no_grad():
        own, *times = medians(us, *peers.values())
    for name, theirs in zip(peers, times, strict=True):
        yield Row(workload, own, name, theirs, at_most=1.0)


def rows() -> Iterator[Row]:
    sizes = [4, 64, 64, 2]
    for batch in (1, 256):
        x = torch.randn(batch, 4)
        peers = {
            "TorchRL TensorDictSequential": torchrl(x, sizes, True),
            "skrl instantiator": skrl(x, sizes, True),
            "SB3 extractor and head": sb3(x),
        }
        yield from compared(f"MLP 4-64-64-2, batch {batch}", ours(x, composed_mlp()), peers)
    x, sizes = torch.randn(1, 64), [64] * 101
    peers = {
        "TorchRL TensorDictSequential": torchrl(x, sizes, False),
        "skrl instantiator": skrl(x, sizes, False),
    }
    yield from compared("chain of 100 dense, batch 1", ours(x, composed_chain()), peers)


def with_skrl() -> None:
    """Go on in an environment that has skrl, made now if need be."""
    if importlib.util.find_spec("skrl") is not None:
        return
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "done").exists():
        venv.create(ENVIRONMENT, clear=True, with_pip=False)
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*command, "--no-deps", SKRL], check=True)
        (packages,) = ENVIRONMENT.glob("lib/*/site-packages")
        (packages / "base.pth").write_text(
            f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        )
        (ENVIRONMENT / "done").touch()
    os.execv(python, [str(python), *sys.argv])


if __name__ == "__main__":
    with_skrl()
    main("Peers", rows, peers=["torchrl", "tensordict", "skrl", "stable-baselines3"])
