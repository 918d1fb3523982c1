"""The key `parallel:` for a number of processes."""

import re

import pytest
import torch

import composer
from composer.errors import SpecError
from composer.parallel.plan import Plan, plan_of
from composer.spec.parallel import ParallelSpec
from tests.helpers.paths import TESTS

SPECS = TESTS / "specs" / "proofs"


@pytest.fixture(autouse=True)
def _folder(monkeypatch):
    monkeypatch.syspath_prepend(SPECS)


@pytest.mark.parametrize(
    ("given", "size", "plan"),
    [
        (None, 1, Plan()),
        (None, 4, Plan(data=4)),
        ({"data": "auto"}, 3, Plan(data=3)),
        ({"tensor": 2}, 4, Plan(data=2, tensor=2)),
        ({"data": 2, "tensor": 2, "units": ["Layer"]}, 4, Plan(2, 2, units=("Layer",))),
        ({"precision": "bf16"}, 1, Plan(1, 1, torch.bfloat16, torch.float32)),
        ({"precision": {"param": "fp16"}}, 1, Plan(1, 1, torch.float16)),
        (ParallelSpec(data=2, offload=True), 2, Plan(2, offload=True)),
        (Plan(data=2), 2, Plan(data=2)),
    ],
)
def test_a_plan_follows_from_the_key_and_the_number_of_processes(given, size, plan):
    assert plan_of(given, size) == plan


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        (
            {"data": 3}, 2,
            "parallel.data: 'data' times 'tensor' is 3 * 1 = 3, but there are 2 processes; write data: auto, or start 3: "
            "torchrun --nproc-per-node 3",
        ),
        (
            {"tensor": 2}, 3,
            "parallel.tensor: 'tensor' is 2, which does not divide the number of processes: there are 3 processes; start a "
            "multiple of 2: torchrun --nproc-per-node 2",
        ),
        (
            {"data": 2}, 1,
            "parallel.data: 'data' times 'tensor' is 2 * 1 = 2, but there is 1 process; write data: auto, or start 2: "
            "torchrun --nproc-per-node 2",
        ),
        (
            Plan(data=2), 1,
            "parallel.data: 'data' times 'tensor' is 2 * 1 = 2, but there is 1 process; write data: auto, or start 2: "
            "torchrun --nproc-per-node 2",
        ),
        ({"dta": 2}, 1, "parallel.dta: 'dta' is not a key of 'parallel'; did you mean 'data'?"),
    ],
)  # fmt: skip
def test_a_plan_for_other_processes_is_refused(given, size, message):
    with pytest.raises(SpecError) as error:
        plan_of(given, size)
    assert str(error.value) == message


def test_the_message_says_where_the_key_is_written(tmp_path):
    text = (
        (SPECS / "deviation.yaml").read_text().replace("policy:", "parallel: {data: 8}\npolicy:", 1)
    )
    spec = tmp_path / "agent.yaml"
    spec.write_text(text)
    with pytest.raises(
        SpecError, match=re.escape("agent.yaml:6:18: 'data' times 'tensor' is 8 * 1 = 8")
    ):
        composer.parallel.compose(spec, allow=["proof_parts"])
