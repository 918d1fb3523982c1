import ast
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Dict, Text
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

import composer
from composer.checkpoint.container import CheckpointError
from composer.errors import SpecError
from tests.helpers.action_models import (
    STATISTICS,
    TinyProcessor,
    TinyVla,
    observations,
    spec,
)
from tests.helpers.paths import CONFIGS, ROOT

LORA = {"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}


def trained(**changes):
    """A model whose adapters and value head are not those it began with."""
    model = composer.compose(spec(**{"lora": LORA, **changes}), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def said(model):
    _, result = model.predict_action_batch(observations(), "eval")
    return model(result["forward_inputs"])["logprobs"].detach()


def test_a_saved_model_is_loaded_with_its_processor_and_spaces_and_needs_no_folder(
    tmp_path, folder
):
    space = Dict(main_images=Box(0, 255, (8, 8, 3), "uint8"), task_descriptions=Text(50))
    data = spec(config=None, model_path=str(folder))
    model = composer.compose(
        data, observation_space=space, action_space=Box(-1, 1, (3,)), seed=3, allow=[f"{folder}/"]
    )
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    assert "model_path" not in loaded.source.data["model"]
    assert loaded.seed == 3
    assert loaded.observation_space == space
    assert torch.equal(said(loaded), said(model))
    batch = observations()
    assert (loaded.act(batch, True) == model.act(batch, True)).all()
    assert str(loaded.load_report).endswith("0 differences")


@pytest.mark.parametrize("precision", ["bf16", None])
def test_adapters_are_saved_and_loaded_with_the_model(tmp_path, precision):
    model = trained(precision=precision)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    for (name, a), (other, b) in zip(model.named_parameters(), loaded.named_parameters()):
        assert name == other
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad


def test_adapters_alone_are_small_and_begin_another_model(tmp_path):
    model = trained()
    path = tmp_path / "adapters.safetensors"
    model.save(path, adapters_only=True)
    names = set(load_file(path))
    assert all("lora_" in name or name.startswith("value_head.") for name in names)
    fresh = composer.compose(spec(lora=LORA), seed=0)
    assert not torch.equal(said(fresh), said(model))
    fresh.load_weights(path)
    assert torch.equal(said(fresh), said(model))
    named = composer.compose(spec(lora={**LORA, "path": str(path)}), allow=[f"{tmp_path}/"], seed=0)
    assert torch.equal(said(named), said(model))


def test_adapters_alone_are_no_model(tmp_path):
    path = tmp_path / "adapters.safetensors"
    trained().save(path, adapters_only=True)
    message = (
        f"{str(path)!r} has adapters only; compose the model from its spec and call model.load_weights(path), "
        "or name the file as 'path' of 'lora' there"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        composer.load(path)


def test_adapters_alone_say_what_a_model_without_them_lacks(tmp_path):
    path = tmp_path / "adapters.safetensors"
    model = trained()
    model.save(path, adapters_only=True)
    with pytest.raises(CheckpointError) as error:
        composer.compose(spec(), seed=0).load_weights(path)
    message = (
        f"{str(path)!r} has adapters only, and this model has none; compose the model with the 'lora' of the file's own "
        "spec: overrides="
    )
    assert str(error.value).startswith(message)
    overrides = ast.literal_eval(str(error.value).removeprefix(message))
    again = composer.compose(spec(), overrides=overrides, seed=0)
    again.load_weights(path)
    assert torch.equal(said(again), said(model))


def test_the_library_says_nothing_as_models_are_made_saved_and_loaded(tmp_path, capsys):
    """It draws bars, and warns of the special tokens of a default configuration beyond a small vocabulary."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    library = logging.getLogger("transformers")
    library.addHandler(handler)
    level, bars = library.level, transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    try:
        config = {"vocab_size": 43, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
        config |= {"n_action_bins": 8, "norm_stats": STATISTICS}
        values = {"model_type": "learned_vla", "config": config, "inputs": {"text": "task"}}
        model = composer.compose(spec(**values), seed=0)
        model.save(tmp_path / "model.safetensors")
        composer.load(tmp_path / "model.safetensors")
        model.save_pretrained(tmp_path / "folder")
        folder = {**values, "config": None, "model_path": str(tmp_path / "folder")}
        composer.compose(spec(**folder), allow=[f"{tmp_path}/"], seed=0)
        assert transformers_logging.is_progress_bar_enabled()
        assert library.level == level
    finally:
        library.removeHandler(handler)
        if not bars:
            transformers_logging.disable_progress_bar()
    assert said == []
    assert capsys.readouterr() == ("", "")


def test_a_model_without_adapters_is_saved_whole(tmp_path):
    model, path = composer.compose(spec(), seed=0), tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError) as error:
        model.save(path, adapters_only=True)
    assert str(error.value) == "cannot be saved: the model has no adapters; leave out adapters_only"
    assert not path.exists()
    model.save(path)
    assert torch.equal(said(composer.load(path)), said(model))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_of_peft_are_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = trained()
    plain = composer.compose(spec(), seed=0).hf
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    theirs = get_peft_model(plain, config)
    weights = {n: p for n, p in model.hf.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(weights[name.removeprefix("base_model.model.")])
    theirs.save_pretrained(tmp_path / "peft")
    named = composer.compose(
        spec(lora={**LORA, "path": str(tmp_path / "peft")}), allow=[f"{tmp_path}/"], seed=0
    )
    torch.testing.assert_close(said(named), said(model))


def test_merged_adapters_give_a_file_that_is_loaded_without_peft(tmp_path):
    model = trained()
    before = said(model)
    model.merge_adapters()
    torch.testing.assert_close(said(model), before)
    model.save(tmp_path / "merged.safetensors")
    code = (
        "import sys; sys.modules['peft'] = None; sys.path.append(sys.argv[1])\n"
        "import networks.tiny_vla, composer, torch\n"
        "model = composer.load(sys.argv[2])\n"
        "print(sum(p.numel() for p in model.parameters()), 'lora' in model.source.data['model'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(CONFIGS), str(tmp_path / "merged.safetensors")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    count = sum(p.numel() for p in model.parameters())
    assert (done.stdout, done.stderr) == (f"{count} False\n", "")
    loaded = composer.load(tmp_path / "merged.safetensors")
    assert torch.equal(said(loaded), said(model))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_folder_is_what_transformers_reads_with_adapters_added(tmp_path):
    model = trained()
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.save_pretrained(tmp_path / "hf")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    theirs = TinyVla.from_pretrained(tmp_path / "hf", local_files_only=True).eval()
    _, acted = model.predict_action_batch(observations(), "eval")
    model.hf, kept = theirs, model.hf
    torch.testing.assert_close(model(acted["forward_inputs"])["logprobs"], acted["prev_logprobs"])
    model.hf = kept
    again = composer.compose(
        spec(config=None, model_path=str(tmp_path / "hf")), allow=[f"{tmp_path}/"], seed=9
    )
    torch.testing.assert_close(said(again), said(model))
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.value_head.parameters(), model.value_head.parameters())
    )


def test_a_folder_that_is_there_is_kept(tmp_path, folder):
    model = composer.compose(spec(), seed=0)
    with pytest.raises(CheckpointError, match="is there already; remove it or choose another name"):
        model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="there is no folder"):
        model.save_pretrained(tmp_path / "none" / "hf")
    assert list(tmp_path.iterdir()) == []
    late = composer.compose(spec(), seed=0, device="meta")
    for save in (late.save_pretrained, late.save):
        with pytest.raises(CheckpointError, match="no weights yet; call materialize first"):
            save(tmp_path / "late")


def test_statistics_of_a_file_beside_the_configuration_travel_with_the_model(tmp_path, folder):
    import shutil

    place = tmp_path / "ckpt"
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    statistics = config.pop("norm_stats")
    (place / "config.json").write_text(json.dumps(config))
    (place / "dataset_statistics.json").write_text(
        json.dumps({"bridge": {"action": statistics["bridge"], "proprio": {}}})
    )
    data = spec(config=None, model_path=str(place), unnorm_key="bridge")
    model = composer.compose(data, allow=[f"{tmp_path}/"], seed=0)
    model.save(tmp_path / "model.safetensors")
    model.save_pretrained(tmp_path / "again")
    loaded = composer.load(tmp_path / "model.safetensors")
    again = composer.compose(
        spec(config=None, model_path=str(tmp_path / "again")), allow=[f"{tmp_path}/"], seed=0
    )
    for other in (loaded, again):
        assert torch.equal(other.bins.high, model.bins.high)


def test_a_checkpoint_with_a_processor_that_names_code_is_refused(tmp_path):
    from composer.language.hf import model_type_of
    from composer.language.processors import processor_of_files

    entry = model_type_of("tiny_vla")
    for name, text, message in (
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "x.y"}}', "has 'auto_map'"),
        ("../x.json", "{}", "is no file of a processor"),
        ("x.py", "", "is no file of a processor"),
    ):
        with pytest.raises(ValueError, match=message):
            processor_of_files(entry, {name: text}, None)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    composer.compose(spec(), seed=0).save(tmp_path / "plain.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"q_proj.weight \(32, 32\) is in the file, the model has no such tensor",
    ):
        trained().load_weights(tmp_path / "plain.safetensors")
    tensors = load_file(tmp_path / "plain.safetensors")
    save_file(tensors, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not one that this library saved"):
        trained().load_weights(tmp_path / "foreign.safetensors")


# --- processors in checkpoints ---


class KeepsFiles:
    """A processor that is saved as these files, by name."""

    files = {}

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def save_pretrained(self, folder):
        self.tokenizer.save_pretrained(folder)
        for name, data in self.files.items():
            place = Path(folder, name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data)


def keeping(**files):
    """A model whose processor is saved as ``files`` beside what its tokenizer writes."""
    model = composer.compose(spec(), seed=0)
    model.processor = KeepsFiles(model.processor.tokenizer)
    model.processor.files = {name.replace("__", "."): data for name, data in files.items()}
    return model


def test_tables_of_tokenizers_that_are_no_text_are_kept(tmp_path, monkeypatch):
    files = {"tokenizer.model": bytes(range(256)), "additional_chat_templates/short.jinja": b"{{ x }}"}  # fmt: skip
    model = keeping(**files)
    model.save(tmp_path / "model.safetensors")
    seen = {}

    def look(folder, **_):
        seen.update({name: Path(folder, name).read_bytes() for name in files})
        return model.processor

    monkeypatch.setattr(TinyProcessor, "from_pretrained", look)
    composer.load(tmp_path / "model.safetensors")
    assert seen == files


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("weights.bin", b"\x80"),
        ("processing_mine.py", b"import os"),
        ("special.json", b'{"auto_map": {"AutoProcessor": "x.Y"}}'),
    ],
)
def test_files_of_a_processor_that_a_checkpoint_cannot_keep_are_told(name, data, tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError) as caught:
        keeping(**{name: data}).save(path)
    assert str(caught.value) == (
        f"cannot be saved: the processor is saved with the file {name!r}, which is code or of a kind that a checkpoint "
        "does not keep; model.save_pretrained(folder) keeps it"
    )
    assert not path.exists()
    keeping(**{name: data}).save_pretrained(tmp_path / "folder")
    assert (tmp_path / "folder" / name).read_bytes() == data


STRANGE = [
    ("/etc/x.json", "{}"), ("a/../../x.json", "{}"), ("a/b/c.json", "{}"), ("..", ""), ("", ""),
    ("x\0.json", "{}"), ("tokenizer_config.json", 3), ("tokenizer.model", "no base64!"),
    ("tokenizer_config.json", "["), ("tokenizer_config.json", "[" * 100_000), ("x" * 300 + ".json", "{}"),
    ("tokenizer_config.json", '{"tokenizer_class": "LlamaModel"}'), ("x.json", "\ud800"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), STRANGE, ids=range(len(STRANGE)))
def test_strange_files_of_a_processor_in_a_checkpoint_are_told(name, text, tmp_path):
    from composer.checkpoint import container
    from composer.checkpoint.file import read_record

    path = tmp_path / "model.safetensors"
    composer.compose(spec(), seed=0).save(path)
    about: Any = read_record(path).action_model
    for processor in ({**about["processor"], name: text}, [name], text):
        record = container.read_record(path, 1)
        record["action_model"] = {"adapters_only": False, "processor": processor}
        for key in ("tensor_digests", "header_digest", "format"):
            record.pop(key)
        container.write_file(path, container.read_tensors(path), record)
        if processor:
            with pytest.raises(SpecError):
                composer.load(path)


# --- adapters of strangers ---


def peft_folder(folder, change=None, config=None):
    """The adapters of a trained model as peft writes them."""
    folder.mkdir()
    weights = {
        f"base_model.model.{name.replace('.default', '')}": p.detach()
        for name, p in trained().hf.named_parameters()
        if "lora_" in name
    }
    if change is not None:
        change(weights)
    save_file(weights, folder / "adapter_model.safetensors")
    said = {"lora_alpha": 4, "peft_type": "LORA", "base_model_name_or_path": "someone/else"}
    (folder / "adapter_config.json").write_text(json.dumps({**said, **(config or {})}))
    return folder


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OF_MODULE = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
FOREIGN = {
    "whole numbers": (lambda w: w.update({FIRST: w[FIRST].long()}), {}, f"holds other adapters: {OF_MODULE} is torch.int64, it must be floating-point numbers"),
    "missing": (lambda w: w.pop(FIRST), {}, f"holds other adapters: {OF_MODULE} is missing"),
    "of k_proj too": (lambda w: w.update({FIRST.replace("q_proj", "k_proj"): w[FIRST].clone()}), {}, "holds other adapters: base_model.model.model.layers.0.self_attn.k_proj.lora_A.default.weight is no adapter of this model"),
    "a head beside": (lambda w: w.update({"base_model.model.lm_head.weight": torch.ones(40, 32)}), {}, "holds weights beside its adapters, such as base_model.model.lm_head.weight; train it without modules_to_save and biases, or merge it in peft"),
    "magnitudes": (lambda w: w.update({FIRST.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)}), {}, "holds weights beside its adapters, such as base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector; train it without modules_to_save and biases, or merge it in peft"),
    "of another scale": (None, {"use_rslora": True}, None),
    "of another alpha": (None, {"alpha_pattern": {"q_proj": 8}}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_adapters_that_are_others_are_told(case, tmp_path):
    change, config, message = FOREIGN[case]
    folder = peft_folder(tmp_path / "peft", change, config)
    if message is None:
        key = next(iter(config))
        message = f"says {key!r}, adapters of a kind that is not read here; merge them in peft, or train others"
        message = f"'adapter_config.json' in {str(folder)!r} {message}"
    else:
        message = f"{str(folder)!r} {message}"
    with pytest.raises(SpecError) as caught:
        composer.compose(spec(lora={**LORA, "path": str(folder)}), allow=[f"{tmp_path}/"])
    assert str(caught.value) == f"model.lora.path: {message}"


def test_adapters_of_a_folder_lead_to_nothing_outside(tmp_path):
    folder = peft_folder(tmp_path / "peft")
    lora = {**LORA, "path": str(folder)}
    composer.compose(spec(lora=lora), allow=[f"{folder}/"])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(SpecError, match="is neither beside nor below the spec; pass allow="):
            composer.compose(spec(lora=lora), allow=[f"{folder}/"])
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(SpecError, match="cannot be read: it is not a regular file"):
            composer.compose(spec(lora=lora), allow=[f"{folder}/"])
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)


def test_the_value_head_beside_adapters_is_the_one_of_the_spec(tmp_path):
    path = tmp_path / "adapters.safetensors"
    trained().save(path, adapters_only=True)
    lora = {**LORA, "path": str(path)}
    with pytest.raises(SpecError) as caught:
        composer.compose(spec(lora=lora, value_head={"hidden_units": [8, 8]}), allow=[f"{tmp_path}/"])  # fmt: skip
    assert str(caught.value) == (
        f"model.lora.path: the value head in {str(path)!r} has hidden_units [16], the spec asks for [8, 8]; write "
        "value_head: {hidden_units: [16]}, or write value_head: false"
    )
    for head in ({"hidden_units": [16]}, False):
        composer.compose(spec(lora=lora, value_head=head), allow=[f"{tmp_path}/"])


def test_adapters_of_another_scale_are_told(tmp_path):
    """Their weights do not show by what they are multiplied."""
    path = tmp_path / "adapters.safetensors"
    trained().save(path, adapters_only=True)
    other = {**LORA, "alpha": 2}
    message = (
        f"the adapters in {str(path)!r} are multiplied by 2.0, those of this model by 1; write the 'rank' and 'alpha' "
        "that they were made with"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        composer.compose(spec(lora=other), seed=0).load_weights(path)
    with pytest.raises(SpecError) as caught:
        composer.compose(spec(lora={**other, "path": str(path)}), allow=[f"{tmp_path}/"])
    assert str(caught.value) == f"model.lora.path: {message}"
