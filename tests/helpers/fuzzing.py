"""Mutations of specs, checkpoints and runs, each in a process of its own that may take 5 seconds and 1 GiB more.

``python -m tests.helpers.fuzzing SECONDS [FIRST]`` tries cases from number FIRST on, and prints each that ends in anything but a
model or a refusal. A case follows from its number.
"""

import contextlib
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

import torch
import transformers
from gymnasium.spaces import Box, Discrete

import composer
from composer.checkpoint.container import HEADER, CheckpointError, _header_digest
from composer.training.folder import RunFolder
from composer.training.trainer import TrainingError
from perception_blocks.registry import ACTIVATIONS, BLOCKS, INITIALIZERS
from tests.helpers.paths import ROOT

CORPUS = ROOT / "tests" / "specs" / "fuzz_corpus"
SECONDS, BYTES = 5, 2**30
REFUSALS = (composer.SpecError, CheckpointError, TrainingError)
WORDS = [
    *BLOCKS, *ACTIVATIONS, *INITIALIZERS, "graph", "ensemble", "torch.nn.Linear", "torch.nn.LSTM", "os.system",
    "observation", "_", "in", "out", "block", "each", "same_as", "heads", "policy", "critic", "copies", "init", "params",
    "hidden_units", "num_layers", "shares", "wrap", "networks", "template", "kind", "state_action", "${params.width}",
    "categorical", "gaussian", "beta", "a/b", "é", "\\e[31m", "*a", "&a x", "!!python/object:os.system x", "<<", "---",
]  # fmt: skip
NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "1e9",
    "1000000000",
    "1000000000000",
    "9" * 400,
    ".nan",
    ".inf",
    "0x7f",
    "1e-300",
]
OTHERS = [
    "null",
    "true",
    "[]",
    "{}",
    "[1, 2]",
    "{a: 1}",
    "''",
    "'x'",
    "-",
    ":",
    "]",
    "}",
    '"',
    "\t",
    "\0",
    "\ufeff",
]
TOKEN = re.compile(r"[\w./$]+|\s+|.", re.DOTALL)


def specs():
    """(name, text, spaces) of each spec of the configs, the documentation and the good specs that needs no permission."""
    texts = {path.name: path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))}
    texts["everything"] = (ROOT / "tests" / "specs" / "good" / "everything.yaml").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        for index, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)):
            texts[f"{page.name}:{index}"] = text
    for name, text in texts.items():
        if "policy:" not in text or "extends:" in text or not text.endswith("\n"):
            continue
        with contextlib.suppress(Exception):
            keywords = {} if "environment:" in text else CARTPOLE
            model = composer.compose(text, device="meta", seed=0, **keywords)
            bare = re.sub("^environment:.*$", "", text, flags=re.MULTILINE)
            yield name, bare, (model.observation_space, model.action_space)


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
        text, observation_space=observation_space, action_space=action_space, device="meta", seed=0
    )


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


def checkpoint_case(draw, folder):
    file = folder / "model.safetensors"
    compose_saved().save(file)
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


def outcome(case):
    """What running ``case`` comes to: "model", "refused", or in words what it should not be."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        limit_this_process()
        os.write(writing, run(case).encode()[:3000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == -signal.SIGPROF:
        return f"took more than {SECONDS} seconds"
    return text or f"died: {status}"


def limit_this_process():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
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
    if kind < 0.1:
        return checkpoint_case(draw, folder), "a checkpoint"
    if kind < 0.15:
        return run_case(draw, folder), "a run"
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
    for name, case in corpus():
        result = outcome(case)
        if result not in ("model", "refused"):
            bad += 1
            print(json.dumps({"corpus": name, "result": result}), flush=True)
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            case, shown = case_of(number, known, Path(folder))
            result = outcome(case)
        if result not in ("model", "refused"):
            bad += 1
            print(json.dumps({"number": number, "result": result, "case": shown}), flush=True)
        number += 1
    print(f"{number - first} cases of {len(known)} specs, {bad} bad")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
