"""An experiment is checked whole before anything is built: every mistake in its place, in one message each."""

import contextlib
import random
import time
from pathlib import Path

import pytest

from composer.dataflow.algorithms.interfaces import INTERFACES, Interface
from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.calls.experiment import EXPERIMENTS, Experiment, HookSpec, is_experiment
from composer.dataflow.data.datasets import DATASETS
from composer.errors import SpecError
from composer.source.load import load_source
from tests.helpers.experiments import PPO, registered, toys


@pytest.fixture(autouse=True)
def _names():
    with toys():
        yield


def message_of(spec, overrides=(), **keywords) -> str:
    with pytest.raises(SpecError) as caught:
        read_experiment(spec, overrides, **keywords)
    return str(caught.value)


def answer_to(spec) -> str:
    try:
        read_experiment(spec)
    except SpecError as error:
        return str(error)
    return ""


def test_a_good_experiment_is_typed_data():
    experiment = read_experiment(PPO)
    order = [node.name for node in experiment.dag.order()]
    assert order == ["actor_gen", "rew_inf", "ref_inf", "critic_inf", "actor_train", "critic_train"]
    assert experiment.calls["ref_inf"].writes == {"logp": "ref_logp"}
    assert experiment.models["actor"].optimizer == {"lr": 0.01}
    assert experiment.models["ref"].optimizer is None
    assert experiment.models["critic"].like == "actor"
    assert experiment.data.settings == {"rows": 32}
    assert experiment.hooks == (HookSpec(("hooks", 0), "actor_train", "actor", "ref", 0.1),)
    assert experiment.run.iterations == 4


def test_a_training_comes_after_all_other_calls_of_its_model():
    """Even where it is declared first and reads nothing of theirs."""
    late = PPO.replace(
        "  actor_gen:",
        "  late: {model: actor, do: evaluate, with: toy_reward, reads: [rewards]}\n  actor_gen:",
    )
    order = [node.name for node in read_experiment(late).dag.order()]
    assert order.index("late") < order.index("actor_train")


def test_the_reward_is_swapped_by_one_word():
    experiment = read_experiment(PPO, ["calls.rew_inf.with=longest_run"])
    assert experiment.calls["rew_inf"].model is None


def test_the_reward_is_a_function_by_its_path_where_that_is_allowed():
    override = ["calls.rew_inf.with=tests.helpers.reward_functions.brevity"]
    allow = ["tests.helpers.reward_functions"]
    masks = [
        "calls.actor_gen.writes=[ids, logp, prompt_mask]",
        "calls.rew_inf.reads=[ids, prompt_mask]",
    ]
    assert read_experiment(PPO, [*override, *masks], allow).calls["rew_inf"].model is None
    assert message_of(PPO, [*override, *masks]) == (
        f"--set {override[0]}: 'tests.helpers.reward_functions.brevity' is outside the allowed modules (none); pass "
        "allow=['tests'] or --allow tests if you trust it"
    )


def test_a_call_may_list_more_than_its_interface_uses():
    """So that another interface that does use it can take its place by one word."""
    experiment = read_experiment(PPO, ["calls.rew_inf.reads=[ids, logp, labels]"])
    assert [*experiment.calls["rew_inf"].reads] == ["ids", "logp", "labels"]


def test_an_interface_that_keeps_its_results_needs_no_reader():
    more = "  show: {do: inference, with: printer, reads: [ids, labels]}\n  rew_inf:"
    assert "show" in read_experiment(PPO.replace("  rew_inf:", more)).calls


def test_an_experiment_is_known_by_its_calls():
    assert is_experiment(load_source(PPO).data)
    assert not is_experiment(load_source("version: 1\npolicy: {}\n").data)


BAD = [
    (
        "writes: {logp: ref_logp}",
        "writes: [logp]",
        "11:80: 'ref_inf' writes 'logp', which 'actor_gen' writes already; give it a name of its own, as in {logp: my_logp}",
    ),
    (
        "writes: [ids, logp]}",
        "writes: {ids: ids, logp: ids}}",
        "9:103: 'actor_gen' writes 'ids' twice; give it a name of its own, as in {logp: my_ids}",
    ),
    (
        "writes: [rewards]",
        "writes: {rewards: labels}",
        "10:93: 'rew_inf' writes 'labels', which the data set gives; give it a name of its own, as in {rewards: my_labels}",
    ),
    (
        "reads: [ids], writes: [values]",
        "reads: {ids: values}, writes: [values]",
        "12:77: 'critic_inf' reads 'values', which it writes itself",
    ),
    (
        "[prompts]",
        "[promts]",
        "9:68: 'actor_gen' reads 'promts', which neither the data set gives nor a call writes; did you mean 'prompts'?",
    ),
    (
        "[prompts]",
        "[xyz]",
        "9:68: 'actor_gen' reads 'xyz', which neither the data set gives nor a call writes; there is 'prompts', 'labels', 'rewards', 'ref_logp', 'values'",
    ),
    (
        "[ids, logp, ref_logp, rewards, values]}\n  critic",
        "[ids, logp, ref_logp, reward, values]}\n  critic",
        "14:82: 'actor_train' reads 'reward', which neither the data set gives nor a call writes; did you mean 'rewards'?",
    ),
    (
        "writes: [ids, logp]",
        "writes: [ids, logp, lengths]",
        "9:98: nothing reads 'lengths', which 'actor_gen' writes; leave it out of 'writes'",
    ),
    (
        "writes: [ids, logp]",
        "writes: [ids]",
        "14:66: 'actor_train', 'critic_train' read 'logp', which neither the data set gives nor a call writes; 'actor_gen' can: add 'logp' to its 'writes'",
    ),
    (
        "writes: [ids, logp]",
        "writes: [ids, logq]",
        "9:92: 'generate' of interface 'toy_actor' does not write 'logq'; did you mean 'logp'?",
    ),
    (
        "ref_logp, rewards, values]}\n  critic_train",
        "ref_logp, values]}\n  critic_train",
        "14:60: 'train_step' of interface 'toy_actor' needs 'rewards'; read it, or map it: {rewards: its_value}",
    ),
    (
        "  critic_inf:",
        "  more: {model: reward, do: inference, with: toy_reward, reads: [ids], writes: {rewards: more}}\n  critic_inf:",
        "12:3: 'more' leads to no training or evaluation: nothing reads what it writes ('more')",
    ),
    (
        "  critic_inf:",
        "  more: {model: reward, do: inference, with: toy_reward, reads: [ids]}\n  critic_inf:",
        "12:3: 'more' leads to no training or evaluation: it writes nothing",
    ),
    (
        "with: toy_reward",
        "with: toy_rewrd",
        "10:49: unknown interface 'toy_rewrd'; did you mean 'toy_reward'?",
    ),
    (
        "with: toy_reward, ",
        "",
        "10:12: the call lacks 'with', the name of an interface",
    ),
    (
        "with: toy_reward",
        "wiht: toy_reward",
        "10:43: 'wiht' is not a key of a call; did you mean 'with'?",
    ),
    (
        "dataset: toy-prompts",
        "dataset: toy-prompt",
        "7:17: unknown data set 'toy-prompt'; did you mean 'toy-prompts'?",
    ),
    (
        "dataset: toy-prompts, ",
        "",
        "7:7: 'data' lacks 'dataset'; there is 'prompt', 'prompt_answer', 'rw_pair', 'toy-prompts'",
    ),
    (
        "dataset: toy-prompts",
        "datset: toy-prompts",
        "7:7: 'data' lacks 'dataset'; is 'datset' a misspelling of it?",
    ),
    (
        "data: {dataset: toy-prompts, rows: 32, batch_size: 8}\n",
        "",
        "1:1: the experiment has no 'data'; name a data set: data: {dataset: NAME}",
    ),
    (
        "rows: 32",
        "row: 32",
        "7:30: 'row' is not a setting of data set 'toy-prompts'; did you mean 'rows'?",
    ),
    (
        "rows: 32",
        "rows: many",
        "7:36: 'rows' must be an integer, got 'many'",
    ),
    (
        "batch_size: 8",
        "batch_size: 0",
        "7:52: 'batch_size' must be a whole number of at least 1, got the number 0",
    ),
    (
        "model: ref,",
        "model: reff,",
        "11:20: there is no model 'reff'; did you mean 'ref'?",
    ),
    (
        "model: ref, ",
        "",
        "11:12: the call needs a 'model': interface 'toy_actor' works on one",
    ),
    (
        "do: inference, with: toy_critic",
        "do: generate, with: toy_critic",
        "12:35: interface 'toy_critic' has no 'generate'; it has 'inference', 'train_step'",
    ),
    (
        "do: inference, with: toy_critic",
        "do: infer, with: toy_critic",
        "12:35: 'do' must be one of 'generate', 'inference', 'train_step', 'evaluate', got the text 'infer'; did you mean 'inference'?",
    ),
    (
        "do: inference, with: toy_critic",
        "with: toy_critic",
        "12:15: the call lacks 'do', one of 'generate', 'inference', 'train_step', 'evaluate'",
    ),
    (
        "model: critic, do: train_step",
        "model: actor, do: train_step",
        "16:13: the model 'actor' is trained by 'actor_train' and 'critic_train'; one call trains a model",
    ),
    (
        "like: actor, is_critic: true, lr: 0.01",
        "like: actor, is_critic: true",
        "16:13: 'critic_train' trains the model 'critic', which has no 'lr'; give it one",
    ),
    (
        "lr: 0.01}\n  critic",
        "lr: -1}\n  critic",
        "3:90: 'lr' must be a positive number, got -1",
    ),
    (
        "lr: 0.01}\n  critic",
        "lr: 0.01, optimizer: {lr: 1}}\n  critic",
        "3:86: 'lr' is given twice, here and in 'optimizer'; keep one of them",
    ),
    (
        "lr: 0.01}\n  critic",
        "optimizer: {weight_decay: 1}}\n  critic",
        "3:97: the optimiser needs the setting 'lr' (a positive number)",
    ),
    (
        "{like: actor}",
        "{like: actor, max_length: 1}",
        "5:34: 'max_length' must be an integer of at least 2 or null, got 1",
    ),
    (
        "{like: actor}",
        "{like: actr}",
        "5:15: there is no model 'actr'; did you mean 'actor'?",
    ),
    (
        "{like: actor}",
        "{like: ref}",
        "5:15: the model 'ref' cannot be like itself",
    ),
    (
        "{like: actor}",
        "{like: other}\n  other: {like: ref}",
        "6:17: the models are like each other in a circle: 'other' -> 'ref' -> 'other'; say of one where it comes from",
    ),
    (
        "{like: actor}",
        "{}",
        "5:8: the model 'ref' does not say where it comes from; give it one of 'decoder', 'checkpoint', 'spec', 'model_type', 'like'",
    ),
    (
        "{like: actor}",
        "{like: actor, checkpoint: x}",
        "5:9: the model 'ref' has 'checkpoint', 'like'; keep one of them",
    ),
    (
        "{like: actor}",
        "{like: actor, init_critic_from_actor: true}",
        "5:22: 'init_critic_from_actor' is for a critic; write is_critic: true beside it",
    ),
    (
        "{like: actor}",
        "{lik: actor}",
        "5:9: 'lik' is not a key of a model; did you mean 'like'?",
    ),
    (
        "{like: actor}",
        "3",
        "5:8: 'ref' must be a mapping such as {decoder: {width: 64}, vocabulary: tokens.txt}, got the number 3",
    ),
    (
        "{decoder: {width: 8,",
        "{decoder: {family: lama, width: 8,",
        "6:30: unknown model family 'lama'; did you mean 'llama'?",
    ),
    (
        "{decoder: {width: 8,",
        "{decoder: {widht: 8,",
        "6:22: 'widht' is not a setting of block 'decoder'; did you mean 'width'?",
    ),
    (
        "{decoder: {width: 8,",
        "{decoder: {width: 0,",
        "6:29: 'width' must be a positive integer, got 0",
    ),
    (
        "to: ref",
        "to: critic",
        "18:43: the models 'actor' and 'critic' have different shapes: 'critic' is a critic, and 'actor' is none",
    ),
    (
        "to: ref",
        "to: actor",
        "18:43: the hook blends 'actor' into itself; name another model",
    ),
    (
        "to: ref",
        "to: reff",
        "18:43: there is no model 'reff'; did you mean 'ref'?",
    ),
    (
        "after: actor_train",
        "after: actor_trian",
        "18:13: there is no call 'actor_trian'; did you mean 'actor_train'?",
    ),
    (
        "after: actor_train, ",
        "",
        "18:5: the hook lacks 'after', the name of a call",
    ),
    (
        "eta: 0.1",
        "eta: 1.5",
        "18:53: 'eta' must be a number between 0 and 1, got 1.5",
    ),
    (
        "eta: 0.1",
        "etta: 0.5",
        "18:48: 'etta' is not a key of a hook; did you mean 'eta'?",
    ),
    (
        "- {after",
        "- 3\n  - {after",
        "18:5: an entry of 'hooks' must be a mapping such as {after: actor_train, from: actor, to: ref, eta: 0.001}, got the number 3",
    ),
    (
        "iterations: 4",
        "iterations: 0",
        "19:19: 'iterations' must be a positive integer, got 0",
    ),
    (
        "iterations: 4",
        "iteration: 4",
        "19:7: 'iteration' is not a setting of 'run'; did you mean 'iterations'?",
    ),
    (
        "iterations: 4",
        "runner: rai",
        "19:15: 'runner' must be one of 'local', 'ray', got 'rai'; did you mean 'ray'?",
    ),
    (
        "{logp: ref_logp}",
        "{logpp: ref_logp}",
        "11:87: 'inference' of interface 'toy_actor' does not write 'logpp'; did you mean 'logp'?",
    ),
    (
        "[ids, logp, ref_logp, rewards, values]}\n  critic",
        "{ids: ids, logp: logp, ref_logp: ref_logp, rewards: logp, values: values}}\n  critic",
        "14:112: 'rewards' is per item, but 'logp', as 'actor_gen' writes it, is per token but the first",
    ),
    (
        "with: toy_critic, reads: [ids], writes",
        "with: toy_critic, reads: {idz: ids}, writes",
        "12:77: 'inference' of interface 'toy_critic' does not read 'idz'; did you mean 'ids'?",
    ),
    (
        "with: toy_critic, reads: [ids], writes",
        "with: toy_critic, reads: [idz], writes",
        "12:72: 'critic_inf' reads 'idz', which neither the data set gives nor a call writes; did you mean 'ids'?",
    ),
    (
        "with: toy_critic, reads: [ids], writes",
        "with: toy_critic, reads: [prompts], writes",
        "12:72: 'inference' of interface 'toy_critic' does not read 'prompts'; it reads 'ids': map it, as in {ids: prompts}",
    ),
    (
        "with: toy_critic, reads: [ids], writes",
        "with: toy_critic, reads: {ids: ids, label: labels}, writes",
        "12:89: 'inference' of interface 'toy_critic' does not read 'label'; it reads 'ids'",
    ),
    (
        "with: toy_critic, reads: [ids], writes",
        "with: toy_critic, writes",
        "12:15: 'inference' of interface 'toy_critic' needs 'ids'; read it, or map it: {ids: its_value}",
    ),
    (
        "with: toy_critic, reads: [ids], writes",
        "with: toy_critic, reads: ids, writes",
        "12:71: 'reads' must be a list of values, or a mapping of the interface's names to values, got the text 'ids'",
    ),
    (
        "with: toy_critic, reads: [ids], writes",
        "with: toy_critic, reads: [ids, ids], writes",
        "12:77: 'ids' is in 'reads' twice",
    ),
    (
        "with: toy_critic, reads: [ids], writes",
        "with: toy_critic, raeds: [ids], writes",
        "12:64: 'raeds' is not a key of a call; did you mean 'reads'?",
    ),
    (
        "with: toy_actor, reads: [prompts]",
        "with: toy_actor, settings: {kll: 1}, reads: [prompts]",
        "9:71: 'kll' is not a setting of interface 'toy_actor'; did you mean 'kl'?",
    ),
    (
        "with: toy_actor, reads: [prompts]",
        "with: toy_actor, settings: {kl: 0}, reads: [prompts]",
        "9:75: 'kl' must be a positive number, got 0",
    ),
    (
        "  rew_inf: {",
        "  rew/inf: {",
        "10:3: the name 'rew/inf' of a call must start with a letter or '_' and hold letters, digits, '_' and '-' only",
    ),
    (
        "  rew_inf: {model: reward, do: inference, with: toy_reward, reads: [ids], writes: [rewards]}",
        "  rew_inf: x",
        "10:12: 'rew_inf' must be a mapping such as {model: actor, do: inference, with: ppo_actor, reads: [ids], writes: [logp]}, got the text 'x'",
    ),
    (
        "calls:",
        "policy: {}\ncalls:",
        "8:1: 'policy' has no place beside 'calls': a file describes an experiment or a model",
    ),
    (
        "calls:",
        "hoks: []\ncalls:",
        "8:1: 'hoks' is not a key of an experiment; did you mean 'hooks'?",
    ),
    (
        "models:",
        "model:",
        "2:1: 'model' is not a key of an experiment; did you mean 'models'?",
    ),
    (
        "models:",
        "model: {}\nmodels:",
        "2:1: 'model' has no place beside 'calls': a file describes an experiment or a model",
    ),
    (
        "models:",
        "modells:",
        "2:1: 'modells' is not a key of an experiment; did you mean 'models'?",
    ),
    (
        "version: 1",
        "version: 2",
        "1:10: 'version' must be 1, the only version yet, got the number 2",
    ),
    (
        "version: 1\n",
        "",
        "1:1: the experiment has no 'version'; write version: 1",
    ),
    (
        "version: 1",
        "version: 1\nextensions: [my_rewards]",
        "2:14: 'my_rewards' is outside the allowed modules (none); pass allow=['my_rewards'] or --allow my_rewards if you trust it",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_one_mistake_is_one_message_in_its_place(old, new, message):
    assert old in PPO
    assert message_of(PPO.replace(old, new, 1)) == f"<spec>:{message}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("models", 3, "'models' must be a mapping of models by their names, got the number 3"),
        ("calls", [1], "'calls' must be a mapping of calls by their names, got a list"),
        ("calls", {}, "the experiment has no 'calls'"),
        ("hooks", 3, "'hooks' must be a list of entries such as {after: actor_train, from: actor, to: ref, eta: 0.001}, "
         "got the number 3"),
        ("run", "x", "'run' must be a mapping, got the text 'x'"),
        ("data", 3, "'data' must be a mapping such as {dataset: prompt, path: prompts.jsonl}, got the number 3"),
    ],
)  # fmt: skip
def test_a_part_that_is_no_mapping(key, value, message):
    assert message_of(PPO, [(key, value)]) == f"--set {key}: {message}"


def test_the_spec_of_a_model_is_no_experiment():
    assert message_of("version: 1\npolicy: {}\n") == (
        "<spec>:1:1: this is the spec of a model; an experiment has 'calls', 'models' and 'data'"
    )


def test_all_mistakes_are_told_at_once():
    text = PPO
    for old, new in [
        ("reff", "ref"),
        ("[prompts]", "[promts]"),
        ("eta: 0.1", "eta: 2"),
        ("width: 8", "widht: 8"),
    ]:
        text = text.replace(old, new, 1)
    text = text.replace("with: toy_critic", "with: toy_critc")
    assert message_of(text) == "\n".join(
        f"<spec>:{line}"
        for line in [
            "6:22: 'widht' is not a setting of block 'decoder'; did you mean 'width'?",
            "9:68: 'actor_gen' reads 'promts', which neither the data set gives nor a call writes; did you mean "
            "'prompts'?",
            "12:52: unknown interface 'toy_critc'; did you mean 'toy_critic'?",
            "16:43: unknown interface 'toy_critc'; did you mean 'toy_critic'?",
            "18:53: 'eta' must be a number between 0 and 1, got 2",
        ]
    )


@pytest.mark.parametrize(
    ("mistake", "advice", "message"),
    [
        (("writes: {logp: ref_logp}", "writes: [logp]"), ("writes: [logp]", "writes: {logp: my_logp}"), "{logp: my_logp}"),
        (("[ids, logp]}", "[ids]}"), ("writes: [ids]}", "writes: [ids, logp]}"), "add 'logp' to its 'writes'"),
        (("[ids, logp]}", "[ids, logp, lengths]}"), (", lengths]", "]"), "leave it out of 'writes'"),
        ((", reads: [ids], writes: [values]", ", writes: [values]"), (", writes: [values]", ", reads: {ids: prompts}, "
          "writes: [values]"), "{ids: its_value}"),
        (("[ids], writes: [values]", "[prompts], writes: [values]"), ("[prompts], writes: [values]", "{ids: prompts}, "
          "writes: [values]"), "{ids: prompts}"),
        (("{like: actor}", "{like: actor, init_critic_from_actor: true}"), ("{like: actor, init", "{like: actor, "
          "is_critic: true, init"), "is_critic: true beside it"),
        (("{like: actor}", "{like: actor, checkpoint: x}"), ("{like: actor, checkpoint: x}", "{checkpoint: x}"),
         "keep one of them"),
        (("actor, is_critic: true, lr: 0.01", "actor, is_critic: true"), ("actor, is_critic: true", "actor, is_critic: "
          "true, lr: 1"), "give it one"),
        (("version: 1\n", ""), ("models:", "version: 1\nmodels:"), "write version: 1"),
    ],
)  # fmt: skip
def test_each_way_out_works(mistake, advice, message):
    wrong = PPO.replace(*mistake, 1)
    before = message_of(wrong)
    assert message in before
    assert advice[0] in wrong
    assert message not in answer_to(wrong.replace(*advice, 1))


def test_a_misspelt_value_is_told_beside_one_that_is_lost():
    text = PPO.replace("[prompts]", "[promts]").replace(
        "writes: {logp: ref_logp}", "writes: [logp]"
    )
    assert message_of(text) == (
        "<spec>:9:68: 'actor_gen' reads 'promts', which neither the data set gives nor a call writes; did you mean "
        "'prompts'?\n"
        "<spec>:11:80: 'ref_inf' writes 'logp', which 'actor_gen' writes already; give it a name of its own, as in "
        "{logp: my_logp}"
    )


def test_a_cycle_names_its_calls_and_what_waits():
    class Teacher(Interface):
        reads = {"train_step": ("ids",), "inference": ("marks",)}
        writes = {"train_step": ("marks",), "inference": ("lessons",)}

        def train_step(self, model, sample, context): ...
        def inference(self, model, sample, context): ...

    spec = {
        "version": 1,
        "models": {"m": {"decoder": {"width": 8}, "lr": 1.0}},
        "data": {"dataset": "toy-prompts"},
        "calls": {
            "a": {"model": "m", "do": "train_step", "with": "teacher", "reads": {"ids": "prompts"}, "writes": ["marks"]},
            "b": {"model": "m", "do": "inference", "with": "teacher", "reads": ["marks"], "writes": ["lessons"]},
            "c": {"do": "inference", "with": "printer", "reads": ["lessons"]},
        },
    }  # fmt: skip
    with registered(INTERFACES, {"teacher": Teacher}):
        message = message_of(spec)
    assert message == (
        "calls.a.reads: the calls form a cycle: 'a' -> 'b' -> 'a'; 'a' trains a model, and waits for all other calls "
        "of it"
    )


def test_values_in_a_circle():
    circle = PPO.replace("with: toy_reward, reads: [ids]", "with: toy_reward, reads: {ids: values}")
    circle = circle.replace(
        "with: toy_critic, reads: [ids]", "with: toy_critic, reads: {ids: rewards}"
    )
    assert message_of(circle) == (
        "<spec>:10:68: the calls form a cycle: 'rew_inf' -> 'critic_inf' -> 'rew_inf'\n"
        "<spec>:12:77: 'ids' is per token, but 'rewards', as 'rew_inf' writes it, is per item"
    )


@pytest.mark.parametrize("key", ["calls", "models"])
def test_too_many_are_refused(key):
    entry = load_source(PPO).data[key]["rew_inf" if key == "calls" else "reward"]
    message = message_of(PPO, [((key, f"more{i}"), entry) for i in range(1000)])
    count = 1006 if key == "calls" else 1004
    place = "9:3" if key == "calls" else "3:3"
    assert (
        message == f"<spec>:{place}: an experiment has at most 1,000 {key}, and this one {count:,}"
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"toy_reward": 3}, "10:49: 'toy_reward' is registered as the number 3, not as a class"),
        (
            {"toy_reward": type("Odd", (Interface,), {"reads": ("ids",), "inference": print})},
            "10:49: 'reads' of interface 'toy_reward' must map verbs to lists of names",
        ),
        (
            {"toy_reward": type("Odd", (Interface,), {"takes": "critic", "inference": print})},
            "10:49: 'takes' of interface 'toy_reward' must map verbs to kinds of models",
        ),
        (
            {"toy_reward": type("Odd", (Interface,), {"writes": {"inference": "rewards"}, "inference": print})},
            "10:49: 'writes' of interface 'toy_reward' must map verbs to lists of names",
        ),
    ],
)  # fmt: skip
def test_an_interface_that_is_none(entries, message):
    for name, entry in entries.items():
        INTERFACES.register(name, entry, replace=True)
    assert message_of(PPO) == f"<spec>:{message}"


def test_a_data_set_that_gives_nothing():
    DATASETS.register(
        "toy-prompts", type("Odd", (), {"__init__": lambda self, util, rows: None}), replace=True
    )
    assert message_of(PPO) == (
        "<spec>:7:17: data set 'toy-prompts' does not say what it gives, as in: gives = ('ids',)"
    )


def test_a_registered_experiment_is_extended_and_overridden(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        "extends: toy-ppo\nrun: {iterations: 7}\ncalls: {rew_inf: {with: longest_run}}\n"
    )
    with registered(EXPERIMENTS, {"toy-ppo": lambda: PPO}):
        assert read_experiment("toy-ppo").name == "toy-ppo"
        mine = read_experiment(tmp_path / "mine.yaml", ["run.seed=3"])
        assert message_of("toy-pp") == (
            "there is no file 'toy-pp'; unknown experiment 'toy-pp'; did you mean 'toy-ppo'?"
        )
    assert (mine.name, mine.run.iterations, mine.run.seed) == ("mine", 7, 3)
    assert mine.calls["rew_inf"].interface == "longest_run"


@pytest.mark.parametrize("by", ["override", "extends"])
def test_another_origin_of_a_model_takes_the_place_of_the_first(tmp_path: Path, by):
    (tmp_path / "ppo.yaml").write_text(PPO)
    (tmp_path / "mine.yaml").write_text(
        "extends: ppo.yaml\nmodels: {reward: {checkpoint: rm/}, ref: {spec: a.yaml}}\n"
    )
    if by == "extends":
        experiment = read_experiment(tmp_path / "mine.yaml")
    else:
        experiment = read_experiment(
            tmp_path / "ppo.yaml", ["models.reward.checkpoint=rm/", "models.ref.spec=a.yaml"]
        )
    assert experiment.models["reward"].origin == {"checkpoint": "rm/"}
    assert experiment.models["reward"].is_critic
    assert experiment.models["ref"].origin == {"spec": "a.yaml"}
    assert experiment.models["ref"].like is None
    assert str(experiment.source.position(("models", "reward"), key=True)).endswith(
        "yaml:2:10" if by == "extends" else "yaml:6:3"
    )


def test_a_model_with_two_origins_in_one_file():
    assert message_of(PPO.replace("{like: actor}", "{like: actor, spec: a.yaml}", 1)) == (
        "<spec>:5:9: the model 'ref' has 'spec', 'like'; keep one of them"
    )


def test_a_file_that_is_no_experiment_is_not_quoted(tmp_path: Path):
    (tmp_path / "secrets.yaml").write_text("password: hunter2\n")
    (tmp_path / "mine.yaml").write_text(f"extends: secrets.yaml\n{PPO}")
    message = message_of(tmp_path / "mine.yaml")
    assert "is no experiment: it has none of an experiment's keys" in message
    assert "hunter2" not in message


def test_two_decoders_of_other_widths_in_a_hook():
    text = PPO.replace(
        "ref: {like: actor}", "ref: {decoder: {width: 24, num_layers: 1, num_heads: 2}}"
    )
    assert message_of(text.replace("vocabulary: tokens.txt, ", "")) == (
        "<spec>:18:43: the models 'actor' and 'ref' have different shapes: their 'width' is 16 and 24"
    )


def test_what_is_wrong_many_times_is_told_in_time():
    """Each check is about as long as what is written."""
    reads = [f"v{i}" for i in range(5_000)]
    many = {
        f"c{i}": {
            "do": "inference",
            "with": f"lft{i}",
            "reads": {"ids": f"x{i}"},
            "writes": {"a": f"y{i}"},
        }
        for i in range(999)
    }
    models = {f"m{i}": {"like": f"m{(i + 1) % 1000}"} for i in range(1000)}
    hooks = [{"after": "c0", "from": f"m{i % 1000}", "to": f"m{i * 7 % 999}"} for i in range(2_000)]
    calls = {
        **many,
        "last": {"do": "inference", "with": "printer", "reads": reads, "writes": reads},
    }
    spec = {
        "version": 1,
        "data": {"dataset": "toy-prompts"},
        "models": models,
        "hooks": hooks,
        "calls": calls,
    }
    begun = time.process_time()
    assert "... and " in message_of(spec)
    assert time.process_time() - begun < 20  # 3 on a machine that has nothing else to do


# --- whatever is written ---------------------------------------------------------------------------------------

WORDS = [
    "actor", "ref", "ids", "logp", "rewards", "values", "prompts", "train_step", "generate", "evaluate", "toy_actor",
    "like", "lr", "0", "-1", "1e9", ".nan", ".inf", "null", "true", "[]", "{}", "[ids, ids]", "{ids: values}", "''",
    "a/b", "é", "${params.x}", "'", "calls", "models", "9" * 400, "decoder", "[[1]]", "{a: {b: c}}", "<<", "*x", "- 1",
]  # fmt: skip


def mutilated(draws: random.Random) -> str:
    """PPO with some of its characters, words or lines changed, dropped, doubled or exchanged."""
    text = PPO
    for _ in range(draws.randint(1, 4)):
        kind = draws.randrange(4)
        lines = text.split("\n")
        line = draws.randrange(len(lines))
        if kind == 0:
            lines[line] = lines[draws.randrange(len(lines))]
        elif kind == 1:
            del lines[line]
        text = "\n".join(lines)
        spots = [i for i, c in enumerate(text) if not c.isalnum()] or [0]
        start = draws.choice(spots)
        if kind == 2:
            end = next((i for i in spots if i > start + 1), start + 1)
            text = text[: start + 1] + draws.choice(WORDS) + text[end:]
        elif kind == 3:
            text = text[:start] + draws.choice([*" ,:{}[]\n'", ""]) + text[start + 1 :]
    return text


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_written_is_an_experiment_or_an_error_in_words(seed):
    draws = random.Random(seed)
    for _ in range(25):
        text = mutilated(draws) + "\n"
        try:
            read_experiment(text)
        except SpecError as error:
            problems = error.problems
        else:
            problems = ()
        assert all(problem.position for problem in problems), text


def places(data, path=()):
    yield path
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 1.5, float("nan"), "", "actor", [], [1], ["ids"], {}, {"a": 1}, print],
)
def test_any_value_in_any_place(value):
    """From Python, where a value may be anything."""
    for path in places(load_source(PPO).data):
        if path:
            with contextlib.suppress(SpecError):
                assert isinstance(read_experiment(PPO, [(path, value)]), Experiment)


def test_a_file_without_calls_is_an_experiment_if_it_has_models_and_data():
    assert is_experiment({"calls": {}})
    assert is_experiment({"models": {}, "data": {}})
    assert not is_experiment({"policy": {}, "data": {}})


def test_a_circle_of_very_many_models_is_told_in_a_line():
    models = "".join(f"  m{n}: {{like: m{(n + 1) % 900}}}\n" for n in range(900))
    text = message_of(PPO.replace("models:\n", f"models:\n{models}"))
    (line,) = [line for line in text.splitlines() if "circle" in line]
    circle = "'m0' -> 'm1' -> 'm2' -> 'm3' -> ... -> 'm898' -> 'm899' -> 'm0'"
    assert line.endswith(f"in a circle: {circle}; say of one where it comes from")


def test_two_mistakes_at_one_place_of_run_are_told():
    text = PPO.replace("run: {", "run: {itterations: '${params.none}', ")
    assert "params" in message_of(text)
