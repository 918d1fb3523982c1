"""Checkpoints of shards: what one number of processes wrote, another one reads; whole or not at all."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import composer
import composer.parallel
from composer.checkpoint.container import CheckpointError
from composer.errors import SpecError
from composer.parallel.trials import Trial
from tests.helpers.paths import CONFIGS, ROOT, TESTS
from tests.helpers.processes import run_in_processes, unpickling
from tests.helpers.proof_models import SPECS, step, trial_of

CHECKS = TESTS / "helpers" / "sharded_models.py"


@pytest.fixture(autouse=True)
def _folder(monkeypatch):
    monkeypatch.syspath_prepend(SPECS)
    monkeypatch.syspath_prepend(CONFIGS)


def composed(name, **more):
    return composer.compose(SPECS / f"{name}.yaml", **{"allow": ["proof_parts"], "seed": 0, **more})


def trained(name, steps, **more):
    model = composed(name, **more)
    return model, *trial_of(model, None, steps)


def equal(ours, theirs):
    theirs = theirs.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


def saved(tmp_path, name="vision", **more):
    model, trial, optimizer = trained(name, 2)
    composer.parallel.save(tmp_path / "saved", model, optimizer, **more)
    return model, trial, optimizer


def test_what_two_processes_saved_goes_on_in_two_and_in_one(tmp_path, monkeypatch):
    run_in_processes(2, CHECKS, tmp_path, "save", "load")
    for use in unpickling():
        monkeypatch.setattr(*use)
    for name in ("vision", "deviation"):
        model, trial, optimizer = trained(name, 1, seed=9)
        assert composer.parallel.load(tmp_path / name, model, optimizer) == {"steps": 2}
        assert equal(composer.load(tmp_path / f"{name}.safetensors", allow=["proof_parts"]), model)
        step(trial, optimizer)  # with its moments it is the step that the run would have made
        third = load_file(tmp_path / f"{name}.third")
        for key, tensor in model.named_parameters():
            torch.testing.assert_close(tensor.detach(), third[key], rtol=0, atol=1e-6)


@pytest.mark.full
def test_what_two_processes_saved_goes_on_in_four(tmp_path):
    run_in_processes(2, CHECKS, tmp_path, "save")
    run_in_processes(4, CHECKS, tmp_path, "load")


def test_one_process_saves_and_goes_on_exactly(tmp_path):
    model, trial, optimizer = saved(tmp_path, extra={"steps": 2, "notes": [1.5, None, "x"]})
    again, trial_2, optimizer_2 = trained("vision", 1, seed=3)
    extra = composer.parallel.load(tmp_path / "saved", again, optimizer_2)
    assert extra == {"steps": 2, "notes": [1.5, None, "x"]}
    assert equal(model, again)
    assert optimizer_2.param_groups[0]["betas"] == (0.9, 0.999)
    for one, used in ((trial, optimizer), (trial_2, optimizer_2)):
        step(one, used)
    assert equal(model, again)


def test_only_what_was_stepped_is_restored(tmp_path):
    model = composed("vision")
    optimizer = composer.parallel.optimizer(model, torch.optim.AdamW)
    model.policy(Trial(model, 1, None).observations, model.policy.initial_state(4))[0][
        "action"
    ].sum().backward()
    optimizer.step()
    composer.parallel.save(tmp_path / "saved", model, optimizer)
    _, _, other = trained("vision", 1)
    composer.parallel.load(tmp_path / "saved", composed("vision"), None)
    again = composed("vision")
    other = composer.parallel.optimizer(again, torch.optim.AdamW)
    composer.parallel.load(tmp_path / "saved", again, other)
    names = {id(p): name for name, p in again.named_parameters()}
    assert {names[id(p)].partition(".")[0] for p in other.state} == {"policy"}
    assert len(other.state) == len(optimizer.state)


def test_a_folder_is_safetensors_and_json_and_what_else_lies_there_is_inert(tmp_path, monkeypatch):
    model, _, _ = saved(tmp_path)
    folder = tmp_path / "saved"
    assert sorted(os.listdir(folder)) == ["checkpoint.json", "shard-00000.safetensors"]
    (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for use in unpickling():
        monkeypatch.setattr(*use)
    again = composed("vision", seed=1)
    composer.parallel.load(folder, again)
    composer.parallel.save(folder, again)
    composer.parallel.consolidate(folder, tmp_path / "one.safetensors")
    assert equal(model, composer.load(tmp_path / "one.safetensors", allow=["proof_parts"]))


def test_tensors_have_the_names_of_parameters(tmp_path):
    model, _, _ = saved(tmp_path)
    index = json.loads((tmp_path / "saved" / "checkpoint.json").read_text())
    names = {n for n in index["tensors"] if not n.startswith("optimizer.")}
    assert names >= {name for name, _ in model.named_parameters()}
    trained_names = {n for n, p in model.named_parameters() if p.requires_grad}
    keys = {
        f"optimizer.{n}.{key}" for n in trained_names for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert set(index["tensors"]) - names == keys
    assert "vgg_conv_dense" in index["record"]["spec"]


def test_consolidated_bytes_are_those_of_save(tmp_path):
    model, _, _ = saved(tmp_path)
    model.save(tmp_path / "saved.safetensors")
    composer.parallel.consolidate(tmp_path / "saved", tmp_path / "one.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "saved.safetensors"
    ).read_bytes()


def run_script(name, folder):
    return subprocess.run(
        [sys.executable, str(TESTS / "helpers" / name), str(folder)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=500,
    )  # fmt: skip


def test_a_save_that_is_killed_leaves_what_was_there(tmp_path):
    """Processes are killed before and after each step of a save, of a new folder and of one that is replaced."""
    done = run_script("killed_saves.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"killed \d+ times", done.stdout)


# --- folders of action models ---

LORA = {"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}


def action_model(tmp_path, extension="networks.tiny_vla", **changes):
    """A model whose weights are not those it began with, and its checkpoint of shards."""
    from tests.helpers.action_models import KINDS

    data = {**KINDS[changes.pop("model_type", "tiny_vla")], "extensions": [extension]}
    given = data["model"]
    changes["config"] = {**given["config"], **changes.pop("config", {})}
    data["model"] = {**given, **changes}
    model = composer.compose(data, allow=[extension], seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
    composer.parallel.save(tmp_path / "shards", model)
    return model


CHANGES = {
    "plain": {},
    "lora": {"lora": LORA},
    "half": {"precision": "bf16", "value_head": False},
    "frozen": {"freeze": ["model.embed_tokens"]},
    "tied": {"lora": LORA, "config": {"tie_word_embeddings": True}},
    "transposed": {"lora": {"rank": 2}, "model_type": "learned_vla"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=list(CHANGES))
def test_shards_of_an_action_model_become_its_folder_and_its_file(tmp_path, changes):
    model = action_model(tmp_path, **changes)
    composer.parallel.consolidate(tmp_path / "shards", tmp_path / "folder")
    composer.parallel.consolidate(tmp_path / "shards", tmp_path / "one.safetensors")
    model.save_pretrained(tmp_path / "expected")
    model.save(tmp_path / "expected.safetensors")
    files = sorted(os.listdir(tmp_path / "expected"))
    assert sorted(os.listdir(tmp_path / "folder")) == files
    for name in files:
        one, two = ((tmp_path / place / name).read_bytes() for place in ("folder", "expected"))
        if name == "tokenizer_config.json":  # in which transformers notes that there were files
            one, two = (json.loads(text) for text in (one, two))
            assert one.items() >= two.items()
        else:
            assert one == two, name
    one, two = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("one", "expected"))
    assert one == two


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    done = run_script("killed_folders.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"killed \d+ times", done.stdout)


def test_a_folder_that_is_there_is_kept_and_a_module_is_imported_only_if_allowed(
    tmp_path, monkeypatch
):
    (tmp_path / "late_vla.py").write_text("import networks.tiny_vla")
    monkeypatch.syspath_prepend(tmp_path)
    action_model(tmp_path, "late_vla")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis").touch()
    with pytest.raises(CheckpointError) as error:
        composer.parallel.consolidate(tmp_path / "shards", tmp_path / "taken")
    place = repr(str(tmp_path / "taken"))
    assert str(error.value) == f"{place} is there already; remove it or choose another name"
    monkeypatch.delitem(sys.modules, "late_vla")
    with pytest.raises(SpecError) as refused:
        composer.parallel.consolidate(tmp_path / "shards", tmp_path / "folder")
    assert str(refused.value).endswith(
        "'late_vla' is outside the allowed modules (none); pass allow=['late_vla'] or --allow late_vla if you trust it"
    )
    assert "late_vla" not in sys.modules
    composer.parallel.consolidate(tmp_path / "shards", tmp_path / "folder", allow=["late_vla"])
    assert (tmp_path / "folder" / "config.json").is_file()


@pytest.mark.parametrize("key", ["spec", "seed", "dtype", "action_model", "observation_space"])
def test_a_record_of_another_form_is_told(tmp_path, key):
    action_model(tmp_path)
    path = tmp_path / "shards" / "checkpoint.json"
    index = json.loads(path.read_text())
    for odd in ODD:
        path.write_text(json.dumps({**index, "record": {**index["record"], key: odd}}))
        with contextlib.suppress(CheckpointError, SpecError):
            composer.parallel.consolidate(tmp_path / "shards", tmp_path / "folder")
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)


# --- what does not fit ---


def test_another_model_is_refused_with_every_difference(tmp_path):
    saved(tmp_path, "deviation")
    other = composed("deviation", overrides=["policy.graph.hidden.hidden_units=9"])
    with pytest.raises(CheckpointError) as error:
        composer.parallel.load(tmp_path / "saved", other)
    assert str(error.value) == (
        "the checkpoint does not fit this model\n"
        "  policy.hidden.linears.0.weight is (7, 3) in it, the model needs (9, 3)\n"
        "  policy.hidden.linears.0.bias is (7,) in it, the model needs (9,)\n"
        "  policy.heads.action.linear.weight is (2, 7) in it, the model needs (2, 9)"
    )
    with pytest.raises(CheckpointError, match=r"policy\.memory"):
        composer.parallel.load(tmp_path / "saved", composed("vision"))


def test_a_checkpoint_without_an_optimizer_says_so(tmp_path):
    composer.parallel.save(tmp_path / "saved", composed("deviation"))
    model, _, optimizer = trained("deviation", 0)
    with pytest.raises(CheckpointError) as error:
        composer.parallel.load(tmp_path / "saved", model, optimizer)
    assert str(error.value) == "the checkpoint has no optimizer; load the model alone, without one"


def test_an_optimizer_of_other_parameters_is_refused(tmp_path):
    model, _, _ = trained("deviation", 0)
    part = torch.optim.AdamW(model.policy.parameters())
    composer.parallel.save(tmp_path / "saved", model, part)
    with pytest.raises(CheckpointError) as error:
        composer.parallel.load(
            tmp_path / "saved", model, composer.parallel.optimizer(model, torch.optim.AdamW)
        )
    assert str(error.value) == (
        "the optimizer of the checkpoint did not train 'critic.hidden.linears.0.weight', and 4 in all"
    )
    stranger = torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())
    with pytest.raises(ValueError, match="the optimizer has parameters that are not the model's"):
        composer.parallel.save(tmp_path / "saved", model, stranger)


def test_extra_is_json(tmp_path):
    with pytest.raises(
        ValueError, match="'extra' may hold numbers, texts, true, false, null, lists and dicts"
    ):
        composer.parallel.save(tmp_path / "saved", composed("deviation"), extra={"rng": object()})
    assert os.listdir(tmp_path) == []


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("all of it")
    with pytest.raises(CheckpointError) as error:
        composer.parallel.save(tmp_path / "thesis", composed("deviation"))
    assert str(error.value) == (
        f"{str(tmp_path / 'thesis')!r} is there and is no checkpoint of shards; choose another folder"
    )
    assert (tmp_path / "thesis" / "text").read_text() == "all of it"
    assert os.listdir(tmp_path) == ["thesis"]


def damage(folder: Path, how: str):
    index = folder / "checkpoint.json"
    shard = folder / "shard-00000.safetensors"
    if how == "no index":
        index.unlink()
    elif how == "no shard":
        shard.unlink()
    elif how == "text":
        index.write_text("[1")
    elif how == "list":
        index.write_text("[1]")
    elif how == "newer":
        index.write_text(json.dumps({**json.loads(index.read_text()), "format_version": 2}))
    elif how == "kinds":
        index.write_text(json.dumps({**json.loads(index.read_text()), "tensors": 3}))
    elif how == "bit":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no index", "{} is no checkpoint of shards: 'checkpoint.json' cannot be read: No such file or directory"),
        ("no shard", "there is no file {shard}"),
        ("text", "{} is damaged: 'checkpoint.json' cannot be read; take a copy of the folder"),
        ("list", "{} is damaged: 'checkpoint.json' is not as it was saved; take a copy of the folder"),
        ("kinds", "{} is damaged: 'checkpoint.json' is not as it was saved; take a copy of the folder"),
        ("newer", "{} has the format 2; this version reads up to 1: upgrade perception-composer"),
        ("bit", "{shard} is damaged: the tensor 'policy.hidden.linears.0.bias' is not as saved; take a copy of the file"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_told(tmp_path, how, message):
    saved(tmp_path, "deviation")
    folder = tmp_path / "saved"
    damage(folder, how)
    expected = message.format(
        repr(str(folder)), shard=repr(str(folder / "shard-00000.safetensors"))
    )
    for use in (
        lambda: composer.parallel.load(folder, composed("deviation")),
        lambda: composer.parallel.consolidate(folder, tmp_path / "one.safetensors"),
    ):
        with pytest.raises(CheckpointError) as error:
            use()
        assert (
            re.sub(
                r"'policy[\w.]*'|'optimizer[\w.]*'|'critic[\w.]*'",
                "'policy.hidden.linears.0.bias'",
                str(error.value),
            )
            == expected
        )


def test_a_spec_without_names_is_sharded_and_saved_but_not_consolidated(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self, obs_shapes, action_logits_shapes):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, inputs):
            return {"action": self.layer(inputs["observation"])}

    spec = {"version": 1, "environment": "CartPole-v1", "policy": {"_target_": Net}}
    model = composer.compose(spec)
    composer.parallel.save(tmp_path / "saved", model)
    again = composer.compose(spec, seed=3)
    composer.parallel.load(tmp_path / "saved", again)
    assert equal(model, again)
    with pytest.raises(
        CheckpointError, match="does not say how its model is composed: cannot be saved"
    ):
        composer.parallel.consolidate(tmp_path / "saved", tmp_path / "one.safetensors")


ODD = (
    "x",
    None,
    -1,
    2.5,
    10**30,
    10**12,
    True,
    [],
    {},
    ["float32", [10**12]],
    ["load", [3]],
    [["x"], 0],
)


@pytest.mark.parametrize("key", ["processes", "tensors", "places", "groups"])
def test_an_index_of_another_form_is_told(tmp_path, key):
    saved(tmp_path, "deviation")
    folder = tmp_path / "saved"
    path = folder / "checkpoint.json"
    index = json.loads(path.read_text())
    inside = index[key]
    first = (
        None
        if isinstance(inside, int) or not inside
        else inside[0]
        if key == "groups"
        else next(iter(inside))
    )
    model = composed("deviation")
    told = 0
    for odd in ODD:
        for changed in (odd, {**inside, first: odd} if isinstance(inside, dict) else [odd]):
            path.write_text(json.dumps({**index, key: changed}))
            for use in (
                lambda: composer.parallel.load(folder, model),
                lambda: composer.parallel.consolidate(folder, tmp_path / "one.safetensors"),
            ):
                try:
                    use()
                except CheckpointError:
                    told += 1
    assert told > len(ODD)


def leaves(value, path=()):
    """Every value in nested dicts and lists that is neither, and where it is."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if inner is None:
        yield path, value
    else:
        for key, item in inner:
            yield from leaves(item, (*path, key))


def replaced(value: Any, path, by) -> Any:
    """``value`` with another leaf."""
    if not path:
        return by
    inner = replaced(value[path[0]], path[1:], by)
    if isinstance(value, dict):
        return {**value, path[0]: inner}
    return [*value[: path[0]], inner, *value[path[0] + 1 :]]


class Counting(torch.optim.Optimizer):
    """An optimizer that keeps numbers, and settings of every kind."""

    def __init__(
        self, parameters, lr=0.1, betas=(0.9, 0.5), nesterov=False, limit=None, kind="plain"
    ):
        super().__init__(
            parameters,
            {"lr": lr, "betas": betas, "nesterov": nesterov, "limit": limit, "kind": kind},
        )

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1


WRONG = ("x", None, 3, 2.5, True, [], {}, [1.0], float("nan"), 10**30)


def fits(leaf, value):
    """Whether ``value`` may stand in the place of ``leaf``, in which there may be nothing yet."""
    is_number = type(value) in (int, float) and abs(value) < 2**63
    if leaf is None:
        return value is None or isinstance(value, bool) or is_number
    if isinstance(leaf, int | float) and not isinstance(leaf, bool):
        return is_number
    return type(value) is type(leaf)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, Counting])
def test_settings_and_values_of_an_optimizer_of_other_kinds_are_refused(tmp_path, make):
    model = composed("deviation")

    def stepped(lr):
        optimizer = composer.parallel.optimizer(model, make, lr=lr)
        Trial(model, 1, None).loss().backward()
        optimizer.step()
        return optimizer

    composer.parallel.save(tmp_path / "saved", model, stepped(0.25))
    path = tmp_path / "saved" / "checkpoint.json"
    index = json.loads(path.read_text())
    parts = {"groups": index["groups"], "values": dict([*index["values"].items()][:1])}
    refused = 0
    for place, leaf in leaves(parts):
        for wrong in () if "names" in place else WRONG:
            path.write_text(json.dumps({**index, **replaced(parts, place, wrong)}))
            other = stepped(0.5)
            kept = dict(other.state)
            if fits(leaf, wrong):
                composer.parallel.load(tmp_path / "saved", model, other)
                continue
            with pytest.raises(CheckpointError):
                composer.parallel.load(tmp_path / "saved", model, other)
            assert other.param_groups[0]["lr"] == 0.5  # nothing has changed
            assert other.state == kept
            refused += 1
    assert refused > 30


def test_other_settings_are_told_one_by_one(tmp_path):
    saved(tmp_path, "deviation")
    path = tmp_path / "saved" / "checkpoint.json"
    index = json.loads(path.read_text())
    first = next(iter(index["tensors"]))
    for group in index["groups"]:
        group["settings"] |= {
            "lr": "fast",
            "betas": [0.9],
            "amsgrad": 1,
            "foreach": "x",
            "why": [1],
        }
    index["values"] = {f"optimizer.{first}.count": [3]}
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as error:
        composer.parallel.load(tmp_path / "saved", *trained("deviation", 0)[::2])
    assert str(error.value) == (
        "the checkpoint does not fit this optimizer\n"
        "  'lr' is the text 'fast' in the checkpoint; it needs a number\n"
        "  'betas' is a list in the checkpoint; it needs a list such as [0.9, 0.999]\n"
        "  'amsgrad' is the number 1 in the checkpoint; it needs true or false\n"
        "  'foreach' is the text 'x' in the checkpoint; it needs a number, true, false or nothing\n"
        "  'why' is a list in the checkpoint; it has no such setting\n"
        f"  'optimizer.{first}.count' is a list in the checkpoint; it keeps a number, true, false or nothing"
    )


def test_an_optimizer_that_keeps_texts_is_not_saved(tmp_path):
    model = composed("deviation")
    optimizer = composer.parallel.optimizer(model, Counting)
    optimizer.state[next(model.parameters())]["mood"] = "good"
    with pytest.raises(CheckpointError) as error:
        composer.parallel.save(tmp_path / "saved", model, optimizer)
    assert str(error.value) == "cannot be saved: the optimizer's 'mood' is the text 'good'"
