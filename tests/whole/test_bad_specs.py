"""Every broken spec gets exactly the answer that stands beside it, and nothing of it is executed.

``specs/bad/TOPIC/NAME.yaml`` begins with comments that say how to read it: ``# check: structure`` (no environment is needed),
``# spaces: vector`` (one of SPACES below) or ``# env: CartPole-v1``, and ``# allow: my_nets``, ``# set: key=value`` as
often as needed. ``NAME.txt`` is the whole message, as seen from inside the folder.
"""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete

import composer
from composer.editor.fixes import edit_of
from composer.errors import Problem, SpecError
from composer.source.load import load_source
from composer.spec.read import read_spec, read_structure
from perception_blocks.registry import BLOCKS
from tests.helpers.paths import ROOT, TESTS

FOLDER = TESTS / "specs" / "bad"
SPECS = {path.stem: path for path in sorted(FOLDER.glob("*/*.yaml"))}


class Mission(gymnasium.Space[str]):
    """A kind of space of somebody else's, as minigrid has one."""


class Quest(gymnasium.Space[str]):
    """The same, but it says that it holds texts."""

    def __init__(self):
        super().__init__(dtype=str)


VECTOR = Box(-1, 1, (4,))
IMAGE = Box(0, 1, (3, 64, 64))
MOVE = Discrete(4)
MOVE_AND_USE = Dict(move=MOVE, use=MultiBinary(16))
SPACES: dict[str, tuple[Any, Any]] = {
    "vector": (VECTOR, Discrete(2)),
    "scalar": (Box(-1, 1, ()), MOVE),
    "bytes": (Box(0, 255, (4,), np.uint8), MOVE),
    "window": (Box(-1, 1, (10, 6)), MOVE),
    "tiny": (Box(0, 1, (3, 8, 8)), MOVE),
    "frames": (Box(0, 1, (4, 84, 84)), MOVE),
    "pixels": (Box(0, 255, (64, 64, 3), np.uint8), MOVE),
    "pixels_first": (Box(0, 255, (3, 64, 64), np.uint8), MOVE),
    "unbounded_image": (Box(-np.inf, np.inf, (3, 64, 64)), MOVE),
    "square_image": (Box(0, 1, (16, 16, 16)), MOVE),
    "screens": (Box(0, 255, (2, 3, 64, 64), np.uint8), MOVE),
    "sets": (Dict(far=Box(-1, 1, (3, 5)), near=Box(-1, 1, (2, 4))), MOVE),
    "roads": (Graph(Box(-1, 1, (4,)), Box(-1, 1, (2,))), MOVE),
    "recalling": (Dict({"x": VECTOR, "previous/reward": VECTOR}), MOVE),
    "rewarding": (VECTOR, Dict(reward=MOVE)),
    "complex": (Dict(inventory=Box(-1, 1, (16,)), screen=IMAGE), MOVE_AND_USE),
    "action_seen": (Dict({"inventory": VECTOR, "action/move": VECTOR}), MOVE_AND_USE),
    "complex_vector": (Dict(inventory=Box(-1, 1, (16,))), MOVE_AND_USE),
    "counts": (
        Dict(colours=MultiDiscrete([3, 4]), kind=Discrete(5), speed=Box(-1, 1, (2,))),
        MOVE,
    ),
    "masked": (
        Dict(
            legal_moves=MultiBinary(4), legal_uses=MultiBinary(16), state=Box(-1, 1, (4,))
        ),
        MOVE_AND_USE,
    ),
    "tokens": (Dict(sequence=MultiDiscrete([8] * 6), sequence_mask=MultiBinary(6)), Discrete(8)),
    "control": (VECTOR, Box(-1, 1, (3,))),
    "unbounded_control": (VECTOR, Box(-np.inf, np.inf, (3,))),
    "mission": (Dict(name=Mission(), state=VECTOR), MOVE),
    "quest": (Dict(quest=Quest(), state=VECTOR), MOVE),
    "mission_action": (VECTOR, Mission()),
    "empty_actions": (VECTOR, Dict(buttons=MultiDiscrete([]), grip=Box(-1, 1, (2, 0)), move=MOVE)),
    "no_action": (VECTOR, Dict()),
    "steps": ({"pick": VECTOR, "place": VECTOR}, {"pick": MOVE, "place": MOVE}),
    "crowd": ({("pick", None): VECTOR, "place": VECTOR}, {("pick", None): MOVE, "place": MOVE}),
    "groups": (
        Dict(
            policy=Dict(joints=VECTOR, speeds=VECTOR),
            robot=Dict(camera=Box(0, 1, (3, 8, 8)), gear=Discrete(3), pose=VECTOR),
        ),
        MOVE,
    ),
    "collision": (Dict({"a": Dict(b=VECTOR), "a/b": VECTOR}), MOVE),
}  # fmt: skip


def directives(path: Path) -> dict[str, list[str]]:
    """What the comments at the top of a spec say: ``{"spaces": ["vector"], "allow": [...], "set": [...]}``."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"# (check|allow|set|env|spaces): (.*)", line)
        if match is None:
            break
        found.setdefault(match[1], []).append(match[2])
    return found


def outcome(path: Path) -> str:
    """The message a user gets for the spec at ``path``; empty for a spec without problems."""
    error = raised_for(path)
    return "" if error is None else str(error)


def raised_for(path: Path) -> SpecError | None:
    says = directives(path)
    overrides, allow = says.get("set", ()), says.get("allow", ())
    try:
        if says.get("check") == ["structure"]:
            read_spec(load_source(path, overrides), allow)
        else:
            (env,) = says.get("env", [None])
            (name,) = says.get("spaces", ["none"])
            observation_space, action_space = SPACES.get(name, (None, None))
            composer.compose(
                path, env, observation_space, action_space, allow, overrides, device="meta"
            )
    except SpecError as error:
        return error
    return None


@pytest.mark.parametrize("name", SPECS)
def test_a_bad_spec_gets_its_answer(name, monkeypatch):
    monkeypatch.chdir(SPECS[name].parent)
    monkeypatch.syspath_prepend(FOLDER)
    error = raised_for(Path(f"{name}.yaml"))
    message = "" if error is None else str(error)
    assert message + "\n" == Path(f"{name}.txt").read_text()
    for problem in error.problems if error else ():
        assert_starts_at_a_token(problem)
        assert_near_name_is_known(name, problem)


# Problems whose near name is no word of the spec: of a class, of an argument, of a place elsewhere.
WITHOUT_WORD = {"allow_names_file", "set_param_without_params", "target_critic_no_value"}
WITHOUT_WORD |= {"target_returns_misspelt_head"}
# The word is not at the place of the problem: in an override, or in a param.
WITHOUT_EDIT = {"set_unknown_path"}


def assert_starts_at_a_token(problem: Problem) -> None:
    place = problem.position
    if place is None or place.line is None or not os.path.isfile(place.file):
        return
    lines = [*Path(place.file).read_text().split("\n"), ""]
    assert place.column is not None
    before, after = (
        lines[place.line - 1][: place.column - 1],
        lines[place.line - 1][place.column - 1 :],
    )
    assert not before.strip().startswith("#")
    empty = before.endswith(":") or not lines[place.line - 1]  # a value that is missing, or the end
    assert empty or not after.startswith(" "), problem


def assert_near_name_is_known(name: str, problem: Problem) -> None:
    """What says 'did you mean' has the name as data, and an editor can write it."""
    says = problem.message.endswith("?") and "did you mean" in problem.message
    assert says == (problem.instead is not None) or name in WITHOUT_WORD, problem
    place = problem.position
    if problem.instead and place and os.path.isfile(place.file):
        edit = edit_of(problem, Path(place.file).read_text())
        assert edit is not None or name in WITHOUT_EDIT, problem


def test_every_answer_has_its_spec():
    answers = sorted(FOLDER.glob("*/*.txt"))
    assert answers == sorted(path.with_suffix(".txt") for path in SPECS.values())
    assert len({path.stem for path in answers}) == len(answers)


def test_a_structural_mistake_is_answered_fast_and_without_torch():
    code = (
        "import sys, time\n"
        "from composer.source.load import load_source\n"
        "from composer.spec.read import read_spec\n"
        "try: read_spec(load_source(sys.argv[1]))\n"
        "except ValueError as error: print(len(error.problems))\n"
        "assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules\n"
        "assert time.process_time() < 0.3, time.process_time()\n"
    )
    command = [sys.executable, "-c", code, str(SPECS["many_problems"])]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("7\n", "")


@pytest.mark.parametrize("name", list(BLOCKS))
def test_every_block_is_used_wrongly_in_some_spec(name):
    """Whoever adds a block shows here what it answers to a shape or a setting that it cannot take."""
    node = re.compile(rf"\bblock: {name}\b")
    assert any(node.search(path.read_text()) for path in SPECS.values())


def test_reading_a_bad_spec_returns_what_it_is_beside_its_problems(monkeypatch):
    """Whatever is wrong, reading does not raise; the problems are those that `read_spec` raises."""
    known = 0
    for path in SPECS.values():
        monkeypatch.chdir(path.parent)
        says = directives(path)
        with contextlib.suppress(SpecError):
            source = load_source(path.name, says.get("set", ()))
            spec, problems = read_structure(source, says.get("allow", ()))
            known += spec is not None
            raised: tuple[Problem, ...] = ()
            try:
                read_spec(source, says.get("allow", ()))
            except SpecError as error:
                raised = error.problems
            assert sorted(map(str, problems)) == sorted(map(str, raised))
            assert raised or spec is not None
    assert known > 0.9 * len(SPECS)
