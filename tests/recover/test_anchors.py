"""Anchors that are retrieved: what they cost, and where they may come from."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from models.checkpoints import load_teacher
from recover.anchors import Bank, anchor_cost, roughness
from recover.batches import Batch
from recover.passes import training_images
from tests.conftest import save_image
from utils.data.images import load_images, normalise
from utils.data.table import get_dataset
from utils.recipes.settings import RecoverSettings
from utils.run.errors import UserError
from utils.run.randomness import generator_for

FASHION = get_dataset("fashion_mnist")


def test_an_anchor_costs_its_distance_and_a_tenth_of_its_roughness():
    feature, candidates = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = anchor_cost(feature, candidates, torch.tensor([5.0, 1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.9 * 2 + 0.1, 0.9 * 4]))


def test_roughness_is_how_unevenly_a_smoothed_image_changes(relative):
    images = torch.rand(3, 3, 20, 20, generator=generator_for("rough"))
    images[1] = 0.3  # flat
    images[2] = torch.arange(20.0) / 20  # a slope that is the same nearly everywhere
    found = roughness(images)
    expected = []
    for image in images.numpy():
        smooth = [gaussian_filter(channel, 1.0, mode="nearest", truncate=3.0) for channel in image]
        squares = [(s[1:, :-1] - s[:-1, :-1]) ** 2 + (s[:-1, 1:] - s[:-1, :-1]) ** 2 for s in smooth]
        expected.append(float((sum(squares) / 3).var()))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-9)
    assert found[1] < 1e-12 and found[0] > 10 * found[2]


@pytest.fixture
def bank(world):
    """Of four images a class for two that are distilled: the patches of the world and their negatives."""
    for index in range(10):
        for place in range(2):
            path = world.val / f"{index}_class" / f"{place}.png"
            save_image(path.with_name(f"{place}_negative.png"), 255 - load_images([path], FASHION)[0])
    settings = RecoverSettings(
        dataset_name="fashion_mnist", ipc=2, ipc_end=2, train_dir=world.val, model_pool_dir=world.pool
    )
    teacher = load_teacher("ShuffleNetV2", FASHION, world.pool, "offline")
    return Bank(settings, teacher, training_images(settings, "0" * 64))


def test_an_image_finds_itself_in_its_share_alone(bank):
    """A class has 0, 0_negative, 1, 1_negative: index 0 draws from the first and the third, index 1 from the others."""
    pixels = normalise(load_images(bank.images.paths, FASHION), FASHION)
    for index in range(2):
        batch = Batch(tuple((label, index) for label in range(10)), (index, 0))
        for place in range(4):
            own = pixels[place::4]
            found = bank.retrieve(batch, own)
            is_in_share = place % 2 == index
            assert torch.equal(found, own) == is_in_share
            for image, label in zip(found, range(10), strict=True):
                share = pixels[4 * label + index : 4 * label + 4 : 2]
                assert any(torch.equal(image, candidate) for candidate in share)


def test_a_small_image_is_looked_at_in_full_size(bank):
    batch = Batch(((3, 0),), (0, 0))
    assert bank.retrieve(batch, torch.zeros(1, 3, 24, 24)).shape == (1, 3, 32, 32)


def test_more_images_a_class_than_training_images_are_refused(bank, world):
    settings = RecoverSettings(dataset_name="fashion_mnist", ipc=5, train_dir=world.val, model_pool_dir=world.pool)
    teacher = load_teacher("ShuffleNetV2", FASHION, world.pool, "offline")
    with pytest.raises(UserError, match=r"class 0 in .* has 4 images: --residual retrieved wants"):
        Bank(settings, teacher, bank.images)
