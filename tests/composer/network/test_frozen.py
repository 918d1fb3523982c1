"""`freeze:` in a spec: no gradients, eval mode for ever, and statistics that stand still, in every form of network."""

import copy
import io

import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

import composer
from composer.network.paths import part_at, parts_by_path

SPACE = Dict(camera=Box(-1, 1, (4,)), speed=Box(-1, 1, (3,)))
SPEC = """
version: 1
normalize: [speed]
policy:
  graph:
    screen: {block: dense, in: camera, hidden_units: [8]}
    noise: {block: torch.nn.Dropout, in: screen, p: 0.5}
    both: {block: concat, in: [noise, speed]}
  shares: [both]
  heads: {in: both}
critic:
  normalize_value: true
  ensemble: 2
  graph:
    latent: {block: dense, in: both, hidden_units: [4]}
"""
ACTORS = {"walker_0": Box(-1, 1, (4,)), "walker_1": Box(-1, 1, (4,))}
MOVES = dict.fromkeys(ACTORS, Discrete(2))
BY_ACTOR = """
version: 1
freeze: [policy/latent]
policy:
  separate: true
  graph: {latent: {block: dense, in: observation, hidden_units: [8]}}
  heads: {in: latent}
"""
GROUPS = """
version: 1
freeze: [policy/walker_1/latent]
policy:
  networks:
    walker_0:
      graph: {latent: {block: dense, in: observation, hidden_units: [8]}}
      heads: {in: latent}
    walker_1:
      graph: {latent: {block: dense, in: observation, hidden_units: [8]}}
      heads: {in: latent}
"""


class Encoder(nn.Module):
    """A policy of a user's class, with a batch norm and a buffer that its training moves."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.heads = nn.ModuleDict({k: nn.Linear(8, *s) for k, s in action_logits_shapes.items()})

    def forward(self, inputs):
        latent = self.body(inputs["observation"])
        return {name: head(latent) for name, head in self.heads.items()}


CUSTOM = f"version: 1\nfreeze: [policy/body]\npolicy: {{_target_: {__name__}.Encoder}}\n"


def composed(freeze="", spec=SPEC, **keywords):
    spaces = {"observation_space": SPACE, "action_space": Box(-1, 1, (2,))}
    text = spec.replace("version: 1", f"version: 1\nfreeze: [{freeze}]") if freeze else spec
    return composer.compose(text, **(spaces | {"seed": 0} | keywords))


def batch(size=5):
    return {"camera": torch.rand(size, 4), "speed": torch.rand(size, 3)}


def stepped(model, loss):
    """The names of the parameters that one step of Adam changes."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss.backward()
    optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def loss_of(model, observations):
    logits, values = model(observations)
    return sum(x.square().sum() for x in (*logits.values(), *values.values()))


def test_a_frozen_node_equals_one_that_is_frozen_by_hand_in_torch():
    frozen, by_hand = composed("policy/screen, policy/noise"), composed()
    for module in (by_hand.policy.get_submodule("screen"), by_hand.policy.get_submodule("noise")):
        module.requires_grad_(False)
    for model in (frozen, by_hand):
        model.train()
    by_hand.policy.get_submodule("noise").eval()
    seen = batch()
    changed = [stepped(model, loss_of(model, seen)) for model in (frozen, by_hand)]
    assert (
        changed[0] == changed[1] == {n for n, _ in frozen.named_parameters() if "screen" not in n}
    )
    for ours, theirs in zip(frozen.state_dict().values(), by_hand.state_dict().values()):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("path", "frozen"),
    [
        ("policy", "policy."),
        ("policy/heads", "policy.heads."),
        ("policy/heads/action", "policy.heads.action."),
        ("policy/distributions", "policy.distributions."),
        ("critic", "critic."),
        ("critic/latent", "critic.ensemble.latent/"),
        ("critic/latent/linears/0", "critic.ensemble.latent/linears/0/"),
    ],
)
def test_every_path_freezes_what_is_below_it(path, frozen):
    model = composed(path)
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if name.startswith(frozen)}


@pytest.mark.parametrize(
    "call", ["train", "copied", "pickled", "policy", "reloaded", "materialized"]
)
def test_a_frozen_part_stays_in_eval_mode_whoever_calls_train(call, tmp_path):
    model = composed(
        "policy/noise, policy/screen", device="meta" if call == "materialized" else "cpu"
    )
    if call == "materialized":
        model.materialize()
    elif call == "copied":
        model = copy.deepcopy(model)
    elif call == "pickled":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        model = torch.load(file, weights_only=False)
    elif call == "reloaded":
        model.save(tmp_path / "model.safetensors")
        model = composer.load(tmp_path / "model.safetensors")
    (model.policy if call == "policy" else model).train()
    noise, screen = (model.policy.get_submodule(name) for name in ("noise", "screen"))
    assert noise.train() is noise
    assert not noise.training
    assert not screen.training
    assert not screen.linears[0].training
    assert model.policy.training
    assert model.policy.get_submodule("both").training
    assert not any(p.requires_grad for p in screen.parameters())
    seen = batch()
    assert torch.equal(model.policy(seen)["action"], model.policy(seen)["action"])


def test_dropout_of_another_part_stays_on():
    model = composed("policy/screen").train()
    seen = batch()
    assert not torch.equal(model.policy(seen)["action"], model.policy(seen)["action"])


def test_statistics_of_frozen_parts_stand_still():
    moving, still = composed(), composed("policy, critic")
    for model in (moving, still):
        model.update_normalizers(batch(), returns=torch.rand(5))
    for part in ("policy/normalizers", "critic/value_normalizer"):
        for model, counted in ((moving, 5), (still, 0)):
            (norm, *_) = [m for m in part_at(model, part).modules if hasattr(m, "count")]
            assert norm.count == counted
    still.merge_normalizers(moving)
    assert still.policy.observer.normalizers["speed"].count == 0


def test_batch_norm_of_a_frozen_child_of_a_class_stands_still():
    spaces = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)}
    for device in ("cpu", "meta"):
        model = composer.compose(CUSTOM, allow=[__name__], device=device, **spaces)
        model = model.materialize() if device == "meta" else model
        model.train()
        body = model.policy.get_submodule("body")
        before = {name: t.clone() for name, t in body.state_dict().items()}
        logits = model.policy(torch.rand(6, 4))["action"]
        changed = stepped(model, logits.square().sum())
        assert changed == {"policy.heads.action.weight", "policy.heads.action.bias"}
        assert all(torch.equal(t, before[name]) for name, t in body.state_dict().items())
        assert model.policy.training
        assert not body.training
        assert not body[1].training


@pytest.mark.parametrize(
    ("spec", "frozen"),
    [
        (BY_ACTOR, {"policy.latent/linears/0/weight", "policy.latent/linears/0/bias"}),
        (
            GROUPS,
            {"policy.walker_1.latent.linears.0.weight", "policy.walker_1.latent.linears.0.bias"},
        ),
    ],
)
def test_networks_of_several_actors(spec, frozen):
    model = composer.compose(spec, observation_space=ACTORS, action_space=MOVES)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    logits = model.policy({name: torch.rand(3, 4) for name in ACTORS})
    loss = sum(out.square().sum() for outputs in logits.values() for out in outputs.values())
    assert not stepped(model, loss) & frozen


def test_a_lowered_model_computes_the_same_and_trains_the_same():
    ordinary, lowered = (
        composed("policy/screen, policy/noise"),
        composed("policy/screen, policy/noise"),
    )
    code = lowered.train().lower()
    seen = batch()
    assert torch.equal(ordinary.train().policy(seen)["action"], code.policy(seen)["action"])
    changed = stepped(lowered, code.policy(seen)["action"].square().sum())
    assert changed == {"policy.heads.action.linear.weight", "policy.heads.action.linear.bias"}


def test_summary_and_picture_say_what_is_frozen(tmp_path):
    spec = SPEC.replace("version: 1", "version: 1\nlearning_rate_scale: {policy/heads: 0.5}")
    model = composed("policy/screen, critic", spec=spec)
    text = model.summary()
    marked = {line.split()[0] for line in text.splitlines() if "frozen" in line and "->" in line}
    assert marked == {"screen", "latent", "heads/value"}
    assert "learning rates are scaled: policy/heads by 0.5" in text
    assert text == composed("policy/screen, critic", spec=spec).summary()
    dot = model.draw(tmp_path / "model.dot").read_text()
    assert dot.count("frozen") > composed(spec=spec).draw(tmp_path / "plain.dot").read_text().count(
        "frozen"
    )


@pytest.mark.parametrize("name", ["both0", "a"])  # the first begins as "both" does
def test_a_part_is_all_that_lies_below_its_path(name):
    model = composed(spec=SPEC.replace("screen", name))
    parts = parts_by_path(model)
    assert f"policy/{name}" in parts
    for path in parts:
        below = [each for each in parts if each == path or each.startswith(f"{path}/")]
        expected = dict.fromkeys(n for each in below for n in parts[each].parameters)
        assert list(part_at(model, path, parts).parameters) == list(expected), path
