"""`composer prove`: several processes compute what one does."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from composer.cli.commands import main
from composer.errors import SpecError
from composer.parallel.launch import Mesh
from composer.parallel.prove import TOLERANCE, Proof, ProofError, Task, _proof, compare, trial_of
from tests.helpers.paths import CONFIGS, TESTS

SPECS = TESTS / "specs" / "proofs"
QUICK = ("tokens",)
KINDS = sorted(path.stem for path in SPECS.glob("*.yaml"))
SIZE = r"\d\.\de[-+]\d\d"
GAPS = rf"  outputs    {SIZE}\n  gradients  {SIZE}\n  weights    {SIZE}\n"


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in KINDS]
)
def test_two_processes_equal_one(capsys, monkeypatch, name):
    monkeypatch.chdir(CONFIGS)
    file = str(SPECS / f"{name}.yaml")
    command = ["prove", file]
    for module in ("proof_parts", "environments", "networks"):
        command += ["--allow", module]
    assert main(command) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    first = f"{re.escape(file)}: 2 processes equal one, 3 steps of AdamW:\n"
    assert re.fullmatch(rf"{first}{GAPS}  (\d+) of (\d+) parameters are shards\n", said), said


@pytest.mark.full
def test_three_processes_and_one_equal_one(capsys):
    file = str(SPECS / "vision.yaml")
    for count in (1, 3):
        command = [
            "prove",
            file,
            "--allow",
            "proof_parts",
            "--processes",
            str(count),
            "--steps",
            "2",
        ]
        assert main(command) == 0
        equal = "1 process equals" if count == 1 else f"{count} processes equal"
        assert f"{equal} one, 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("processes", "steps", "gap", "verdict"),
    [
        (1, 1, 0.0, "1 process equals one, 1 step of AdamW:"),
        (1, 3, 1.0, "1 process does not equal one, 3 steps of AdamW:"),
        (2, 1, 0.0, "2 processes equal one, 1 step of AdamW:"),
        (4, 2, 1.0, "4 processes do not equal one, 2 steps of AdamW:"),
    ],
)
def test_the_verdict_is_a_sentence(processes, steps, gap, verdict):
    proof = Proof(processes, steps, {"outputs": gap}, 1, 1)
    assert str(proof).splitlines()[0] == verdict


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("units: [Lyer]", "3:20: no module of this model is a 'Lyer'; did you mean 'Linear'?"),
        (
            "gradient_checkpointing: true",
            "3:36: there are no layers in this model to recompute; name classes of layers in 'units'",
        ),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_told_with_its_place(tmp_path, given, said):
    file = tmp_path / "agent.yaml"
    file.write_text(
        f"version: 1\nenvironment: CartPole-v1\nparallel: {{{given}}}\npolicy:\n  graph:\n"
        "    latent: {block: torch.nn.Linear, in: observation, in_features: 4, out_features: 8}\n"
        "  heads: {in: latent}\n"
    )
    with pytest.raises(SpecError, match="^" + re.escape(f"{file}:{said}") + "$"):
        _proof(Task(str(file)), Mesh())


@pytest.mark.parametrize("precision", ["bf16", "16", "null"])
def test_an_action_model_is_proven_in_float32(monkeypatch, precision):
    """In half precision the rounding of two processes alone differs by more than a proof allows."""
    monkeypatch.syspath_prepend(CONFIGS)
    dtypes = []

    def seen(whole, sharded, *_):
        dtypes.extend(p.dtype for model in (whole, sharded) for p in model.parameters())

    monkeypatch.setattr("composer.parallel.prove.compare", seen)
    allow, overrides = ("environments", "networks"), (f"model.precision={precision}",)
    _proof(Task(str(SPECS / "action.yaml"), allow=allow, overrides=overrides), Mesh())
    assert set(dtypes) == {torch.float32}


@pytest.mark.full
def test_an_exception_in_a_process_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fragile_nets.py").write_text(
        "import os\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, obs_shapes, action_logits_shapes):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(4, 2)\n"
        "    def forward(self, inputs):\n"
        "        if os.environ.get('RANK') == '1':\n"
        "            raise OSError('no such table')\n"
        "        return {'action': self.layer(inputs['observation'])}\n"
    )
    Path("agent.yaml").write_text(
        "version: 1\nenvironment: CartPole-v1\npolicy: {_target_: fragile_nets.Net}\n"
    )
    assert main(["prove", "agent.yaml", "--allow", "fragile_nets"]) == 1
    assert "OSError: no such table" in capsys.readouterr().err


def children_of(parent):
    """The processes that descend from ``parent``, as Linux tells."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended
            continue
        if int(text.rpartition(")")[2].split()[1]) == parent:
            found += [folder, *children_of(int(folder.name))]
    return found


def addresses_of(processes):
    """The local addresses of sockets of these that listen or are connected, as /proc/net has them."""
    links = set()
    for process in processes:
        with contextlib.suppress(OSError):
            links |= {os.readlink(link) for link in (process / "fd").iterdir()}
    lines = [
        line.split()
        for name in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].partition(":")[0] for line in lines if f"socket:[{line[9]}]" in links}


@pytest.mark.full
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_processes_use_the_loopback_alone_and_end_with_the_command(number, code):
    command = [sys.executable, "-m", "composer", "prove", str(SPECS / "tokens.yaml")]
    command += ["--allow", "proof_parts", "--steps", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        seen, end = set(), time.monotonic() + 120
        while (
            not seen or time.monotonic() < end - 110
        ):  # a while longer than until the first connection
            assert time.monotonic() < end
            seen |= addresses_of(children_of(process.pid))
            time.sleep(0.05)
        started = children_of(process.pid)
        assert len(started) >= 3  # torchrun, and two processes
        process.send_signal(number)
        assert process.wait(60) == code
    assert seen <= {"0100007F", "0000000000000000FFFF00000100007F"}
    end = time.monotonic() + 30
    while any(folder.exists() for folder in started):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_wrong_spec_and_a_wrong_use_are_answered_before_anything_is_started(tmp_path, capsys):
    spec = tmp_path / "agent.yaml"
    spec.write_text(
        "version: 1\nparallel: {data: some}\npolicy: {graph: {}, heads: {in: observation}}\n"
    )
    assert main(["prove", str(spec), "--env", "CartPole-v1"]) == 1
    assert capsys.readouterr().err == (
        f"{spec}:2:18: 'data' must be 'auto' or a whole number of at least 1, got the text 'some'\n"
    )
    with pytest.raises(SystemExit) as caught:
        main(["prove", str(spec), "--processes", "0"])
    assert caught.value.code == 2
    assert "write a whole number of at least 1, got '0'" in capsys.readouterr().err
    checkpoint = tmp_path / "agent.safetensors"
    checkpoint.write_bytes(b"")
    assert main(["prove", str(checkpoint)]) == 1
    assert capsys.readouterr().err == (
        f"composer prove: {checkpoint} is a checkpoint; composer prove takes a spec\n"
    )


@pytest.mark.parametrize("size", [2 * TOLERANCE, float("nan")])
def test_a_proof_with_a_large_difference_fails(size):
    proof = Proof(2, 3, {"outputs": 0.0, "weights": size}, 4, 5)
    assert not proof.holds
    assert str(proof).startswith(
        "2 processes do not equal one, 3 steps of AdamW:\n  outputs    0.0e+00\n"
    )
    assert Proof(2, 3, {"outputs": TOLERANCE}, 4, 5).holds


def test_differences_are_seen(monkeypatch):
    """A model against another one, and against itself, in one process."""
    import composer

    monkeypatch.syspath_prepend(SPECS)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)

    def model(seed):
        return composer.compose(SPECS / "deviation.yaml", allow=["proof_parts"], seed=seed)

    assert compare(model(0), model(0), Mesh(), 1, 2).holds
    proof = compare(model(0), model(1), Mesh(), 1, 2)
    assert min(proof.differences.values()) > 1e-3
    assert (proof.shards, proof.parameters) == (0, 9)


def test_what_is_no_model_is_refused():
    with pytest.raises(ProofError, match="it is not known how to use a Linear in a proof"):
        trial_of(torch.nn.Linear(1, 1))
