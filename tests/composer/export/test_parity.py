"""A file whose numbers are not those of the model is not kept."""

import re

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

import composer
from composer.export.exporting import ExportError
from composer.export.files import FORMATS
from tests.composer.export.test_exporting import message, mlp


def test_a_file_that_would_be_different_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("the old one")
    real = FORMATS[".pt2"]

    def read(name):
        run = real.read(name)
        return lambda inputs: {k: v + (v.dtype == torch.float32) for k, v in run(inputs).items()}

    monkeypatch.setitem(FORMATS, ".pt2", real._replace(read=read))
    with pytest.raises(ExportError) as error:
        mlp().export(path)
    assert re.fullmatch(
        rf"{str(path)!r} is not kept: its output 'logits' differs from the model's by \d\.\de[+-]\d\d "
        r"\(step \d+ with a batch of \d\), more than 1e-04",
        str(error.value),
    )
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_read_is_not_kept(tmp_path, monkeypatch):
    def read(name):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setitem(FORMATS, ".pt2", FORMATS[".pt2"]._replace(read=read))
    path = tmp_path / "model.pt2"
    path.write_text("the old one")
    expected = f"{str(path)!r} cannot be written: RuntimeError: no such operator"
    with pytest.raises(ExportError, match=f"^{re.escape(expected)}$"):
        mlp().export(path)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrong", [float("nan"), 2.0])
def test_wrong_actions_and_numbers_that_are_none_are_differences(wrong, tmp_path, monkeypatch):
    real = FORMATS[".pt2"]

    def spoilt(name, value):
        return value * wrong if name == "logits" else 1 - value if wrong == 2.0 else value

    def read(name):
        run = real.read(name)
        return lambda inputs: {
            k: value if k == "logits" and wrong == 2.0 else spoilt(k, value)
            for k, value in run(inputs).items()
        }

    monkeypatch.setitem(FORMATS, ".pt2", real._replace(read=read))
    output = "action" if wrong == 2.0 else "logits"
    assert f"its output {output!r} differs" in message(mlp(), tmp_path / "model.pt2")


@pytest.mark.parametrize(
    "mask", [MultiBinary(3), Box(0, 1, (3,)), Box(0, 255, (3,), np.uint8), Box(-np.inf, np.inf, (3,))], ids=str
)  # fmt: skip
def test_a_mask_of_any_space_is_drawn_as_flags(mask, tmp_path):
    spec = """
        version: 1
        policy:
          graph: {latent: {block: dense, in: seen, hidden_units: 4}}
          heads: {in: latent}
          action_mask: {action: legal}
    """
    spaces = {
        "observation_space": Dict(seen=Box(-1, 1, (2,)), legal=mask),
        "action_space": Discrete(3),
    }
    path = tmp_path / "model.pt2"
    composer.compose(spec, **spaces, seed=0).export(path)
    assert path.exists()


@pytest.mark.parametrize("family", ["gaussian", "squashed_gaussian", "beta"])
def test_an_action_that_is_one_number_is_exported_for_batches_of_any_size(family, tmp_path):
    """Its logits have no axis but the batch: a look at their number would hold for small batches alone."""
    spec = f"""
        version: 1
        policy:
          graph: {{latent: {{block: dense, in: observation, hidden_units: 4}}}}
          heads: {{in: latent}}
        distributions: [{{action: action, distribution: {family}}}]
    """
    spaces = {"observation_space": Box(-1, 1, (2,)), "action_space": Box(-1, 1, ())}
    path = tmp_path / "model.pt2"
    assert composer.compose(spec, **spaces, seed=0).export(path).difference < 1e-4
    (batch,) = torch.export.load(path).range_constraints.values()
    assert batch.upper > 1_000_000
