"""The runner in this process: six calls train, again and resumed alike; a failing call names its place."""

import pytest
import torch

from composer.dataflow.algorithms.interfaces import INTERFACES, Interface
from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.data.datasets import DatasetUtil, batches, make_dataset
from composer.dataflow.running.local import LocalRunner
from composer.dataflow.running.schedule import RunError, run_iterations
from composer.dataflow.running.written import values_of
from composer.errors import SpecError
from tests.helpers.experiments import NAMES, PPO, ppo_in, registered, toys


@pytest.fixture(autouse=True)
def _names():
    with toys():
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return ppo_in(tmp_path_factory.mktemp("ppo"))


def batch_of(experiment):
    dataset = make_dataset(experiment.data.dataset, experiment.data.settings, DatasetUtil())

    def batch(iteration):
        sample = batches(dataset, experiment.data.batch_size, experiment.run.seed, iteration)
        return values_of(sample, sample.keys)

    return batch


def rows_of(experiment, runner, first=0):
    return list(run_iterations(experiment, runner, batch_of(experiment), first))


def weights(runner, name):
    return torch.cat([p.detach().flatten() for p in runner.models[name].network.parameters()])


def test_a_run_is_the_same_again_and_after_it_was_interrupted(file, tmp_path):
    experiment = read_experiment(file)
    whole = LocalRunner(experiment)
    start = weights(whole, "actor"), weights(whole, "ref"), weights(whole, "reward")
    rows = rows_of(experiment, whole)
    assert len(rows) == 4
    assert rows[0].keys() == {"actor_train/norm", "actor_train/loss", "critic_train/loss"}
    assert torch.equal(start[0], start[1])  # like: the same weights to begin with
    assert not torch.equal(weights(whole, "actor"), start[0])
    assert not torch.equal(weights(whole, "ref"), start[1])  # the hook
    assert torch.equal(weights(whole, "reward"), start[2])
    half = LocalRunner(read_experiment(file, ["run.iterations=2"]))
    assert rows_of(half.experiment, half) == rows[:2]
    half.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["actor", "critic", "ref"]
    resumed = LocalRunner(experiment)
    resumed.load(tmp_path)
    assert rows_of(experiment, resumed, first=2) == rows[2:]


def test_models_that_nothing_names_are_not_built(file):
    experiment = read_experiment(
        file, ["calls.rew_inf.with=longest_run", ("models.more", {"decoder": {"width": 8}})]
    )
    assert experiment.used_models() == ["actor", "critic", "ref"]
    assert [*LocalRunner(experiment, models=["critic", "ref"]).models] == ["critic", "ref"]


def test_a_reward_from_texts_by_its_path(file):
    allow = ["tests.helpers.reward_functions"]
    overrides = [
        "calls.rew_inf.with=tests.helpers.reward_functions.brevity",
        "calls.actor_gen.writes=[ids, logp, prompt_mask]",
        "calls.rew_inf.reads=[ids, prompt_mask]",
        "run.iterations=1",
    ]
    experiment = read_experiment(file, overrides, allow)
    (row,) = rows_of(experiment, LocalRunner(experiment, allow))
    assert row["critic_train/loss"] > 0


class Failing(Interface):
    needs_model = False
    reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

    def __init__(self, how: str = "raise"):
        self.how = how
        if how == "never":
            raise ValueError("'how' cannot be 'never'")

    def inference(self, model, sample, context):
        if self.how == "raise":
            raise ZeroDivisionError("no rewards today")
        if self.how == "exit":
            raise SystemExit
        return {"rewards": torch.zeros(3)}


def test_an_exception_of_an_interface_keeps_its_traceback_and_names_the_call(file):
    with registered(INTERFACES, {"failing": Failing}):
        experiment = read_experiment(file, ["calls.rew_inf.with=failing"])
        with pytest.raises(ZeroDivisionError, match="no rewards today") as caught:
            rows_of(experiment, LocalRunner(experiment))
    assert caught.traceback[-1].name == "inference"
    assert caught.value.__notes__ == [f"in {file}:10:12: call 'rew_inf' in iteration 0"]


def test_an_interface_does_not_end_the_run_as_if_it_were_done(file):
    with registered(INTERFACES, {"failing": Failing}):
        experiment = read_experiment(
            file, ["calls.rew_inf.with=failing", ("calls.rew_inf.settings", {"how": "exit"})]
        )
        with pytest.raises(RunError) as caught:
            rows_of(experiment, LocalRunner(experiment))
    message = f"{file}:10:12: call 'rew_inf' in iteration 0: interface 'failing' calls exit()"
    assert str(caught.value) == message


def test_a_wrong_count_names_the_call_the_value_and_both_numbers(file):
    with registered(INTERFACES, {"failing": Failing}):
        experiment = read_experiment(
            file, ["calls.rew_inf.with=failing", ("calls.rew_inf.settings", {"how": "few"})]
        )
        with pytest.raises(RunError) as caught:
            rows_of(experiment, LocalRunner(experiment))
    message = f"{file}:10:12: call 'rew_inf' in iteration 0: 'rewards' needs 8 numbers, per item, and has 3"
    assert str(caught.value) == message


def test_what_cannot_be_built_is_told_with_its_place(file, tmp_path):
    with registered(INTERFACES, {"failing": Failing}):
        text = PPO.replace("with: toy_reward", "with: failing, settings: {how: never}")
        (tmp_path / "a.yaml").write_text(text)
        (tmp_path / "tokens.txt").write_text("a\nb\n")
        experiment = read_experiment(tmp_path / "a.yaml")
        with pytest.raises(RunError) as caught:
            LocalRunner(experiment)
    place = f"{tmp_path}/a.yaml:10:68"
    assert (
        str(caught.value) == f"{place}: interface 'failing' cannot be made: 'how' cannot be 'never'"
    )
    (tmp_path / "tokens.txt").unlink()
    with pytest.raises(RunError) as caught:
        LocalRunner(experiment)
    assert str(caught.value).startswith(f"{tmp_path}/a.yaml:3:74: there is no file")
    text = PPO.replace(", vocabulary: tokens.txt", "")
    with pytest.raises(RunError) as caught:
        LocalRunner(read_experiment(text))
    assert str(caught.value).startswith("<spec>:3:10: model 'actor' has no vocabulary")


DENSE = {
    "graph": {"a": {"block": "dense", "in": "observation", "hidden_units": 3}},
    "heads": {"in": "a"},
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder.vocab_size", 1, "{file}:6:11: model 'reward': 'vocabulary_size' must be a whole number of at least 2, got 1"),
        ("decoder.num_heads", 3, "--set models.reward.decoder.num_heads: 'num_heads' must divide width=8, got 3; or give 'head_dim'"),
        ("checkpoint", "nothing", "{file}:6:11: model 'reward': there is no file '{folder}/nothing'"),
        ("spec", "none.yaml", "{file}:6:11: model 'reward': there is no file '{folder}/none.yaml'"),
        (
            "spec", {"version": 1, "policy": DENSE, "critic": DENSE},
            "{file}:6:11: model 'reward': policy.graph.a.in: block 'a' gets integers () from 'observation'; dense takes numbers",
        ),
    ],
)  # fmt: skip
def test_what_a_model_cannot_be_built_of_is_told_with_its_place(file, key, value, message):
    change = [(f"models.reward.{key}", value), ("models.reward.vocabulary", "tokens.txt")]
    experiment = read_experiment(file, change)
    with pytest.raises((RunError, SpecError)) as caught:
        LocalRunner(experiment)
    assert str(caught.value).startswith(message.format(file=file, folder=file.parent))


def test_a_model_that_is_spread_over_processes_is_refused(file):
    experiment = read_experiment(file, [("models.actor.parallel", {"data": 2})])
    with pytest.raises(RunError) as caught:
        LocalRunner(experiment)
    assert str(caught.value) == (
        "--set models.actor.parallel: the model 'actor' has 'parallel', which spreads it over workers of Ray: add "
        "--runner ray, or leave it out"
    )


def test_a_hook_over_models_of_other_shapes_is_told_before_anything_runs(file):
    """Where a spec does not tell, the weights do."""
    spec = {
        "version": 1,
        "policy": {
            "graph": {"latent": {"block": "decoder", "in": "observation", "width": 24, "num_heads": 2, "num_layers": 1}},
            "heads": {"in": "latent"},
        },
    }  # fmt: skip
    experiment = read_experiment(file, [("models.ref", {"spec": spec, "vocabulary": "tokens.txt"})])
    with pytest.raises(RunError) as caught:
        LocalRunner(experiment)
    assert str(caught.value) == (
        f"{file}:18:43: the models 'actor' and 'ref' have different shapes: 'latent.embed_tokens.weight' is (16, 16) "
        "and (16, 24)"
    )


def test_calls_without_a_model_have_the_tokenizer_of_the_data(file):
    class Texts(Interface):
        needs_model = False
        reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}

        def inference(self, model, sample, context):
            texts = [context.tokenizer.decode(ids) for ids in sample.sequences("ids")]
            assert all(text.startswith("t") for text in texts)
            assert [text.startswith("row") for text in sample.metadata["text"]] == [True] * 8
            return {"rewards": [float(len(text)) for text in texts]}

    with registered(INTERFACES, {"texts": Texts}):
        experiment = read_experiment(file, ["calls.rew_inf.with=texts", "run.iterations=1"])
        assert len(rows_of(experiment, LocalRunner(experiment))) == 1
    assert "texts" not in NAMES
