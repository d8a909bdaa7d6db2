"""Selectors: the observer's losses, and which crops and images they lead to."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.data.images import normalise
from utils.data.table import get_dataset
from utils.patches.selectors import COVERED, Candidates, Observed, cad, k_means, observe, pad_centred, select
from utils.run.errors import UserError
from utils.run.randomness import generator_for
from utils.seams import SELECTORS

FASHION = get_dataset("fashion_mnist")
HISTORY = torch.rand(9, 100, generator=generator_for("history"))
LOSSES = torch.tensor([[3.0, 1.0], [0.5, 2.0], [9.0, 0.7]])  # three images, two crops of each


def choose(losses, selector, count, seed=0, features=None, history=HISTORY):
    scores = None if history is None else (lambda: history[:, : len(losses)])
    candidates = Candidates(0, *losses.shape, "observer", lambda: Observed(losses.flatten(), features), scores)
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
    observed = observe(Brightness().eval(), crops, 1, FASHION, batch_size=3)
    assert not observed.losses.requires_grad and observed.features is None
    torch.testing.assert_close(observed.losses, expected)


def test_features_are_the_input_of_the_last_linear_layer_at_length_1():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 7), nn.Tanh(), nn.Linear(7, 10)).eval()
    crops = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = network[:4](normalise(crops, FASHION))
        expected /= expected.norm(dim=1, keepdim=True)
    for _ in range(2):  # nothing stays behind
        observed = observe(network, crops, 1, FASHION, batch_size=2)
        torch.testing.assert_close(observed.features, expected)


def test_an_observer_without_a_linear_layer_is_named():
    with pytest.raises(UserError, match="the observer observer has no linear layer"):
        choose(LOSSES, "coverage", 2)


def test_candidates_are_scored_when_a_selector_asks_and_once():
    asked = []

    def score():
        asked.append(1)
        return Observed(LOSSES.flatten(), None)

    candidates = Candidates(0, 3, 2, "observer", score)
    assert (candidates.images, candidates.crops) == (3, 2)
    SELECTORS["random"](candidates, 2, generator_for("choice"))
    assert asked == []
    for difficulty in ("easy", "medium", "hard"):
        SELECTORS[difficulty](candidates, 2, generator_for("choice"))
    assert asked == [1] and torch.equal(candidates.losses, LOSSES)


# Ranking


def test_the_selectors_there_are():
    by_history, by_features = ["cad-prune", "r-cad"], ["herding", "k-centre", "coverage", "balanced"]
    assert list(SELECTORS) == ["random", "easy", "medium", "hard", *by_history, *by_features]
    with pytest.raises(UserError, match="unknown selector 'harder'; there are: random easy medium hard cad-prune"):
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


def features_of(count, dimensions=6):
    """Positive features of length 1, as behind a ReLU."""
    return F.normalize(torch.rand(count, dimensions, generator=generator_for("features")))


@pytest.mark.parametrize("selector", list(SELECTORS))
def test_more_patches_begin_with_the_same_ones(selector):
    losses = torch.rand(20, 3, generator=generator_for("losses"))
    features = features_of(60)
    most = choose(losses, selector, 60, features=features)
    assert len(set(map(tuple, most.tolist()))) == len(most) == 60
    assert most.dtype == torch.int64 and most.shape[1] == 2
    for count in (1, 10, 20):
        assert torch.equal(choose(losses, selector, count, features=features), most[:count])


def test_ties_go_to_the_earlier_image_and_crop():
    assert choose(torch.ones(3, 2), "easy", 6).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_random_takes_the_first_crop_of_images_drawn_by_seed():
    drawn = choose(torch.zeros(50, 3), "random", 50)
    assert sorted(drawn[:, 0].tolist()) == list(range(50)) and not drawn[:, 1].any()
    assert drawn[:, 0].tolist() != list(range(50))
    assert torch.equal(choose(torch.zeros(50, 3), "random", 50), drawn)
    assert not torch.equal(choose(torch.zeros(50, 3), "random", 50, seed=1), drawn)


# By features, each against a loop that looks at every choice anew


def taken(selector, features, losses, count):
    chosen = choose(losses[:, None], selector, count, features=features)
    assert not chosen[:, 1].any()
    return chosen[:, 0].tolist()


def test_herding_keeps_the_mean():
    features, expected = features_of(15), []
    for _ in range(6):
        others = [image for image in range(15) if image not in expected]
        means = {image: torch.stack([features[place] for place in [*expected, image]]).mean(dim=0) for image in others}
        expected.append(min(others, key=lambda image: (means[image] - features.mean(dim=0)).norm()))
    assert taken("herding", features, torch.rand(15), 6) == expected


def test_k_centre_goes_where_nothing_is_taken():
    features = features_of(15)
    expected = [min(range(15), key=lambda image: (features[image] - features.mean(dim=0)).norm())]
    while len(expected) < 6:
        distances = [min((features[image] - features[place]).norm() for place in expected) for image in range(15)]
        expected.append(max(range(15), key=lambda image: distances[image]))
    assert taken("k-centre", features, torch.rand(15), 6) == expected


def covered_by(features, chosen):
    """The sum over all images of the similarity to the most similar one chosen."""
    return sum(max(max(0.0, float(image @ features[place])) for place in chosen) for image in features)


def test_coverage_adds_what_covers_most_among_easy_images():
    features, losses = features_of(20), torch.rand(20, generator=generator_for("losses"))
    easy, expected = sorted(range(20), key=lambda image: losses[image])[: round(COVERED * 20)], []
    while len(expected) < 6:
        others = [image for image in easy if image not in expected]
        expected.append(max(others, key=lambda image: covered_by(features, [*expected, image])))
    assert taken("coverage", features, losses, 6) == expected
    assert set(taken("coverage", features, losses, 14)) == set(easy)
    assert sorted(taken("coverage", features, losses, 20)) == list(range(20))
    drawn = [taken("random", features, losses, 6) for _ in range(1)]
    assert covered_by(features, expected) > covered_by(features, drawn[0])


SIZES = (8, 4, 4, 2, 2)  # of clusters that lie far from each other


def clustered():
    """Twenty images in clusters of SIZES, one behind the other, the later ones of each farther away from its axis, each
    in a direction of its own; losses are 0, 1, 2, ... by image."""
    features = torch.zeros(20, 25)
    for image, (axis, place) in enumerate((axis, place) for axis, size in enumerate(SIZES) for place in range(size)):
        angle = 0.1 + 0.05 * place
        features[image, axis], features[image, 5 + image] = math.cos(angle), math.sin(angle)
    return features, torch.arange(20.0)


def test_balanced_takes_of_each_cluster_by_its_size():
    cluster_of = [axis for axis, size in enumerate(SIZES) for _ in range(size)]
    chosen = [cluster_of[image] for image in taken("balanced", *clustered(), 20)]
    assert chosen[:10] == [0, 1, 2, 0, 3, 4, 0, 1, 2, 0]  # 8, 4, 4, 8/3, 2, 2, 8/5, 4/3, 4/3, 8/7
    for count in (1, 5, 7, 10, 13, 20):
        for cluster, size in enumerate(SIZES):
            assert abs(chosen[:count].count(cluster) - size * count / 20) < 1


def test_balanced_takes_what_is_near_and_what_is_hard_by_turns():
    """70 % of 20 images are the first 14: all of the first two clusters, two of the third, none of the others."""
    order = taken("balanced", *clustered(), 20)
    of_cluster = [[image for image in order if low <= image < high] for low, high in ((0, 8), (8, 12), (12, 16))]
    assert of_cluster[0] == [0, 7, 1, 6, 2, 5, 3, 4]
    assert of_cluster[1] == [8, 11, 9, 10]
    assert of_cluster[2] == [12, 13, 14, 15]  # 14 and 15 are noisy: by nearness alone


def test_k_means_is_that_of_a_plain_loop():
    features = features_of(40, dimensions=4)
    centres = [features[place].tolist() for place in (3, 14, 15)]
    for _ in range(100):
        cosines = [
            [sum(x * c for x, c in zip(image, centre, strict=True)) for centre in centres]
            for image in features.tolist()
        ]
        nearest = [row.index(max(row)) for row in cosines]
        for cluster in range(3):
            own = [features[place].tolist() for place in range(40) if nearest[place] == cluster]
            total = [sum(values) for values in zip(*own, strict=True)]
            centres[cluster] = [value / math.hypot(*total) for value in total]
    clusters, found = k_means(features, features[[3, 14, 15]])
    assert clusters.tolist() == nearest and len(set(nearest)) == 3
    torch.testing.assert_close(found, torch.tensor(centres))


def test_a_cluster_without_images_keeps_its_centre():
    features = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2]]))
    clusters, centres = k_means(features, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    assert clusters.tolist() == [0, 0] and centres[1].tolist() == [0, -1]
    assert sorted(taken("balanced", features[[0, 0, 0]], torch.zeros(3), 3)) == [0, 1, 2]


def plain_cad(history):
    """J 6, W 2: the mean of two sample deviations, of epochs K - 8 .. K - 3 and K - 7 .. K - 2, image by image."""
    last = len(history)
    found = []
    for image in history.T.tolist():
        deviations = [statistics.stdev(image[first : first + 6]) for first in (last - 8, last - 7)]
        found.append(sum(deviations) / 2)
    return torch.tensor(found)


@pytest.mark.parametrize("epochs", [8, 9])
def test_cad_is_how_much_scores_change_near_the_end(epochs):
    torch.testing.assert_close(cad(HISTORY[:epochs]), plain_cad(HISTORY[:epochs]))
    with pytest.raises(UserError, match="scores of 7 epochs: cad-prune and r-cad take 8 or more"):
        cad(HISTORY[:7])


def test_cad_prune_takes_the_most_difficult():
    expected = plain_cad(HISTORY[:, :20]).argsort(descending=True)[:6]
    assert taken("cad-prune", features_of(20), torch.rand(20), 6) == expected.tolist()


def test_r_cad_covers_what_is_difficult():
    features, weights, expected = features_of(20), plain_cad(HISTORY[:, :20]), []
    for _ in range(6):

        def gain(image):
            chosen = [*expected, image]
            return sum(
                float(w) * max(float(x @ features[place]) for place in chosen)
                for x, w in zip(features, weights, strict=True)
            )

        expected.append(max((image for image in range(20) if image not in expected), key=gain))
    assert taken("r-cad", features, torch.rand(20), 6) == expected


def test_without_scores_these_say_where_they_are_had():
    with pytest.raises(UserError, match="cad-prune and r-cad go by scores of whole training images"):
        choose(LOSSES, "cad-prune", 2, history=None)


def test_opposite_features_do_not_count_against_each_other():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-0.8, 0.6], [0.0, 1.0]])
    assert taken("coverage", features, torch.zeros(4), 2)[0] == 2


@pytest.mark.parametrize("selector", ["herding", "k-centre", "coverage", "balanced"])
def test_the_best_crop_stands_for_an_image(selector):
    features = features_of(6)
    expected = taken(selector, features[[1, 2, 5]], torch.tensor([1.0, 0.5, 0.7]), 3)
    assert choose(LOSSES, selector, 3, features=features).tolist() == [[image, [1, 0, 1][image]] for image in expected]
