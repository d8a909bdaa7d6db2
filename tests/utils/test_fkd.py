"""What is drawn for an epoch, and the label store."""

import json
from dataclasses import replace

import pytest
import torch

from utils import fkd
from utils.augmentation import apply_views, cutmix, mixup
from utils.datasets import get_dataset, normalise
from utils.errors import UserError
from utils.randomness import generator_for

FASHION = get_dataset("fashion_mnist")
SETTINGS = fkd.ViewSettings(
    images=37,
    size=32,
    batch_size=8,
    epochs=2,
    min_scale=0.08,
    max_scale=1.0,
    mix="cutmix",
    mix_alpha=1.0,
    fkd_seed=42,
    seed=42,
)


def write_store(folder, settings=SETTINGS):
    for number in range(settings.epochs):
        logits = torch.randn(settings.images, 10, generator=generator_for("logits", number)).half()
        fkd.write_epoch(folder, number, fkd.draw_epoch(settings, number), logits)
    record = fkd.manifest_record(FASHION, settings, logits_type="float16", images_sha256="0" * 64)
    fkd.write_manifest(folder, record, settings.epochs)


def test_an_epoch_depends_on_seeds_and_number_alone():
    first, again = fkd.draw_epoch(SETTINGS, 1), fkd.draw_epoch(SETTINGS, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.order, fkd.draw_epoch(SETTINGS, 0).order)
    other_views = fkd.draw_epoch(replace(SETTINGS, seed=7), 1)
    assert torch.equal(first.order, other_views.order)
    assert not torch.equal(first.crop, other_views.crop)
    other_order = fkd.draw_epoch(replace(SETTINGS, fkd_seed=7), 1)
    assert torch.equal(first.crop, other_order.crop)
    assert not torch.equal(first.order, other_order.order)


def test_an_epoch_has_the_shapes_and_types_of_the_store():
    epoch = fkd.draw_epoch(SETTINGS, 0)
    assert sorted(epoch.order.tolist()) == list(range(37))
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in epoch._asdict().items()}
    assert found == {
        "order": (torch.int32, (37,)),
        "crop": (torch.int16, (37, 4)),
        "flip": (torch.uint8, (37,)),
        "mix_partner": (torch.int32, (37,)),
        "mix_box": (torch.int16, (5, 4)),
        "mix_lam": (torch.float32, (5,)),
    }
    assert sorted(epoch.mix_partner[32:].tolist()) == list(range(5))  # the last batch has five places


def test_without_mixing_everyone_is_their_own_partner():
    epoch = fkd.draw_epoch(replace(SETTINGS, mix=None), 0)
    assert epoch.mix_partner.tolist() == [*range(8)] * 4 + [*range(5)]
    assert (epoch.mix_box == 0).all()
    assert (epoch.mix_lam == 1).all()


@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
def test_views_of_a_chunk_are_those_of_its_batches(mix):
    settings = replace(SETTINGS, mix=mix)
    images = torch.randint(0, 256, (37, 3, 32, 32), generator=generator_for("images"), dtype=torch.uint8)
    epoch = fkd.draw_epoch(settings, 0)
    whole = fkd.render_views(images, epoch, 0, 5, settings, FASHION)
    for batch in range(5):
        places = slice(8 * batch, min(8 * batch + 8, 37))
        views = normalise(apply_views(images, epoch.order[places], epoch.crop[places], epoch.flip[places]), FASHION)
        partner = epoch.mix_partner[places]
        if mix == "cutmix":
            views = cutmix(views, partner, epoch.mix_box[batch].expand(len(views), 4))
        elif mix == "mixup":
            views = mixup(views, partner, epoch.mix_lam[batch].expand(len(views)))
        assert torch.equal(whole[places], views)
        assert torch.equal(fkd.render_views(images, epoch, batch, batch + 1, settings, FASHION), views)


def test_draws_go_to_the_device_and_the_order_to_the_images():
    epoch = fkd.draw_epoch(SETTINGS, 0).beside(torch.zeros(1), torch.device("meta"))
    devices = {name: tensor.device.type for name, tensor in epoch._asdict().items()}
    assert devices.pop("order") == "cpu"
    assert set(devices.values()) == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_views_on_a_gpu_are_the_same_wherever_the_images_are():
    device = torch.device("cuda", 0)
    images = torch.randint(0, 256, (37, 3, 32, 32), generator=generator_for("images"), dtype=torch.uint8)
    epoch = fkd.draw_epoch(SETTINGS, 0)
    expected = fkd.render_views(images, epoch, 0, 5, SETTINGS, FASHION)
    for place in (images, images.to(device)):
        views = fkd.render_views(place, epoch.beside(place, device), 0, 5, SETTINGS, FASHION)
        assert torch.allclose(views.cpu(), expected, atol=1e-6)


def test_chunks_cover_every_batch_once():
    chunks = list(fkd.chunks_of_batches(SETTINGS, views_at_once=20))
    assert chunks == [(0, 2), (2, 4), (4, 5)]
    assert list(fkd.chunks_of_batches(SETTINGS, views_at_once=1)) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


def test_a_store_gives_back_what_was_written(tmp_path):
    write_store(tmp_path)
    store = fkd.open_store(tmp_path, verify=True)
    assert store.settings == SETTINGS
    assert len(store.manifest["epoch_sha256"]) == 2
    epoch, logits = fkd.read_epoch(tmp_path, 1)
    assert all(torch.equal(a, b) for a, b in zip(epoch, fkd.draw_epoch(SETTINGS, 1), strict=True))
    assert torch.equal(logits, torch.randn(37, 10, generator=generator_for("logits", 1)).half())


def test_a_store_is_no_larger_than_promised(tmp_path):
    settings = replace(SETTINGS, images=1000, batch_size=2, epochs=1)
    write_store(tmp_path, settings)
    assert fkd.epoch_path(tmp_path, 0).stat().st_size <= 1000 * (2 * 10 + 24) + 2000


def test_an_unfinished_store_is_refused(tmp_path):
    fkd.write_epoch(tmp_path, 0, fkd.draw_epoch(SETTINGS, 0), torch.zeros(37, 10).half())
    with pytest.raises(UserError, match="no finished label store"):
        fkd.open_store(tmp_path)


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
    changed = bytearray(whole)
    changed[-1] ^= 1
    victim.write_bytes(changed)
    fkd.open_store(tmp_path)  # header and size are right
    with pytest.raises(UserError, match=r"epoch_00001\.safetensors is missing or damaged"):
        fkd.open_store(tmp_path, verify=True)


def test_another_format_or_a_damaged_manifest_is_named(tmp_path):
    write_store(tmp_path)
    manifest = tmp_path / fkd.MANIFEST
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(UserError, match="has format 99"):
        fkd.open_store(tmp_path)
    manifest.write_text(json.dumps({**content, "views": {}}))
    with pytest.raises(UserError, match="is damaged"):
        fkd.open_store(tmp_path)
    manifest.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
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
