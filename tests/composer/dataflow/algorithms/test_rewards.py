"""Rewards by a function of one's own, here and in a process that is killed, and by dotted names."""

import functools
import importlib
import re
import sys
import textwrap

import numpy as np
import pytest
import torch

from composer.dataflow import (
    INTERFACES,
    Context,
    Interface,
    RewardError,
    Sample,
    interface_of,
    reward_function,
    vocabulary_tokenizer,
)
from composer.dataflow.algorithms.rewards import Text, texts_of
from composer.dataflow.algorithms.timeouts import KillableFunction
from composer.trust import PathError
from perception_blocks.registry import UnknownNameError
from perception_blocks.settings import check_settings
from tests.helpers import reward_functions

PLACE = "call 'rew_inf' in iteration 3: "
SCORE = "'tests.composer.dataflow.algorithms.test_rewards.score'"


@pytest.fixture
def context(letters):
    return Context(torch.Generator(), 3, letters, call="rew_inf")


def a_sample():
    """``ab|c`` and its end, ``a|a`` and ``b|b`` of one item; | is the end of a prompt."""
    ids = torch.tensor([0, 1, 2, 5, 0, 0, 1, 1])
    mask = torch.tensor([1, 1, 0, 0, 1, 0, 1, 0]).bool()
    lengths = [[4], [2, 2]]
    return Sample.of(
        ["x", "y"],
        {"ids": lengths, "prompt_mask": lengths},
        {"ids": ids, "prompt_mask": mask},
        {"label": ["c", "b"], "level": [1, 2]},
    )


def rewards(function, context, sample=None, **settings):
    interface = reward_function(function)(**settings)
    return interface.inference(None, a_sample() if sample is None else sample, context)[
        "rewards"
    ].tolist()


def test_texts_come_in_and_numbers_go_out(context):
    seen = []

    def score(prompts, completions):
        seen.append((prompts, completions))
        return [1, 2.5, True]

    assert rewards(score, context) == [1.0, 2.5, 1.0]
    assert seen == [(["ab", "a", "b"], ["c", "a", "b"])]


def test_words_are_apart_in_the_whole_text(tmp_path):
    (tmp_path / "tokens.txt").write_text("the\ncat\nsat\n")
    words = vocabulary_tokenizer(tmp_path / "tokens.txt")
    sample = Sample.of(
        ["x"],
        {"ids": [[4]], "prompt_mask": [[4]]},
        {
            "ids": torch.tensor([0, 1, 2, 4]),
            "prompt_mask": torch.tensor([True, True, False, False]),
        },
    )
    assert texts_of(sample, words, "") == [Text("x", 0, "the cat sat", "the cat", "sat")]


def test_columns_are_the_metadata_by_sequence(context):
    seen = {}

    def score(prompts, completions, level, *, label, other=3, **columns):
        seen.update(level=level, label=label, other=other, columns=columns)
        return [0, 0, 0]

    rewards(score, context)
    assert seen == {"level": [1, 2, 2], "label": ["c", "b", "b"], "other": 3, "columns": {}}
    rewards(lambda p, c, **columns: seen.update(columns=columns) or [0, 0, 0], context)
    assert seen["columns"] == {"level": [1, 2, 2], "label": ["c", "b", "b"]}
    assert rewards(reward_functions.matches, context) == [2.0, 0.0, 2.0]


def test_no_items(context):
    empty = Sample.of(
        [],
        {"ids": [], "prompt_mask": []},
        {"ids": torch.zeros(0).long(), "prompt_mask": torch.zeros(0).bool()},
    )
    assert rewards(reward_functions.brevity, context, empty) == []


@pytest.mark.parametrize(
    "numbers",
    [np.array([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]), (1, 2, 3), [np.float32(1), 2, np.int64(3)]],
)  # fmt: skip
def test_numbers_may_be_an_array(context, numbers):
    assert rewards(lambda p, c: numbers, context) == [1.0, 2.0, 3.0]


def test_what_can_be_called_is_a_reward_function(context):
    weighted = functools.partial(reward_functions.matches, weight=5.0)
    assert rewards(weighted, context) == [5.0, 0.0, 5.0]
    failing = functools.partial(reward_functions.fails_at_c)
    with pytest.raises(RewardError, match=r"^.*'functools.partial' raises ZeroDivisionError"):
        rewards(failing, context)
    with pytest.raises(ValueError, match="with a timeout runs in another process"):
        reward_function(weighted, timeout=3)


def test_an_array_comes_back_from_a_process(context):
    assert rewards(reward_functions.an_array, context, timeout=60) == [1.0, 1.0, 1.0]


WRONG = [
    ([1, float("nan"), 3], "gives nan for item 'y', the text 'aa'; a reward is a finite number"),
    ([1, 2, -float("inf")], "gives -inf for item 'y', the text 'bb'; a reward is a finite number"),
    (np.array([np.nan, 1, 1]), "gives nan for item 'x', the text 'abc'; a reward is a finite number"),
    ([1, 1e39, 3], "gives a number that is too large for item 'y', the text 'aa'; a reward is a finite number"),
    ([1, 2, -(10**5000)], "gives a number that is too large for item 'y', the text 'bb'; a reward is a finite number"),
    ([1, "2", 3], "gives the text '2' for item 'y', the text 'aa'; a reward is a finite number"),
    ([None, 1, 2], "gives nothing (null) for item 'x', the text 'abc'; a reward is a finite number"),
    ([[1], 1, 2], "gives a list for item 'x', the text 'abc'; a reward is a finite number"),
    ([1, 2], "gives 2 of 3 rewards; the first without is item 'y', the text 'bb'"),
    ([1, 2, 3, 4], "gives 4 rewards for 3 texts; the last is item 'y', the text 'bb'"),
    (None, "gives nothing (null), not a list with a number for each text; the first is item 'x', the text 'abc'"),
    (3.0, "gives the number 3.0, not a list with a number for each text; the first is item 'x', the text 'abc'"),
    ("abc", "gives the text 'abc', not a list with a number for each text; the first is item 'x', the text 'abc'"),
    ({"a": 1}, "gives a mapping, not a list with a number for each text; the first is item 'x', the text 'abc'"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "message"), WRONG)
def test_wrong_numbers_name_the_call_the_item_and_the_text(context, answer, message):
    def score(prompts, completions):
        return answer

    score.__qualname__ = "score"
    with pytest.raises(RewardError, match=f"^{re.escape(f'{PLACE}{SCORE} {message}')}$"):
        rewards(score, context)


@pytest.mark.parametrize("settings", [{}, {"timeout": 30}])
def test_an_error_is_told_with_the_text_that_leads_to_it(context, settings):
    name = "'tests.helpers.reward_functions.fails_at_c' raises ZeroDivisionError: division by zero"
    with pytest.raises(RewardError) as error:
        rewards(reward_functions.fails_at_c, context, **settings)
    assert str(error.value) == f"{PLACE}{name}, for item 'x', the text 'abc'"
    notes = "".join(getattr(error.value.__cause__, "__notes__", []))
    assert ("for completion in completions]" in notes) == bool(
        settings
    )  # its own traceback is not ours


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(), "SystemExit"),
        (SystemExit("enough"), "SystemExit: enough"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (ValueError("x" * 1000), f"ValueError: {'x' * 497}..."),
    ],
)
def test_whatever_is_raised_is_a_line(context, error, said):
    def score(prompts, completions):
        raise error

    score.__qualname__ = "score"
    message = f"{PLACE}{SCORE} raises {said}, for item 'x', the text 'abc'"
    with pytest.raises(RewardError, match=f"^{re.escape(message)}$"):
        rewards(score, context)


def test_a_timeout_may_be_longer_than_a_system_waits(context):
    assert rewards(reward_functions.brevity, context, timeout=1e300) == [-1.0, -1.0, -1.0]


def test_an_error_of_all_texts_together(context):
    def score(prompts, completions):
        if len(prompts) > 1:
            raise KeyError("x")
        return [0]

    score.__qualname__ = "score"
    message = (
        f"{SCORE} raises KeyError: 'x', for 3 texts, the first of which is item 'x', the text 'abc'"
    )
    with pytest.raises(RewardError, match=f"^{re.escape(PLACE + message)}$"):
        rewards(score, context)


def test_a_missing_column_and_a_missing_tokenizer(context):
    def score(prompts, completions, lable):
        return [0, 0, 0]

    score.__qualname__ = "score"
    message = f"{SCORE} takes 'lable', which the rows of the data set lack; did you mean 'label'?"
    with pytest.raises(RewardError, match=f"^{re.escape(PLACE + message)}$"):
        rewards(score, context)
    context.tokenizer = None
    with pytest.raises(
        RewardError, match=r"a reward of texts needs a tokenizer, and there is none$"
    ):
        rewards(reward_functions.brevity, context)


def test_a_function_that_hangs_or_dies_in_its_process_and_is_used_again(context):
    """One process serves many calls; it is killed where one takes too long, and the next call has a new one."""
    hangs = reward_function(reward_functions.sleeps, timeout=0.5)()
    calm = a_sample().unpack()[0]
    assert hangs.inference(None, calm, context)["rewards"].tolist() == [0.0]
    process = hangs._call._process
    late = Sample.of(
        ["z"],
        {"ids": [[1]], "prompt_mask": [[1]]},
        {"ids": torch.tensor([1]), "prompt_mask": torch.tensor([False])},
    )
    message = f"{PLACE}'tests.helpers.reward_functions.sleeps' takes more than 0.5 s, for 1 texts, the first of which is item 'z', the text 'b'"
    with pytest.raises(RewardError, match=f"^{re.escape(message)}$"):
        hangs.inference(None, late, context)
    assert process.exitcode == -9
    assert hangs.inference(None, calm, context)["rewards"].tolist() == [0.0]
    hangs._call.close()


def test_a_process_that_ends(context):
    ends = reward_function(reward_functions.ends_its_process, timeout=30)()
    with pytest.raises(
        RewardError, match="ended its process, with the exit code 3, for 3 texts, the first"
    ):
        ends.inference(None, a_sample(), context)
    unsendable = KillableFunction(reward_functions.cannot_be_sent, 30)
    with pytest.raises(RuntimeError, match=r"^returns what cannot be sent: "):
        unsendable([], [])
    unsendable.close()


def test_a_process_imports_only_what_the_function_needs(tmp_path, monkeypatch):
    (tmp_path / "light_rewards.py").write_text(
        textwrap.dedent("""
            import os, sys
            def score(prompts, completions):
                return [os.getpid(), "torch" in sys.modules]
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    light_rewards = importlib.import_module("light_rewards")
    call = KillableFunction(light_rewards.score, 30)
    assert call([], []) == call([], [])
    assert call([], [])[1] is False
    call.close()
    monkeypatch.delitem(sys.modules, "light_rewards")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda prompts, completions: [], "it is not defined at the top of a module"),
        (reward_functions.Scores().brevity, None),
    ],
)
def test_a_function_that_no_other_process_can_import(function, why):
    if why is None:
        assert reward_function(function, timeout=3)
        return
    with pytest.raises(
        ValueError, match=f"runs in another process, which cannot import it: {why}$"
    ):
        reward_function(function, timeout=3)
    with pytest.raises(
        ValueError, match=f"runs in another process, which cannot import it: {why}$"
    ):
        reward_function(function)(timeout=3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "a reward function is a function, got the number 3"),
        (lambda prompts: [], "a reward function takes prompts and completions, as in: def score(prompts, completions); this one takes prompts"),
        (lambda *texts: [], "a reward function takes prompts and completions, as in: def score(prompts, completions); this one takes *texts"),
        (lambda: [], "a reward function takes prompts and completions, as in: def score(prompts, completions); this one takes nothing"),
    ],
)  # fmt: skip
def test_what_is_no_reward_function(function, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        reward_function(function)


@pytest.mark.usefixtures("registries")
def test_a_registered_function_is_an_interface_with_a_setting():
    cls = reward_function(reward_functions.brevity)
    INTERFACES.register("brevity", cls)
    assert interface_of("brevity") is cls
    assert INTERFACES.name_of(cls) == "brevity"
    INTERFACES.register("brevity", reward_function(reward_functions.brevity))  # the module again
    assert (cls.needs_model, cls.writes) == (False, {"inference": ("rewards",)})
    assert check_settings(cls, {"timeout": 3}, "interface 'brevity'", skip=0) == []
    (problem,) = check_settings(cls, {"timeout": -3}, "interface 'brevity'", skip=0)
    assert problem.message == "'timeout' must be a positive number or null, got -3"


def test_interfaces_by_dotted_name(context):
    allow = ["tests.helpers"]
    interface = interface_of("tests.helpers.reward_functions.brevity", allow)
    assert interface().inference(None, a_sample(), context)["rewards"].tolist() == [-1, -1, -1]
    assert interface.__name__ == "brevity"
    decorated = interface_of("tests.helpers.decorated_reward.decorated", allow)
    assert issubclass(decorated, Interface)
    elsewhere = decorated(timeout=30)
    assert elsewhere.inference(None, a_sample(), context)["rewards"].tolist() == [3, 3, 3]
    elsewhere._call.close()


@pytest.mark.parametrize(
    ("name", "allow", "error", "message"),
    [
        ("brevty", (), UnknownNameError, "unknown interface 'brevty'"),
        ("my_rewards.score", (), PathError, "'my_rewards.score' is outside the allowed modules (none); pass allow=['my_rewards'] or --allow my_rewards if you trust it"),
        ("tests.helpers.reward_functions.brevty", ["tests.helpers"], PathError, "'tests.helpers.reward_functions' has no 'brevty'; did you mean 'brevity'?"),
        ("tests.helpers.reward_functions.Scores", ["tests.helpers"], PathError, "'tests.helpers.reward_functions.Scores' is no subclass of composer.dataflow.Interface"),
        ("tests.helpers.paths.ROOT", ["tests.helpers"], PathError, "'tests.helpers.paths.ROOT' is no interface: a reward function is a function, got an object of type 'PosixPath'"),
    ],
)  # fmt: skip
def test_names_that_lead_to_no_interface(name, allow, error, message):
    with pytest.raises(error, match=re.escape(message)):
        interface_of(name, allow)
