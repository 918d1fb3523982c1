"""What is sharded by itself, and what a plan asks of a model; several processes are in `sharded_models.py`."""

import copy

import pytest
import torch
from torch import nn

import composer
import composer.parallel
from composer.errors import SpecError
from composer.parallel.layout import modules_below, roots_of
from composer.parallel.sharding import Sharder
from composer.parallel.trials import Trial
from perception_blocks.ensemble.ensemble import EnsembleBlock
from tests.helpers.paths import TESTS
from tests.helpers.processes import run_in_processes

SPECS = TESTS / "specs" / "proofs"
CHECKS = TESTS / "helpers" / "sharded_models.py"


@pytest.fixture(autouse=True)
def _folder(monkeypatch):
    monkeypatch.syspath_prepend(SPECS)


def composed(name, **more):
    return composer.compose(SPECS / f"{name}.yaml", allow=["proof_parts"], seed=0, **more)


def test_checks_of_two_processes(tmp_path):
    checks = ("seeds", "peak", "refusals", "tensor", "folder", "views")
    run_in_processes(2, CHECKS, tmp_path, *checks)
    # What the refusals advise: in a process of its own the model that was saved does all of it.
    model = composer.load(tmp_path / "refused.safetensors", allow=["proof_parts"])
    copy.deepcopy(model).lower()
    copy.deepcopy(model.policy).lower()
    model.load_weights(tmp_path / "refused.safetensors")
    model.load_state_dict(model.state_dict())


@pytest.mark.full
def test_more_checks_of_two_processes(tmp_path):
    run_in_processes(2, CHECKS, tmp_path, "precision", "configs", "action")


@pytest.mark.full
def test_four_processes_share_a_batch_and_matrices(tmp_path):
    run_in_processes(4, CHECKS, tmp_path, "tensor", "peak")


def test_roots_are_the_modules_that_are_called_and_targets_come_first():
    model = composed("vision")
    roots = roots_of(model)
    names = [type(root).__name__ for root in roots]
    assert names == ["InferenceBlock", "InferenceBlock", "InferenceBlock"]
    assert roots == [m.network.module for m in (model.policy, model.critic.target, model.critic)]


def test_the_root_of_a_class_is_the_class_and_of_an_ensemble_of_them_the_ensemble():
    model = composed("custom")
    critics = [model.critic.target, model.critic]
    ensembles = [critic.network.ensemble for critic in critics]
    assert roots_of(model) == [model.policy.network.module, *ensembles]


def test_inner_modules_come_first_and_those_of_ensembles_are_left_out():
    module = composed("vision").critic.network.module
    parts = modules_below(module)
    ensembles = [part for part in parts if isinstance(part, EnsembleBlock)]
    assert len(ensembles) == 2  # that of the target, and its own
    assert not {child for one in ensembles for child in one.children()} & set(parts)
    assert parts[-1] is module
    assert parts.index(ensembles[0]) < parts.index(module)


def test_a_module_that_is_no_model_is_its_own_root():
    module = nn.Sequential(nn.Linear(2, 2))
    assert roots_of(module) == [module]
    assert composer.parallel.shard(module) is module


def test_alone_a_model_stays_as_it_is():
    model = composed("tokens")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert composer.parallel.shard(model, plan={}) is model
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    composed_here = composer.parallel.compose(SPECS / "tokens.yaml", allow=["proof_parts"], seed=0)
    assert all(torch.equal(t, before[n]) for n, t in composed_here.state_dict().items())
    assert copy.deepcopy(model) is not model
    model.lower()


@pytest.mark.parametrize(("name", "units"), [("tokens", []), ("custom", ["Layer"]), ("masked", [])])
def test_recomputing_layers_changes_no_number(name, units):
    plain, recomputed = (Trial(composed(name).eval(), 1, None) for _ in range(2))
    plan = {"gradient_checkpointing": True, "units": units}
    composer.parallel.shard(recomputed.model, plan=plan)
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    layers = Sharder(recomputed.model, composer.parallel.start(), plan)._layers
    for part in recomputed.model.modules():
        if id(part) in layers:
            next(m for m in part.modules() if isinstance(m, nn.Linear)).register_forward_hook(count)
    for trial in (plain, recomputed):
        trial.loss().backward()
    assert calls % 2 == 0
    assert calls > 0
    for ours, theirs in zip(plain.model.parameters(), recomputed.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        (
            "custom", {"units": ["Layr", "Linear"]},
            "parallel.units.0: no module of this model is a 'Layr'; did you mean 'Layer'?",
        ),
        (
            "deviation", {"gradient_checkpointing": True},
            "parallel.gradient_checkpointing: there are no layers in this model to recompute; name classes of layers in "
            "'units'",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_the_model_is_refused(name, plan, message):
    with pytest.raises(SpecError) as error:
        composer.parallel.shard(composed(name), plan=plan)
    assert str(error.value) == message


def test_a_model_without_weights_is_refused():
    model = composed("deviation", device="meta")
    with pytest.raises(ValueError, match="no weights") as error:
        composer.parallel.shard(model)
    assert str(error.value) == (
        "this model has no weights yet; call model.materialize() first, or use composer.parallel.compose"
    )
    model.materialize()
    composer.parallel.shard(model)
    composer.parallel.compose(SPECS / "deviation.yaml", allow=["proof_parts"], seed=0)


def test_an_optimizer_leaves_frozen_parameters_out():
    model = composed("vision")
    optimizer = composer.parallel.optimizer(model, torch.optim.AdamW, lr=0.5)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in model.critic.target.parameters()}
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]
