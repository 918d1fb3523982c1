"""A small experiment of six calls, and the interfaces and the data set that it names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from composer.dataflow.algorithms.interfaces import INTERFACES, Interface
from composer.dataflow.data.datasets import DATASETS
from composer.dataflow.data.samples import Sample
from perception_blocks.registry import Registry
from perception_blocks.settings import PositiveFloat

PPO = """\
version: 1
models:
  actor: {decoder: {width: 16, num_layers: 1, num_heads: 2}, vocabulary: tokens.txt, lr: 0.01}
  critic: {like: actor, is_critic: true, lr: 0.01}
  ref: {like: actor}
  reward: {decoder: {width: 8, num_layers: 1, num_heads: 2, vocab_size: 16}, is_critic: true}
data: {dataset: toy-prompts, rows: 32, batch_size: 8}
calls:
  actor_gen: {model: actor, do: generate, with: toy_actor, reads: [prompts], writes: [ids, logp]}
  rew_inf: {model: reward, do: inference, with: toy_reward, reads: [ids], writes: [rewards]}
  ref_inf: {model: ref, do: inference, with: toy_actor, reads: [ids], writes: {logp: ref_logp}}
  critic_inf: {model: critic, do: inference, with: toy_critic, reads: [ids], writes: [values]}
  actor_train:
    {model: actor, do: train_step, with: toy_actor, reads: [ids, logp, ref_logp, rewards, values]}
  critic_train:
    {model: critic, do: train_step, with: toy_critic, reads: [ids, logp, ref_logp, rewards, values]}
hooks:
  - {after: actor_train, from: actor, to: ref, eta: 0.1}
run: {iterations: 4}
"""
_TRAINING = ("ids", "logp", "ref_logp", "rewards", "values")


class ToyPrompts:
    """Prompts of two to four tokens, each with a text as metadata."""

    gives = ("prompts", "labels")

    def __init__(self, util: Any, *, rows: int = 8):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Sample:
        prompt = torch.arange(2 + index % 3) + index % 5
        label = torch.tensor([float(index)])
        lengths = {"prompts": [[len(prompt)]], "labels": [[1]]}
        return Sample.of(
            [index], lengths, {"prompts": prompt, "labels": label}, {"text": [f"row {index}"]}
        )


class ToyActor(Interface):
    """Continues each prompt by three tokens; trains towards what has a reward above the mean."""

    reads = {"generate": ("prompts",), "inference": ("ids",), "train_step": _TRAINING}
    optional = {"train_step": ("labels",)}
    writes = {"generate": ("ids", "logp", "prompt_mask", "lengths"), "inference": ("logp",)}

    def __init__(self, *, kl: PositiveFloat = 0.1):
        self.kl = kl

    def generate(self, model, sample, context):
        new = [
            torch.cat([p, torch.randint(0, 7, (3,), generator=context.generator)])
            for p in sample.sequences("prompts")
        ]
        logp = model.logp(torch.cat(new), [len(ids) for ids in new])
        masks = [torch.arange(len(ids)) < len(ids) - 3 for ids in new]
        return {"ids": new, "logp": logp, "prompt_mask": masks, "lengths": [3.0] * len(new)}

    @torch.no_grad()
    def inference(self, model, sample, context):
        return {"logp": model.logp(sample.values("ids"), sample.lengths("ids"))}

    def train_step(self, model, sample, context):
        logp = model.logp(sample.values("ids"), sample.lengths("ids"))
        rewards = sample.values("rewards") - sample.values("rewards").mean()
        weights = rewards.repeat_interleave(sample.lengths("logp"))
        kl = (logp - sample.values("ref_logp")).square().mean()
        loss = -(weights * logp).mean() + self.kl * kl
        context.log("norm", model.step(loss, context))
        context.log("loss", loss.item())


class ToyCritic(Interface):
    reads = {"inference": ("ids",), "train_step": _TRAINING}
    writes = {"inference": ("values",)}

    @torch.no_grad()
    def inference(self, model, sample, context):
        return {"values": model.scores(sample.values("ids"), sample.lengths("ids"))}

    def train_step(self, model, sample, context):
        scores = model.scores(sample.values("ids"), sample.lengths("ids"))
        rewards = sample.values("rewards").repeat_interleave(sample.lengths("ids"))
        loss = (scores - rewards).square().mean()
        model.step(loss, context)
        context.log("loss", loss.item())


class ToyReward(Interface):
    reads = {"inference": ("ids",), "evaluate": ("rewards",)}
    writes = {"inference": ("rewards",)}

    @torch.no_grad()
    def inference(self, model, sample, context):
        scores = model.scores(sample.values("ids"), sample.lengths("ids"))
        return {"rewards": scores[sample.lengths("ids").cumsum(0) - 1]}

    def evaluate(self, model, sample, context):
        context.log("mean", sample.values("rewards").mean().item())


class LongestRun(Interface):
    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def __init__(self, token: int = 3):
        self.token = token

    def inference(self, model, sample, context):
        return {"rewards": (sample["ids"] == self.token).float().mean(-1)}


class Printer(Interface):
    needs_model = False
    side_effects = ("inference",)
    reads_any = True

    def inference(self, model, sample, context):
        context.log("keys", len(sample.keys))


NAMES = {
    "toy_actor": ToyActor,
    "toy_critic": ToyCritic,
    "toy_reward": ToyReward,
    "longest_run": LongestRun,
    "printer": Printer,
}


@contextmanager
def registered(registry: Registry, entries: dict[str, Any]) -> Iterator[None]:
    """Register ``entries``, and take them out again."""
    known = dict(registry._entries), dict(registry._names)
    for name, entry in entries.items():
        registry.register(name, entry)
    try:
        yield
    finally:
        registry._entries, registry._names = known


@contextmanager
def toys() -> Iterator[None]:
    """The names that PPO uses are known within."""
    with registered(INTERFACES, NAMES), registered(DATASETS, {"toy-prompts": ToyPrompts}):
        yield


def ppo_in(folder: Path) -> Path:
    """PPO as a file of the folder, beside its vocabulary."""
    (folder / "tokens.txt").write_text("".join(f"t{i}\n" for i in range(14)))
    (folder / "ppo.yaml").write_text(PPO)
    return folder / "ppo.yaml"
