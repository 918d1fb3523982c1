"""Every trainer leaves frozen parts as they are and scales learning rates by part, whatever schedule it has."""

from contextlib import closing

import gymnasium
import pytest
import torch
from stable_baselines3 import PPO

import composer
from composer.adapters import sb3
from composer.cli import main
from composer.training.seeds import train_seeds
from composer.training.trainer import TRAINERS, Task, TrainingError

SPEC = """
version: 1
freeze: [policy/eyes]
learning_rate_scale: {policy/body: 0.1, policy/body/linears/1: 0.5}
policy:
  graph:
    eyes: {block: dense, in: observation, hidden_units: [8]}
    body: {block: dense, in: eyes, hidden_units: [8, 8]}
  heads: {in: body}
"""
STATE = SPEC + "critic: {template: {}}\n"
ACTION = SPEC + "critic: {kind: state_action, ensemble: 2, template: {}}\n"
BOX, CHOICE = "Pendulum-v1", "CartPole-v1"
RUNS = [
    ("sb3", "ppo", STATE, CHOICE, {"n_steps": 32, "batch_size": 32}),
    ("sb3", "dqn", SPEC, CHOICE, {"learning_starts": 8, "batch_size": 8}),
    ("sb3", "sac", ACTION, BOX, {"learning_starts": 8}),
    ("torchrl", "ppo", STATE, CHOICE, {"frames_per_batch": 64, "epochs": 1}),
    ("torchrl", "dqn", SPEC, CHOICE, {"learning_starts": 8, "batch_size": 8}),
    ("torchrl", "sac", ACTION, BOX, {"learning_starts": 8, "batch_size": 8}),
    ("rsl_rl", "ppo", STATE, BOX, {}),
    ("rl_games", "ppo", STATE, CHOICE, {"horizon_length": 32}),
    ("skrl", "ppo", STATE, CHOICE, {}),
    ("tianshou", "ppo", STATE, CHOICE, {"collection_step_num_env_steps": 64}),
]
ACTORS = SPEC + "critic: {kind: shared_state, template: {}}\n"
RUNS.append(("composer", "mappo", ACTORS, "pettingzoo:mpe/simple_spread_v3", {}))


def trainer_of(name, algorithm, spec, environment, settings):
    task = Task(
        spec="",
        environment=environment,
        trainer=name,
        algorithm=algorithm,
        steps=64,
        settings=settings,
    )
    return TRAINERS.get(name)(task, composer.compose(spec, env=environment, seed=0))


def optimizers_of(trainer):
    """Every optimiser that a trainer holds, by attributes."""
    seen, todo, optimizers = set(), [trainer], []
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, str | int | float | torch.Tensor | gymnasium.Env):
            continue
        seen.add(id(each))
        if isinstance(each, torch.optim.Optimizer):
            optimizers.append(each)
        elif type(each).__module__.split(".")[0] in (
            "composer", "stable_baselines3", "skrl", "rsl_rl", "rl_games", "tianshou"
        ):  # fmt: skip
            todo += getattr(each, "__dict__", {}).values()
            if isinstance(each, torch.nn.Module):
                todo += each._modules.values()
    return optimizers


def steps_of(model, optimizers):
    """How far a step of Adam from the start moves each parameter: its learning rate."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    for optimizer in optimizers:
        optimizer.state.clear()
        optimizer.step()
        optimizer.state.clear()
    moved = {
        n: (before[n] - p.detach()).double().mean().item() for n, p in model.named_parameters()
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    return moved


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def test_a_trainer_freezes_and_scales_and_keeps_ratios_under_a_schedule(run):
    trainer = trainer_of(*run)
    model = trainer.model
    with closing(trainer):
        frozen = {n for n, p in model.named_parameters() if ".eyes." in n}
        optimizers = [o for o in optimizers_of(trainer) if any(
            p is q for g in o.param_groups for p in g["params"] for q in model.parameters()
        )]  # fmt: skip
        assert not {
            n for n, p in model.named_parameters() for o in optimizers for g in o.param_groups
            if n in frozen and any(p is q for q in g["params"])
        }  # fmt: skip
        for factor in (1.0, 0.25):  # as a schedule sets the rates of all groups
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] * factor
            moved = steps_of(model, optimizers)
            rate = moved[
                "policy.heads." + next(n for n in moved if n.startswith("policy.heads."))[13:]
            ]
            assert rate > 0
            for name, step in moved.items():
                scale = 0.0 if name in frozen else 1.0
                if name.startswith("policy.body."):
                    scale = 0.5 if ".linears.1." in name else 0.1
                if name.startswith("policy."):
                    assert step == pytest.approx(scale * rate, rel=0.02, abs=1e-9), name
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer.learn(64, lambda *_: True)
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert not changed & frozen
        assert {n for n in before if n.startswith(("policy.body.", "policy.heads."))} <= changed


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def test_a_model_of_which_nothing_is_left_to_train_is_refused(run):
    name, algorithm, spec, environment, settings = run
    parts = "[policy, critic]" if "critic" in spec else "[policy]"
    text = spec.replace("[policy/eyes]", parts).replace(
        "learning_rate_scale: {policy/body: 0.1, policy/body/linears/1: 0.5}\n", ""
    )
    with pytest.raises(ValueError, match="cannot train this model:") as caught:
        trainer_of(name, algorithm, text, environment, settings)
    assert str(caught.value).splitlines()[-1] == (
        "  all its parameters are frozen, so there is nothing to train; take a part of it out of 'freeze'"
    )


@pytest.mark.parametrize("key", ["freeze: [critic/latent]", "learning_rate_scale: {critic: 0.1}"])
def test_sac_of_torchrl_trains_copies_of_the_critic(key):
    spec = f"version: 1\n{key}\npolicy: {{template: {{}}}}\n" + ACTION[ACTION.index("critic:") :]
    with pytest.raises(ValueError, match="cannot train this model:") as caught:
        trainer_of("torchrl", "sac", spec, BOX, {})
    name, path = key.split(":")[0], "critic/latent" if "latent" in key else "critic"
    assert str(caught.value) == (
        "sac of torchrl cannot train this model:\n"
        f"  it trains copies of the critic, which {name!r} of {path!r} would not reach; leave that out, or use sac of sb3"
    )


def test_an_optimiser_that_would_have_nothing_to_train_is_refused():
    message = "SAC has an optimiser of parameters that are all frozen; take a part of them out of 'freeze'"
    spec = ACTION.replace("[policy/eyes]", "[policy]").replace(
        "learning_rate_scale: {policy/body: 0.1, policy/body/linears/1: 0.5}\n", ""
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        trainer_of("sb3", "sac", spec, BOX, {})


def test_groups_for_an_optimiser_of_ones_own_keep_ratios_under_torchs_schedulers():
    model = composer.compose(STATE, env=CHOICE, seed=0)
    groups = model.parameter_groups(0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    of_body = [["policy.body.linears.0.weight", "policy.body.linears.0.bias"]]
    of_body.append(["policy.body.linears.1.weight", "policy.body.linears.1.bias"])
    assert [[names[id(p)] for p in group["params"]] for group in groups[1:]] == of_body
    assert not any(".eyes." in names[id(p)] for group in groups for p in group["params"])
    optimizer = torch.optim.Adam(groups, eps=1e-5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.0005, 0.0025]
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.0005, 0.0025]


def test_training_begins_with_the_nodes_of_a_checkpoint_that_fit(tmp_path, capsys):
    begin = str(tmp_path / "old.safetensors")
    old = composer.compose(
        SPEC.replace("freeze: [policy/eyes]\n", "") + "critic: {template: {}}\n", env=CHOICE, seed=3
    )
    old.save(begin)
    common = ["--steps", "64", "--set-algorithm", "n_steps=32", "--set-algorithm", "batch_size=32"]
    common += ["--eval-episodes", "1", "--partial"]
    (tmp_path / "new.yaml").write_text(
        STATE.replace("hidden_units: [8, 8]", "hidden_units: [8, 6]") + f"environment: {CHOICE}\n"
    )
    assert main(["train", begin, "--env", "Acrobot-v1", "-o", str(tmp_path / "a"), *common]) == 0
    said = capsys.readouterr().out
    assert "policy.eyes.linears.0.weight is (8, 4) in the file, the model needs (8, 6)" in said
    assert (
        main(
            [
                "train",
                str(tmp_path / "new.yaml"),
                "--weights",
                begin,
                "-o",
                str(tmp_path / "b"),
                *common,
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "policy.body.linears.0.weight (8, 8) fits, but not all of 'policy/body' does" in said
    frozen = composer.load(tmp_path / "b" / "model.safetensors").policy.get_submodule("eyes")
    assert torch.equal(frozen.linears[0].weight, old.policy.get_submodule("eyes").linears[0].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["spec.yaml", "--steps", "8", "-o", "x", "--partial"],
            "--partial needs a checkpoint: as SPEC, or with --weights FILE",
        ),
        (
            ["--resume", "x", "--partial"],
            "a resumed run has its weights; leave out --weights and --partial",
        ),
        (
            [
                "spec.yaml",
                "--steps",
                "8",
                "-o",
                "x",
                "--partial",
                "--weights",
                "o.safetensors",
                "--seeds",
                "1,2",
            ],
            "--partial is for a run with one seed; give --seed N, not --seeds",
        ),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(STATE + f"environment: {CHOICE}\n")
    with pytest.raises(SystemExit):
        main(["train", *options])
    assert message in capsys.readouterr().err


def test_several_seeds_do_not_begin_with_files_of_a_spec(tmp_path):
    composer.compose(STATE, env=CHOICE).save(tmp_path / "old.safetensors")
    (tmp_path / "spec.yaml").write_text(
        STATE + f"environment: {CHOICE}\nweights: {{policy/eyes: old.safetensors}}\n"
    )
    message = (
        "the runs of several seeds begin from the spec alone, without the files of its 'weights'; train them one by "
        "one, with --seed"
    )
    with pytest.raises(TrainingError, match=f"^{message}$"):
        train_seeds(tmp_path / "spec.yaml", tmp_path / "runs", [1, 2], steps=64)


def test_an_agent_of_a_spec_begins_with_its_first_weights(tmp_path):
    old = composer.compose(STATE, env=CHOICE, seed=5)
    old.save(tmp_path / "old.safetensors")
    (tmp_path / "spec.yaml").write_text(STATE + "weights: {policy/eyes: old.safetensors}\n")
    agent = sb3.agent(PPO, tmp_path / "spec.yaml", CHOICE, n_steps=32, batch_size=32, seed=0)
    eyes, theirs = (m.policy.get_submodule("eyes") for m in (agent.policy.model, old))
    assert torch.equal(eyes.linears[0].weight, theirs.linears[0].weight)
    agent.save(tmp_path / "agent.zip")
    (tmp_path / "old.safetensors").unlink()
    again = type(agent).load(tmp_path / "agent.zip")
    assert torch.equal(
        again.policy.model.policy.get_submodule("eyes").linears[0].weight, eyes.linears[0].weight
    )
