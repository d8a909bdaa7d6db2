"""Terms of the loss, and how they are named and weighed."""

import pytest
import torch
import torch.nn.functional as F

from recover.terms import Seen, build_terms
from utils.recipes.settings import RecoverSettings
from utils.run.errors import UserError

SEEN = Seen(torch.zeros(2, 3, 4, 4), torch.tensor([1, 0]), torch.tensor([[0.0, 2.0], [1.0, 3.0]]), torch.tensor(7.0))


def test_the_published_loss_is_cross_entropy_and_weighted_matching():
    terms = build_terms(RecoverSettings(r_bn=0.01))
    assert {name: weight for name, (weight, _) in terms.items()} == {"cross_entropy": 1.0, "r_bn": 0.01}
    assert terms["cross_entropy"][1](SEEN) == F.cross_entropy(SEEN.logits, SEEN.labels)
    assert terms["r_bn"][1](SEEN) == 7


def test_a_weight_stands_behind_the_name():
    assert build_terms(RecoverSettings(terms=("r_bn=0.5",), r_bn=0.01))["r_bn"][0] == 0.5


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gram", "unknown term 'gram'; there are: cross_entropy r_bn"),
        ("r_bn=much", "--terms r_bn=much: much is no number"),
    ],
)
def test_what_is_no_term_or_weight(word, message):
    with pytest.raises(UserError, match=message):
        build_terms(RecoverSettings(terms=(word,)))
