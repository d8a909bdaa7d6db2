"""Selectors: the observer's losses, and which crops and images they lead to."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.data.images import normalise
from utils.data.table import get_dataset
from utils.patches.selectors import Candidates, crop_losses, pad_centred, select
from utils.run.errors import UserError
from utils.run.randomness import generator_for
from utils.seams import SELECTORS

FASHION = get_dataset("fashion_mnist")
LOSSES = torch.tensor([[3.0, 1.0], [0.5, 2.0], [9.0, 0.7]])  # three images, two crops of each


def choose(losses, selector, count, seed=0):
    candidates = Candidates(0, *losses.shape, "observer", lambda: losses)
    return SELECTORS[selector](candidates, count, generator_for(seed, "choice"))


# Losses


def test_padding_is_centred_and_after_normalisation():
    padded = pad_centred(torch.ones(2, 3, 4, 4), 9)
    assert padded.shape == (2, 3, 9, 9)
    assert torch.equal(padded[0, 0], F.pad(torch.ones(4, 4), (2, 3, 2, 3)))


class Brightness(nn.Module):
    """Class 0 for bright images, class 1 for dark ones."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        mean = images.mean(dim=(1, 2, 3)) * self.scale
        return torch.stack((mean, -mean), dim=1)


@pytest.mark.parametrize("side", [32, 16])
def test_losses_are_the_observers_cross_entropy_on_padded_crops(side):
    crops = torch.randint(0, 256, (7, 3, side, side), dtype=torch.uint8)
    expected = F.cross_entropy(
        Brightness()(pad_centred(normalise(crops, FASHION), 32)), torch.ones(7, dtype=torch.int64), reduction="none"
    )
    losses = crop_losses(Brightness().eval(), crops, 1, FASHION, batch_size=3)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, expected)


def test_candidates_are_scored_when_a_selector_asks_and_once():
    asked = []

    def score():
        asked.append(1)
        return LOSSES.flatten()

    candidates = Candidates(0, 3, 2, "observer", score)
    assert (candidates.images, candidates.crops) == (3, 2)
    SELECTORS["random"](candidates, 2, generator_for("choice"))
    assert asked == []
    for difficulty in ("easy", "medium", "hard"):
        SELECTORS[difficulty](candidates, 2, generator_for("choice"))
    assert asked == [1] and torch.equal(candidates.losses, LOSSES)


# Ranking


def test_the_selectors_there_are():
    assert list(SELECTORS) == ["random", "easy", "medium", "hard"]
    with pytest.raises(UserError, match="unknown selector 'harder'; there are: random easy medium hard"):
        SELECTORS["harder"]


def test_difficulties():
    ranking = torch.tensor([4, 2, 0, 1, 3])
    assert select(ranking, "easy").tolist() == [4, 2, 0, 1, 3]
    assert select(ranking, "hard").tolist() == [3, 1, 0, 2, 4]
    assert select(ranking, "medium").tolist() == [0, 2, 1, 4, 3]
    assert select(torch.arange(4), "medium").tolist() == [1, 2, 0, 3]


def test_each_image_gives_its_best_crop_first():
    assert choose(LOSSES, "easy", 3).tolist() == [[1, 0], [2, 1], [0, 1]]
    assert choose(LOSSES, "hard", 3).tolist() == [[0, 1], [2, 1], [1, 0]]
    assert choose(LOSSES, "medium", 2).tolist() == [[2, 1], [1, 0]]


def test_few_images_give_their_next_best_crops_after_all_best_ones():
    assert choose(LOSSES, "easy", 6)[3:].tolist() == [[1, 1], [0, 0], [2, 0]]


@pytest.mark.parametrize("selector", ["random", "easy", "medium", "hard"])
def test_more_patches_begin_with_the_same_ones(selector):
    losses = torch.rand(20, 3, generator=generator_for("losses"))
    most = choose(losses, selector, 60)
    assert len(set(map(tuple, most.tolist()))) == len(most) == 60
    assert most.dtype == torch.int64 and most.shape[1] == 2
    for count in (1, 10, 20):
        assert torch.equal(choose(losses, selector, count), most[:count])


def test_ties_go_to_the_earlier_image_and_crop():
    assert choose(torch.ones(3, 2), "easy", 6).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_random_takes_the_first_crop_of_images_drawn_by_seed():
    drawn = choose(torch.zeros(50, 3), "random", 50)
    assert sorted(drawn[:, 0].tolist()) == list(range(50)) and not drawn[:, 1].any()
    assert drawn[:, 0].tolist() != list(range(50))
    assert torch.equal(choose(torch.zeros(50, 3), "random", 50), drawn)
    assert not torch.equal(choose(torch.zeros(50, 3), "random", 50, seed=1), drawn)
