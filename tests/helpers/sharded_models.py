"""What holds of sharded models, run as one of several processes: ``sharded_models.py FOLDER CHECK...``."""

import contextlib
import copy
import os
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

import composer
import composer.parallel
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import foreign_modules
from composer.errors import SpecError
from composer.language.action_proof import made_observation
from composer.parallel import materialize
from composer.parallel.layout import named_tensors, whole_tensor
from composer.parallel.prove import compare
from composer.parallel.trials import Trial
from composer.token_views import token_views
from tests.helpers.paths import CONFIGS
from tests.helpers.processes import unpickling
from tests.helpers.proof_models import SPECS, step, trial_of

MESH = composer.parallel.start()
FOLDER = Path(sys.argv[1])
ALLOW = {"allow": ["proof_parts"], "seed": 0}
ALONE = (
    " needs all weights in one process, and those of this model are sharded; save it with model.save(path), and use "
    "composer.load(path) in a process of its own"
)


def spec(name):
    return SPECS / f"{name}.yaml"


def composed(name, **more):
    return composer.parallel.compose(spec(name), **{**ALLOW, **more})


def trained(name, steps, **more):
    """A sharded model, its share of a batch and its optimizer, after some steps."""
    model = composed(name, **more)
    place = MESH.rank * 2 // MESH.size  # the same rows for any number of processes
    return model, *trial_of(model, place, steps)


def whole(model):
    return {name: whole_tensor(tensor).clone() for name, tensor in named_tensors(model).items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def check_save():
    """Save after two steps, in every way; what the third step gives goes to a file for others to compare with."""
    for name in ("vision", "deviation"):
        model, trial, optimizer = trained(name, 2)
        folder = FOLDER / name
        for _ in range(2):  # the second one takes the place of the first
            composer.parallel.save(folder, model, optimizer, {"steps": 2})
        model.save(FOLDER / f"{name}.safetensors")
        composer.parallel.consolidate(folder, FOLDER / f"{name}_consolidated.safetensors")
        if MESH.is_first:
            files = ["checkpoint.json", *(f"shard-{n:05}.safetensors" for n in range(MESH.size))]
            assert sorted(os.listdir(folder)) == files
            assert not [n for n in os.listdir(FOLDER) if n.startswith(".")]
            written = [FOLDER / f"{name}{end}.safetensors" for end in ("", "_consolidated")]
            assert written[0].read_bytes() == written[1].read_bytes()
        step(trial, optimizer)
        third = whole(model)
        if MESH.is_first:
            save_file({n: t.contiguous() for n, t in third.items()}, FOLDER / f"{name}.third")


def check_load():
    """What other processes saved, loaded here, goes on as it would have."""
    for home, name, instead in unpickling():
        setattr(home, name, instead)
    for name in ("vision", "deviation"):
        folder = FOLDER / name
        if MESH.is_first:
            (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        model, trial, optimizer = trained(name, 1, seed=5)
        extra = composer.parallel.load(folder, model, optimizer)
        assert extra == {"steps": 2}
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        step(trial, optimizer)
        third = load_file(FOLDER / f"{name}.third")
        for key, tensor in whole(model).items():
            torch.testing.assert_close(tensor, third[key], rtol=0, atol=2e-7)


def check_refusals():
    """What a sharded model cannot do is said in words, and what it can do works."""
    model = composed("tokens")
    alone = composer.compose(spec("tokens"), **ALLOW)
    for use in (
        model.lower,
        model.policy.lower,
        model.materialize,
        lambda: copy.deepcopy(model),
        lambda: copy.deepcopy(model.policy),
        lambda: model.export("x.onnx"),
        lambda: model.load_weights("x.safetensors"),
        lambda: model.load_state_dict({}),
        lambda: model.critic.load_state_dict({}),
    ):
        with pytest.raises(ValueError, match=f"{re.escape(ALONE)}$"):
            use()
    model.save(FOLDER / "refused.safetensors")
    with pytest.raises(ValueError, match="this model is sharded already"):
        composer.parallel.shard(model)
    sequence = torch.arange(24).reshape(2, 12)
    for ours, theirs in zip(
        token_views(model.policy, model.critic), token_views(alone.policy, alone.critic)
    ):
        if isinstance(ours, composer.token_views.SequenceView):
            for key, value in theirs(sequence).items():
                torch.testing.assert_close(ours(sequence)[key], value)
    assert "20,185" in model.summary()
    with pytest.raises(SpecError) as error:
        composed("custom", overrides=["parallel.data=3", "parallel.units=[Layr]"])
    assert re.search(
        r"'data' times 'tensor' is 3 \* 1 = 3, but there are \d processes", str(error.value)
    )
    with pytest.raises(
        SpecError, match="no module of this model is a 'Layr'; did you mean 'Layer'"
    ):
        composed("custom", overrides=["parallel.units=[Layr]"])
    with pytest.raises(ValueError, match="the device is that of the processes"):
        composed("custom", device="cpu")
    with pytest.raises(CheckpointError, match=r"there is no folder|could not be written"):
        model.save(FOLDER / "none" / "model.safetensors")


class Viewed(torch.nn.Module):
    """A unit that returns a view, in a dict, and by a method that is used in the place of a call."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, x):
        return {"y": self.layer(x).reshape(-1, 2)}

    def packed(self, x):
        return self(x)["y"][:1]


class InPlace(torch.nn.Module):
    """It writes into what its unit returns."""

    def __init__(self):
        super().__init__()
        self.unit, self.last = Viewed(), torch.nn.Linear(2, 1)

    def forward(self, x):
        y = self.unit(x)["y"]
        y += 1.0
        z = self.unit.packed(x)
        z *= 2.0
        return self.last(y).square().sum() + z.sum()


def check_views():
    """What a unit returns may be written into, and nothing warns; `packed` is a use of a decoder as a call is."""
    filters = list(warnings.filters)
    torch.manual_seed(0)
    alone = InPlace()
    sharded = composer.parallel.shard(copy.deepcopy(alone), plan={"units": ["Viewed"]})
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (alone, sharded):
            model(x).backward()
        for ours, theirs in zip(alone.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, whole_tensor(theirs.grad))
        for name in ("tokens", "vision", "decoder"):
            trained(name, 1)
        alone = composer.compose(spec("decoder"), **ALLOW)
        model = composed("decoder")
        for part in (alone, model):
            module = part.policy.network.module
            block = module.module_of(next(iter(module.nodes)))
            block.packed(torch.tensor([1, 0, 1, 1, 0]), [3, 2]).square().sum().backward()
    for (name, ours), theirs in zip(alone.named_parameters(), model.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, whole_tensor(theirs.grad), msg=name)
    assert warnings.filters == filters


def check_precision():
    """Units calculate in bf16, and what comes out of them and of a stack is of the model's dtype."""
    for name in ("tokens", "vision", "custom", "masked", "decoder"):
        model = composer.parallel.shard(
            composer.compose(spec(name), **ALLOW), plan={"precision": "bf16"}
        ).eval()
        seen: set[torch.dtype] = set()

        def look(layer, inputs, seen=seen):
            seen.add(layer.weight.dtype)

        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(look)
        trial = Trial(model, MESH.size, MESH.rank)
        optimizer = composer.parallel.optimizer(model, torch.optim.AdamW)
        step(trial, optimizer)
        assert {x.dtype for x in trial.outputs() if x.is_floating_point()} == {torch.float32}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.bfloat16 in seen or name == "vision"


@contextlib.contextmanager
def peak_of_weights():
    """How many numbers of whole parameters there are each time that something is to be sharded."""
    peaks = []
    before = materialize.Sharder.shard_in

    def watched(sharder, module):
        whole = [
            p for p in sharder.model.parameters() if not p.is_meta and not isinstance(p, DTensor)
        ]
        peaks.append(sum(p.numel() for p in whole))
        before(sharder, module)

    materialize.Sharder.shard_in = watched
    try:
        yield peaks
    finally:
        materialize.Sharder.shard_in = before


def check_peak():
    """No process holds the whole model while it is composed, nor a whole body of transformers."""
    for name, most in (("tokens", 0.5), ("custom", 1.0), ("masked", 0.7)):
        with peak_of_weights() as held:
            model = composed(name)
        peak = max(held)
        total = sum(p.numel() for p in model.parameters())
        assert 0 < peak <= most * total, (name, peak, total)
        alone = composer.compose(spec(name), **ALLOW)
        assert same(whole(model), whole(alone)), name
    for init in ("orthogonal", {"normc": {"norm": 0.5}}):
        data = composer.compose(spec("tokens"), **ALLOW).source.data
        data["policy"]["graph"]["latent"]["init"] = init
        assert same(
            whole(composer.parallel.compose(data, **ALLOW)), whole(composer.compose(data, **ALLOW))
        )


def check_tensor():
    """The matrices of layers over two processes each: outputs and gradients are those of one."""
    overrides = ["parallel.tensor=2"]
    model = composed("tokens", overrides=overrides).eval()
    alone = composer.compose(spec("tokens"), **ALLOW).eval()
    data = MESH.size // 2
    trials = [Trial(alone, data, None), Trial(model, data, MESH.rank // 2)]
    for ours, theirs in zip(trials[0].outputs(), trials[1].outputs(), strict=True):
        torch.testing.assert_close(trials[1].share(ours), theirs, rtol=1e-5, atol=1e-5)
    for trial in trials:
        trial.loss().backward()
    for (name, ours), (_, theirs) in zip(alone.named_parameters(), model.named_parameters()):
        if ours.grad is not None:
            torch.testing.assert_close(
                ours.grad, whole_tensor(theirs.grad), rtol=1e-4, atol=1e-5, msg=name
            )
    optimizer = composer.parallel.optimizer(model, torch.optim.AdamW)
    optimizer.step()
    composer.parallel.save(FOLDER / "tensor", model, optimizer)
    again = composed("tokens", overrides=overrides, seed=4)
    composer.parallel.load(
        FOLDER / "tensor", again, composer.parallel.optimizer(again, torch.optim.AdamW)
    )
    assert same(whole(again), whole(model))
    plain = composed("tokens", seed=4) if MESH.size == 2 else None
    if plain is not None:
        composer.parallel.load(FOLDER / "tensor", plain)
        assert same(whole(plain), whole(model))
    with pytest.raises(SpecError, match="there is no body of transformers"):
        composed("vision", overrides=["parallel.tensor=2"])

    overrides += ["critic.normalize_value=true"]  # processes that share a matrix have the same rows
    model = composed("tokens", overrides=overrides)
    model.update_normalizers(returns=torch.arange(4.0) + MESH.rank // 2)
    counted = torch.cat([torch.arange(4.0) + place for place in range(data)])
    statistics = model.critic.value_normalizer
    assert int(statistics.count) == len(counted)
    torch.testing.assert_close(statistics.mean, counted.mean(0, keepdim=True))


def check_action():
    """A sharded action model acts, is saved as one file by all and from its shards, and refuses what needs it whole."""
    allow = ["environments", "networks"]
    for name in ("action", "lora"):
        model = composer.parallel.compose(spec(name), allow=allow, seed=0)
        alone = composer.compose(spec(name), allow=allow, seed=0)
        observation = made_observation(alone)
        ours, theirs = (m.predict_action_batch(observation, "eval")[0] for m in (alone, model))
        torch.testing.assert_close(ours, theirs)
        assert model.hf.generate is not None
        files = [FOLDER / f"{name}{end}.safetensors" for end in ("", "_shards")]
        model.save(files[0])
        composer.parallel.save(FOLDER / name, model)
        composer.parallel.consolidate(FOLDER / name, files[1])
        if MESH.is_first:
            assert files[0].read_bytes() == files[1].read_bytes()
            loaded = composer.load(files[0], allow=allow)
            assert same(dict(loaded.state_dict()), dict(alone.state_dict()))
        for use in (
            model.materialize,
            model.merge_adapters,
            lambda model=model: model.save_pretrained(FOLDER / "folder"),
            lambda model=model: model.load_weights("x.safetensors"),
            lambda model=model: copy.deepcopy(model),
        ):
            with pytest.raises(ValueError, match=re.escape(ALONE)):
                use()
    with pytest.raises(ValueError, match=re.escape(ALONE)):
        model.save("x", adapters_only=True)


def check_folder():
    """An action model of a folder is read layer by layer, and becomes a folder again that transformers reads."""
    from networks.tiny_vla import TinyVla  # pyright: ignore[reportMissingImports]  (of configs/)

    arguments = {"allow": ["environments", "networks", f"{FOLDER}/"], "seed": 0}
    drawn = composer.compose(spec("action"), **arguments)
    if MESH.is_first:
        drawn.save_pretrained(FOLDER / "tiny")
    MESH.agreed(0)  # all wait for the first one
    data = copy.deepcopy(drawn.source.data)
    del data["model"]["config"]
    data["model"] |= {"model_path": str(FOLDER / "tiny"), "lora": {"rank": 2, "alpha": 4}}
    with peak_of_weights() as held:
        model = composer.parallel.compose(data, **arguments)
    alone = composer.compose(data, **arguments)
    layers = [p.numel() for name, p in alone.named_parameters() if ".layers.0." in name]
    assert 0 < max(held) <= sum(layers) < 0.5 * sum(p.numel() for p in alone.parameters())
    assert same(whole(model), whole(alone))
    assert same(dict(model.named_buffers()), dict(alone.named_buffers()))  # also rotary places
    assert compare(alone, model, MESH, MESH.size, 2).holds

    composer.parallel.save(FOLDER / "trained", model)
    composer.parallel.consolidate(FOLDER / "trained", FOLDER / "whole")
    acted = model.predict_action_batch(made_observation(alone), "eval")[1]
    if MESH.is_first:
        alone.hf = TinyVla.from_pretrained(FOLDER / "whole", local_files_only=True).eval()
        alone.value_head.load_state_dict(load_file(FOLDER / "whole" / "value_head.safetensors"))
        again = alone(acted["forward_inputs"])
        torch.testing.assert_close(again["logprobs"], acted["prev_logprobs"])
        torch.testing.assert_close(again["values"], acted["prev_values"])
    with pytest.raises(
        CheckpointError, match=r"is there already|could not be written by the first"
    ):
        composer.parallel.consolidate(FOLDER / "trained", FOLDER / "whole")


def check_configs():
    """Every spec of configs/, those of several actors included, computes in several processes what it does in one."""
    for file in sorted(CONFIGS.glob("*.yaml")):
        arguments = {"allow": ["environments", "networks"], "seed": 0}
        model = composer.compose(file, **arguments, device="meta")
        arguments["dtype"] = torch.float32 if foreign_modules(model) else torch.float64
        whole = composer.compose(file, **arguments)
        sharded = composer.parallel.compose(file, **arguments)
        proof = compare(whole, sharded, MESH, MESH.size, 2)
        assert proof.holds, f"{file.name}: {proof}"
        assert proof.shards == proof.parameters


def check_seeds():
    """Without a seed it is the first process's; different seeds are refused."""
    model = composer.parallel.compose(spec("deviation"), allow=ALLOW["allow"])
    assert MESH.agreed(model.seed) == model.seed
    if MESH.rank == 1:
        message = "^the seed is 1 in process 1, and 0 in the first; give all of them the same one$"
        with pytest.raises(ValueError, match=message):
            composed("deviation", seed=MESH.rank)
    elif MESH.is_first:
        MESH.agreed(0)
    composed("deviation", seed=0)
    for seed in (MESH.rank,):  # shard takes the weights of the first process
        model = composer.parallel.shard(
            composer.compose(spec("deviation"), **{**ALLOW, "seed": seed})
        )
        assert same(whole(model), whole(composer.compose(spec("deviation"), **ALLOW)))


if __name__ == "__main__":
    with MESH:
        for check in sys.argv[2:]:
            globals()[f"check_{check}"]()
            print(check, "holds", flush=True)
