"""Replays: which batches of a store an epoch shows, and the labels of views that it does not have, by loops."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.utils.fkd.test_store import logits_of, write_store
from tests.views import VIEWS
from utils.data.table import get_dataset
from utils.fkd import store as fkd
from utils.fkd.codec import Packing
from utils.fkd.replay import labels_of_images
from utils.fkd.views import cutmix, draw_epoch, render_views
from utils.recipes.settings import ValidateSettings
from utils.seams import REPLAYS

FASHION = get_dataset("fashion_mnist")
CLASSES = torch.arange(37) % 10
BATCHES, FULL = 5, 4  # of an epoch: four of 8, one of 5


def replay_of(store, name, seed=0, **settings):
    settings = ValidateSettings(replay=name, **{"epochs": 8, "temperature": 4.0, **settings})
    return REPLAYS[name](store, settings, seed, CLASSES)


@pytest.fixture(params=[Packing(), Packing(store_draws=False), Packing("top_k", 3)], ids=["plain", "no draws", "top_k"])
def store(tmp_path, request):
    write_store(tmp_path, VIEWS, request.param)
    return fkd.open_store(tmp_path)


@pytest.fixture
def plain(tmp_path):
    write_store(tmp_path)
    return fkd.open_store(tmp_path)


def batch_of(draws, logits, batch):
    """Everything of a batch, as nested lists to compare."""
    places = slice(8 * batch, 8 * batch + 8)
    rows = [tensor[places] for tensor in (draws.order, draws.crop, draws.flip, draws.mix_partner, logits)]
    return str([each.tolist() for each in (*rows, draws.mix_box[batch], draws.mix_lam[batch])])


def stored_batches(store):
    """(epoch, batch) by everything of it."""
    return {batch_of(*fkd.read_epoch(store, n), b): (n, b) for n in range(2) for b in range(BATCHES)}


def shown(store, played):
    """The stored batches that an epoch shows."""
    known = stored_batches(store)
    return [known[batch_of(played.draws, played.logits, batch)] for batch in range(BATCHES)]


def same(one, other):
    draws = zip(one.draws.tensors().values(), other.draws.tensors().values(), strict=True)
    return all(torch.equal(*pair) for pair in draws) and torch.equal(one.logits, other.logits)


def test_in_order_epochs_are_those_of_the_store(store):
    replay = replay_of(store, "in_order")
    for number in range(2):
        assert shown(store, replay(number)) == [(number, batch) for batch in range(BATCHES)]
        assert replay(number)[2:] == (store.settings, None, False)


@pytest.mark.parametrize("name", ["pool", "shuffled_pool", "soft_hard_soft"])
def test_batches_of_a_pool_are_whole_and_a_short_one_stands_last(store, name):
    replay = replay_of(store, name, fresh_share=0.0)
    for number in range(6):
        found = shown(store, replay(number))
        assert all(batch < FULL for _, batch in found[:-1]) and found[-1][1] == FULL


@pytest.mark.parametrize("name", [*REPLAYS])
def test_an_epoch_depends_on_its_number_and_the_seed_alone(plain, name):
    once, again = replay_of(plain, name), replay_of(plain, name)
    numbers = range(2) if name == "in_order" else range(8)
    first = [once(number) for number in numbers]
    assert all(same(again(number), first[number]) for number in reversed(numbers))
    if "pool" in name:
        assert not same(replay_of(plain, name, seed=1)(0), first[0])
        assert not same(first[0], first[1])


def test_a_pool_is_drawn_from_with_replacement_and_evenly(plain):
    replay = replay_of(plain, "pool")
    epochs = [shown(plain, replay(number)) for number in range(150)]
    counts = Counter(batch for epoch in epochs for batch in epoch)
    assert len(counts) == 2 * BATCHES
    assert all(50 < count < 105 for count in counts.values())  # 75 on average, each
    assert any(len(set(epoch)) < BATCHES for epoch in epochs)


def test_of_a_shuffled_pool_an_epoch_has_no_batch_twice(plain):
    replay = replay_of(plain, "shuffled_pool")
    epochs = [shown(plain, replay(number)) for number in range(40)]
    assert all(len(set(epoch)) == BATCHES for epoch in epochs)
    assert len({batch for epoch in epochs for batch in epoch}) == 2 * BATCHES


def test_a_composed_epoch_shows_the_very_views_of_its_batches(plain):
    images = torch.randint(0, 256, (37, 3, 32, 32), dtype=torch.uint8)
    played = replay_of(plain, "pool")(0)
    views = render_views(images, played.draws, 0, BATCHES, played.views, FASHION).split(8)
    for mine, (number, batch) in zip(views, shown(plain, played), strict=True):
        draws = fkd.read_epoch(plain, number)[0]
        assert torch.equal(mine, render_views(images, draws, batch, batch + 1, plain.settings, FASHION))


def test_stored_labels_come_first_and_last_around_hard_ones(plain):
    """Of 9 epochs 4 are hard, 2 come before them and 3 behind; no batch comes again before the pool is used up."""
    replay = replay_of(plain, "soft_hard_soft", epochs=9, fresh_share=0.45)
    assert [replay(number).is_fresh for number in range(9)] == [False] * 2 + [True] * 4 + [False] * 3
    for stage in ((0, 1), (6, 7)):
        found = [batch for number in stage for batch in shown(plain, replay(number))]
        assert len(set(found)) == 2 * BATCHES
    assert all(replay(number).temperature == (1.0 if 2 <= number < 6 else None) for number in range(9))


def shares(settings, draws):
    """The share of its own image in each view, by pixels of pictures of one colour each: its own 1, its partner's 2."""
    batch = torch.arange(settings.images) // settings.batch_size
    own = torch.ones(settings.images, 1, 32, 32)
    pictures = torch.cat([own, 2 * own])
    partner = torch.arange(settings.images) + settings.images
    both = cutmix(pictures, torch.cat([partner, partner]), draws.mix_box[batch].repeat(2, 1))[: settings.images]
    return (both == 1).float().mean(dim=(1, 2, 3)).tolist()


def partner_of(draws, place):
    return int(draws.order[place // 8 * 8 + int(draws.mix_partner[place])])


def test_hard_labels_are_smoothed_classes_by_the_area_of_the_box(plain):
    played = replay_of(plain, "soft_hard_soft")(4)
    draws = draw_epoch(VIEWS, 2 + 4)  # none of the store's two
    assert same(played, played._replace(draws=draws))
    found = torch.softmax(played.logits, dim=1)
    for place, share in enumerate(shares(VIEWS, draws)):
        expected = [0.8 / 10] * 10
        expected[int(CLASSES[int(draws.order[place])])] += 0.2 * share
        expected[int(CLASSES[partner_of(draws, place)])] += 0.2 * (1 - share)
        assert found[place].tolist() == pytest.approx(expected, abs=1e-6)


def images_labels(store, temperature):
    """By loops: what each view says of the two images in it, by their shares."""
    total, weight = torch.zeros(37, 10, dtype=torch.float64), torch.zeros(37)
    for number in range(2):
        draws, logits = fkd.read_epoch(store, number)
        for place, share in enumerate(shares(VIEWS, draws)):
            soft = torch.softmax(logits[place].double() / temperature, dim=0)
            for image, its in ((int(draws.order[place]), share), (partner_of(draws, place), 1 - share)):
                total[image] += its * soft
                weight[image] += its
    return total / weight[:, None]


def test_fresh_views_have_the_mixture_of_their_images_labels(store):
    replay = replay_of(store, "mixed")
    known = images_labels(store, 4.0)
    for number in (1, 7):
        played = replay(number)
        assert played.is_fresh and played.temperature is None
        draws = draw_epoch(VIEWS, 2 + number)
        assert same(played, played._replace(draws=draws))
        found = torch.softmax(played.logits.double() / 4.0, dim=1)  # at the loss's temperature
        for place, share in enumerate(shares(VIEWS, draws)):
            expected = share * known[int(draws.order[place])] + (1 - share) * known[partner_of(draws, place)]
            assert found[place].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
        assert played.logits.isfinite().all()


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, "0f1f0f1f"), (0.75, "0fff1fff"), (0.0, "01010101"), (1.0, "ffffffff")]
)
def test_stored_epochs_come_round_among_fresh_ones(plain, share, expected):
    replay = replay_of(plain, "mixed", fresh_share=share)
    found = [(played.is_fresh and "f") or str(shown(plain, played)[0][0]) for played in map(replay, range(8))]
    assert "".join(found) == expected


def test_without_mixing_an_images_label_is_the_mean_of_its_own(tmp_path):
    write_store(tmp_path, replace(VIEWS, mix=None))
    store = fkd.open_store(tmp_path)
    found, expected = labels_of_images(store, 3.0), torch.zeros(37, 10)
    for number in range(2):
        order = draw_epoch(store.settings, number).order.long()
        expected[order] += torch.softmax(logits_of(number).float() / 3, dim=1) / 2
    assert torch.allclose(found, expected, atol=1e-6)
    fresh = replay_of(store, "mixed", temperature=3.0)(1)
    assert torch.allclose(torch.softmax(fresh.logits / 3, dim=1), found[fresh.draws.order.long()], atol=1e-6)


def test_with_mixup_the_share_is_its_own(tmp_path):
    views = replace(VIEWS, mix="mixup")
    write_store(tmp_path, views)
    store = fkd.open_store(tmp_path)
    played, known = replay_of(store, "mixed")(3), labels_of_images(store, 4.0)
    found = torch.softmax(played.logits / 4, dim=1)
    for place in range(37):
        share = played.draws.mix_lam[place // 8]
        expected = share * known[int(played.draws.order[place])] + (1 - share) * known[partner_of(played.draws, place)]
        assert torch.allclose(found[place], expected, atol=1e-6)


def test_of_whole_images_fresh_views_are_cut_and_mixed(tmp_path):
    """One label an image in every stored epoch: that one, and mixtures of it."""
    views = replace(VIEWS, mix=None, epochs=1)
    write_store(tmp_path, views, labels="fixed")
    store = fkd.open_store(tmp_path)
    played = replay_of(store, "mixed", fresh_share=1.0)(0)
    assert played.views == replace(views, mix="cutmix", mix_alpha=1.0)
    draws, logits = fkd.read_epoch(store, 0)
    own = torch.empty(37, 10)
    own[draws.order.long()] = torch.softmax(logits.float() / 4, dim=1)
    found = torch.softmax(played.logits / 4, dim=1)
    for place, share in enumerate(shares(VIEWS, played.draws)):
        expected = share * own[int(played.draws.order[place])] + (1 - share) * own[partner_of(played.draws, place)]
        assert torch.allclose(found[place], expected, atol=1e-6)
