"""How images are labelled and trained on: FADRM's protocol, under which all methods are compared, and others.

views   FADRM's: a soft label for every augmented, mixed view (SL+KD)
fixed   one soft label an image, of the image as it is (SL), after the re-implementation of CA2D
hard    its class alone (HL), likewise
plain   as views, but every view is the image itself, with its fixed label: "without augmentation" of DD-Ranking's ARS
own     the method's paper's, where its file has one (`own_protocol`)

All but `own` show a student as many images, so that they cost the same. `fixed` and `hard` have CA2D's optimisers,
rates, losses, schedules and augmentation (DSA, utils/fkd/dsa.py), which is drawn while the student trains. A store of
fixed labels has them in each of its epochs, as many bytes as one of views.
"""

from collections.abc import Callable

from utils.data.table import Dataset
from utils.recipes.base import Recipe
from utils.run.errors import UserError

FIXED = {"loss": "kl_squared", "temperature": 20.0, "adamw_lr": 0.001, "eta": 1.0, "schedule": "cosine"}
HARD = {"loss": "cross_entropy", "optimizer": "sgd", "sgd_lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
HARD |= {"schedule": "step"}
CA2D = {"accumulation": 1, "augmentation": "dsa"}
STUDENTS = {"fixed": FIXED | CA2D, "hard": HARD | CA2D, "plain": {"augmentation": "none"}}
# The embedded dataset's own rates, on the split of utils/recipes/base.py: at 0.001, 0.005, 0.02 fadrm's images have 55,
# 71, 73 % by fixed labels; at 0.01, 0.05 they have 66, 70 % by hard ones.
OF_FASHION_MNIST = {"fixed": {"adamw_lr": 0.02}, "hard": {"sgd_lr": 0.05}}


def under(
    recipe: Recipe, labels: str, method: str, dataset: Dataset, ipc: int, own: Callable[..., Recipe] | None
) -> Recipe:
    """A method's recipe under one of these protocols. own: the method's own, if it has one; UserError if it has not."""
    if labels == "views":
        return recipe
    if labels == "own":
        if own is None:
            raise UserError(f"{method} has no protocol of its own here: leave --protocol own out")
        return own(recipe, dataset, ipc)
    is_embedded = dataset.name == "fashion_mnist"
    as_views = labels == "plain" or is_embedded
    batch = recipe.validate.batch_size if as_views else min(256, dataset.num_classes * ipc)
    recipe = recipe.set(mix=None, batch_size=batch, labels=labels).set_in("relabel", eval_mode="T", tiles=1)
    student = STUDENTS[labels] | (OF_FASHION_MNIST.get(labels, {}) if is_embedded else {})
    return recipe.set_in("validate", **student)
