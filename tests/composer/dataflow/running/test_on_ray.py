"""Calls on Ray: values stay on the workers, calls overlap, and losses are those of one process."""

import http.server
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

import composer
from composer.dataflow import INTERFACES, read_experiment
from composer.dataflow.calls.experiments import QUICKSTARTS
from composer.dataflow.data.datasets import DatasetUtil, batches, make_dataset
from composer.dataflow.running.cluster import connect
from composer.dataflow.running.local import LocalRunner, Tokenizers
from composer.dataflow.running.on_ray import RayRunner, WorkerPlan, plan_workers
from composer.dataflow.running.schedule import RunError, WorkerDiedError
from composer.dataflow.running.session import run
from composer.dataflow.running.written import values_of
from perception_blocks.reading import files_found
from perception_blocks.registry import MissingExtraError
from tests.helpers import ray_interfaces as ray_interfaces  # registered before any test
from tests.helpers.paths import ROOT

ALLOW = ["tests.helpers.ray_interfaces", f"{QUICKSTARTS}/"]
ACTOR = "{decoder: {width: 16, num_layers: 1, num_heads: 2}, vocabulary: tokens.txt, lr: 0.01}"
SPEC = f"""
version: 1
models:
  actor: {ACTOR}
  ref: {{like: actor}}
data: {{dataset: prompt_answer, path: answers.jsonl, batch_size: 8}}
calls:
  draw: {{model: ref, do: inference, with: draws, reads: [ids], writes: [rewards]}}
  fit: {{model: actor, do: train_step, with: fits, reads: [ids, rewards]}}
  one: {{do: inference, with: sleeps, reads: [ids], writes: {{rewards: first, scores: second}}, settings: {{seconds: 1}}}}
  two: {{do: inference, with: sleeps, reads: [ids], writes: {{rewards: third, scores: fourth}}, settings: {{seconds: 1}}}}
  big: {{do: inference, with: big, reads: [ids], writes: {{rewards: large}}}}
  fail: {{do: inference, with: fails, reads: [ids], writes: {{rewards: none}}}}
  end: {{do: inference, with: ends_once, reads: [ids], writes: {{rewards: last}}}}
  count: {{do: evaluate, with: counts, reads: {{rewards: first, scores: second}}}}
  count_two: {{do: evaluate, with: counts, reads: {{rewards: third, scores: fourth}}}}
  count_big: {{do: evaluate, with: counts, reads: {{rewards: large}}}}
  count_none: {{do: evaluate, with: counts, reads: {{rewards: none}}}}
  count_last: {{do: evaluate, with: counts, reads: {{rewards: last}}}}
hooks: [{{after: fit, from: actor, to: ref, eta: 0.5}}]
run: {{iterations: 4, workers: 2}}
"""


@pytest.fixture(scope="module")
def experiment():
    return read_experiment(SPEC, allow=ALLOW)


@pytest.fixture(scope="module")
def batch(experiment):
    """The values of the data set in an iteration, by name."""
    util = DatasetUtil(tokenizer=Tokenizers(experiment).of_data())
    with files_found(experiment.source.find_file, has_weights=False):
        dataset = make_dataset("prompt_answer", experiment.data.settings, util)

    def of_iteration(iteration):
        sample = batches(dataset, 8, 0, iteration)
        return values_of(sample, sample.keys)

    return of_iteration


@pytest.fixture(scope="module")
def runner(cluster, experiment):
    runner = RayRunner(experiment, ALLOW)
    yield runner
    runner.close()


def do(runner, name, *values):
    """Run one call to its end; returns what it writes."""
    call = runner.experiment.calls[name]
    end, written = runner.start(call, 0, values)
    assert runner.wait({name: end}) == name
    return written


def test_models_and_calls_are_dealt_over_two_processes(runner, experiment):
    plans = plan_workers(experiment)
    assert [(len(plan.places), plan.processes) for plan in plans] == [(6, 1), (6, 1)]
    processes = runner.processes()
    assert len(set(processes.values())) == 2
    assert os.getpid() not in processes.values()
    assert processes["actor"] != processes["ref"]
    assert {processes[place] for place in plans[0].places}.isdisjoint(
        {processes[place] for place in plans[1].places}
    )


def test_calls_hooks_and_states_are_those_of_one_process(runner, experiment, batch, tmp_path):
    local = LocalRunner(experiment, ALLOW)
    for each in (runner, local):
        (rewards,) = do(each, "draw", batch(0)["ids"])
        do(each, "fit", batch(0)["ids"], rewards)
        each.blend("actor", "ref", 0.5)
        do(each, "draw", batch(0)["ids"])
    for name in ("draw", "fit"):
        call = experiment.calls[name]
        assert runner.numbers(call) == pytest.approx(local.numbers(call), rel=1e-6)
    runner.save(str(tmp_path))
    again = LocalRunner(experiment, ALLOW)
    again.load(tmp_path)
    for name in ("actor", "ref"):
        pairs = zip(again.models[name].parameters(), local.models[name].parameters(), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    runner.load(str(tmp_path))


def test_independent_calls_overlap(runner, batch):
    calls = runner.experiment.calls
    assert runner.processes()["(one)"] != runner.processes()["(two)"]
    ids = batch(0)["ids"]
    begun = time.monotonic()
    running = {name: runner.start(calls[name], 0, [ids])[0] for name in ("one", "two")}
    while running:
        del running[runner.wait(running)]
    assert time.monotonic() - begun <= 0.6 * 2.0


def test_values_never_visit_the_driver(runner, batch):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (large,) = do(runner, "big", batch(0)["ids"])
    do(runner, "count_big", large)
    assert runner.numbers(runner.experiment.calls["count_big"]) == {"reward": 8 * 2_000_000}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_000  # of 64,000 kB


def test_an_exception_keeps_its_kind_and_says_in_which_call(runner, batch):
    with pytest.raises(ZeroDivisionError, match="nothing to divide by") as error:
        do(runner, "fail", batch(0)["ids"])
    assert error.value.__notes__[-1] == "in <spec>:13:9: call 'fail' in iteration 0"
    assert "in inference" in str(error.value.__cause__)  # the traceback of the worker


def test_a_worker_that_ends_is_told_in_a_line(runner, batch):
    """It comes last of what uses these workers."""
    with pytest.raises(WorkerDiedError) as error:
        do(runner, "end", batch(0)["ids"])
    assert re.fullmatch(
        r"the call 'end' in iteration 0: its process has ended: [^\n]{1,300}", str(error.value)
    )


def test_nobody_else_reaches_the_cluster(cluster):
    import ray

    assert cluster.startswith("127.0.0.1:")
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


def test_ppo_on_ray_has_the_losses_of_one_process(cluster):
    settings = ["run.iterations=4", "data.batch_size=4"]
    here, there = run("ppo", settings), run("ppo", settings, runner="ray")
    assert len(there.rows) == 4
    for one, other in zip(here.rows, there.rows, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


SHARDED = """
extends: sft
models:
  actor: {parallel: {data: 2}}
data: {batch_size: 4}
run: {iterations: 3, workers: 1, save_every: 2}
"""


def test_a_model_with_parallel_is_sharded_over_workers(cluster, tmp_path):
    spec = tmp_path / "sharded.yaml"
    spec.write_text(SHARDED)
    alone = run("sft", ["data.batch_size=4", "run.iterations=4"])
    there = run(spec, runner="ray", out=tmp_path / "run")
    for one, other in zip(alone.rows[:3], there.rows, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    shards = {path.name for path in (tmp_path / "run").glob("checkpoint-00000003/actor/*")}
    assert shards == {"checkpoint.json", "shard-00000.safetensors", "shard-00001.safetensors"}
    assert composer.load(tmp_path / "run" / "actor.safetensors").policy is not None
    # What two processes have saved, one goes on with.
    text = (tmp_path / "run" / "experiment.yaml").read_text()
    (tmp_path / "run" / "experiment.yaml").write_text(re.sub(r" *parallel: .*\n", "", text))
    assert "parallel" in text
    resumed = run(resume=tmp_path / "run", overrides=["run.iterations=4"], allow=[f"{tmp_path}/"])
    assert resumed.rows[3] == pytest.approx(alone.rows[3], rel=1e-5)


def test_a_hook_moves_no_sharded_model(tmp_path):
    spec = tmp_path / "sharded.yaml"
    spec.write_text(
        "extends: dpo\nmodels:\n  actor: {parallel: {data: 2}}\n"
        "hooks: [{after: train, from: actor, to: ref, eta: 0.5}]\n"
    )
    with pytest.raises(RunError) as error:
        RayRunner(read_experiment(spec))
    assert str(error.value) == (
        f"{spec}:4:9: a hook moves whole models, and 'actor' has 'parallel'; leave out one of the two"
    )


ENDS = f"""
version: 1
models:
  actor: {ACTOR}
data: {{dataset: prompt_answer, path: answers.jsonl, batch_size: 8}}
calls:
  end: {{do: inference, with: ends_once, reads: [ids], writes: [rewards], settings: {{iteration: 2, mark: MARK}}}}
  fit: {{model: actor, do: train_step, with: fits, reads: [ids, rewards]}}
run: {{iterations: 4, workers: 1, save_every: 1, restarts: 1}}
"""


def test_a_run_whose_worker_ends_goes_on_from_its_checkpoint(cluster, tmp_path, caplog):
    mark = tmp_path / "mark"
    spec = ENDS.replace("MARK", str(mark))
    there = run(spec, (), ALLOW, "ray", tmp_path / "run")
    assert mark.exists()
    assert re.fullmatch(
        r"the call 'end' in iteration 2: its process has ended: [^\n]+; the run starts again from the checkpoint after "
        r"2 iterations \(run.restarts: 0 left\)",
        caplog.messages[-1],
    )
    alone = run(spec, (), ALLOW, "local")
    assert len(there.rows) == 4
    for one, other in zip(there.rows, alone.rows, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.full
def test_the_command_uses_a_cluster_by_its_address(cluster, tmp_path):
    """Another process does; and the cluster is there afterwards."""
    command = [sys.executable, "-m", "composer", "run", "sft", "--address", cluster, "-o", "run"]
    done = subprocess.run(
        [*command, "run.iterations=2", "run.workers=1"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ran 2 iterations\n  train/loss: ")
    assert (tmp_path / "run" / "actor.safetensors").exists()


def test_an_interface_that_no_worker_knows_is_told(cluster, registries):
    INTERFACES.register("only_here", type("OnlyHere", (ray_interfaces.Counts,), {}))
    spec = SPEC.replace(
        "count_big: {do: evaluate, with: counts", "count_big: {do: evaluate, with: only_here"
    )
    experiment = read_experiment(spec, ["run.workers=1"], allow=ALLOW)
    with pytest.raises(RunError) as error:
        RayRunner(experiment, ALLOW)
    worker, _, rest = str(error.value).partition(" does not know what this process knows: ")
    assert worker.startswith("the worker of ref, actor, ")
    problem, _, advice = rest.rpartition("; put ")
    assert problem.startswith("unknown interface 'only_here'")
    wanted = "; put what you register into a module and allow that, such as allow=['my_rewards'] or --allow my_rewards"
    assert f"; put {advice}" == wanted


def test_more_workers_than_the_cluster_has_processors(cluster):
    with pytest.raises(RunError) as error:
        connect(cluster, 3)
    assert str(error.value) == (
        "the cluster has 2 of 2 processors free, and every worker needs one: give run.workers=2, or a larger cluster"
    )


def test_this_process_stays_with_its_cluster(cluster):
    with pytest.raises(
        RunError, match=f"is connected to the cluster at {cluster} already, not to '10.0.0.7:6379'"
    ):
        connect("10.0.0.7:6379", 1)


# --- what needs no cluster --------------------------------------------------------------------------------------------


@pytest.fixture
def no_cluster(monkeypatch):
    """As in a process that has no cluster."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)


class Silent(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing."""


def test_a_port_of_another_program_is_told_at_once(no_cluster):
    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(RunError) as error:
            connect(address, 1)
        server.shutdown()
    assert (
        str(error.value) == f"there is no Ray cluster at {address}: another program uses this port"
    )


def test_a_port_at_which_nobody_listens_is_told_at_once(no_cluster):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            RunError, match=f"there is no Ray cluster at {address}: Connection refused"
        ):
            connect(address, 1)


@pytest.mark.parametrize("address", ["here", "host:", "host:99999", ":x"])
def test_an_address_is_a_host_and_a_port(no_cluster, address):
    with pytest.raises(RunError) as error:
        connect(address, 1)
    assert str(error.value) == (
        f"--address takes HOST:PORT of a cluster, such as 10.0.0.7:6379, or 'auto'; got {address!r}"
    )


def test_a_missing_extra_is_named_before_there_is_a_folder(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError) as error:
        run("sft", runner="ray", out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert str(error.value) == (
        "--runner ray needs 'ray'; install it with: pip install \"perception-composer[ray]\""
    )


def test_no_more_workers_than_there_is_to_do():
    spec = ENDS.replace("workers: 1", "workers: 9")
    assert plan_workers(read_experiment(spec, allow=ALLOW)) == [
        WorkerPlan(["(end)"]),
        WorkerPlan(["actor"]),
    ]
