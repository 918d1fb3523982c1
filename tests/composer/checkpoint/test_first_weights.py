"""`weights:` in a spec: files with the first weights of parts of a model, mapped by name or by position."""

import os
import pickle
import re
import zipfile

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from safetensors.torch import save_file
from torch import nn

import composer
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import write_checkpoint
from composer.errors import SpecError

SPACES = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)}
SPEC = """
version: 1
weights: {policy/screen: FILE}
policy:
  graph:
    screen: {block: dense, in: observation, hidden_units: [8, 6]}
    latent: {block: dense, in: screen, hidden_units: [3]}
  heads: {in: latent}
critic:
  ensemble: 2
  graph:
    screen: {block: dense, in: observation, hidden_units: [8, 6]}
"""
ENCODER = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())


def written(folder, file="encoder.pt", text=SPEC):
    (folder / "agent.yaml").write_text(text.replace("FILE", file))
    return folder / "agent.yaml"


def composed(path, **keywords):
    return composer.compose(path, **SPACES, seed=0, **keywords)


def screen_of(model, prefix="policy.screen."):
    return {
        n.removeprefix(prefix): t for n, t in model.state_dict().items() if n.startswith(prefix)
    }


def saved(folder, kind, tensors=None):
    tensors = ENCODER.state_dict() if tensors is None else tensors
    if kind == "pt":
        torch.save(tensors, folder / "encoder.pt")
    elif kind == "old pt":
        torch.save(tensors, folder / "encoder.pt", _use_new_zipfile_serialization=False)
    else:
        save_file(dict(tensors), folder / "encoder.pt")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", ["pt", "old pt", "safetensors"])
def test_layers_of_other_names_are_taken_in_order(kind, device, tmp_path):
    saved(tmp_path, kind)
    model = composed(written(tmp_path), device=device)
    model = model.materialize() if device == "meta" else model
    screen = screen_of(model)
    for ours, theirs in (("linears.0", ENCODER[0]), ("linears.1", ENCODER[2])):
        assert torch.equal(screen[f"{ours}.weight"], theirs.weight)
        assert torch.equal(screen[f"{ours}.bias"], theirs.bias)
    assert str(model.first_weights[0]) == (
        "policy/screen: 4 tensors of 'encoder.pt' by position\n"
        "  policy.screen.linears.0.weight is 0.weight there\n"
        "  policy.screen.linears.0.bias is 0.bias there\n"
        "  policy.screen.linears.1.weight is 2.weight there\n"
        "  policy.screen.linears.1.bias is 2.bias there"
    )
    plain = composed(written(tmp_path, text=SPEC.replace("weights: {policy/screen: FILE}", "")))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) != name.startswith("policy.screen.")


def test_a_file_that_knows_the_names_and_holds_more(tmp_path):
    other = composed(written(tmp_path, text=SPEC.replace("weights: {policy/screen: FILE}", "")))
    saved(tmp_path, "pt", {**screen_of(other), "fc.weight": torch.zeros(3)})
    model = composer.compose(written(tmp_path), **SPACES, seed=5)
    assert all(torch.equal(t, screen_of(other)[n]) for n, t in screen_of(model).items())
    assert str(model.first_weights[0]) == (
        "policy/screen: 4 tensors of 'encoder.pt'\n  not used: 'fc.weight'"
    )


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("old.safetensors", "policy/screen"),
        ("old.safetensors#policy/screen", "critic/screen"),
        ("old.safetensors", "critic"),
        ("old.safetensors", "policy"),
    ],
)
def test_a_part_of_a_checkpoint(file, path, tmp_path):
    old = composed(written(tmp_path, text=SPEC.replace("weights: {policy/screen: FILE}", "")))
    old.save(tmp_path / "old.safetensors")
    text = SPEC.replace("policy/screen: FILE", f'{path}: "{file}"')
    model = composer.compose(written(tmp_path, text=text), **SPACES, seed=5)
    if "#" in file:
        for copy in ("critic.ensemble.0.screen.", "critic.ensemble.1.screen."):
            ours = screen_of(model, copy)
            assert all(torch.equal(t, screen_of(old)[n]) for n, t in ours.items())
    else:
        prefix = path.replace("/", ".") + "."
        theirs = screen_of(old, prefix)
        assert theirs
        assert all(torch.equal(t, theirs[n]) for n, t in screen_of(model, prefix).items())


def test_frozen_weights_do_not_need_their_file_again(tmp_path):
    saved(tmp_path, "pt")
    text = SPEC.replace("version: 1", "version: 1\nfreeze: [policy/screen]")
    model = composed(written(tmp_path, text=text))
    model.save(tmp_path / "model.safetensors")
    os.remove(tmp_path / "encoder.pt")
    again = composer.load(tmp_path / "model.safetensors")
    assert all(torch.equal(t, screen_of(again)[n]) for n, t in screen_of(model).items())
    assert not again.policy.get_submodule("screen").linears[0].weight.requires_grad
    assert "encoder.pt" not in composer.checkpoint.read_record(tmp_path / "model.safetensors").spec
    assert composer.compose(again.source, **SPACES).spec.freeze == ("policy/screen",)


def test_gradients_that_were_chosen_by_hand_are_kept(tmp_path):
    text = SPEC.replace("weights: {policy/screen: FILE}", "freeze: [critic]")
    model = composed(written(tmp_path, text=text))
    model.policy.get_submodule("latent").requires_grad_(False)
    model.critic.requires_grad_(True)
    model.save(tmp_path / "model.safetensors")
    again = composer.load(tmp_path / "model.safetensors")
    expected = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in again.named_parameters()} == expected
    assert {n for n, trained in expected.items() if not trained} == {
        "policy.latent.linears.0.weight",
        "policy.latent.linears.0.bias",
    }


def refusal(path, **keywords):
    with pytest.raises(SpecError) as caught:
        composed(path, **keywords)
    return re.sub(r"(?m)^.*agent.yaml", "agent.yaml", str(caught.value)).replace(
        str(path.parent) + "/", ""
    )


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile_was_here",))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_hostile_pickle_is_inert(device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    not_safe = (
        "agent.yaml:3:26: 'encoder.pt' cannot be read: it holds more than tensors, and reading that could run code; "
        "save its weights alone: torch.save(module.state_dict(), path)"
    )
    (tmp_path / "encoder.pt").write_bytes(pickle.dumps({"weight": Hostile()}))
    assert refusal(written(tmp_path), device=device) == not_safe
    torch.save({"weight": Hostile()}, tmp_path / "encoder.pt")
    assert refusal(written(tmp_path), device=device) == not_safe
    torch.save(ENCODER, tmp_path / "encoder.pt")
    assert refusal(written(tmp_path), device=device) == not_safe
    assert not (tmp_path / "hostile_was_here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 and no zip", "'encoder.pt' cannot be read: it is damaged, or no state_dict"),
        (
            [torch.zeros(1)],
            "'encoder.pt' holds a list, and no state_dict, which maps names to tensors",
        ),
        (
            {"epoch": 3, "model": {"weight": torch.zeros(1)}},
            "'encoder.pt' holds what is no tensor at 'epoch', 'model'; save what 'model' holds in a file of its own",
        ),
        (
            {"weight": torch.zeros(2).to_sparse()},
            "'encoder.pt' cannot be read: a tensor in it is sparse, quantized or without numbers; save dense ones of the "
            "CPU",
        ),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "encoder.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "encoder.pt")
    assert refusal(written(tmp_path)) == f"agent.yaml:3:26: {message}"


class Much:
    """Little in a file, and gigabytes once it is read."""

    def __reduce__(self):
        return bytearray, (10**11,)


def compressed(path):
    """The same archive, whose parts would grow by a factor of a thousand."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_small_file_does_not_fill_the_memory(is_zip, tmp_path):
    path = tmp_path / "encoder.pt"
    torch.save({"weight": Much()}, path, _use_new_zipfile_serialization=is_zip)
    assert "it holds more than tensors" in refusal(written(tmp_path))
    if is_zip:
        torch.save(ENCODER.state_dict(), path)
        compressed(path)
        assert refusal(written(tmp_path)).endswith("it is damaged, or no state_dict")


@pytest.mark.parametrize("before", ["", "²", "٣", "9" * 5_000 + "."])
def test_numbers_in_names_are_of_any_length_and_script(before, tmp_path):
    tensors = {f"{before}{name}": tensor for name, tensor in reversed(ENCODER.state_dict().items())}
    saved(tmp_path, "pt", tensors)
    weights = composed(written(tmp_path)).first_weights[0]
    assert next(iter(weights.names.values())) == f"{before}0.weight"


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    saved(tmp_path, "pt", nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5)).state_dict())
    assert refusal(written(tmp_path)) == (
        "agent.yaml:3:26: the weights in 'encoder.pt' do not fit 'policy/screen'; give the node the settings of the "
        "network that they are from, or name a part of the file after '#'\n"
        "    linears.0.weight (8, 4) is not in the file; of this shape it has '0.weight'\n"
        "    linears.0.bias (8,) is not in the file; of this shape it has '0.bias'\n"
        "    linears.1.weight (6, 8) is not in the file\n"
        "    linears.1.bias (6,) is not in the file"
    )
    wrong = {
        "linears.0.weight": torch.zeros(8, 3),
        "linears.0.bias": torch.zeros(8, dtype=torch.int64),
    }
    saved(tmp_path, "pt", wrong)
    assert refusal(written(tmp_path)).splitlines()[1:3] == [
        "    linears.0.weight is (8, 3) in the file, the model needs (8, 4)",
        "    linears.0.bias is torch.int64 in the file, the model needs torch.float32",
    ]


def test_files_that_may_not_be_read(tmp_path):
    spec = written(tmp_path, "lost.pt")
    assert refusal(spec) == "agent.yaml:3:26: there is no file 'lost.pt'"
    (tmp_path / "inner").mkdir()
    torch.save(ENCODER.state_dict(), tmp_path / "encoder.pt")
    inner = written(tmp_path / "inner", "../encoder.pt")
    assert "is neither beside nor below the spec; pass allow=[" in refusal(inner)
    assert composed(inner, allow=[str(tmp_path) + "/"]).first_weights[0].by == "position"
    saved(tmp_path, "safetensors")
    assert refusal(written(tmp_path, "encoder.pt#policy/screen")) == (
        "agent.yaml:3:26: 'encoder.pt' has no part 'policy/screen'; it has '0', '2'"
    )
    text = SPEC.replace("policy/screen: FILE", "policy/heads: 'inner'")
    assert refusal(written(tmp_path, text=text)) == (
        "agent.yaml:3:25: 'inner' is a folder, not a file of weights"
    )


@pytest.mark.parametrize("frozen", [None, 3, {"policy": 1}])
def test_a_header_that_does_not_list_frozen_parameters_is_refused(frozen, tmp_path):
    model = composed(written(tmp_path, text=SPEC.replace("weights: {policy/screen: FILE}", "")))
    about = {**model.checkpoint_about(), "gradients": {"frozen": frozen}}
    write_checkpoint(tmp_path / "model.safetensors", model, **about)
    message = f"the checkpoint is damaged: 'frozen' in its header is {frozen!r}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        composer.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_weights_that_are_nan_are_refused_by_name(kind, device, tmp_path):
    """The model would act, and fail far from the cause; infinity stands in the masks of some encoders."""
    tensors = {name: tensor.clone() for name, tensor in ENCODER.state_dict().items()}
    tensors["0.bias"][3] = torch.inf
    saved(tmp_path, kind, tensors)
    composed(written(tmp_path), device=device)
    tensors["2.weight"][0, 1] = torch.nan
    saved(tmp_path, kind, tensors)
    with pytest.raises(SpecError) as error:
        composed(written(tmp_path), device=device)
    assert [problem.message for problem in error.value.problems] == [
        "the weights in 'encoder.pt' are NaN at '2.weight': their training has failed; take those of an earlier step"
    ]
