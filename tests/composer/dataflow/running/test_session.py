"""A run by name, by file or from Python: saved whole, resumed to the same losses, refused in a line."""

import csv
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import composer
from composer.cli.commands import main
from composer.dataflow import (
    DATASETS,
    INTERFACES,
    Interface,
    RunError,
    read_experiment,
    register_experiment,
    run,
)
from composer.dataflow.calls.experiment import EXPERIMENTS
from composer.dataflow.calls.experiments import OURS, QUICKSTARTS
from composer.dataflow.running.local import LocalRunner
from composer.dataflow.running.run_folder import RunFolder
from composer.dataflow.running.schedule import WorkerDiedError
from composer.errors import SpecError
from composer.training.trainer import TrainingError
from perception_blocks.registry import MissingExtraError
from tests.helpers import ray_interfaces as ray_interfaces  # registered before any test
from tests.helpers.experiments import registered
from tests.helpers.paths import CONFIGS

SHORT = ["run.iterations=2", "data.batch_size=4"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(capsys, *arguments):
    """The exit status, and what was printed."""
    status = main(["run", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


# --- experiments by name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_a_quickstart_runs_as_it_is(name):
    log = run(name, SHORT)
    assert len(log.rows) == 2
    assert log.names
    assert log.folder is None


def test_a_quickstart_reads_its_own_files_whatever_the_current_folder_has():
    wanted = run("sft", SHORT).rows
    for name in ("answers.jsonl", "tokens.txt"):
        Path(name).write_text("no file of ours\n")
    assert run("sft", [SHORT[1], "run.iterations=1"], out="run").rows == wanted[:1]
    assert run(resume="run", overrides=[SHORT[0]]).rows == wanted
    with pytest.raises(SpecError, match=r"^answers\.jsonl:1:1: this is no JSON"):
        run("sft", [*SHORT, "data.path=answers.jsonl"])


class One(Interface):
    """A reward of 1 for each sequence."""

    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def inference(self, model, sample, context):
        return {"rewards": [1.0] * len(sample.lengths("ids"))}


def test_the_critic_of_ppo_settles_at_the_reward():
    with registered(INTERFACES, {"one": One}):
        log = run("ppo", ["calls.rew_inf.with=one", "run.iterations=12"])
    assert log.mean("actor_gen/no_eos") > 0.7  # most are cut off
    assert max(log.numbers("critic_train/return")) < 1.1
    assert log.numbers("critic_train/loss")[-1] < 0.05


def test_generated_texts_are_written():
    run("generation", SHORT)
    (first, second) = sorted(Path("texts").iterdir())
    assert [first.name, second.name] == ["00000000.jsonl", "00000001.jsonl"]
    log = run("generation", SHORT, out="runs/texts")
    assert "texts" in log.files
    run("generation", [*SHORT, "calls.write.settings={folder: mine}"], out="runs/elsewhere")
    for folder in ("runs/texts/texts", "mine"):
        assert [Path(folder, file.name).read_text() for file in (first, second)] == [
            file.read_text() for file in (first, second)
        ]
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert len(rows) == 4
    assert all(set(row) == {"prompt", "completion"} and row["prompt"] for row in rows)


@pytest.mark.parametrize("verb", ["check", "run"])
def test_the_settings_of_other_systems_are_known_of_ours_alone(capsys, monkeypatch, verb):
    for part in ("_entries", "_names"):
        monkeypatch.setattr(EXPERIMENTS, part, dict(getattr(EXPERIMENTS, part)))
    register_experiment("mine-alone", {"extends": "sft"})
    assert main([verb, "mine-alone", "--set", "mine-alone.lr=1"]) == 1
    assert capsys.readouterr().err == (
        "--set mine-alone.lr=1: there is no 'mine-alone' in the spec; its keys are 'version', 'params', 'models', "
        "'data', 'calls', 'run'; set a new one whole: mine-alone={lr: ...}\n"
    )


def test_texts_are_written_where_the_caller_lets_them(tmp_path, capsys):
    texts = "calls.write={do: evaluate, with: write_texts, reads: [ids, prompt_mask], settings: {folder: %s}}"
    elsewhere = tmp_path.parent / f"{tmp_path.name} elsewhere"
    os.symlink(elsewhere, "link")
    entry = os.path.join(elsewhere, "")
    for folder in (elsewhere, f"../{elsewhere.name}", "link"):
        status, _, said = command(capsys, "generation", *SHORT, texts % folder)
        assert status == 1
        assert said.endswith(
            f": interface 'write_texts' cannot be made: 'folder': {str(folder)!r} is not below the current folder; pass "
            f"allow=[{entry!r}] or --allow '{entry}' if the experiment may write there\n"
        )
        assert not elsewhere.exists()
    assert len(run("generation", [*SHORT, texts % elsewhere], [entry]).rows) == 2
    assert sorted(file.name for file in elsewhere.iterdir()) == ["00000000.jsonl", "00000001.jsonl"]


def test_texts_are_not_written_through_a_link(tmp_path, capsys):
    Path("texts").mkdir()
    Path("mine.txt").write_text("mine")
    os.symlink("../mine.txt", "texts/00000001.jsonl")
    status, _, said = command(capsys, "generation", *SHORT)
    assert status == 1
    assert said.endswith("'texts/00000001.jsonl' is a link that leads elsewhere; remove it\n")
    assert Path("mine.txt").read_text() == "mine"


def test_the_settings_of_other_systems_are_params(capsys):
    log = run("ppo", [*SHORT, "ppo.kl_ctl=0.25", ("ppo.gen.top_p", 0.5), ("trial_name", "b")])
    assert log.rows[0]["actor_train/kl_ctl"] == 0.25
    assert log.folder == Path("runs/ppo/b")
    status, out, _ = command(
        capsys, "ppo", "experiment_name=mine", "trial_name=first", *SHORT, "ppo.max_new_tokens=2"
    )
    assert status == 0
    assert "wrote runs/mine/first: " in out
    assert Path("runs/mine/first/run.json").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ppo.kl_ctrl=1", "--set ppo.kl_ctrl=1: 'ppo.kl_ctrl' is no setting of the experiment 'ppo'; did you mean 'kl_ctl'?"),
        ("ppo.actor.lr=1", "--set ppo.actor.lr=1: 'ppo.actor.lr' is no setting of the experiment 'ppo'; its settings, "
         "after 'ppo.', are 'kl_ctl', 'adaptive_kl_ctl', 'discount', 'gae_lambda', 'eps_clip', 'value_eps_clip', "),
        ("trail_name=x", "--set trail_name=x: 'trail_name' is not a key; did you mean 'trial_name'?"),
        ("models.actor.lrr=1", "'lrr' is not a key of a model; did you mean 'lr'?"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_known_gets_a_near_name(setting, message):
    with pytest.raises(SpecError) as error:
        run("ppo", [setting])
    assert message in str(error.value)


def test_a_quickstart_reads_a_file_of_the_current_folder():
    Path("mine.jsonl").write_text('{"prompt": "the big dog"}\n' * 1)
    log = run("generation", ["run.iterations=1", "data.path=mine.jsonl", "data.batch_size=1"])
    assert log.rows[0]["write/texts"] == 1


class Words(Interface):
    """A reward of a user's own: the share of good words."""

    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def inference(self, model, sample, context):
        texts = context.tokenizer.batch_decode([ids.tolist() for ids in sample.sequences("ids")])
        context.log("calls", 1)
        return {
            "rewards": [sum(word in ("happy", "kind") for word in t.split()) / 5 for t in texts]
        }


def test_an_experiment_is_subclassed_and_its_reward_swapped(registries, monkeypatch):
    """As one registers a class with the reward, and an experiment that extends another."""

    for part in ("_entries", "_names"):
        monkeypatch.setattr(EXPERIMENTS, part, dict(getattr(EXPERIMENTS, part)))
    INTERFACES.register("good_words", Words)

    class WithWords:
        reward = "good_words"

        def spec(self):
            return {
                "extends": "ppo",
                "calls": {"rew_inf": {"with": self.reward}},
                "run": {"iterations": 2},
            }

    class Shorter(WithWords):
        def spec(self):
            return super().spec() | {"run": {"iterations": 1}}

    register_experiment("my-ppo", WithWords)
    register_experiment("my-short-ppo", Shorter)
    log, short = run("my-ppo"), run("my-short-ppo")
    assert [len(log.rows), len(short.rows)] == [2, 1]
    assert log.rows[0]["rew_inf/calls"] == 1
    assert log.rows[0] == short.rows[0]
    assert run("ppo", ["calls.rew_inf.with=good_words", "run.iterations=1"]).rows == short.rows


def test_two_specs_do_not_share_a_name(monkeypatch):
    for part in ("_entries", "_names"):
        monkeypatch.setattr(EXPERIMENTS, part, dict(getattr(EXPERIMENTS, part)))
    register_experiment("mine", {"extends": "sft"})
    with pytest.raises(ValueError, match=r"the experiment name 'mine' of .* is taken by"):
        register_experiment("mine", {"extends": "rw"})
    register_experiment("mine", {"extends": "rw"}, replace=True)
    assert "reward" in read_experiment("mine").models


# --- a run that is saved ----------------------------------------------------------------------------------------------

LONGER = [
    "run.iterations=4",
    "data.batch_size=4",
    "params.value_norm=true",
    "params.adaptive_kl_ctl=true",
]
HOOK = [("hooks", [{"after": "actor_train", "from": "actor", "to": "ref", "eta": 0.25}])]


@pytest.fixture(scope="module")
def uninterrupted():
    """The rows of four iterations."""
    return run("ppo", [*LONGER, *HOOK]).rows


def test_a_resumed_run_has_the_losses_of_one_that_was_not_interrupted(uninterrupted):
    run("ppo", [*LONGER, *HOOK, "run.iterations=2"], out="run")
    log = run(resume="run", overrides=["run.iterations=4"])
    assert log.rows == uninterrupted
    rows = list(csv.DictReader(Path("run/log.csv").read_text().splitlines()))
    assert [float(row["actor_train/loss"]) for row in rows] == log.numbers("actor_train/loss")
    assert {path.name for path in Path("run").iterdir()} == {
        "run.json", "experiment.yaml", "log.csv", "curve.png", "checkpoint-00000004",
        "actor.safetensors", "critic.safetensors", "ref.safetensors",
    }  # fmt: skip
    model = composer.load("run/actor.safetensors")
    assert sum(p.numel() for p in model.policy.parameters()) > 1000
    with pytest.raises(RunError) as error:
        run(resume="run")
    assert str(error.value) == (
        "the run in 'run' has made its 4 iterations; to go on, give a larger number: run.iterations=8"
    )


def killed_while_saving(given, iteration):
    """Run in a child, which is killed when all models of a checkpoint are written, but the checkpoint is not whole."""
    save = RunFolder.save

    def die(folder):
        assert list(Path(folder).iterdir())
        os.kill(os.getpid(), signal.SIGKILL)

    def save_or_die(self, log, models):
        dies = len(log.rows) == iteration
        save(self, log, lambda folder: (models(folder), die(folder)) if dies else models(folder))

    child = os.fork()
    if not child:
        try:
            RunFolder.save = save_or_die
            run("ppo", given, out="run")
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_run_that_is_killed_while_it_saves_goes_on_to_the_same_losses(uninterrupted):
    assert killed_while_saving([*LONGER, *HOOK, "run.save_every=1"], 3) == -signal.SIGKILL
    assert sorted(path.name for path in Path("run").glob("checkpoint*")) == ["checkpoint-00000002"]
    assert run(resume="run").rows == uninterrupted
    assert not list(Path("run").glob(".composer*"))


class Dying(LocalRunner):
    """As one on Ray, a process of which has ended."""

    def start(self, call, iteration, values):
        if iteration == 2:
            raise WorkerDiedError("the call 'train' in iteration 2: its process has ended")
        return super().start(call, iteration, values)


@pytest.mark.parametrize("saves", [True, False])
def test_a_run_whose_process_ended_says_how_to_go_on(monkeypatch, capsys, saves):
    alone = run("sft", ["run.iterations=4"]).rows
    with monkeypatch.context() as patched:
        patched.setattr("composer.dataflow.running.session.LocalRunner", Dying)
        given = ["run.iterations=4", "run.save_every=1", *(["-o", "run"] if saves else [])]
        status, out, err = command(capsys, "sft", *given)
    assert (status, out) == (1, "")
    way_out = (
        "go on from the last checkpoint: composer run --resume run"
        if saves
        else "with a folder (-o DIR) a run can be resumed"
    )
    assert err == (
        f"composer run: the call 'train' in iteration 2: its process has ended; {way_out}\n"
    )
    if saves:
        assert run(resume="run").rows == alone


def test_the_log_is_written_as_events_too(capfd):
    assert command(capfd, "sft", "run.iterations=2", "-o", "run", "--tensorboard")[0] == 0
    log = run(resume="run", overrides=["run.iterations=3"], tensorboard=True)
    events = EventAccumulator("run/tensorboard").Reload()
    assert set(events.Tags()["scalars"]) == set(log.names)
    (loss,) = (name for name in log.names if name.endswith("/loss"))
    written = [(each.step, each.value) for each in events.Scalars(loss)]
    assert written == [(i + 1, pytest.approx(v)) for i, v in enumerate(log.numbers(loss))]
    status, _, err = command(capfd, "sft", "run.iterations=2", "--tensorboard")
    message = "event files are written into the folder of the run; give one: -o DIR"
    assert (status, err) == (1, f"composer run: {message}\n")


def test_ctrl_c_saves_the_run_and_says_how_to_go_on(capfd, monkeypatch):
    sends = iter([False, True])

    def interrupt(self, done):
        if next(sends):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr("composer.training.progress.ProgressBar.show", interrupt)
        status, out, err = command(capfd, "sft", "run.iterations=50", "-o", "run")
    assert status == 130
    assert "SIGINT received: the run stops when the current step (iteration 1) is complete" in err
    assert out == (
        "interrupted after 2 iterations; it is saved in run\ncontinue with: composer run --resume run\n"
    )
    assert (
        run(resume="run", overrides=["run.iterations=3"]).rows
        == run("sft", ["run.iterations=3"]).rows
    )


@pytest.mark.parametrize(
    "change", ["data.batch_size=2", "run.seed=1", "run=3", "models.actor.lr=1"]
)
def test_a_resumed_run_keeps_its_experiment(change):
    run("sft", SHORT, out="run")
    with pytest.raises(SpecError) as error:
        run(resume="run", overrides=[change])
    key = change.partition("=")[0]
    assert str(error.value).startswith(
        f"--set {change}: a run goes on with its own experiment, so {key!r} stays as it is"
    )


def test_a_run_reads_only_files_that_the_caller_lets_it_read(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("answers.jsonl", "tokens.txt"):
        (data / name).write_text((QUICKSTARTS / name).read_text())
    (data / "mine.yaml").write_text("extends: sft\n")
    run(data / "mine.yaml", SHORT, out="run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(RunError) as error:
        run(resume="../run", overrides=["run.iterations=3"])
    assert str(error.value) == (
        f"the run in '../run' reads files in {str(data)!r}, which is neither the current folder nor below it; pass "
        f"allow=['{data}/'] or --allow {data}/ if it may"
    )
    assert len(run(resume="../run", overrides=["run.iterations=3"], allow=[f"{data}/"]).rows) == 3


def test_weights_of_a_damaged_checkpoint_are_refused_in_a_line(capsys):
    run("sft", SHORT, out="run")
    (file,) = Path("run").glob("checkpoint*/actor/shard*.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    status, _, err = command(capsys, "--resume", "run", "run.iterations=3")
    assert status == 1
    assert err.startswith("composer run: the model 'actor': ")
    assert "is damaged" in err
    assert len(err.splitlines()) == 1


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_runs_saves_and_says_what_it_wrote(capsys):
    status, out, err = command(capsys, "sft", "run.iterations=2", "-o", "run", "data.batch_size=4")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "ran 2 iterations"
    assert lines[1].startswith("  train/loss: ")
    assert lines[-1] == (
        "wrote run: actor.safetensors, checkpoint-00000002, curve.png, experiment.yaml, log.csv, run.json"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppoo"], "there is no file 'ppoo'; unknown experiment 'ppoo'; did you mean 'ppo'?"),
        (["sft", "run.iteratoins=3"], "'iteratoins' is not a setting of 'run'; did you mean 'iterations'?"),
        (["sft", "--address", "here", "--runner", "local"], "an address is that of a Ray cluster; give the runner 'ray' too"),
        (["sft", "more"], "--set more: lacks a '='; write key=value"),
        (["sft", "-o", "there"], "'there' is there already; remove it or choose another folder"),
        (["--resume", "none"], "there is no folder 'none' to resume"),
        (["--resume", "there"], "there is no run in 'there': it has no run.json"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_and_the_status_1(capsys, arguments, message):
    Path("there").mkdir()
    status, out, err = command(capsys, *arguments)
    assert (status, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["there"]


@pytest.mark.parametrize("arguments", [[], ["sft", "-x"], ["--resume", "a", "-o", "b"], ["a=b"]])
def test_wrong_usage_has_the_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        main(["run", *arguments])
    assert error.value.code == 2


def test_an_interface_that_fails_is_told_with_its_call_and_place(capsys):
    Path("mine.yaml").write_text("extends: ppo\ncalls:\n  rew_inf: {with: fails}\n")
    status, _, err = command(capsys, "mine.yaml", *SHORT, "--allow", "tests.helpers.ray_interfaces")
    assert status == 1
    assert err == (
        "mine.yaml:3:12: call 'rew_inf' in iteration 0: ZeroDivisionError: nothing to divide by (--traceback shows all "
        "of it)\n"
    )


def test_a_loss_that_is_not_finite_is_told_with_its_model(capsys):
    status, _, error = command(capsys, "sft", "models.actor.optimizer.lr=1e30")
    assert status == 1
    assert re.fullmatch(
        r".*sft.yaml:\d+:10: call 'train' in iteration [12], model 'actor': NotFiniteError: the (loss|norm of gradients) is "
        r"nan, of model 'actor'; its weights were not changed \(--traceback shows all of it\)\n",
        error.splitlines(keepends=True)[-1],
    )


def test_there_is_no_run_where_there_is_one_already():
    run("sft", SHORT, out="run")
    with pytest.raises(
        TrainingError, match="there is a run in 'run' already; continue it with --resume run"
    ):
        run("sft", SHORT, out="run")


def test_a_sharded_model_is_refused():
    Path("mine.yaml").write_text("extends: sft\nmodels:\n  actor: {parallel: {data: 2}}\n")
    with pytest.raises(RunError) as error:
        run("mine.yaml", out="run")
    assert str(error.value) == (
        "mine.yaml:3:21: the model 'actor' has 'parallel', which spreads it over workers of Ray: add --runner ray, or "
        "leave it out"
    )
    assert not Path("run").exists()


def test_without_matplotlib_nothing_but_a_folder_is_missed(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "composer.training.progress", None)
    assert len(run("sft", SHORT).rows) == 2
    with pytest.raises(MissingExtraError) as error:
        run("sft", SHORT, out="run")
    assert str(error.value) == (
        "the folder of a run needs 'matplotlib'; install it with: pip install \"perception-composer[train]\""
    )


@pytest.mark.parametrize("given", [{}, {"experiment": "sft", "resume": "x"}])
def test_a_run_is_new_or_resumed(given):
    with pytest.raises(RunError, match="give an experiment, or the folder of a run to resume"):
        run(**given)


def test_scheduling_and_the_folder_cost_little(tmp_path):
    """Of a run without models: 200 iterations of one call."""
    spec = {
        "version": 1,
        "models": {"a": {"decoder": {"width": 8, "num_layers": 1, "num_heads": 1}, "vocabulary": "tokens.txt"}},
        "data": {"dataset": "prompt_answer", "path": "answers.jsonl", "batch_size": 1},
        "calls": {
            "one": {"do": "inference", "with": "sleeps", "reads": ["ids"], "writes": ["rewards"],
                    "settings": {"seconds": 0}},
            "two": {"do": "evaluate", "with": "counts", "reads": ["rewards"]},
            "three": {"do": "inference", "with": "draws", "model": "a", "reads": ["ids"], "writes": {"rewards": "r"}},
            "four": {"do": "evaluate", "with": "counts", "reads": {"rewards": "r"}},
        },
        "run": {"iterations": 100},
    }  # fmt: skip
    allow = ["tests.helpers.ray_interfaces", f"{QUICKSTARTS}/"]
    run(spec, ["run.iterations=1"], allow)
    begun = time.perf_counter()
    assert len(run(spec, (), allow).rows) == 100
    assert time.perf_counter() - begun < 10


def test_the_sentiment_example_swaps_the_reward_by_one_word(monkeypatch):
    from transformers import BertConfig, BertForSequenceClassification

    from composer.dataflow import tokenizer_from

    tokenizer = tokenizer_from(str(QUICKSTARTS / "tokens.txt"))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, num_labels=2, pad_token_id=0, max_position_embeddings=40,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained("classifier")
    tokenizer.save_pretrained("classifier")
    example = CONFIGS / "experiments"
    monkeypatch.syspath_prepend(str(example))
    path = f"calls.rew_inf.settings.path={Path('classifier').resolve()}"
    log = run(example / "sentiment_ppo.yaml", [*SHORT, path], ["sentiment_reward"])
    assert all(0 < reward < 1 for reward in log.numbers("actor_train/reward"))
    assert "reward" not in {call.model for call in read_experiment(
        example / "sentiment_ppo.yaml", [path], ["sentiment_reward"]).calls.values()}  # fmt: skip


class Failing(Interface):
    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def __init__(self):
        raise KeyError("no such luck")

    def inference(self, model, sample, context):
        raise AssertionError


class FailingData:
    gives = ("prompts",)

    def __init__(self, util, *, late: bool = False):
        if not late:
            raise KeyError("no such luck")

    def __len__(self):
        return 100

    def __getitem__(self, index):
        raise KeyError("no such luck")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("calls.rew_inf.with=failing", "interface 'failing'"),
        ("data={dataset: failing}", "data set 'failing'"),
        ("data={dataset: failing, late: true}", "data set 'failing'"),
    ],
)
def test_what_a_class_of_ones_own_raises_is_told_at_its_place(registries, capsys, override, what):
    INTERFACES.register("failing", Failing)
    DATASETS.register("failing", FailingData)
    Path("mine.yaml").write_text("extends: ppo\ncalls: {rew_inf: {settings: {}}}\n")
    status, _, said = command(capsys, "mine.yaml", override)
    assert status == 1
    (line,) = said.splitlines()
    assert line.endswith(f": {what}: KeyError: 'no such luck' (--traceback shows all of it)")
