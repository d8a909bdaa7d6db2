"""What teachers train on: batches that follow from seed and epoch alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from models.teacher_data import (
    PADDING,
    DecodedImages,
    ResidentImages,
    crop_and_flip,
    split_batches,
    training_images_of,
    weight_of,
    worthwhile_team,
)
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.randomness import generator_for
from utils.run.team import Team

FASHION, WOOF = get_dataset("fashion_mnist"), get_dataset("imagewoof")
CPU = torch.device("cpu")


def resident(count=21):
    images = torch.randint(1, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator_for("images"))
    return images, ResidentImages(images, torch.arange(count), FASHION, CPU)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (7, 4, [4, 3]), (9, 4, [4, 5]), (1, 4, [1]), (3, 10, [3]), (5, 2, [2, 3])],
)
def test_no_batch_of_a_single_image_is_left_over(count, batch_size, sizes):
    batches = split_batches(torch.arange(count), batch_size)
    assert [len(batch) for batch in batches] == sizes
    assert torch.equal(torch.cat(batches), torch.arange(count))


def test_crop_and_flip_is_torchvisions_padded_crop():
    images, _ = resident(6)
    padded = F.pad(images, (PADDING,) * 4)
    corners = torch.tensor([[0, 0], [8, 8], [4, 4], [1, 7], [3, 0]])
    flips = torch.tensor([False, True, False, True, False])
    which = torch.tensor([5, 0, 0, 3, 2])
    views = crop_and_flip(padded, which, corners, flips)
    for view, image, (top, left), flip in zip(views, which, corners, flips, strict=True):
        expected = padded[image, :, top : top + 32, left : left + 32]
        assert torch.equal(view, expected.flip(2) if flip else expected)
    assert torch.equal(views[2], images[0])  # the middle is the image itself
    assert (views[0, :, :4] == 0).all()  # padding is black


def test_every_image_once_an_epoch_with_its_label():
    images, data = resident()
    batches = list(data.batches(0, 0, 4))
    labels = torch.cat([labels for _, labels, _ in batches])
    assert sorted(labels.tolist()) == list(range(21))
    for views, batch_labels, weight in batches:
        assert weight == 1
        assert views.dtype == torch.uint8 and views.shape[1:] == (3, 32, 32)
        for view, label in zip(views, batch_labels, strict=True):  # most of a view is its image, moved a little
            assert set(view.unique().tolist()) - {0} <= set(images[label].unique().tolist())


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_every_batch_out(processes):
    """Together their parts are the batches of one process, and their weights make means of parts the whole's mean."""
    _, data = resident()
    team = [Team(rank, processes, rank) for rank in range(processes)]
    for whole, *parts in zip(data.batches(0, 1, 10), *(data.batches(0, 1, 10, member) for member in team), strict=True):
        merged = torch.zeros_like(whole.pixels), torch.zeros_like(whole.labels)
        for member, part in zip(team, parts, strict=True):
            for target, tensor in zip(merged, part, strict=False):
                target[member.rank :: processes] = tensor
        assert torch.equal(merged[0], whole.pixels) and torch.equal(merged[1], whole.labels)
        means = [part.weight * part.labels.double().mean() for part in parts]
        assert torch.stack(means).mean().item() == pytest.approx(whole.labels.double().mean().item())


def test_no_process_gets_a_single_image():
    batches = split_batches(torch.arange(25), 10, Team(0, 3, 0))
    assert [len(batch) for batch in batches] == [10, 15]  # 5 images left over would be 2, 2 and 1


@pytest.mark.parametrize(
    ("processes", "batch_size", "images", "count"),
    [(4, 512, 6000, 4), (4, 64, 6000, 4), (4, 63, 6000, 3), (4, 32, 6000, 2), (4, 512, 40, 2), (4, 8, 6000, 1)],
)
def test_processes_have_16_images_of_a_batch_each_or_nothing_to_do(processes, batch_size, images, count):
    assert worthwhile_team(Team(3, processes, 1), batch_size, images) == Team(3, count, 1)


def test_a_part_counts_by_its_share_of_the_batch():
    batch = torch.arange(10)
    assert [weight_of(batch[rank::3], batch, Team(rank, 3, rank)) for rank in range(3)] == [1.2, 0.9, 0.9]
    assert weight_of(batch, batch, Team(0, 1, 0)) == 1


def test_seed_and_epoch_decide():
    _, data = resident()

    def first(seed, epoch):
        return next(data.batches(seed, epoch, 8))[0]

    assert torch.equal(first(0, 3), first(0, 3))
    assert not torch.equal(first(0, 3), first(0, 4))
    assert not torch.equal(first(0, 3), first(1, 3))


@pytest.fixture
def files(tmp_path):
    """Five images of several sizes, of random colours."""
    rng = np.random.default_rng(0)
    paths = []
    for index, (width, height) in enumerate([(60, 40), (40, 60), (50, 50), (300, 30), (64, 48)]):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def test_decoded_images_are_the_same_with_any_number_of_workers(files):
    labels = torch.tensor([0, 1, 2, 3, 4])
    alone = DecodedImages(files, labels, WOOF, CPU, workers=0)
    helped = DecodedImages(files, labels, WOOF, CPU, workers=1)
    for epoch in (0, 1):
        for (views, its, _), (same_views, same, _) in zip(
            alone.batches(0, epoch, 2), helped.batches(0, epoch, 2), strict=True
        ):
            assert views.shape[1:] == (3, 224, 224) and views.dtype == torch.uint8
            assert torch.equal(views, same_views) and torch.equal(its, same)
    first, second = (next(iter(alone.batches(0, epoch, 5)))[0] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_a_damaged_image_is_named_from_a_worker_too(files):
    files[3].write_bytes(files[3].read_bytes()[:100])
    data = DecodedImages(files, torch.arange(5), WOOF, CPU, workers=1)
    with pytest.raises(UserError, match=r"3\.png does not decode"):
        list(data.batches(0, 0, 2))


def test_large_images_are_decoded_anew_and_small_ones_kept(files, tmp_path):
    labels = torch.tensor([4, 0])
    kept = training_images_of(
        [small(tmp_path / "a.png", 5), small(tmp_path / "b.png", 9)], labels, FASHION, CPU, workers=0
    )
    assert isinstance(kept, ResidentImages) and len(kept) == 2
    assert kept.padded[:, 0, 16, 16].tolist() == [5, 9] and kept.labels.tolist() == [4, 0]
    decoded = training_images_of(files, torch.arange(5), WOOF, CPU, workers=0)
    assert isinstance(decoded, DecodedImages) and len(decoded) == 5


def small(path, value):
    Image.new("RGB", (32, 32), (value,) * 3).save(path)
    return path
