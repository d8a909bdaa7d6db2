"""What is drawn for an epoch, and views against PIL, torchvision, RDED and the published implementation."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import RandomResizedCrop

from tests.plain import plain_view
from tests.views import VIEWS
from utils.data.crops import sample_crops
from utils.data.images import normalise
from utils.data.table import get_dataset
from utils.fkd import views as fkd
from utils.fkd.views import apply_views, cutmix, gather_images, mixup, sample_beta, sample_boxes
from utils.run.randomness import generator_for

FASHION = get_dataset("fashion_mnist")
SETTINGS = VIEWS


@pytest.fixture
def images():
    return torch.randint(0, 256, (37, 3, 32, 32), generator=generator_for("images"), dtype=torch.uint8)


# What is drawn


def test_an_epoch_depends_on_seeds_and_number_alone():
    first, again = fkd.draw_epoch(SETTINGS, 1), fkd.draw_epoch(SETTINGS, 1)
    assert all(torch.equal(a, b) for a, b in zip(first[:6], again[:6], strict=True))
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
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in epoch.tensors().items()}
    assert found == {
        "order": (torch.int32, (37,)),
        "crop": (torch.int16, (37, 4)),
        "flip": (torch.uint8, (37,)),
        "mix_partner": (torch.int32, (37,)),
        "mix_box": (torch.int16, (5, 4)),
        "mix_lam": (torch.float32, (5,)),
    }
    assert epoch.tile_order is None
    assert sorted(epoch.mix_partner[32:].tolist()) == list(range(5))  # the last batch has five places


def test_without_mixing_everyone_is_their_own_partner():
    epoch = fkd.draw_epoch(replace(SETTINGS, mix=None), 0)
    assert epoch.mix_partner.tolist() == [*range(8)] * 4 + [*range(5)]
    assert (epoch.mix_box == 0).all()
    assert (epoch.mix_lam == 1).all()


def test_tiles_are_drawn_beside_the_rest():
    """Rows and columns of each image by themselves, each order as often as any other; all else as without tiles."""
    settings = replace(SETTINGS, images=4000, tiles=3)
    epoch, without = fkd.draw_epoch(settings, 1), fkd.draw_epoch(replace(settings, tiles=1), 1)
    assert all(torch.equal(getattr(epoch, name), tensor) for name, tensor in without.tensors().items())
    assert (epoch.tile_order.dtype, tuple(epoch.tile_order.shape)) == (torch.uint8, (4000, 2, 3))
    assert torch.equal(epoch.tile_order, fkd.draw_epoch(settings, 1).tile_order)
    assert not torch.equal(epoch.tile_order, fkd.draw_epoch(settings, 0).tile_order)
    assert not torch.equal(epoch.tile_order, fkd.draw_epoch(replace(settings, seed=7), 1).tile_order)
    kinds = (epoch.tile_order.long() * torch.tensor([9, 3, 1])).sum(dim=2)
    pairs, counts = kinds.unique(dim=0, return_counts=True)
    assert len(pairs) == 36  # six orders of the columns, six of the rows
    assert counts.min() > 70 and counts.max() < 155  # 111 each


def test_settings_have_their_batches_and_a_record():
    assert SETTINGS.batches == 5
    assert replace(SETTINGS, images=40).batches == 5
    assert SETTINGS.as_record() == {name: value for name, value in asdict(SETTINGS).items() if name != "tiles"}
    assert replace(SETTINGS, tiles=2).as_record() == {**SETTINGS.as_record(), "tiles": 2}
    assert fkd.ViewSettings(**SETTINGS.as_record()) == SETTINGS


@pytest.mark.parametrize("tiles", [1, 2])
def test_draws_go_to_the_device_and_the_order_to_the_images(tiles):
    epoch = fkd.draw_epoch(replace(SETTINGS, tiles=tiles), 0).to(torch.zeros(1), torch.device("meta"))
    devices = {name: tensor.device.type for name, tensor in epoch.tensors().items()}
    assert devices.pop("order") == "cpu"
    assert len(devices) == (5 if tiles == 1 else 6)
    assert set(devices.values()) == {"meta"}


def test_chunks_cover_every_batch_once():
    chunks = list(fkd.chunks_of_batches(SETTINGS, views_at_once=20))
    assert chunks == [(0, 2), (2, 4), (4, 5)]
    assert list(fkd.chunks_of_batches(SETTINGS, views_at_once=1)) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize("alpha", [0.8, 1.0, 2.0])
def test_beta_draws_have_the_moments_of_their_distribution(alpha):
    draws = sample_beta(50_000, alpha, generator_for("beta", str(alpha)))
    assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert ((draws >= 0) & (draws <= 1)).all()


def test_boxes_follow_the_method():
    lam = torch.rand(500, generator=generator_for("lam"), dtype=torch.float64)
    boxes = sample_boxes(lam, 32, generator_for("boxes"))
    assert ((boxes >= 0) & (boxes <= 32)).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    expected = torch.tensor([2 * (int(32 * math.sqrt(1 - share)) // 2) for share in lam.tolist()])
    inside = ((boxes > 0) & (boxes < 32)).all(dim=1)
    assert (sides[inside] == expected[inside, None]).all()
    assert (sides <= expected[:, None]).all()


def test_the_published_box_follows_from_its_share():
    # share and box as recorded in the golden relabel batch: side int(32 sqrt(1 - 0.9025)) = 9, half of it 4
    box = sample_boxes(torch.tensor([0.9024994454072202], dtype=torch.float64), 32, generator_for("box"))[0]
    assert (box[2:] - box[:2] <= 8).all()
    assert (box[2:] - box[:2] > 0).all()


def test_crops_are_distributed_as_torchvisions():
    mine = sample_crops(32, 32, 20_000, (0.08, 1.0), generator_for("crops")).float()
    image = torch.empty(3, 32, 32)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(20_000)], dtype=torch.float32
    )
    for quantile in (0.1, 0.5, 0.9):
        assert (mine.quantile(quantile, dim=0) - theirs.quantile(quantile, dim=0)).abs().max() <= 1
    assert (mine.mean(dim=0) - theirs.mean(dim=0)).abs().max() < 0.25
    assert (mine[:, 0] + mine[:, 2] <= 32).all()
    assert (mine[:, 1] + mine[:, 3] <= 32).all()


def test_a_crop_that_never_fits_becomes_the_whole_image():
    # area 1 with an aspect that is not exactly 1 is larger than the image on one side, so nearly all tries fail
    crops = sample_crops(100, 100, 200, (1.0, 1.0), generator_for("fallback"))
    assert (crops == torch.tensor([0, 0, 100, 100])).all(dim=1).float().mean() > 0.7


# Views


def test_views_agree_with_the_published_ones(golden):
    expected = golden("relabel_batch")
    crops = (expected["crop"] * 32).round().long()
    views = apply_views(expected["images"], torch.arange(16), crops, expected["flip"])
    assert (views - expected["views"].float()).abs().max() <= 2


def test_cutmix_agrees_with_the_published_one(golden):
    expected = golden("relabel_batch")
    views = normalise(expected["views"], FASHION)
    boxes = expected["cutmix_box"].expand(16, 4)
    mixed = cutmix(views, expected["cutmix_partner"], boxes)
    assert (mixed - expected["mixed"]).abs().max() < 1e-5


def photographs():
    """Two natural photographs at 224 pixels (uint8, 2 x 3 x 224 x 224)."""
    images = [
        Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in load_sample_images().images
    ]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def test_views_of_photographs_agree_with_pil_edges_included():
    images = photographs()
    crops = sample_crops(224, 224, 12, (0.08, 1.0), generator_for("photographs"))
    corner_crops = torch.tensor([[0, 0, 90, 110], [134, 114, 90, 110], [0, 0, 224, 224], [100, 100, 64, 64]])
    crops = torch.cat((crops, corner_crops))
    flips = torch.arange(len(crops)) % 2 == 0
    which = torch.arange(len(crops)) % 2
    views = apply_views(images, which, crops, flips)
    expected = torch.stack([plain_view(images[w], c, f) for w, c, f in zip(which, crops, flips, strict=True)])
    difference = (views - expected.float()).abs()
    assert difference.max() <= 2  # PIL rounds to 8 bits twice
    assert difference.mean() < 0.5


def test_pixels_outside_the_crop_never_bleed_in():
    image = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    image[:, :, 2:6, 3:5] = 0
    view = apply_views(image, torch.tensor([0]), torch.tensor([[2, 3, 4, 2]]), torch.tensor([False]))
    assert view.abs().max() == 0


def test_taps_of_an_axis():
    """Three places of a crop of two at 5, then mirrored, then rolled by one: neighbours and the upper one's weight."""
    start, length = torch.tensor([5, 5, 5]), torch.tensor([2, 2, 2])
    reverse, shift = torch.tensor([False, True, False]), torch.tensor([0, 0, 1])
    lower, upper, weight = fkd.bilinear_taps(start, length, reverse, 3, shift)
    assert lower.tolist() == [[5, 5, 6], [6, 5, 5], [6, 5, 5]]
    assert upper.tolist() == [[6, 6, 6], [6, 6, 6], [6, 6, 6]]
    # the outer two places lie beyond the centres of the crop's pixels and repeat its edge
    assert weight.tolist() == [[0.0, 0.5, 0.0], pytest.approx([0.0, 0.5, 0.0]), pytest.approx([0.0, 0.0, 0.5])]
    without = fkd.bilinear_taps(start, length, reverse, 3)
    assert without[0].tolist() == [[5, 5, 6], [6, 5, 5], [5, 5, 6]]


def test_mixup_mixes_the_views_by_their_share():
    views = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    mixed = mixup(views, torch.tensor([1, 0]), torch.tensor([0.75, 0.75]))
    assert mixed[0].unique().item() == pytest.approx(0.25)
    assert mixed[1].unique().item() == pytest.approx(0.75)


def test_images_elsewhere_are_picked_there():
    images = torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1)
    which = torch.tensor([2, 0, 2], dtype=torch.int32)
    assert gather_images(images, which, images.device).flatten(1).tolist() == [[6, 7, 8], [0, 1, 2], [6, 7, 8]]
    elsewhere = gather_images(images, which, torch.device("meta"))
    assert (elsewhere.shape, elsewhere.dtype, elsewhere.device.type) == ((3, 3, 1, 1), torch.uint8, "meta")


@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
def test_views_of_a_chunk_are_those_of_its_batches(images, mix, tiles):
    settings = replace(SETTINGS, mix=mix, tiles=tiles)
    epoch = fkd.draw_epoch(settings, 0)
    whole = fkd.render_views(images, epoch, 0, 5, settings, FASHION)
    for batch in range(5):
        places = slice(8 * batch, min(8 * batch + 8, 37))
        order = None if tiles == 1 else epoch.tile_order[places]
        views = apply_views(images, epoch.order[places], epoch.crop[places], epoch.flip[places], order)
        views = normalise(views, FASHION)
        partner = epoch.mix_partner[places]
        if mix == "cutmix":
            views = cutmix(views, partner, epoch.mix_box[batch].expand(len(views), 4))
        elif mix == "mixup":
            views = mixup(views, partner, epoch.mix_lam[batch].expand(len(views)))
        assert torch.equal(whole[places], views)
        assert torch.equal(fkd.render_views(images, epoch, batch, batch + 1, settings, FASHION), views)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("tiles", [1, 2])
def test_views_on_a_gpu_are_the_same_wherever_the_images_are(images, tiles):
    device, settings = torch.device("cuda", 0), replace(SETTINGS, tiles=tiles)
    epoch = fkd.draw_epoch(settings, 0)
    expected = fkd.render_views(images, epoch, 0, 5, settings, FASHION)
    for place in (images, images.to(device)):
        views = fkd.render_views(place, epoch.to(place, device), 0, 5, settings, FASHION)
        assert torch.allclose(views.cpu(), expected, atol=1e-6)


# Tiles that change places


def plain_shuffle(image, columns, rows):
    """RDED's ShufflePatches with its two draws given: vertical strips in the order `columns`, then horizontal ones."""
    factor = len(columns)
    image = torch.cat([image.chunk(factor, dim=-1)[column] for column in columns], dim=-1)
    turned = image.permute(0, 2, 1)
    turned = torch.cat([turned.chunk(factor, dim=-1)[row] for row in rows], dim=-1)
    return turned.permute(0, 2, 1)


@pytest.mark.parametrize("tiles", [2, 4])
def test_tiles_change_places_as_in_rded(images, tiles):
    """Whole images, so that nothing but the tiles moves; to the last bit."""
    settings = replace(SETTINGS, mix=None, tiles=tiles)
    epoch = fkd.draw_epoch(settings, 0)
    epoch = epoch._replace(
        crop=torch.tensor([0, 0, 32, 32], dtype=torch.int16).expand(37, 4), flip=torch.zeros_like(epoch.flip)
    )
    orders = epoch.tile_order.tolist()
    assert len({str(order) for order in orders}) > 3
    shuffled = [plain_shuffle(images[i], *order) for i, order in zip(epoch.order.tolist(), orders, strict=True)]
    expected = torch.stack(shuffled)
    assert torch.equal(apply_views(images, epoch.order, epoch.crop, epoch.flip, epoch.tile_order), expected.float())
    assert torch.equal(fkd.render_views(images, epoch, 0, 5, settings, FASHION), normalise(expected, FASHION))


@pytest.mark.parametrize("tiles", [2, 4])
def test_tiles_change_places_before_the_image_is_cropped(images, tiles):
    """As in RDED's transforms: a crop of the shuffled image, which may hold parts of tiles, flipped or not."""
    settings = replace(SETTINGS, tiles=tiles)
    epoch = fkd.draw_epoch(settings, 0)
    orders = epoch.tile_order.tolist()
    shuffled = [plain_shuffle(images[i], *order) for i, order in zip(epoch.order.tolist(), orders, strict=True)]
    expected = apply_views(torch.stack(shuffled), torch.arange(37), epoch.crop, epoch.flip)
    assert torch.equal(apply_views(images, epoch.order, epoch.crop, epoch.flip, epoch.tile_order), expected)
    in_order = epoch._replace(order=torch.arange(37, dtype=torch.int32), tile_order=None)
    plain = fkd.render_views(torch.stack(shuffled), in_order, 0, 5, SETTINGS, FASHION)
    assert torch.equal(fkd.render_views(images, epoch, 0, 5, settings, FASHION), plain)


def test_places_of_tiles():
    order = torch.tensor([[2, 0, 1], [0, 1, 2]], dtype=torch.uint8)
    assert fkd.tile_places(order, 6).tolist() == [[4, 5, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
