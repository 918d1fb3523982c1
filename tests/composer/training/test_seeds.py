"""composer train with --config and --seeds, composer compare and composer eval."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

import composer
from composer.cli.commands import main
from composer.training.compare import compare
from composer.training.config import KINDS
from composer.training.curve import LearningCurve
from composer.training.judging import judge
from composer.training.seeds import resume_seeds, train_seeds
from composer.training.session import train
from composer.training.trainer import TrainingError
from tests.helpers import counting_trainer
from tests.helpers.counting_trainer import CountingTrainer, worth
from tests.helpers.training_runs import ALLOW, CARTPOLE, SORT, run

COUNT = {"trainer": "counting", "algorithm": "count", "steps": 60, "eval_every": 20}


@pytest.fixture(autouse=True)
def _counting(monkeypatch, run_folder):
    counting_trainer.register()
    monkeypatch.setattr("composer.training.recorder.evaluate", counting_trainer.made_up)
    monkeypatch.setattr(
        LearningCurve, "draw", lambda self, path, title: Path(path).write_bytes(b"-")
    )


def command(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


# --- several seeds ---


def test_several_seeds_have_a_folder_each_and_one_picture(capsys):
    options = ["--trainer", "counting", "--algorithm", "count", "--steps", "60"]
    status, out, err = run(capsys, CARTPOLE, *options, "--seeds", "3,5", "-o", "runs")
    assert (status, err) == (0, "")
    assert out == (
        "seed 3: mean return 3.00\nseed 5: mean return 3.00\n"
        "without exploration: mean return 3.00, std over seeds 0.00, 2 seeds\n"
        "wrote runs: seed-3, ..., curve.csv, curve.png, evaluation.json\n"
    )
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "curve.csv", "curve.png", "evaluation.json", "seed-3", "seed-5", "seeds.json",
    ]  # fmt: skip
    assert Path("runs/curve.csv").read_text().splitlines()[:2] == [
        "step,seeds,mean,std,min,max", "10,2,10.0,0.0,10.0,10.0",
    ]  # fmt: skip
    assert Path("runs/curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("runs/evaluation.json").read_text()) == {
        "seeds": {"3": 3.0, "5": 3.0}, "mean": 3.0, "std": 0.0,
    }  # fmt: skip
    for seed in (3, 5):
        model = composer.load(f"runs/seed-{seed}/model.safetensors")
        assert worth(model, composer.compose(CARTPOLE, seed=seed)) == 60


def test_a_seed_is_trained_as_it_would_be_alone():
    train_seeds(CARTPOLE, "runs", [1, 2], **COUNT)
    train(CARTPOLE, "alone", seed=2, **COUNT)
    for name in ("curve.csv", "evaluations.csv"):
        assert Path("runs/seed-2", name).read_text() == Path("alone", name).read_text()
    first, second = (json.loads(Path(p, "run.json").read_text()) for p in ("runs/seed-2", "alone"))
    assert {**first, "about": 0} == {**second, "about": 0}


def test_interrupted_seeds_go_on_where_they_were(capsys, monkeypatch):
    learn = CountingTrainer.learn

    def interrupted(self, steps, report, phase):
        if self.task.seed == 1 and self.steps == 0:
            self.steps = 10
            signal.raise_signal(signal.SIGINT)
        return learn(self, steps, report, phase)

    monkeypatch.setattr(CountingTrainer, "learn", interrupted)
    options = ["--trainer", "counting", "--algorithm", "count", "--steps", "60"]
    status, out, _ = run(capsys, CARTPOLE, *options, "--seeds", "0,1,2", "-o", "runs")
    assert (status, out) == (
        128 + signal.SIGINT,
        "seed 0: mean return 3.00\ninterrupted after 1 of 3 seeds; it is saved in runs\n"
        "continue with: composer train --resume runs\n",
    )
    status, out, _ = run(capsys, "--resume", "runs")
    assert status == 0
    assert out.startswith("seed 0: mean return 3.00\nseed 1: ")
    assert json.loads(Path("runs/evaluation.json").read_text())["seeds"].keys() == {"0", "1", "2"}
    assert resume_seeds("runs", steps=80).means == {0: 5.0, 1: 5.0, 2: 5.0}
    assert json.loads(Path("runs/seed-2/run.json").read_text())["steps"] == 80


def test_seeds_may_begin_with_a_checkpoint_which_they_keep():
    composer.compose(CARTPOLE, seed=7).save("start.safetensors")
    train_seeds(CARTPOLE, "runs", [0, 1], weights="start.safetensors", **COUNT)
    Path("start.safetensors").unlink()
    start = composer.compose(CARTPOLE, seed=7)
    assert worth(composer.load("runs/seed-1/model.safetensors"), start) == 60
    assert Path("runs/begin.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1,1"], "--seeds must be different ones, 1,000 at most"),
        (["--seeds", "0,-1"], "--seeds must be integers of 0 or more, such as 0,1,2"),
        (["--seeds", "0,1", "--seed", "2"], "give --seed N or --seeds N,N,..., not both"),
        (
            ["--seeds", "0,0", "--env-set", "a", "--set-algorithm", "lr=1", "--envs", "0"],
            "--env-set takes key=value, got 'a'\n"
            "  --seeds must be different ones, 1,000 at most\n"
            "  --envs must be a positive integer, got 0\n"
            "  'lr' is not a setting of count",
        ),
    ],
)
def test_wrong_seeds_are_refused_with_all_else(capsys, run_folder, options, message):
    more = ["--trainer", "counting", "--algorithm", "count", "--steps", "60", "-o", "runs"]
    status, _, err = run(capsys, CARTPOLE, *more, *options)
    assert (status, err) == (1, f"composer train: {message}\n")
    assert list(run_folder.iterdir()) == []


def test_seeds_are_resumed_as_what_they_are():
    train_seeds(CARTPOLE, "runs", [0, 1], **COUNT)
    for given, message in (
        ({"envs": 2}, "  --envs is 2 here, but 1 in the run"),
        (
            {"steps": 60},
            "the runs in 'runs' have 60 steps; to continue, give a larger total: --steps",
        ),
    ):
        with pytest.raises(TrainingError, match=message):
            resume_seeds("runs", **given)
    with pytest.raises(TrainingError, match="there is a run in 'runs' already"):
        train_seeds(CARTPOLE, "runs", [0], **COUNT)


# --- a config ---

CONFIG = """
spec: {spec}
set: {{params.width: 8}}
trainer: counting
algorithm: count
steps: 60
eval_every: 20
env_set: {{max_episode_steps: 9}}
output: run
"""


def test_a_config_has_all_options_and_the_command_line_wins(capsys):
    Path("agent.yaml").write_text(CARTPOLE.read_text())
    Path("run.yaml").write_text(CONFIG.format(spec="agent.yaml"))
    options = ["--steps", "80", "--set", "params.width=16", "--env-set", "sutton_barto_reward=true"]
    status, _, err = run(capsys, "--config", "run.yaml", *options)
    assert (status, err) == (0, "")
    record = json.loads(Path("run/run.json").read_text())
    assert (record["steps"], record["eval_every"], record["trainer"]) == (80, 20, "counting")
    assert record["env_set"] == {"max_episode_steps": 9, "sutton_barto_reward": True}
    assert "[16, 64]" in record["spec"]


def test_a_spec_may_stand_in_the_config_itself(capsys):
    spec = "{version: 1, environment: CartPole-v1, policy: {template: {}}, critic: {template: {}}}"
    Path("run.yaml").write_text(CONFIG.format(spec=spec).replace("set: {params.width: 8}\n", "", 1))
    assert run(capsys, "--config", "run.yaml", "-o", "other")[0] == 0
    assert composer.load("other/model.safetensors").source.data["policy"] == {"template": {}}


def test_the_record_of_a_run_is_a_config(capsys):
    train(CARTPOLE, "run", seed=4, overrides=["params.width=8"], **COUNT)
    assert run(capsys, "--config", "run/run.json", "-o", "again")[0] == 0
    assert run(capsys, "--config", "run/run.json", "-o", "more", "--seeds", "0,1")[0] == 0
    first, second = (json.loads(Path(name, "run.json").read_text()) for name in ("run", "again"))
    assert {**first, "about": 0} == {**second, "about": 0}
    assert run(capsys, "--config", "more/seeds.json", "-o", "seeds")[0] == 0
    assert Path("seeds/seed-1/model.safetensors").exists()


def test_every_error_in_a_config_is_told_at_its_place(capsys, run_folder):
    Path("run.yaml").write_text(
        "spec: nothing.yaml\nstep: 5\nenvs: few\nseeds: [0, x]\nset: 3\nallow: [os]\nvideo: 1\n"
    )
    status, _, err = run(capsys, "--config", "run.yaml", "-o", "run")
    assert (status, err) == (
        1,
        "run.yaml:1:7: there is no file 'nothing.yaml' beside the config, or in the current folder\n"
        "run.yaml:2:1: 'step' is not a key of a config; did you mean 'steps'?\n"
        "run.yaml:3:7: 'envs' must be a whole number, got the text 'few'\n"
        "run.yaml:4:8: 'seeds' must be a list of whole numbers, got a list\n"
        "run.yaml:5:6: 'set' must be a mapping, or a list of texts such as params.width=128, got the number 3\n"
        "run.yaml:6:1: 'allow' is for whoever starts the run, not for a file; give --allow\n"
        "run.yaml:7:8: 'video' must be true or false, got the number 1\n",
    )
    assert [path.name for path in run_folder.iterdir()] == ["run.yaml"]


def test_a_config_names_no_file_elsewhere(capsys, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "agent.yaml"
    elsewhere.write_text(CARTPOLE.read_text())
    Path("run.yaml").write_text(CONFIG.format(spec=elsewhere))
    status, _, err = run(capsys, "--config", "run.yaml")
    assert status == 1
    assert "is neither beside nor below the config; pass allow=[" in err
    assert run(capsys, "--config", "run.yaml", "--allow", f"{elsewhere.parent}/")[0] == 0


def test_a_config_imports_no_module(capsys, monkeypatch):
    """Whatever it names, and in whatever form it comes; the command line may say otherwise."""
    Path("agent.yaml").write_text(CARTPOLE.read_text())
    train(CARTPOLE, "done", **COUNT)
    record = json.loads(Path("done/run.json").read_text())
    Path("run.json").write_text(json.dumps({**record, "environment": "this:X-v0"}))
    text = CONFIG.format(spec="agent.yaml")
    Path("run.yaml").write_text(f"{text}env: this:X-v0\n")
    Path("set.yaml").write_text(text.replace("params.width: 8", "environment: this:X-v0"))
    monkeypatch.delitem(sys.modules, "this", raising=False)
    problem = (
        "the environment 'this:X-v0' would run code: 'this' is outside the allowed modules (none); "
        "pass allow=['this'] or --allow this if you trust it\n"
    )
    for name, place in (
        ("run.yaml", "run.yaml:10:6: "),
        ("run.json", ""),
        ("set.yaml", "--set environment: "),
    ):
        assert run(capsys, "--config", name, "-o", "new") == (1, "", place + problem)
        assert "this" not in sys.modules
        if name != "set.yaml":
            assert run(capsys, "--config", name, "-o", f"of {name}", "--env", "CartPole-v1")[0] == 0


def test_a_config_writes_nowhere_else(capsys, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Path("agent.yaml").write_text(CARTPOLE.read_text())
    Path("run.yaml").write_text(
        CONFIG.format(spec="agent.yaml").replace("output: run", f"output: {elsewhere}/run")
    )
    status, _, err = run(capsys, "--config", "run.yaml")
    assert (status, err) == (
        1,
        f"run.yaml:9:9: '{elsewhere}/run' is outside of the current folder, and of the config's; if it may be there, "
        f"give -o {elsewhere}/run\n",
    )
    assert not (elsewhere / "run").exists()
    assert run(capsys, "--config", "run.yaml", "-o", f"{elsewhere}/run")[0] == 0


def test_the_options_of_a_config_are_those_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    named = {"settings": "--set-algorithm", "spec": "SPEC"}
    for key in KINDS:
        assert named.get(key, f"--{key.replace('_', '-')}") in shown
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", "a.yaml", "--resume", "run"])
    assert caught.value.code == 2
    assert "give --config FILE for a new run, or --resume DIR, not both" in capsys.readouterr().err


# --- compare and eval ---


def test_runs_are_compared_with_the_best_first(capsys):
    train(CARTPOLE, "runs/short", **{**COUNT, "steps": 20})
    train_seeds(CARTPOLE, "runs/long", [0, 1], overrides=["params.width=8"], **COUNT)
    status, out, err = command(capsys, "compare", "runs")
    assert (status, err) == (0, "")
    head, *rows = [line.split() for line in out.partition("\n\n")[0].splitlines()]
    assert head[:4] == ["run", "spec", "trainer", "algorithm"]
    assert [row[0] for row in rows] == ["runs/long/seed-0", "runs/long/seed-1", "runs/short"]
    assert [row[2:9] for row in rows] == [
        ["counting", "count", "60", "35.00", "3.00", "5.00", "40"],
        ["counting", "count", "60", "35.00", "3.00", "5.00", "40"],
        ["counting", "count", "20", "15.00", "1.00", "1.00", "20"],
    ]
    assert out.partition("\n\n")[2] == (
        "what differs:\n"
        "  steps:\n    60: runs/long/seed-0, runs/long/seed-1\n    20: runs/short\n"
        "  seed:\n    0: runs/long/seed-0, runs/short\n    1: runs/long/seed-1\n"
        "  spec:\n"
        "    runs/short: ~ policy.graph.latent.hidden_units: [8, 64] -> [64, 64]\n"
        "    runs/short: ~ critic.graph.latent.hidden_units: [8, 64] -> [64, 64]\n"
    )
    assert len(compare(["runs/long", "runs/long/seed-1"]).runs) == 2
    _, out, _ = command(capsys, "compare", "--json", "runs/short")
    record = json.loads(out)
    assert record["differs"] == {}
    assert record["runs"][0]["best"] == 1.0
    assert record["runs"][0]["steps_per_second"] > 0


def test_a_folder_without_runs_cannot_be_compared(capsys):
    Path("empty").mkdir()
    for name, message in (
        ("empty", "there is no run of composer train in 'empty'"),
        ("none", "there is no folder 'none'"),
        ("emty", "there is no folder 'emty'; did you mean 'empty'?"),
    ):
        assert command(capsys, "compare", name)[::2] == (1, f"composer compare: {message}\n")


TABLES = {
    "step\nnan\n": "row 1 has no number of steps",
    "step\n8\n1e400\n": "row 2 has no number of steps",
    "seconds\n1\n": "row 1 has no number of steps",
    "step,return_mean\n8,inf\n": "row 1 has inf as 'return_mean'",
    "step,steps_per_second\n8,nan\n": "row 1 has nan as 'steps_per_second'",
    "step\nabc\n": "could not convert string to float: 'abc'",
    "step\n1,2\n": "float() argument must be a string or a real number, not 'list'",
    "step\n" + "1" * 200_000: "field larger than field limit (131072)",
}


@pytest.mark.parametrize(("text", "message"), TABLES.items())
@pytest.mark.parametrize("name", ["curve", "progress", "evaluations"])
def test_tables_without_numbers_are_not_compared(capsys, name, text, message):
    train(CARTPOLE, "run", **COUNT)
    Path(f"run/{name}.csv").write_text(text)
    text = f"composer compare: {name}.csv in 'run' cannot be read: {message}\n"
    assert command(capsys, "compare", "run") == (1, "", text)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 10**400, -1, "x"])
def test_a_time_that_is_none_is_not_shown(seconds):
    train(CARTPOLE, "run", **COUNT)
    record = json.loads(Path("run/run.json").read_text())
    record["about"]["seconds"] = seconds
    Path("run/run.json").write_text(json.dumps(record))
    comparison = compare(["run"])
    assert comparison.runs[0].seconds is None
    assert str(comparison).splitlines()[1].split()[-2] == "-"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(capsys):
    train_seeds(CARTPOLE, "runs", [0], **COUNT)
    Path("runs/seed-0/curve.csv").unlink()
    os.mkfifo("runs/seed-0/curve.csv")
    reason = "curve.csv in 'runs/seed-0' cannot be read: it is not a regular file"
    for arguments in (["compare", "runs"], ["train", "--resume", "runs"]):
        line = f"composer {arguments[0]}: {reason}\n"
        assert command(capsys, *arguments) == (1, "", line)


CURVES = {
    "a\n1,2\n": "it holds no learning curve",
    "a\nnan,1,1,1,1,1,1\n": "it holds no learning curve",
    "a\n1,1,1,1,1,inf,1\n": "it holds no learning curve",
    "a\n1,1,1,1,1,1,1,1,1\n": "it holds no learning curve",
    "a\n1e30,1,1,1,1,1,1\n": "its learning curve counts backwards",
    "a\n9,1,1,1,1,1,1\n2,1,1,1,1,1,1\n": "its learning curve counts backwards",
    "a\n9,0,1,1,1,1,1\n": "its learning curve has rows without episodes",
}


@pytest.mark.parametrize(("text", "message"), CURVES.items())
def test_a_curve_of_a_seed_that_cannot_be_read_is_told(text, message):
    train_seeds(CARTPOLE, "runs", [0], **COUNT)
    Path("runs/seed-0/curve.csv").write_text(text)
    with pytest.raises(TrainingError) as caught:
        resume_seeds("runs")
    assert str(caught.value) == f"curve.csv in 'runs/seed-0' cannot be read: {message}"


def test_a_run_is_evaluated_with_its_best_model_as_it_was_trained(capsys):
    train(CARTPOLE, "run", env_set={"max_episode_steps": 9}, **COUNT)
    evaluation = judge("run", episodes=3)
    assert evaluation.lengths == (9, 9, 9) or max(evaluation.lengths) <= 9
    assert judge("run/best.safetensors", episodes=3, env_set={"max_episode_steps": 9}) == evaluation
    assert command(capsys, "eval", "run", "--episodes", "3")[:2] == (0, f"{evaluation}\n")
    _, out, _ = command(capsys, "eval", "run", "--episodes", "3", "--json")
    assert json.loads(out)["returns"] == list(evaluation.returns)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of imageio_ffmpeg
def test_an_evaluation_is_recorded(capsys):
    import imageio_ffmpeg

    composer.compose(CARTPOLE, seed=0).save("agent.safetensors")
    options = ["--episodes", "2", "--env-set", "max_episode_steps=9", "--record", "films/first"]
    status, out, err = command(capsys, "eval", "agent.safetensors", *options)
    assert (status, err) == (0, "")
    assert out.endswith(", 2 episodes\nwrote films/first/episode-0.mp4\n")
    frames = imageio_ffmpeg.read_frames("films/first/episode-0.mp4")
    assert next(frames)["size"] == (600, 400)
    length = json.loads(command(capsys, "eval", "agent.safetensors", *options, "--json")[1])[
        "lengths"
    ][0]
    assert sum(1 for _ in frames) == length + 1
    frames.close()
    Path("films/file").touch()
    options = [*options[:-1], "films/file"]
    status, _, err = command(capsys, "eval", "agent.safetensors", *options)
    assert (status, err) == (1, "composer eval: --record: [Errno 17] File exists: 'films/file'\n")


def test_what_cannot_be_filmed_is_told_before_an_episode(capsys, run_folder):
    composer.compose(SORT, seed=0, allow=ALLOW).save("agent.safetensors")
    options = ["--allow", "training_envs", "--record", "films"]
    status, out, err = command(capsys, "eval", "agent.safetensors", *options)
    assert (status, out) == (1, "")
    assert err.startswith(
        "composer eval: --record: the environment 'training_envs:Sort-v0' gives no pictures: "
    )
    assert not Path("films").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--episodes", "0", "--seed", "-1"],
         "composer eval: --episodes must be a positive integer, got 0\n"
         "  --seed must be an integer of 0 or more, got -1"),
        (["--env-set", "x"], "composer eval: --env-set takes key=value, got 'x'"),
        (["--env", "MountainCar-v0"],
         "composer eval: the model is for other spaces than those of 'MountainCar-v0':\n"),
        (["--env", "my_envs:X-v0"], "the environment 'my_envs:X-v0' would run code"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_told_in_words(capsys, options, message):
    composer.compose(CARTPOLE, seed=0).save("agent.safetensors")
    status, out, err = command(capsys, "eval", "agent.safetensors", *options)
    assert (status, out) == (1, "")
    assert err.startswith(message)


def test_the_folder_of_a_run_stands_for_its_best_model(capsys):
    train(CARTPOLE, "run", **COUNT)
    assert command(capsys, "check", "run")[1].startswith("run/best.safetensors: good; ")
    assert command(capsys, "show", "run")[0] == 0
    assert command(capsys, "diff", "run", "run/model.safetensors")[1] == "no differences\n"
    assert command(capsys, "draw", "run", "-o", "run.dot")[:2] == (0, "wrote run.dot\n")
    assert "linear_output" in Path("run.dot").read_text()
    _, out, _ = command(capsys, "export", "run", "-o", "run.pt2")
    assert out.endswith("wrote run.pt2\n")
    assert "initial" not in out  # the weights are the trained ones
    options = ["--trainer", "counting", "--algorithm", "count", "--steps", "20"]
    assert command(capsys, "train", "run", *options, "-o", "again")[0] == 0
    best, again = (composer.load(f"{name}.safetensors") for name in ("run/best", "again/model"))
    assert worth(again, best) == 20
    train_seeds(CARTPOLE, "runs", [0, 1], **COUNT)
    message = "'runs' holds runs with several seeds; name one: runs/seed-0"
    assert command(capsys, "show", "runs")[::2] == (1, f"composer show: {message}\n")
