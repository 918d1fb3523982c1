"""Mutations of specs, spaces, checkpoints and runs, each in a process of its own that may take 5 seconds and 1 GiB more.

``python -m tests.helpers.fuzzing SECONDS [FIRST]`` tries cases from number FIRST on, and prints each that ends in
anything but a model or a refusal. A case follows from its number.
"""

import contextlib
import functools
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import torch
import transformers
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)  # fmt: skip

import composer
from composer.checkpoint.container import HEADER, CheckpointError, _header_digest
from composer.training.folder import RunFolder
from composer.training.trainer import TrainingError
from perception_blocks.registry import ACTIVATIONS, BLOCKS, INITIALIZERS
from tests.helpers.paths import ROOT

CORPUS = ROOT / "tests" / "specs" / "fuzz_corpus"
SECONDS, BYTES = 5, 2**30
BATCH = 20  # cases of one process
REFUSALS = (composer.SpecError, CheckpointError, TrainingError)
WORDS = [
    *BLOCKS, *ACTIVATIONS, *INITIALIZERS, "graph", "ensemble", "torch.nn.Linear", "torch.nn.LSTM", "os.system",
    "observation", "_", "in", "out", "block", "each", "same_as", "heads", "policy", "critic", "copies", "init", "params",
    "hidden_units", "num_layers", "shares", "wrap", "networks", "template", "kind", "state_action", "${params.width}",
    "categorical", "gaussian", "beta", "a/b", "é", "\\e[31m", "*a", "&a x", "!!python/object:os.system x", "<<", "---",
]  # fmt: skip
NUMBERS = [
    "0", "-1", "1", "2", "3", "1e9", "1000000000", "1000000000000", "9" * 400, ".nan", ".inf",
    "0x7f", "1e-300",
]  # fmt: skip
OTHERS = [
    "null", "true", "[]", "{}", "[1, 2]", "{a: 1}", "''", "'x'", "-", ":", "]", "}", '"', "\t",
    "\0", "\ufeff",
]  # fmt: skip
TOKEN = re.compile(r"[\w./$]+|\s+|.", re.DOTALL)


def specs():
    """(name, text, spaces) of each spec of the configs, the documentation and the good specs.

    Modules of the configs are allowed; pages that need others are left out.
    """
    sys.path.insert(0, str(ROOT / "configs"))
    texts = {path.name: path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))}
    texts["everything"] = (ROOT / "tests" / "specs" / "good" / "everything.yaml").read_text()
    docs = ROOT / "docs"
    for page in sorted(docs.rglob("*.md")):
        for index, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)):
            texts[f"{page.relative_to(docs)}:{index}"] = text
    for name, text in texts.items():
        if "policy:" not in text or "extends:" in text or not text.endswith("\n"):
            continue
        with contextlib.suppress(Exception):
            keywords = {} if "environment:" in text else CARTPOLE
            model = composer.compose(text, device="meta", seed=0, allow=ALLOW, **keywords)
            bare = re.sub("^environment:.*$", "", text, flags=re.MULTILINE)
            yield name, bare, (model.observation_space, model.action_space)


ALLOW = ["environments", "networks"]
CARTPOLE = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)}


def mutated(text, draw):
    """``text`` with one to three tokens, lines or blocks of lines changed."""
    for _ in range(draw.randint(1, 3)):
        tokens = TOKEN.findall(text)
        place = draw.randrange(len(tokens))
        pool = draw.choice([WORDS, NUMBERS, OTHERS, tokens])
        kind = draw.choice(["replace", "replace", "insert", "drop", "swap", "line", "double"])
        if kind == "replace":
            tokens[place] = draw.choice(pool)
        elif kind == "insert":
            tokens.insert(place, draw.choice(pool))
        elif kind == "drop":
            del tokens[place : place + draw.choice([1, 1, 4])]
        elif kind == "swap":
            other = draw.randrange(len(tokens))
            tokens[place], tokens[other] = tokens[other], tokens[place]
        else:
            lines = "".join(tokens).split("\n")
            line = draw.randrange(len(lines))
            moved = lines[line] if kind == "double" else lines.pop(line)
            lines.insert(draw.randrange(len(lines) + 1), moved)
            tokens = ["\n".join(lines)]
        text = "".join(tokens) or "x"
    return text + "\n"  # one line would be the name of a file


def compose_text(text, spaces):
    observation_space, action_space = spaces
    composer.compose(
        text, observation_space=observation_space, action_space=action_space, device="meta", seed=0,
        allow=ALLOW,
    )  # fmt: skip


def changed_json(data, draw):
    """``data`` with one value replaced, dropped or doubled."""
    places = []

    def walk(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                walk(value[key])

    walk(data)
    holder, key = draw.choice(places)
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice(
            [None, True, -1, 0, 3, 2**70, 1.5, "x", "", "../x", [], {}, [[]], {"a": 1}, draw.choice(WORDS), data]
        )  # fmt: skip
        if holder[key] is data:
            holder[key] = json.loads(json.dumps({"deep": [None]}))
    return data


def change_header(file, draw):
    """Change a value of the checkpoint ``file``, and its digest accordingly: as somebody would who means it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(file, framework="pt") as opened:
        texts = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        parts = {name: opened.get_slice(name) for name in tensors}
        kinds = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    key = draw.choice(sorted(set(texts) - {HEADER}))
    texts[key] = json.dumps(changed_json({key: json.loads(texts[key])}, draw).get(key))
    texts[HEADER] = json.dumps(_header_digest(texts, kinds))
    save_file(tensors, file, metadata=texts)


class Foreign(gymnasium.Space):
    """A kind of space of somebody else's."""


TEMPLATE = """
version: 1
policy: {template: {}}
critic: {template: {}}
"""


def any_space(draw, depth=0):
    """A space of any kind and size, sensible or not; some have attributes that no constructor would give them."""
    pick = draw.choice
    size = pick([0, 1, 1, 2, 3, 5, 8, 84, 10**4, 10**6])
    shape = tuple(pick([0, 1, 2, 3, 4, 16, 84]) for _ in range(pick([0, 1, 1, 1, 2, 3, 3])))
    shape = pick([shape] * 9 + [(10**6,)])
    low, high = pick(
        [(0, 1), (-1, 1), (0, 255), (-np.inf, np.inf), (0, np.inf), (5, 5), (-1e38, 1e38)]
    )
    dtype = pick(
        [np.float32, np.float32, np.float64, np.float16, np.uint8, np.int8, np.int64, np.bool_]
    )
    makers = [
        lambda: Box(low, high, shape, dtype),
        lambda: Discrete(max(size, 1), start=pick([0, 0, 1, -3, 2**60])),
        lambda: MultiDiscrete(pick([[2, 3], [4] * 7, [[2, 3], [3, 2]], [1], [10**6, 2], []])),
        lambda: MultiBinary(pick([max(size, 1), [2, 3]])),
        lambda: Text(pick([1, 5, 200]), charset=pick(["ab", "abcdefghij"])),
        lambda: Graph(any_space(draw, 3), pick([None, Discrete(3), Box(-1, 1, (2,))])),
        lambda: Foreign(shape, pick([None, dtype])),
    ]
    if depth < 3:
        inner = [any_space(draw, depth + 1) for _ in range(pick([0, 1, 2, 2, 3]))]
        keys = draw.sample(
            [*WORDS, "a", "b", "a/b", "a b", "", "\n", "left'right", "x" * 500], len(inner)
        )
        makers += [
            lambda: Dict(dict(zip(keys, inner, strict=True))),
            lambda: Dict(dict(zip(keys, inner, strict=True))),
            lambda: Tuple(inner),
            lambda: Sequence(any_space(draw, depth + 1), stack=draw.random() < 0.5),
            lambda: OneOf(inner),
        ]
    while True:
        with contextlib.suppress(AssertionError, ValueError, TypeError, OverflowError, MemoryError):
            return pick(makers)()


def spaces_case(draw, known):
    """A spec over spaces that were made up: a template, or a spec that was written for others."""
    text = draw.choice([TEMPLATE, TEMPLATE, draw.choice(known)[1]])
    observation_space, action_space = any_space(draw), any_space(draw)
    if draw.random() < 0.2:
        names = draw.sample(["pick", ("place", 0), ("place", 1), "a", 3, None, 1.5], 2)
        observation_space = {name: any_space(draw) for name in names}
        action_space = {name: any_space(draw) for name in names}
    return TextCase(text, (observation_space, action_space)), f"spaces over {text}"


def checkpoint_case(draw, folder):
    file = folder / "model.safetensors"
    draw.choice([compose_saved, compose_of_many_kinds])().save(file)
    change_header(file, draw)
    return lambda: composer.load(file)


def run_case(draw, folder):
    record = {
        "format": "composer-run", "version": 1, "spec": SAVED, "environment": "CartPole-v1", "trainer": "sb3",
        "algorithm": "ppo", "steps": 8,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(changed_json(record, draw)))
    (folder / "trainer.pt").write_bytes(draw.randbytes(20))

    def resume():
        run = RunFolder.open(folder)
        run.load()

    return resume


SAVED = """
version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [8]}
  heads: {in: latent}
"""


def compose_saved():
    return composer.compose(SAVED, seed=0, **CARTPOLE)


@functools.cache
def compose_of_many_kinds():
    spaces = {
        "image": Box(0, 255, (3, 8, 8), np.uint8), "speed": Box(-np.inf, 1, (2,)), "gear": Discrete(3, start=-1),
        "set": Sequence(Box(-1, 1, (2,)), stack=True), "word": Text(3, charset="ab"),
        "roads": Graph(Box(-1, 1, (2,)), Discrete(2)), "flags": MultiBinary([2, 2]),
    }  # fmt: skip
    return composer.compose(
        TEMPLATE, observation_space=Dict(spaces), action_space=Tuple([MultiDiscrete([2, 3]), Box(-1, 1, (2,))]), seed=0,
    )  # fmt: skip


def outcomes(cases):
    """What running each of ``cases`` comes to: "model", "refused", or in words what it should not be.

    A process runs them one after the other; where one ends it, another goes on with those after it.
    """
    results = []
    while len(results) < len(cases):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8", errors="replace") as answers:
                for case in cases[len(results) :]:
                    limit_this_process()
                    print(json.dumps(run(case)[:3000]), file=answers, flush=True)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as answers:
            results += [json.loads(line) for line in answers]
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == -signal.SIGPROF:
            results.append(f"took more than {SECONDS} seconds")
        elif status:
            results.append(f"died: {status}")
    return results


def limit_this_process():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    signal.setitimer(
        signal.ITIMER_PROF, SECONDS
    )  # time of this process, however busy the machine is


def run(case):
    try:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
            case()
        return "model"
    except composer.SpecError as error:
        places = [problem.position for problem in error.problems if problem.position]
        lines = getattr(case, "lines", None)
        outside = [str(p) for p in places if p.line and lines and p.line > lines]
        return f"a place outside of the file: {outside[0]}" if outside else "refused"
    except REFUSALS:
        return "refused"
    except BaseException as error:
        if getattr(error, "__notes__", ()):
            return "refused"  # by the class of a config; the note says where the spec names it
        return f"{type(error).__name__}: {error}"


class TextCase:
    def __init__(self, text, spaces):
        self.text, self.spaces = text, spaces
        self.lines = len(text.splitlines())

    def __call__(self):
        compose_text(self.text, self.spaces)


def case_of(number, known, folder):
    """The case of this number, and what is needed to see it again."""
    draw = random.Random(number)
    kind = draw.random()
    folder = folder / str(number)
    folder.mkdir()
    if kind < 0.1:
        return checkpoint_case(draw, folder), "a checkpoint"
    if kind < 0.15:
        return run_case(draw, folder), "a run"
    if kind < 0.25:
        return spaces_case(draw, known)
    _, text, spaces = draw.choice(known)
    text = mutated(text, draw)
    return TextCase(text, spaces), text


def corpus():
    """What was once found, each with the spaces of CartPole."""
    for path in sorted(CORPUS.iterdir()):
        spaces = CARTPOLE["observation_space"], CARTPOLE["action_space"]
        yield path.name, TextCase(path.read_text(), spaces)


def main(seconds, first=0):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    assert transformers is not None  # imported before memory is limited
    known = list(specs())
    bad, number, end = 0, first, time.monotonic() + seconds
    names, cases = zip(*corpus(), strict=True)
    for name, result in zip(names, outcomes(cases), strict=True):
        bad += told(result, corpus=name)
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            numbers = range(number, number + BATCH)
            cases, shown = zip(*(case_of(n, known, Path(folder)) for n in numbers), strict=True)
            for n, text, result in zip(numbers, shown, outcomes(cases), strict=True):
                bad += told(result, number=n, case=text)
        number += BATCH
    print(f"{number - first} cases of {len(known)} specs, {bad} bad")
    return bad > 0


def told(result, **case):
    """Whether ``result`` is one that should not be; then it is printed."""
    if result in ("model", "refused"):
        return False
    print(json.dumps({**case, "result": result}), flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
