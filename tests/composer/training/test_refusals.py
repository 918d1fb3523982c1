"""What composer train refuses, in words, and then leaves no folder."""

import json
from pathlib import Path

import gymnasium
import pytest

import composer
from perception_blocks.words import cut
from tests.helpers import fresh
from tests.helpers.paths import ROOT
from tests.helpers.training_runs import CARTPOLE, CONFIGS, SORT, both, learn, run

pytestmark = pytest.mark.usefixtures("run_folder")
BAD_OPTIONS = {
    "steps": (["--steps", "0"], "--steps must be a positive integer, got 0"),
    "several at once": (
        ["--steps", "-5", "--envs", "0", "--eval-episodes", "0", "--seed", "-1", "--trainer", "sb"],
        "--steps must be a positive integer, got -5\n"
        "  --envs must be a positive integer, got 0\n"
        "  --eval-episodes must be a positive integer, got 0\n"
        "  --seed must be an integer of 0 or more, got -1\n"
        "  unknown trainer 'sb'; did you mean 'sb3'?",
    ),
    "algorithm": (
        ["--algorithm", "poo"],
        "trainer 'sb3' has no algorithm 'poo'; did you mean 'ppo'?",
    ),
    "setting": (
        ["--set-algorithm", "gama=0.9", "--set-algorithm", "learning_rate=fast"],
        "'gama' is not a setting of ppo; did you mean 'gamma'?\n"
        "  'learning_rate' must be a positive number, got 'fast'",
    ),
    "numbers that the library takes and fails with": (
        ["--set-algorithm", "n_epochs=0", "--set-algorithm", "gamma=7"],
        "'n_epochs' must be a positive integer, got 0\n"
        "  'gamma' must be a number between 0 and 1, got 7",
    ),
    "numbers that never end or learn nothing": (
        [
            "--algorithm",
            "td3",
            *(
                f"--set-algorithm={text}"
                for text in (
                    "train_freq=0",
                    "gradient_steps=0",
                    "learning_starts=-1",
                    "target_policy_noise=-1",
                    "tau=.nan",
                )
            ),
        ],
        "'train_freq' must be a positive integer, got 0\n"
        "  'gradient_steps' must be a positive integer or -1, got 0\n"
        "  'learning_starts' must be an integer of 0 or more, got -1\n"
        "  'target_policy_noise' must be a number of 0 or more, got -1\n"
        "  'tau' must be a number between 0 and 1, got nan",
    ),
    "device": (
        ["--set-algorithm", "device=cup"],
        "'device' must be 'auto' or a device of torch such as 'cpu', got 'cup'",
    ),
    "no device of PyTorch": (
        ["--device", "gpu"],
        "--device must be a device of PyTorch such as 'cpu' or 'cuda', got 'gpu'",
    ),
    "a device that is not here": (
        ["--device", "cuda", "--threads", "0"],
        "--threads must be a positive integer, got 0\n"
        "  --device is 'cuda', but PyTorch has no cuda devices here; leave it out to train on the CPU",
    ),
    "no argument": (["--env-set", "gravity"], "--env-set takes key=value, got 'gravity'"),
    "setting of torchrl": (
        ["--trainer", "torchrl", "--set-algorithm", "epoch=2", "--set-algorithm", "gamma=2"],
        "'epoch' is not a setting of ppo; did you mean 'epochs'?\n"
        "  'gamma' must be a number between 0 and 1, got 2",
    ),
    "no value": (["--set-algorithm", "gamma"], "--set-algorithm takes key=value, got 'gamma'"),
    "no YAML": (
        ["--set-algorithm", "gamma=[1"],
        "--set-algorithm gamma=[1: a ',' or the closing ']' is missing before this; "
        "the bracket was opened at line 1, column 8",
    ),
    "what the library itself refuses": (
        ["--set-algorithm", "batch_size=1"],
        "PPO of Stable-Baselines3: `batch_size` must be greater than 1. "
        "See https://github.com/DLR-RM/stable-baselines3/issues/440",
    ),
    "algorithm for the spec": (
        ["--algorithm", "sac"],
        "sac cannot train this model:\n"
        "  it needs Box actions, but 'action' is Discrete(2); use ppo or a2c",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_wrong_options_are_answered_in_words_and_leave_no_folder(
    capsys, options, message, run_folder
):
    status, out, err = run(capsys, CARTPOLE, "--steps", "10", "-o", "run", *options)
    assert (status, out, err) == (1, "", f"composer train: {message}\n")
    assert list(run_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "double_dqn", ["--trainer", "torchrl"],
            "ppo of torchrl cannot train this model:\n  ppo needs the value of a state, but the "
            "critic is of kind 'state_action'; give it one such as critic: {kind: state, template: {}}",
        ),
        (
            "wrapped_recurrent", [],
            "ppo cannot train this model:\n  it has memory, which only recurrent_ppo of sb3-contrib "
            "carries from step to step; use recurrent_ppo",
        ),
        (
            "pick_place", ["--allow", "environments"],
            "one policy of one agent is trained here, but the spec is of several steps or agents: "
            "'pick', 'place'",
        ),
        (
            "knights_archers", [],
            "one policy of one agent is trained here, but the spec is of several steps or agents: "
            "'archer_0', 'archer_1', 'knight_0', 'knight_1'; use --trainer composer",
        ),
    ],
)  # fmt: skip
def test_a_spec_that_a_trainer_cannot_train_is_refused(capsys, run_folder, name, options, message):
    spec = CONFIGS / f"{name}.yaml"
    status, out, err = run(capsys, spec, "--steps", "10", "-o", "run", *options)
    assert (status, out, err) == (1, "", f"composer train: {message}\n")
    assert list(run_folder.iterdir()) == []


def test_masks_are_asked_of_an_environment_that_has_them(capsys, run_folder):
    Path("agent.yaml").write_text(SORT)
    options = ["--algorithm", "maskable_ppo", "--allow", "training_envs", "--steps", "10"]
    status, out, err = run(capsys, "agent.yaml", *options, "-o", "run")
    assert (status, out, err) == (
        1,
        "",
        "composer train: maskable_ppo asks the environment for its masks, but "
        "'training_envs:Sort-v0' has no action_masks(); define it there, or use ppo, which applies "
        "the action_mask of the spec\n",
    )
    assert [path.name for path in run_folder.iterdir()] == ["agent.yaml"]


@both
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "mask",
            "the mask of action 'action' (observation 'legal') leaves no legal choice at index (0,); "
            "each row needs a nonzero element",
        ),
        (
            "observation",
            "the logits of action 'action' are NaN or infinite at index (0, 0); "
            "look for NaN in the observations, the state and the weights",
        ),
        (
            "reward",
            "the environment 'training_envs:Broken-reward-v0' gave the reward nan; "
            "a reward must be a finite number",
        ),
    ],
)
def test_an_environment_that_goes_wrong_is_answered_in_words(capsys, trainer, how, message):
    """What was saved before is whole, and its weights are numbers."""
    Path("agent.yaml").write_text(
        SORT.replace("heads: {in: latent}", "heads: {in: latent}\n  action_mask: {action: legal}")
    )
    rollout = "n_steps" if trainer == "sb3" else "frames_per_batch"
    status, _, err = run(
        capsys, "agent.yaml", "--env", f"training_envs:Broken-{how}-v0", "--allow", "training_envs",
        "--trainer", trainer, "--set-algorithm", f"{rollout}=64", "--steps", "128", "-o", "run",
    )  # fmt: skip
    if (how, trainer) == ("observation", "sb3"):  # TorchRL's distributions see no observations
        message += "; the observation 'pair' is nan at index (0, 0)"
    assert (status, err.splitlines()[-1]) == (1, f"composer train: {message}")
    assert "Traceback" not in err
    saved = composer.load("run/model.safetensors", allow=["training_envs"])
    assert all(tensor.isfinite().all() for tensor in saved.parameters())


@both
def test_weights_that_are_no_numbers_are_not_saved(capsys, trainer):
    """DQN draws at random at first, and so learns from observations that the policy never saw."""
    Path("agent.yaml").write_text(SORT.partition("critic:")[0] + "ignore: [legal]\n")
    status, _, err = run(
        capsys, "agent.yaml", "--env", "training_envs:Broken-observation-v0", "--allow", "training_envs",
        "--trainer", trainer, "--algorithm", "dqn", "--set-algorithm", "learning_starts=16",
        "--steps", "64", "-o", "run",
    )  # fmt: skip
    messages = {
        # The first action that is no random one.
        "sb3": "the logits of action 'action' are NaN or infinite at index (0, 0); "
        "look for NaN in the observations, the state and the weights",
        "torchrl": "after 64 steps nothing is saved: 'policy.latent.linears.0.weight' is NaN or infinite; "
        "look for NaN in the observations, or choose smaller settings of the algorithm, such as learning_rate",
    }
    assert (status, err.splitlines()[-1]) == (1, f"composer train: {messages[trainer]}")
    saved = composer.load("run/model.safetensors", allow=["training_envs"])
    assert all(tensor.isfinite().all() for tensor in saved.parameters())


@both
def test_an_episode_longer_than_the_cache_of_a_decoder_ends_a_run_in_a_line(capsys, trainer):
    Path("agent.yaml").write_text(
        "version: 1\nenvironment: Taxi-v4\npolicy:\n  graph:\n"
        "    latent: {block: decoder, in: observation, width: 8, num_layers: 1, num_heads: 2, max_length: 5}\n"
        "  heads: {in: latent}\ncritic: {template: {}}\n"
    )
    algorithm, rollout = {
        "sb3": ("recurrent_ppo", "n_steps"),
        "torchrl": ("ppo", "frames_per_batch"),
    }[trainer]
    status, out, err = run(
        capsys, "agent.yaml", "--trainer", trainer, "--algorithm", algorithm, "--set-algorithm", f"{rollout}=16",
        "--steps", "32", "-o", "run",
    )  # fmt: skip
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == (
        "composer train: block 'decoder' has places for max_length=5 tokens, and this episode has more; raise "
        "'max_length', or say in 'resets' where episodes begin"
    )
    assert "Traceback" not in err


@both
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rate=1e38", "the optimiser takes no step of this size (value cannot be converted to type float "
         "without overflow); choose a lower learning_rate"),
        ("learning_rate=1e30", "training has diverged: 'policy.latent.linears.0.weight' is NaN or infinite; "
         "look for NaN in the observations, or choose smaller settings of the algorithm, such as learning_rate"),
        ("vf_coef=1e38", "training has diverged: 'policy.latent.linears.0.weight' is NaN or infinite; look for "
         "NaN in the observations, or choose smaller settings of the algorithm, such as learning_rate"),
        ("vf_coef=.inf", "'vf_coef' must be a finite number, got inf"),
    ],
)  # fmt: skip
def test_a_setting_that_makes_weights_diverge_ends_a_run_in_a_line(
    capsys, trainer, setting, message
):
    if trainer == "torchrl":
        setting, message = (text.replace("vf_coef", "critic_coeff") for text in (setting, message))
    rollout = "n_steps" if trainer == "sb3" else "frames_per_batch"
    status, _, err = run(
        capsys, CARTPOLE, "--trainer", trainer, "--set-algorithm", f"{rollout}=64", "--set-algorithm", setting,
        "--steps", "192", "-o", "run",
    )  # fmt: skip
    assert (status, err.splitlines()[-1]) == (1, f"composer train: {message}")


def test_another_environment_than_the_checkpoints_is_refused(capsys):
    composer.compose(CARTPOLE, seed=0).save("agent.safetensors")
    command = ["agent.safetensors", "--env", "Acrobot-v1", "--steps", "10", "-o", "run"]
    status, out, err = run(capsys, *command)
    assert (status, out) == (1, "")
    head, *differences = err.splitlines()
    assert head == (
        "composer train: 'agent.safetensors' is a model for other spaces than the environment's:"
    )
    assert len(differences) == 3
    assert differences[-1] == "--partial loads the nodes that fit"
    assert not Path("run").exists()


def test_a_run_whose_environment_has_become_another_is_not_resumed(capsys, monkeypatch):
    learn(SORT, "sb3", 512, eval_episodes=1)
    monkeypatch.setattr("training_envs.Sort.action_space", gymnasium.spaces.Discrete(4))
    command = ["--resume", "run", "--steps", "1024", "--allow", "training_envs"]
    status, out, err = run(capsys, *command)
    assert (status, out) == (1, "")
    assert err == (
        "composer train: 'run/model.safetensors' is a model for other spaces than the "
        "environment's:\n  'action': n is 4, expected 3\n"
    )
    assert json.loads(Path("run/evaluation.json").read_text())["steps"] == 512


def test_an_environment_that_does_not_fit_the_spec_is_a_mistake_in_the_spec(capsys):
    Path("agent.yaml").write_text(SORT)
    status, out, err = run(
        capsys, "agent.yaml", "--allow", "training_envs", "--env", "CartPole-v1", "--steps", "10", "-o", "run"
    )  # fmt: skip
    assert (status, out) == (1, "")
    assert err.splitlines()[0] == (
        "agent.yaml:6:34: 'numbers' reads 'pair', which is neither an input nor a node's output; "
        "there is 'observation', 'latent'"
    )
    assert not Path("run").exists()


def test_what_is_there_is_not_touched(capsys):
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    status, _, err = run(capsys, CARTPOLE, "--steps", "10", "-o", "run")
    message = "'run' is there already; remove it or choose another folder"
    assert (status, err) == (1, f"composer train: {message}\n")
    assert [path.name for path in Path("run").iterdir()] == ["notes.txt"]
    Path("run/run.json").write_text("{}")
    message = (
        "there is a run in 'run' already; continue it with --resume run, or choose another folder"
    )
    assert run(capsys, CARTPOLE, "--steps", "10", "-o", "run")[2] == f"composer train: {message}\n"


def test_a_folder_that_cannot_be_made_is_answered_in_words(capsys):
    Path("file").write_text("")
    status, _, err = run(capsys, CARTPOLE, "--steps", "10", "-o", "file/run")
    assert (status, err) == (1, "composer train: 'file/run' cannot be made: Not a directory\n")


def test_wrong_usage_has_its_own_status(capsys):
    for options, message in (
        (
            [CARTPOLE],
            "give SPEC, --steps N and -o DIR, here or in a --config FILE, or --resume DIR",
        ),
        (["--resume", "run", "-o", "run"], "give -o DIR for a new run, or --resume DIR, not both"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(capsys, *options)
        assert caught.value.code == 2
        assert f"composer train: error: {message}\n" in capsys.readouterr().err


def test_a_run_is_resumed_as_the_one_it_is(capsys):
    learn(SORT, "sb3", 512)
    Path("other.yaml").write_text(
        SORT.replace("[64, 64], activation: tanh}\n  heads", "[8]}\n  heads")
    )
    given = ["--seed", "3", "--trainer", "torchrl", "--env", "CartPole-v1", "--steps", "600"]
    status, _, err = run(
        capsys, "other.yaml", "--resume", "run", "--allow", "training_envs", *given
    )
    assert (status, err) == (
        1,
        "composer train: the run in 'run' is another one; leave out what differs, or begin a new run with -o:\n"
        "  --trainer is 'torchrl' here, but 'sb3' in the run\n"
        "  --seed is 3 here, but 0 in the run\n"
        "  --env is 'CartPole-v1' here, but 'training_envs:Sort-v0' in the run\n"
        "  the spec differs: ~ policy.graph.latent.hidden_units: [64, 64] -> [8]\n"
        "  the spec differs: - policy.graph.latent.activation: 'tanh'\n",
    )
    status, _, err = run(capsys, "--resume", "run", "--steps", "600")
    message = (
        "the environment 'training_envs:Sort-v0' would run code: 'training_envs' is outside the "
        "allowed modules (none); pass allow=['training_envs'] or --allow training_envs if you trust it"
    )
    assert (status, err) == (1, f"{message}\n")
    status, _, err = run(capsys, "--resume", "run", "--allow", "training_envs")
    message = "the run in 'run' has made its 512 steps; to continue, give a larger total: --steps"
    assert (status, err) == (1, f"composer train: {message}\n")
    (Path("run") / "evaluation.json").unlink()  # as if it had been interrupted
    status, _, err = run(capsys, "--resume", "run", "--allow", "training_envs", "--steps", "300")
    assert (status, err) == (1, f"composer train: {message}\n")


def test_a_folder_that_holds_no_run_is_not_resumed(capsys):
    def answer(*options):
        status, _, err = run(capsys, "--resume", "run", *options)
        assert status == 1
        return err.removeprefix("composer train: ").removesuffix("\n")

    assert answer() == "there is no folder 'run' to resume"
    for name in ("a" * 300, "a\0b"):
        status, _, err = run(capsys, "--resume", name)
        assert (status, err) == (
            1,
            f"composer train: there is no folder {cut(name, 200)!r} to resume\n",
        )
    Path("run").mkdir()
    for name in ("rum", "run1", f"{Path.cwd()}/rum"):
        near = str(Path(name).with_name("run"))
        _, _, err = run(capsys, "--resume", name)
        assert (
            err
            == f"composer train: there is no folder {name!r} to resume; did you mean {near!r}?\n"
        )
    assert answer() == "there is no run in 'run': it has no run.json"
    Path("run/run.json").write_text("[1, 2")
    assert answer().startswith("run.json in 'run' cannot be read: ")
    Path("run/run.json").write_text('{"format": "composer-run", "version": 2}')
    assert answer() == "run.json in 'run' cannot be read: it is of another version"
    Path("run").rename("away")
    learn(CARTPOLE, "sb3", 512, eval_episodes=1)
    Path("run/trainer.pt").write_bytes(b"half of it")
    assert answer() == "'run/trainer.pt' is damaged and cannot be resumed"
    Path("run/trainer.pt").unlink()
    assert answer() == "there is no run in 'run': it has no trainer.pt"


@pytest.mark.parametrize(
    ("library", "options", "what", "extra"),
    [
        ("matplotlib", {}, "a training or its evaluation", "train"),
        ("tqdm", {}, "a training", "train"),
        ("stable_baselines3", {}, "trainer 'sb3'", "sb3"),
        ("torchrl", {"trainer": "torchrl"}, "trainer 'torchrl'", "torchrl"),
    ],
)
def test_a_missing_library_names_its_extra_in_python_too(run_folder, library, options, what, extra):
    code = (
        f"import sys; sys.modules[{library!r}] = None\ntry:\n"
        "  from composer.training.session import train\n"
        f"  train({str(CARTPOLE)!r}, 'run', steps=9, **{options!r})\n"
        "except ImportError as error: print(error)"
    )
    done = fresh.run(code, run_folder, [ROOT])
    message = (
        f'{what} needs {library!r}; install it with: pip install "perception-composer[{extra}]"'
    )
    assert (done.stdout, done.stderr) == (f"{message}\n", "")
    assert list(run_folder.iterdir()) == []
