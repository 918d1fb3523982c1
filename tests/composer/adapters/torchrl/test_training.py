"""composer train --trainer torchrl: what its algorithms learn, keep, and refuse."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import composer
from composer.adapters.torchrl.training import TorchrlTrainer
from composer.cli.commands import main
from composer.training.evaluation import evaluate, greedy
from composer.training.session import resume
from composer.training.trainer import Task
from tests.helpers.training_runs import ALLOW, CONFIGS, FORGETFUL, SORT, learn

pytestmark = pytest.mark.usefixtures("run_folder")
VALUES_OF_SORT = SORT.partition("critic:")[0]  # of the policy's logits
AIM = """
version: 1
environment: training_envs:Aim-v0
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [32]}
  heads: {in: latent}
critic:
  kind: state_action
  ensemble: 2
  graph:
    both: {block: concat, in: [observation, action/action]}
    latent: {block: dense, in: both, hidden_units: [64]}
"""
ALONE = AIM.replace("  ensemble: 2\n", "")
REMEMBERING = """
version: 1
environment: training_envs:Sign-v0
policy:
  graph: {memory: {block: gru, in: observation, hidden_units: 16}}
  heads: {in: memory}
"""
AIMING = """
version: 1
environment: training_envs:Target-v0
policy:
  graph: {memory: {block: gru, in: observation, hidden_units: 16}}
  heads: {in: memory}
critic:
  kind: state_action
  ensemble: 2
  graph:
    memory: {block: gru, in: observation, hidden_units: 16}
    both: {block: concat, in: [memory, action/action]}
    latent: {block: dense, in: both, hidden_units: [32]}
"""
SETTINGS = {
    "a2c": {"frames_per_batch": 64, "learning_rate": 3e-3, "gamma": 0.5},
    "dqn": {
        "frames_per_batch": 64, "learning_starts": 128, "annealing_num_steps": 1500, "gamma": 0.5,
    },
    "sac": {
        "frames_per_batch": 32, "updates": 8, "learning_starts": 256, "learning_rate": 3e-3,
        "gamma": 0.5, "tau": 0.05,
    },
}  # fmt: skip


def train(spec, algorithm, steps, **options):
    options = {"settings": SETTINGS.get(algorithm, {}), **options}
    return learn(spec, "torchrl", steps, algorithm=algorithm, **options)


def trainer(spec, algorithm, steps=128, seed=0, **settings):
    """A trainer that has made no step; its loop is the caller's."""
    model = composer.compose(spec, allow=ALLOW, seed=seed)
    task = Task(
        spec="", environment=model.spec.environment, algorithm=algorithm, steps=steps, envs=2,
        settings={**SETTINGS[algorithm], **settings},
    )  # fmt: skip
    return TorchrlTrainer(task, model)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


# --- what is learned ---


@pytest.mark.parametrize(
    ("algorithm", "spec", "steps", "least"),
    [
        ("a2c", SORT, 5120, 8.0),  # guessing is worth 3.3
        ("dqn", VALUES_OF_SORT, 2560, 8.5),
        ("sac", AIM, 1536, -1.5),  # guessing costs 6.7
        ("sac", ALONE, 1536, -1.5),
    ],
)
def test_each_algorithm_learns_what_its_checkpoint_does(capsys, algorithm, spec, steps, least):
    outcome = train(spec, algorithm, steps)
    assert outcome.evaluation.mean > least
    assert capsys.readouterr().out == ""
    model = composer.load("run/model.safetensors", allow=ALLOW)
    again = evaluate(greedy(model.policy), outcome.task.environment, 20)
    assert again == outcome.evaluation


@pytest.mark.parametrize("algorithm", ["a2c", "dqn"])
def test_masked_environments_are_learned_without_one_illegal_action(algorithm):
    told = FORGETFUL.replace("StrictRecall", "ToldRecall")  # it raises where an action is illegal
    spec = told if algorithm == "a2c" else told.partition("critic:")[0]
    settings = {**SETTINGS[algorithm], "gamma": 0.9}
    outcome = train(spec, algorithm, 5120, settings=settings)
    assert outcome.evaluation.mean > 0.85


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_a_mask_that_the_spec_does_not_name_holds_to_the_end(algorithm):
    spec = FORGETFUL.replace("StrictRecall", "Unnamed")  # it raises where an action is illegal
    spec = spec.replace("  action_mask: {action: legal}\n", "")
    if algorithm == "dqn":
        spec = spec.partition("critic:")[0]
    outcome = train(spec + "ignore: [legal, action_mask]\n", algorithm, 128, settings={})
    assert len(outcome.evaluation.returns) == 20


@pytest.mark.full
def test_cartpole_is_learned_by_its_logits_as_values():
    settings = {"batch_size": 64, "tau": 0.01}
    outcome = train(
        CONFIGS / "cartpole.yaml", "dqn", 15_000, settings=settings, overrides=["critic=null"]
    )
    assert outcome.evaluation.mean > 100  # chance is worth 22; values swing on the way to 500


@pytest.mark.full
def test_pendulum_is_learned():
    settings = {"learning_rate": 1e-3, "updates": 16, "frames_per_batch": 16}
    outcome = train(CONFIGS / "twin_q.yaml", "sac", 10_000, settings=settings, envs=4)
    assert outcome.evaluation.mean > -250  # of what swings without aim it is less than -1000


@pytest.mark.full
@pytest.mark.parametrize(
    ("algorithm", "spec", "steps", "least"),
    [
        ("dqn", REMEMBERING, 8000, 0.95),  # without memory no more than 0.25 of them is right
        ("sac", AIMING, 6000, -1.2),  # without memory it costs 2.5
    ],
)
def test_what_was_seen_at_the_beginning_of_an_episode_is_remembered(algorithm, spec, steps, least):
    settings = {**SETTINGS[algorithm], "gamma": 0.9, "sequence_length": 8, "burn_in": 2}
    outcome = train(spec, algorithm, steps, settings=settings)
    assert outcome.evaluation.mean > least


@pytest.mark.parametrize(("algorithm", "spec"), [("dqn", REMEMBERING), ("sac", AIMING)])
def test_sequences_of_a_full_buffer_go_on_after_they_were_restored(algorithm, spec):
    settings = {"buffer_size": 100, "learning_starts": 96, "sequence_length": 8, "updates": 1}
    first, second = (trainer(spec, algorithm, seed=seed, **settings) for seed in (0, 1))
    before = weights(first.model)
    first.learn(128, lambda *report: True)
    assert differing(before, weights(first.model)) == list(before)
    kept = first.state()["buffer"]
    assert {value.shape[:2] for value in kept.values()} == {(50, 2)}
    second.restore(first.state(), 128)
    assert differing(weights(first.model), weights(second.model)) == []
    second.learn(192, lambda *report: True)
    later = second.state()["buffer"]
    assert all(torch.equal(later[key][:18], kept[key][32:]) for key in kept)
    for each in (first, second):
        each.close()


LENGTHS = [
    ({"sequence_length": 4, "burn_in": 4}, "burn_in must be smaller than sequence_length, which is 4, got 4: the "
     "steps after it are learned from"),
    ({"sequence_length": 60, "buffer_size": 100}, "sequence_length must be at most 50, the steps of each environment "
     "in a buffer_size of 100 for 2, got 60"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), LENGTHS)
def test_sequences_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trainer(REMEMBERING, "dqn", **settings)


@pytest.mark.parametrize("name", ["sequence_length", "burn_in"])
def test_lengths_of_sequences_without_memory_are_refused(name):
    with pytest.raises(ValueError, match=f"^'{name}' is for models with memory; leave it out$"):
        trainer(VALUES_OF_SORT, "dqn", **{name: 3})


def test_the_critic_of_the_model_and_its_target_are_those_that_were_trained():
    made = trainer(AIM, "sac", learning_starts=16)
    critic = made.model.critic
    before = weights(critic)
    assert before.keys() == weights(critic).keys()
    made.learn(96, lambda *_: True)
    after = weights(critic)
    assert differing(before, after) == list(before)
    names = [name for name in before if not name.startswith("target.")]
    targets = {name: after[f"target.{name}"] for name in names}
    assert differing({name: after[name] for name in names}, targets) == names
    loss = made._algorithm.loss
    for params, holder in (
        (loss.qvalue_network_params, critic.online),
        (loss.target_qvalue_network_params, critic.target.online),
    ):
        stacks = params.get(("module", "weights")).flatten_keys(".")
        for name, stack in stacks.items():
            for index in range(2):
                own = [v for n, v in holder.state_dict().items() if n.endswith(f"{index}.{name}")]
                assert torch.equal(own[0], stack[index])
    made.close()


def test_a_critic_alone_begins_with_the_weights_of_the_spec():
    made = trainer(ALONE, "sac")
    loss = made._algorithm.loss
    own = made.model.critic.online.state_dict()
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        stacks = params.get(("module", "weights")).flatten_keys(".")
        assert all(torch.equal(stack[0], own[name]) for name, stack in stacks.items())
    assert any(
        p is q for p in loss.parameters() for q in loss.qvalue_network_params.values(True, True)
    )
    made.close()


@pytest.mark.parametrize(
    ("algorithm", "spec", "named"),
    [
        ("a2c", SORT, {"loss/policy", "loss/value"}),
        ("dqn", VALUES_OF_SORT, {"loss/value"}),
        ("sac", AIM, {"loss/policy", "loss/value", "loss/alpha", "alpha", "entropy"}),
    ],
)
def test_the_numbers_of_an_update_are_reported(algorithm, spec, named):
    made, reported = trainer(spec, algorithm), []
    made.learn(256, lambda steps, episodes, metrics: reported.append(metrics) or True)
    assert reported[-1].keys() == named | {"learning_rate"}
    assert reported[-1]["learning_rate"] == made._algorithm.settings.learning_rate
    assert (reported[0] is None) == (
        algorithm != "a2c"
    )  # nothing is learned before learning_starts
    made.close()


def test_the_target_entropy_is_of_actions_from_minus_one_to_one():
    for given, expected in (({}, -1 + np.log(3)), ({"target_entropy": -2.0}, -2 + np.log(3))):
        made = trainer(AIM, "sac", **given)
        assert float(made._algorithm.loss.target_entropy) == pytest.approx(expected)
        made.close()


# --- what is kept ---


def test_an_interrupted_run_goes_on_with_its_buffer_and_its_chance(monkeypatch):
    monkeypatch.setattr("training_envs.Interrupting.steps", 0)
    spec = VALUES_OF_SORT.replace("Sort-v0", "Interrupting-v0")
    outcome = train(spec, "dqn", 640, eval_episodes=2)
    assert outcome.evaluation is None
    assert 300 <= outcome.steps < 640
    state = torch.load("run/trainer.pt", weights_only=True)["trainer"]
    assert {len(value) for value in state["buffer"].values()} == {outcome.steps}
    assert state["eps"] == pytest.approx(1 - 0.95 * outcome.steps / 1500, abs=1e-3)
    resumed = resume("run", allow=ALLOW)
    assert resumed.steps == 640
    state = torch.load("run/trainer.pt", weights_only=True)["trainer"]
    assert {len(value) for value in state["buffer"].values()} == {640}
    assert state["eps"] == pytest.approx(1 - 0.95 * 640 / 1500, abs=1e-3)


def test_a_full_buffer_forgets_the_oldest_step_also_after_it_was_restored():
    first, second = (
        trainer(VALUES_OF_SORT, "dqn", seed=seed, buffer_size=100, learning_starts=10**6)
        for seed in (0, 1)
    )
    first.learn(128, lambda *_: True)
    kept = first.state()["buffer"]
    assert {len(value) for value in kept.values()} == {100}
    second.restore(first.state(), 128)
    second.learn(192, lambda *_: True)
    later = second.state()["buffer"]
    assert all(torch.equal(later[key][:36], kept[key][64:]) for key in kept)
    for each in (first, second):
        each.close()


def test_nothing_is_learned_before_learning_starts():
    made = trainer(AIM, "sac", learning_starts=96)
    before = weights(made.model)
    made.learn(64, lambda *_: True)
    assert differing(before, weights(made.model)) == []
    made.learn(96, lambda *_: True)
    assert differing(before, weights(made.model)) != []
    made.close()


# --- what is refused ---

ONE_NETWORK = (
    "dqn learns one network, whose values choose the action: the policy, whose logits they are. "
    "A critic would leave one of the two untrained; leave it out, as --set critic=null does"
)
RULE = "write distribution: squashed_gaussian in its entry of 'distributions'"
STATE = "critic: {kind: state, template: {}}"
SHARING = AIM.replace("  heads:", "  shares: [latent]\n  heads:").replace(
    "[observation, action/action]", "[latent, action/action]"
).replace("    latent: {block: dense, in: both", "    judged: {block: dense, in: both")  # fmt: skip
REFUSED = {
    "dqn with a critic": ("dqn", SORT, [ONE_NETWORK]),
    "dqn of a Box": (
        "dqn", AIM.partition("critic:")[0],
        ["it learns a value for each choice of one Discrete action, got Box(-3.0, 3.0, (1,), float32); "
         f"use ppo or a2c with {STATE}"],
    ),
    "sac with a memory of actions": (
        "sac", AIM.replace("both, hidden_units: [64]", "memory, hidden_units: [64]").replace(
            "    latent: {block: dense, in: memory",
            "    memory: {block: gru, in: both, hidden_units: 4}\n    latent: {block: dense, in: memory",
        ),
        ["the memory of its critic reads the action, but each step is valued with other actions than the one taken; "
         "let the memory read observations, and join the action to what it gives"],
    ),
    "sac of choices": (
        "sac", SORT,
        ["it needs Box actions, but 'action' is Discrete(3); use ppo or a2c"],
    ),
    "sac without bounds and critic": (
        "sac", AIM.partition("critic:")[0] + "distributions: [{action: action, distribution: gaussian}]",
        [f"it needs actions within their bounds, which the gaussian of 'action' leaves; {RULE}",
         "sac needs the value of an action; add a critic such as critic: {kind: state_action, ensemble: 2, template: {}}"],
    ),
    "sac with what is shared": (
        "sac", SHARING,
        ["its loss trains copies of the critic alone, which cannot read 'latent' of the policy; "
         "let the critic read observations instead, or use the trainer sb3"],
    ),
    "sac with normalised values": (
        "sac", AIM.replace("ensemble: 2", "normalize_value: true"),
        ["a replay buffer has no returns, so that 'normalize_value' has nothing to count; leave it out"],
    ),
    "a2c without chances and critic": (
        "a2c", AIM.partition("critic:")[0] + "distributions: [{action: action, distribution: deterministic}]",
        [f"it learns from chances, but 'action' is deterministic; {RULE}",
         f"a2c needs the value of a state; add a critic such as {STATE}"],
    ),
    "ppo of an ensemble": (
        "ppo", SORT.replace("critic: {", "critic: {ensemble: 2, "),
        ["ppo needs the value of a state once, but the critic gives 2; leave out 'ensemble'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "spec", "problems"), REFUSED.values(), ids=REFUSED)
def test_a_spec_that_an_algorithm_cannot_train_is_refused(
    capsys, run_folder, algorithm, spec, problems
):
    Path("agent.yaml").write_text(spec)
    command = ["train", "agent.yaml", "--trainer", "torchrl", "--algorithm", algorithm]
    assert main([*command, "--allow", "training_envs", "--steps", "9", "-o", "run"]) == 1
    lines = "".join(f"\n  {problem}" for problem in problems)
    expected = f"composer train: {algorithm} of torchrl cannot train this model:{lines}\n"
    assert capsys.readouterr() == ("", expected)
    assert [path.name for path in run_folder.iterdir()] == ["agent.yaml"]


def test_settings_of_each_algorithm_are_checked(capsys, run_folder):
    Path("agent.yaml").write_text(AIM)
    command = ["train", "agent.yaml", "--trainer", "torchrl", "--algorithm", "sac", "--steps", "9"]
    given = ["tua=0.1", "gamma=1.5", "updates=0", "target_entropy=low"]
    options = [part for each in given for part in ("--set-algorithm", each)]
    assert main([*command, "--allow", "training_envs", "-o", "run", *options]) == 1
    assert capsys.readouterr().err == (
        "composer train: 'tua' is not a setting of sac; did you mean 'tau'?\n"
        "  'gamma' must be a number between 0 and 1, got 1.5\n"
        "  'updates' must be a positive integer, got 0\n"
        "  'target_entropy' must be a number or null, got 'low'\n"
    )
    assert not Path("run").exists()


def test_environments_in_processes_of_their_own_train_as_those_in_a_row():
    """The same seeds: the same steps, and so the same weights."""
    options = {"envs": 2, "eval_episodes": 2, "device": "cpu"}
    trained = []
    for subprocess in (False, True):
        outcome = train(SORT, "a2c", 128, out=f"run{subprocess}", subprocess=subprocess, **options)
        assert outcome.steps == 128
        trained.append(composer.load(f"run{subprocess}/model.safetensors", allow=ALLOW))
    first, second = map(weights, trained)
    assert differing(first, second) == []
