"""Who is asked: in turn, all together, or in the pairs of CV-DD."""

import itertools
import math

import pytest

from recover.batches import Batch
from recover.committee import all_at_once, in_turn, pairs
from utils.recipes.settings import RecoverSettings
from utils.run.errors import UserError

FIVE = ("ResNet18", "ResNet50", "ShuffleNetV2", "MobileNetV2", "Densenet121")
PRIORS = (64.0, 60.6, 51.6, 59.4, 56.4)  # of cifar100


def batch_of(index):
    return Batch(((0, index), (1, index)), (index, 0))


def committee_of(name, **settings):
    return {"in_turn": in_turn, "all": all_at_once, "pairs": pairs}[name](
        RecoverSettings(dataset_name="cifar100", **settings)
    )


def test_in_turn():
    committee = committee_of("in_turn", teachers=("A", "B", "C"))
    assert [committee(batch_of(0), iteration) for iteration in range(4)] == [
        ((0, 1.0),),
        ((1, 1.0),),
        ((2, 1.0),),
        ((0, 1.0),),
    ]


def test_a_pair_is_of_two_teachers():
    for ipc in (1, 2, 10):
        with pytest.raises(UserError, match="--committee pairs asks two teachers at a time: name more than one in"):
            committee_of("pairs", teachers=("A",), priors=(50.0,), ipc=ipc)


def test_all_together():
    assert committee_of("all", teachers=("A", "B"))(batch_of(0), 5) == ((0, 0.5), (1, 0.5))


def published_weights(priors, pair):
    """CV-DD's weights within a pair: sigmoid of a fifth of the difference."""
    first = 1 / (1 + math.exp(-(priors[pair[0]] - priors[pair[1]]) / 5))
    return first, 1 - first


def test_the_pair_of_an_index_is_the_ith_in_lexicographic_order_at_ipc_10():
    committee = committee_of("pairs", teachers=FIVE, priors=PRIORS, ipc=10)
    for index, pair in enumerate(itertools.combinations(range(5), 2)):
        for iteration in (0, 1, 3999):  # both, in each
            asked = committee(batch_of(index), iteration)
            assert tuple(place for place, _ in asked) == pair
            assert [weight for _, weight in asked] == pytest.approx(published_weights(PRIORS, pair))


@pytest.mark.parametrize(
    ("priors", "first", "second", "weight"),
    [  # the published examples
        ((56.4, 42.3, 52.5, 44.2, 40.6), 0, 2, 0.686),
        ((46.5, 28.3, 43.6, 44.8, 41.5), 0, 3, 0.584),
    ],
)
def test_the_pair_at_ipc_1_is_that_of_the_highest_priors(priors, first, second, weight):
    asked = committee_of("pairs", teachers=FIVE, priors=priors, ipc=1)(batch_of(0), 0)
    assert [place for place, _ in asked] == [first, second]
    assert asked[0][1] == pytest.approx(weight, abs=5e-4)


def test_other_ipcs_draw_pairs_by_seed_and_index():
    def drawn(seed):
        committee = committee_of("pairs", teachers=FIVE, priors=PRIORS, ipc=50, seed=seed)
        return [tuple(place for place, _ in committee(batch_of(index), 0)) for index in range(200)]

    assert drawn(0) == drawn(0) != drawn(1)
    counts = {pair: drawn(0).count(pair) for pair in itertools.combinations(range(5), 2)}
    assert sum(counts.values()) == 200 and min(counts.values()) > 5


def test_a_part_of_a_run_has_the_pairs_of_the_whole():
    whole, part = (
        committee_of("pairs", teachers=FIVE, priors=PRIORS, ipc=10, **indices)
        for indices in ({}, {"ipc_start": 4, "ipc_end": 6})
    )
    assert whole(batch_of(5), 0) == part(batch_of(5), 0)


def test_without_priors_a_pair_weighs_equally():
    assert committee_of("pairs", teachers=("A", "B"), ipc=3)(batch_of(2), 7) == ((0, 0.5), (1, 0.5))
