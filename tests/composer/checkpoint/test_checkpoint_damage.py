"""A damaged checkpoint is never loaded: 1,000 damaged files, and headers that were made up."""

import json
import random
import resource
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import composer
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import read_record, read_tensors
from composer.cli.commands import main

SPEC = {
    "version": 1,
    "environment": "CartPole-v1",
    "policy": {
        "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [64, 64]}},
        "heads": {"in": "latent"},
    },
    "critic": {"graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": [8]}}},
}
WEIGHT = "policy.latent.linears.0.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    composer.compose(SPEC, seed=1).save(path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def flipped(data, draw):
    bit = draw.randrange(8 * len(data))
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def header_flipped(data, draw):
    size = 8 + struct.unpack("<Q", data[:8])[0]
    return flipped(data[:size], draw) + data[size:]


def truncated(data, draw):
    return data[: draw.randrange(len(data))]


def extended(data, draw):
    return data + draw.randbytes(draw.choice([1, 8, 4096]))


def inserted(data, draw):
    place = draw.randrange(len(data))
    return data[:place] + draw.randbytes(draw.choice([1, 8])) + data[place:]


def removed(data, draw):
    place = draw.randrange(len(data) - 8)
    return data[:place] + data[place + draw.choice([1, 8]) :]


def zeroed(data, draw):
    size = draw.choice([16, 512, 4096])
    place = draw.randrange(len(data) // size) * size
    return data[:place] + bytes(size) + data[place + size :]


def swapped(data, draw):
    first, second = sorted(draw.sample(range(0, len(data) - 64, 64), 2))
    blocks = data[first : first + 64], data[second : second + 64]
    return b"".join(
        (data[:first], blocks[1], data[first + 64 : second], blocks[0], data[second + 64 :])
    )


DAMAGES = [flipped, header_flipped, truncated, extended, inserted, removed, zeroed, swapped]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(whole, path, damage):
    draw = random.Random(0)
    for _ in range(125):
        damaged = damage(whole, draw)
        path.write_bytes(damaged)
        if damaged == whole:
            continue
        with pytest.raises(CheckpointError) as caught:
            read_tensors(path, read_record(path))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_what_is_damaged_is_named(whole, path, capsys):
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    places = json.loads(whole[8:start])
    place = start + places[WEIGHT]["data_offsets"][0]
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    message = (
        f"{str(path)!r} is damaged: the tensor {WEIGHT!r} is not as saved; take a copy of the file"
    )
    for use in (composer.load, composer.compose(SPEC).load_weights):
        with pytest.raises(CheckpointError) as caught:
            use(path)
        assert str(caught.value) == message
    assert main(["check", str(path)]) == 1
    assert capsys.readouterr() == ("", f"composer check: {message}\n")
    assert main(["show", str(path)]) == 0  # which reads no weights


def test_many_damaged_tensors_are_named_in_one_line(whole, path):
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    path.write_bytes(whole[:start] + bytes(255 - byte for byte in whole[start:]))
    with pytest.raises(CheckpointError, match=r"the tensors 'critic.*' and 5 others are not as s"):
        composer.load(path)


def test_a_changed_header_is_named(whole, path):
    path.write_bytes(whole.replace(b"hidden_units", b"hidden_unitz"))
    message = (
        f"{str(path)!r} is damaged: its header is not as it was saved; take a copy of the file"
    )
    with pytest.raises(CheckpointError) as caught:
        composer.load(path)
    assert str(caught.value) == message


@pytest.mark.parametrize("lost", ["header_digest", "tensor_digests"])
def test_digests_are_both_there_or_none(whole, path, lost):
    path.write_bytes(whole.replace(lost.encode(), lost.upper().encode()))
    with pytest.raises(CheckpointError, match="is damaged: its header is not as it was saved"):
        composer.load(path)


# --- files that were made up ---


def crafted(whole, path, **changes):
    """``whole`` with other texts and the digests that belong to them."""
    from composer.checkpoint.container import HEADER, _header_digest

    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = {**file.metadata(), **changes}
        parts = {name: file.get_slice(name) for name in tensors}
        kinds = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    texts[HEADER] = json.dumps(_header_digest(texts, kinds))
    save_file(tensors, path, metadata=texts)


@pytest.mark.parametrize("digests", ["{}", "[]", "null", '"x"', "7", "[" * 100_000])
def test_digests_that_are_none_are_damage(whole, path, digests):
    crafted(whole, path, tensor_digests=digests)
    with pytest.raises(CheckpointError, match=r"is damaged: .*; take a copy of the file"):
        composer.load(path)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)})


HEADERS = {
    "overlapping offsets": (f'{{"a":{entry()},"b":{entry(offsets=(4, 12))}}}', 12),
    "a hole": (f'{{"a":{entry()},"b":{entry(offsets=(12, 20))}}}', 20),
    "offsets beyond the end": (f'{{"a":{entry(offsets=(0, 2**60), shape=(2**58,))}}}', 8),
    "an offset of 10**30": (f'{{"a":{entry(offsets=(0, 10**30))}}}', 8),
    "a size that overflows": (f'{{"a":{entry(shape=(2**40, 2**40))}}}', 8),
    "a negative size": (f'{{"a":{entry(shape=(-2,))}}}', 8),
    "another dtype": (f'{{"a":{entry(dtype="F64")}}}', 8),
    "an unknown dtype": (f'{{"a":{entry(dtype="X9")}}}', 8),
    "a dtype that torch has not": (f'{{"a":{entry(dtype="F4", shape=(16,))}}}', 8),
    "a name twice": (f'{{"a":{entry()},"a":{entry(offsets=(8, 16))}}}', 16),
    "metadata that is no text": ('{"__metadata__":{"format":1}}', 0),
    "a list": ("[1, 2]", 0),
    "deep nesting": ('{"a":' + "[" * 100_000, 0),
    "no JSON": ("hello", 0),
    "no UTF-8": ("\udcff{}", 0),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_is_none_is_refused(path, what):
    header, size = HEADERS[what]
    data = header.encode("utf-8", "surrogateescape")
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(size))
    with pytest.raises(CheckpointError):
        composer.load(path)
    with pytest.raises(CheckpointError):
        composer.compose(SPEC).load_weights(path)


@pytest.mark.parametrize("length", [0, 1, 2**27, 2**40, 2**63, 2**64 - 1])
def test_a_length_of_the_header_that_is_wrong_is_refused(whole, path, length):
    path.write_bytes(struct.pack("<Q", length) + whole[8:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="is no safetensors file, or a damaged one"):
        composer.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_a_huge_file_without_content_is_refused_at_once(path):
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="is no safetensors file, or a damaged one"):
        composer.load(path)


# --- equal bytes, and older files ---


def test_equal_models_save_equal_bytes(whole, path):
    composer.compose(SPEC, seed=1).save(path)
    assert path.read_bytes() == whole
    composer.load(path).save(path)
    assert path.read_bytes() == whole
    composer.compose(SPEC, seed=2).save(path)
    assert path.read_bytes() != whole


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_program_that_knows_safetensors_reads_the_file(path, dtype):
    model = composer.compose(SPEC, seed=1, dtype=dtype)
    model.save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    torch.testing.assert_close(tensors, dict(model.state_dict()), rtol=0, atol=0)
    starts = path.read_bytes()[:8]
    assert struct.unpack("<Q", starts)[0] % 8 == 0


def test_an_older_file_loads_and_a_line_says_what_it_lacks(whole, path, caplog):
    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = {k: v for k, v in file.metadata().items() if not k.endswith(("digest", "digests"))}
    save_file(tensors, path, metadata=texts)
    model = composer.load(path)
    assert caplog.messages == [
        f"{str(path)!r} is of an older version and has no digests, by which damage would show; "
        "load the model and save it again to add them"
    ]
    model.save(path)
    assert path.read_bytes() == whole


def test_a_type_that_the_format_has_no_name_for_is_refused(path):
    model = composer.compose(SPEC)
    model.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))
    message = "cannot be saved: 'odd' is torch.complex128, which safetensors has no name for"
    with pytest.raises(CheckpointError, match=message):
        model.save(path)
    assert not path.exists()
