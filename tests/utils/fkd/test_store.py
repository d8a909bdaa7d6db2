"""The label store: what is written, found whole, found right, and read back."""

import json
from dataclasses import replace

import pytest
import safetensors
import safetensors.torch
import torch

from tests.views import VIEWS
from utils.data.table import get_dataset
from utils.fkd import store as fkd
from utils.fkd.codec import PLAIN, Packing
from utils.fkd.views import draw_epoch
from utils.run.errors import UserError
from utils.run.files import sha256_of, write_safetensors
from utils.run.randomness import generator_for

FASHION = get_dataset("fashion_mnist")
SETTINGS = VIEWS
TILED = replace(SETTINGS, tiles=4)
NAN, INF = float("nan"), float("inf")


def logits_of(number, settings=SETTINGS):
    return torch.randn(settings.images, 10, generator=generator_for("logits", number)).half()


def close_store(folder, settings=SETTINGS, packing=PLAIN, **others):
    """Write the manifest of the epochs that are there."""
    labels = {"ipc": 2, "batch_statistics": True, "logits_type": "float16", "images_sha256": "0" * 64}
    labels["teachers"] = [{"name": "ResNet18", "sha256": "1" * 64, "weight": 1.0}]
    labels |= {**packing.as_record(), **others}
    fkd.write_manifest(folder, fkd.manifest_record(FASHION, settings, **labels), settings.epochs)


def write_store(folder, settings=SETTINGS, packing=PLAIN, **others):
    for number in range(settings.epochs):
        fkd.write_epoch(folder, number, draw_epoch(settings, number), logits_of(number, settings), packing)
    close_store(folder, settings, packing, **others)


def is_whole(path, settings=SETTINGS, num_classes=10, logits_type="float16"):
    return fkd.is_whole(path, settings, num_classes, logits_type)


def is_right(path, number=1, settings=SETTINGS, packing=PLAIN):
    return bool(fkd.is_right(path, number, settings, 10, "float16", packing))


def flip_a_bit(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# Names and sizes


def test_names_of_folder_and_files(tmp_path):
    assert fkd.store_folder(tmp_path / "labels", 16, 10) == tmp_path / "labels_bs16_ipc10"
    assert fkd.epoch_path(tmp_path, 7) == tmp_path / "epoch_00007.safetensors"


@pytest.mark.parametrize("tiles", [1, 8])
@pytest.mark.parametrize("logits_type", ["float16", "float32"])
def test_a_store_is_no_larger_than_promised(tmp_path, tiles, logits_type):
    settings = replace(SETTINGS, images=1000, batch_size=2, epochs=1, tiles=tiles)
    logits = logits_of(0, settings).to(getattr(torch, logits_type))
    fkd.write_epoch(tmp_path, 0, draw_epoch(settings, 0), logits)
    size = fkd.epoch_path(tmp_path, 0).stat().st_size
    value = {"float16": 2, "float32": 4}[logits_type]
    assert size <= 1000 * (value * 10 + 24 + (2 * tiles if tiles > 1 else 0)) + 2000
    output = fkd.epochs_output(3, settings, 10, logits_type)
    assert output.files == 3
    assert 3 * size <= output.size <= 3 * (size + 4096)


def test_an_epoch_is_plain_tensors_of_known_types_and_shapes(tmp_path):
    fkd.write_epoch(tmp_path, 0, draw_epoch(TILED, 0), logits_of(0))
    found = safetensors.torch.load_file(fkd.epoch_path(tmp_path, 0))
    words = {torch.int32: "I32", torch.int16: "I16", torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16"}
    shapes = {name: (words[tensor.dtype], list(tensor.shape)) for name, tensor in found.items()}
    assert shapes == fkd.expected_tensors(TILED, 10, "float16")
    assert fkd.expected_tensors(TILED, 10, "float16").keys() - fkd.expected_tensors(SETTINGS, 10, "float16").keys() == {
        "tile_order"
    }
    assert fkd.expected_tensors(SETTINGS, 10, "float32")["logits"] == ("F32", [37, 10])


# What comes back


@pytest.mark.parametrize("settings", [SETTINGS, TILED], ids=["plain", "tiles"])
def test_a_store_gives_back_what_was_written(tmp_path, settings):
    write_store(tmp_path, settings)
    store = fkd.open_store(tmp_path, verify=True)
    assert store.settings == settings
    assert store.folder == tmp_path
    assert store.checksums == store.manifest["epoch_sha256"]
    assert store.checksums == [sha256_of(fkd.epoch_path(tmp_path, number)) for number in range(2)]
    assert store.sha256 == sha256_of(tmp_path / "manifest.json")
    epoch, logits = fkd.read_epoch(store, 1)
    expected = draw_epoch(settings, 1).tensors()
    assert epoch.tensors().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in epoch.tensors().items())
    assert torch.equal(logits, logits_of(1))


def test_tiles_are_what_format_2_has_beside_format_1(tmp_path):
    for folder, settings in ((tmp_path / "plain", SETTINGS), (tmp_path / "tiled", TILED)):
        write_store(folder, settings)
    plain, tiled = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("plain", "tiled"))
    assert (plain["format_version"], tiled["format_version"]) == (1, 2)
    assert "tiles" not in plain["views"]
    assert tiled["views"] == {**plain["views"], "tiles": 4}
    without = {name: value for name, value in tiled.items() if name not in ("format_version", "views", "epoch_sha256")}
    assert without.items() <= plain.items()


def test_a_store_of_format_1_from_before_checksums_is_read(tmp_path):
    """As earlier versions wrote it: no tiles in its record, no checksum inside of an epoch's file."""
    for number in range(2):
        tensors = {**draw_epoch(SETTINGS, number)._asdict(), "logits": logits_of(number)}
        del tensors["tile_order"]
        write_safetensors(fkd.epoch_path(tmp_path, number), tensors)
    close_store(tmp_path)
    store = fkd.open_store(tmp_path, verify=True)
    assert store.manifest["format_version"] == 1
    assert store.settings.tiles == 1
    epoch, logits = fkd.read_epoch(store, 0)
    assert epoch.tile_order is None
    assert torch.equal(logits, logits_of(0))
    assert is_right(fkd.epoch_path(tmp_path, 0), 0)


# Stores that keep their epochs in another way

PACKINGS = {
    "no draws": Packing(store_draws=False),
    "largest": Packing("top_k", 3),
    "largest, no draws": Packing("top_k", 3, store_draws=False),
    "four bits, no draws": Packing("four_bits", store_draws=False),
}


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("settings", [SETTINGS, TILED], ids=["plain", "tiles"])
def test_a_packed_store_is_read_as_a_plain_one(tmp_path, settings, packing):
    write_store(tmp_path, settings, packing)
    store = fkd.open_store(tmp_path, verify=True)
    assert (store.manifest["format_version"], store.packing) == (3, packing)
    for number in range(2):
        path = fkd.epoch_path(tmp_path, number)
        assert fkd.is_whole(path, settings, 10, "float16", packing) and not is_whole(path, settings)
        assert is_right(path, number, settings, packing) and not is_right(path, 1 - number, settings, packing)
        epoch, logits = fkd.read_epoch(store, number)
        expected = draw_epoch(settings, number).tensors()
        assert epoch.tensors().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in epoch.tensors().items())
        wanted = logits_of(number).float()
        if packing.codec == "four_bits":
            spread = wanted.amax(dim=1, keepdim=True) - wanted.amin(dim=1, keepdim=True)
            assert ((logits - wanted).abs() <= 0.034 * spread).all()
            continue
        largest = wanted >= wanted.topk(3, dim=1).values[:, 2:]
        assert torch.equal(logits[largest], logits_of(number)[largest].to(logits.dtype))
        assert (packing.codec == "dense" and torch.equal(logits, logits_of(number))) or (logits[~largest] < -1e6).all()


@pytest.mark.parametrize(
    ("packing", "a_view"), [*zip(PACKINGS.values(), (20, 9 + 17, 9, 9), strict=True)], ids=PACKINGS
)
def test_a_packed_view_costs_its_label_and_what_is_stored_of_its_draws(tmp_path, packing, a_view):
    """10 logits of 2 bytes, 3 with a class of one byte each, or 10 of half a byte and their range in 4; 17 bytes of
    draws, and 12 a batch."""
    settings = replace(SETTINGS, images=4000, batch_size=8, epochs=1)
    fkd.write_epoch(tmp_path, 0, draw_epoch(settings, 0), logits_of(0, settings), packing)
    size = fkd.epoch_path(tmp_path, 0).stat().st_size
    exact = 4000 * a_view + (500 * 12 if packing.store_draws else 0)
    assert exact < size < exact + 1000
    assert size <= fkd.epochs_output(1, settings, 10, "float16", packing).size <= size + 4096 + 4000 * 2


def test_draws_that_this_pytorch_draws_otherwise_are_refused(tmp_path, monkeypatch):
    packing = Packing(store_draws=False)
    write_store(tmp_path, SETTINGS, packing)
    store = fkd.open_store(tmp_path)
    monkeypatch.setattr(fkd, "draw_epoch", lambda settings, number: draw_epoch(replace(settings, seed=43), number))
    with pytest.raises(UserError, match=r"epoch_00001\.safetensors: the views .* are not stored, and PyTorch .* draws"):
        fkd.read_epoch(store, 1)
    assert not is_right(fkd.epoch_path(tmp_path, 1), packing=packing)


@pytest.mark.parametrize("classes", [[0, 0, 1], [0, 1, 10], [255, 2, 3]])
def test_classes_of_a_label_that_cannot_be_are_named(tmp_path, classes):
    packing = Packing("top_k", 3)
    write_store(tmp_path, SETTINGS, packing)
    path = fkd.epoch_path(tmp_path, 1)
    tensors = safetensors.torch.load_file(path)
    tensors["top_classes"][5] = torch.tensor(classes, dtype=torch.uint8)
    write_safetensors(path, tensors, {"sha256": fkd.digest_of(tensors)})  # with its draws
    close_store(tmp_path, SETTINGS, packing)
    assert not is_right(path, packing=packing)
    with pytest.raises(UserError, match=r"epoch_00001\.safetensors: a class of a soft label is none, or there twice"):
        fkd.read_epoch(fkd.open_store(tmp_path), 1)


@pytest.mark.parametrize("change", [{"codec": 3}, {"top_k": None}, {"store_draws": 1}, {"codec": "zip"}])
def test_a_manifest_of_format_3_says_how_epochs_are_kept(tmp_path, change):
    write_store(tmp_path, SETTINGS, Packing("top_k", 3))
    path = tmp_path / fkd.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    message = "unknown codec 'zip'; there are: dense top_k four_bits" if change == {"codec": "zip"} else "is damaged"
    with pytest.raises(UserError, match=message):
        fkd.open_store(tmp_path)


# Whole and right


def test_whole_is_a_file_of_full_size_with_the_tensors_of_an_epoch(tmp_path):
    path = fkd.epoch_path(tmp_path, 0)
    assert not is_whole(path)
    fkd.write_epoch(tmp_path, 0, draw_epoch(SETTINGS, 0), logits_of(0))
    assert is_whole(path)
    assert not is_whole(path, replace(SETTINGS, images=36))
    assert not is_whole(path, replace(SETTINGS, batch_size=16))
    assert not is_whole(path, TILED)
    assert not is_whole(path, num_classes=100)
    assert not is_whole(path, logits_type="float32")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"no tensors at all", whole + b"0"):
        path.write_bytes(damaged)
        assert not is_whole(path)
    fkd.write_epoch(tmp_path, 0, draw_epoch(TILED, 0), logits_of(0))
    assert is_whole(path, TILED)
    assert not is_whole(path)


def test_right_is_what_is_drawn_with_finite_labels_and_its_own_checksum(tmp_path):
    path = fkd.epoch_path(tmp_path, 1)
    assert not is_right(path)
    fkd.write_epoch(tmp_path, 1, draw_epoch(SETTINGS, 1), logits_of(1))
    assert is_right(path)
    assert not is_right(path, number=0)
    assert not is_right(path, settings=replace(SETTINGS, seed=7))
    assert not is_right(path, settings=replace(SETTINGS, fkd_seed=7))
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_right(path)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_label_that_is_not_finite_is_not_right(tmp_path, value):
    logits = logits_of(1)
    logits[30, 4] = value
    fkd.write_epoch(tmp_path, 1, draw_epoch(SETTINGS, 1), logits)
    assert is_whole(fkd.epoch_path(tmp_path, 1))
    assert not is_right(fkd.epoch_path(tmp_path, 1))


def test_a_label_that_changed_on_the_disk_is_not_right(tmp_path):
    path = fkd.epoch_path(tmp_path, 1)
    fkd.write_epoch(tmp_path, 1, draw_epoch(SETTINGS, 1), logits_of(1))
    content = path.read_bytes()
    path.write_bytes(content.replace(logits_of(1).numpy().tobytes()[:16], (logits_of(1) + 1).numpy().tobytes()[:16]))
    assert path.read_bytes() != content
    assert is_whole(path)
    assert not is_right(path)


@pytest.mark.parametrize("name", ["order", "crop", "flip", "mix_partner", "mix_box", "mix_lam", "tile_order"])
def test_a_draw_that_is_another_is_not_right(tmp_path, name):
    """Also where its file has the checksum of what it holds."""
    epoch = draw_epoch(TILED, 1)
    fkd.write_epoch(tmp_path, 1, epoch._replace(**{name: getattr(epoch, name).flip(0)}), logits_of(1))
    assert not is_right(fkd.epoch_path(tmp_path, 1), settings=TILED)


def test_an_epochs_file_tells_the_checksum_of_its_tensors(tmp_path):
    fkd.write_epoch(tmp_path, 0, draw_epoch(SETTINGS, 0), logits_of(0))
    with safetensors.safe_open(fkd.epoch_path(tmp_path, 0), framework="pt") as file:
        told = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert told == {"sha256": fkd.digest_of(tensors)}


def test_a_digest_is_that_of_names_and_values_in_any_order():
    a, b = torch.arange(6).view(2, 3), torch.tensor([0.5])
    digest = fkd.digest_of({"a": a, "b": b})
    assert len(digest) == 64
    assert fkd.digest_of({"b": b, "a": a}) == digest
    assert fkd.digest_of({"a": a.t().contiguous().t(), "b": b}) == digest  # however it lies in memory
    others = [{"a": a, "c": b}, {"a": a + 1, "b": b}, {"a": a}, {"a": a, "b": -b}]
    assert digest not in [fkd.digest_of(other) for other in others]


# Reading an epoch


def test_an_epoch_that_changed_on_the_disk_is_named_when_it_is_read(tmp_path):
    write_store(tmp_path)
    path = fkd.epoch_path(tmp_path, 1)
    flip_a_bit(path)
    store = fkd.open_store(tmp_path)  # header and size are right
    with pytest.raises(UserError) as refused:
        fkd.read_epoch(store, 1)
    assert str(refused.value) == (
        f"{path} is missing or damaged: run the same relabel command again with --verify, it makes what is not right"
    )
    fkd.read_epoch(store, 0)
    path.unlink()
    with pytest.raises(UserError, match=r"epoch_00001\.safetensors is missing: run the stage that writes it"):
        fkd.read_epoch(store, 1)


# For each tensor, values that cannot be: where, what, and what is said of them. The last batch has places 32 to 36.
ORDER = "order is no permutation of the images"
CROP = "a crop is empty or leaves the image"
PARTNER = "a partner is outside of its batch"
BOX = "a box is reversed or leaves the image"
SHARE = "a share is outside of 0 to 1"
LABEL = "a soft label is not finite"
TILES = "tiles are no permutation"
BAD = {
    "an image twice": ("order", 3, lambda draw: draw.order[4], ORDER),
    "an image below 0": ("order", 3, -1, ORDER),
    "an image beyond the last": ("order", 3, 37, ORDER),
    "a crop of no height": ("crop", (5, 2), 0, CROP),
    "a crop of no width": ("crop", (5, 3), 0, CROP),
    "a crop of negative height": ("crop", (5, 2), -3, CROP),
    "a crop above the image": ("crop", (5, 0), -1, CROP),
    "a crop left of the image": ("crop", (5, 1), -1, CROP),
    "a crop below the image": ("crop", 5, [1, 0, 32, 32], CROP),
    "a crop right of the image": ("crop", 5, [0, 1, 32, 32], CROP),
    "a crop whose edge is beyond 16 bits": ("crop", 5, [32767, 0, 32767, 32], CROP),
    "a flip of 2": ("flip", 36, 2, "a flip is neither 0 nor 1"),
    "a partner below 0": ("mix_partner", 0, -1, PARTNER),
    "a partner in the next batch": ("mix_partner", 0, 8, PARTNER),
    "a partner beyond the last, smaller batch": ("mix_partner", 36, 5, PARTNER),
    "a partner twice": ("mix_partner", 0, lambda draw: draw.mix_partner[1], PARTNER),
    "a box above the image": ("mix_box", 2, [-1, 0, 5, 5], BOX),
    "a box left of the image": ("mix_box", 2, [0, -1, 5, 5], BOX),
    "a box with its rows reversed": ("mix_box", 2, [6, 0, 5, 5], BOX),
    "a box with its columns reversed": ("mix_box", 2, [0, 6, 5, 5], BOX),
    "a box below the image": ("mix_box", 2, [0, 0, 33, 5], BOX),
    "a box right of the image": ("mix_box", 2, [0, 0, 5, 33], BOX),
    "a share below 0": ("mix_lam", 4, -0.01, SHARE),
    "a share above 1": ("mix_lam", 4, 1.01, SHARE),
    "a share that is no number": ("mix_lam", 4, NAN, SHARE),
    "an endless share": ("mix_lam", 4, INF, SHARE),
    "a label that is no number": ("logits", (36, 9), NAN, LABEL),
    "an endless label": ("logits", (0, 0), INF, LABEL),
    "a label endlessly below": ("logits", (0, 0), -INF, LABEL),
    "a column twice": ("tile_order", (7, 0), torch.tensor([0, 1, 2, 2]), TILES),
    "a row beyond the last": ("tile_order", (7, 1), torch.tensor([0, 1, 2, 4]), TILES),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_value_out_of_its_range_is_named(tmp_path, bad):
    """By itself, and in a file whose checksums are right."""
    name, place, value, problem = BAD[bad]
    epoch, logits = draw_epoch(TILED, 0), logits_of(0)
    assert fkd.out_of_range(epoch, logits, TILED) is None
    value = value(epoch) if callable(value) else value
    tensor = logits if name == "logits" else getattr(epoch, name)
    tensor[place] = torch.as_tensor(value).to(tensor.dtype)
    assert fkd.out_of_range(epoch, logits, TILED) == problem
    one = replace(TILED, epochs=1)
    fkd.write_epoch(tmp_path, 0, epoch, logits)
    close_store(tmp_path, one)
    store = fkd.open_store(tmp_path, verify=True)
    with pytest.raises(UserError) as refused:
        fkd.read_epoch(store, 0)
    path = fkd.epoch_path(tmp_path, 0)
    assert str(refused.value) == f"{path}: {problem}; remove the store's folder and run relabel again"


@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
@pytest.mark.parametrize("batch_size", [1, 8, 37, 100])
def test_everything_that_is_drawn_is_in_its_range(mix, batch_size):
    settings = replace(SETTINGS, mix=mix, batch_size=batch_size)
    for number in range(5):
        assert fkd.out_of_range(draw_epoch(settings, number), logits_of(number), settings) is None


def test_the_ends_of_each_range_belong_to_it():
    epoch = draw_epoch(SETTINGS, 0)
    epoch.crop[0], epoch.crop[1] = torch.tensor([[0, 0, 32, 32], [31, 31, 1, 1]], dtype=torch.int16)
    epoch.mix_box[0], epoch.mix_box[1] = torch.tensor([[0, 0, 32, 32], [32, 5, 32, 5]], dtype=torch.int16)
    epoch.mix_lam[0], epoch.mix_lam[1] = 0.0, 1.0
    logits = logits_of(0)
    logits[0, 0] = torch.finfo(torch.float16).max
    assert fkd.out_of_range(epoch, logits, SETTINGS) is None


# Opening a store


def test_an_unfinished_store_is_refused(tmp_path):
    fkd.write_epoch(tmp_path, 0, draw_epoch(SETTINGS, 0), torch.zeros(37, 10).half())
    with pytest.raises(UserError) as refused:
        fkd.open_store(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} is no finished label store (it has no manifest.json): run relabel to its end first"
    )


def test_an_epoch_truncated_or_missing_is_named(tmp_path):
    write_store(tmp_path)
    victim = fkd.epoch_path(tmp_path, 1)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"epoch_00001\.safetensors is missing or damaged"):
        fkd.open_store(tmp_path)
    victim.unlink()
    with pytest.raises(UserError, match=r"epoch_00001\.safetensors is missing or damaged"):
        fkd.open_store(tmp_path)
    victim.write_bytes(whole)
    flip_a_bit(victim)
    fkd.open_store(tmp_path)  # header and size are right
    with pytest.raises(UserError, match=r"epoch_00001\.safetensors is missing or damaged"):
        fkd.open_store(tmp_path, verify=True)


def test_another_format_or_a_damaged_manifest_is_named(tmp_path):
    write_store(tmp_path)
    manifest = tmp_path / fkd.MANIFEST
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(UserError, match=r"has format 99, this version reads \(1, 2, 3\)"):
        fkd.open_store(tmp_path)
    manifest.write_text(json.dumps({**content, "views": {}}))
    with pytest.raises(UserError, match=r"is damaged \(no images\): remove the folder and run relabel again"):
        fkd.open_store(tmp_path)
    manifest.write_text(json.dumps({**content, "views": {**content["views"], "zoom": 2}}))
    with pytest.raises(UserError, match=r"is damaged: remove the folder and run relabel again"):
        fkd.open_store(tmp_path)
    manifest.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        fkd.open_store(tmp_path)


VALUES = {
    "num_classes": "ten",
    "views": [],
    "views.images": 37.5,
    "views.size": None,
    "views.epochs": "2",
    "views.min_scale": "small",
    "views.mix": "cut",
    "views.tiles": "2",
    "ipc": True,
    "batch_statistics": 1,
    "logits_type": "float64",
    "teachers": [{"name": "ResNet18"}],
    "images_sha256": 0,
    "epoch_sha256": {},
}


@pytest.mark.parametrize("value", [*VALUES])
def test_a_manifest_with_a_value_of_another_kind_is_damaged(tmp_path, value):
    write_store(tmp_path)
    path = tmp_path / fkd.MANIFEST
    content = json.loads(path.read_text())
    *inside, name = value.split(".")
    (content[inside[0]] if inside else content)[name] = VALUES[value]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json is damaged.*remove the folder and run relabel again"):
        fkd.open_store(tmp_path)


@pytest.mark.parametrize("change", [{"epochs": 3}, {"epochs": 1}, {"batch_size": 0}, {"images": 0}])
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, change):
    """More or fewer epochs than checksums, or nothing in a batch or an epoch."""
    write_store(tmp_path)
    path = tmp_path / fkd.MANIFEST
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "views": {**content["views"], **change}}))
    with pytest.raises(
        UserError, match=r"its numbers contradict each other\): remove the folder and run relabel again"
    ):
        fkd.open_store(tmp_path)


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("batch_size", 16, "batch size 8, this run has 16"),
        ("epochs", 3, "epochs 2, this run has 3"),
        ("images_sha256", "1" * 64, "images sha256 0"),
        ("dataset", "cifar10", "dataset fashion_mnist, this run has cifar10"),
    ],
)
def test_a_store_of_something_else_is_refused_with_the_difference(tmp_path, name, wanted, message):
    write_store(tmp_path)
    store = fkd.open_store(tmp_path)
    fkd.check_store(store, {"batch_size": 8, "epochs": 2, "images_sha256": "0" * 64})
    fkd.check_store(store, {"epochs": 1})  # more epochs than asked for are no fault
    with pytest.raises(UserError, match=message):
        fkd.check_store(store, {name: wanted})
