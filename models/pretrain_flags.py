"""The flags of pretrain, and the settings of each teacher that follow from them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from models.registry import check_network
from models.teacher_training import OPTIMISERS
from utils import recipes
from utils.cli import StageParser
from utils.datasets import DATASETS, get_dataset
from utils.errors import UserError


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings of a pretrain run, those of the recipe only where they are given; UserError for impossible ones."""
    parser = StageParser("models.pretrain", "Train the teachers of a dataset on its real images.")
    add = parser.add_argument
    add("--dataset-name", required=True, help=f"one of {' '.join(DATASETS)}; its recipe for teachers is the default")
    add("--model", nargs="+", help="the teachers to train, one after another (default: all that a recipe names)")
    add("--train-dir", type=Path, required=True, help="the dataset's own folder of training images")
    add("--val-dir", type=Path, required=True, help="the dataset's own folder of validation images")
    add("--model-pool-dir", type=Path, required=True, help="where checkpoints and their records go")
    add("--workers", type=int, default=4, help="processes that decode (0: this one)")
    add("--test-every", type=int, default=0, help="epochs between tests (0: only at the end)")
    method = parser.add_argument_group("method", "where left out: what utils/recipes.py has for the dataset")
    from_recipe = {"default": argparse.SUPPRESS}
    method.add_argument("--epochs", type=int, help="passes over the training images", **from_recipe)
    method.add_argument("--batch-size", type=int, help="images in one step", **from_recipe)
    method.add_argument("--optimizer", choices=OPTIMISERS, help="adam or sgd", **from_recipe)
    method.add_argument("--lr", type=float, help="learning rate of epoch 0; a cosine takes it to 0", **from_recipe)
    method.add_argument("--momentum", type=float, help="of sgd", **from_recipe)
    method.add_argument("--weight-decay", type=float, help="L2 on every parameter", **from_recipe)
    parser.add_common_flags()
    parser.add_dry_run_flag()
    given = parser.parse_args(argv)
    dataset = get_dataset(given.dataset_name)
    if given.workers < 0:
        raise UserError(f"--workers {given.workers}: it must be 0 or more")
    given.model = given.model or recipes.all_teachers(dataset.name)
    for name in given.model:
        check_network(name, dataset)
        _check(settings_of(given, name))
    return given


def settings_of(given: argparse.Namespace, name: str) -> dict[str, object]:
    """Everything that shapes one teacher: the recipe's settings for it, those given instead, and the seed."""
    settings = recipes.settings("pretrain", given.dataset_name, None, None, model=name)
    names = ("epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay")
    chosen = {key: getattr(given, key, settings[key]) for key in names}
    return {"dataset_name": given.dataset_name, "model": name, **chosen, "seed": given.seed}


def _check(settings: dict) -> None:
    if settings["epochs"] < 1:
        raise UserError(f"--epochs {settings['epochs']}: at least one is needed")
    if settings["batch_size"] < 2:
        raise UserError(f"--batch-size {settings['batch_size']}: BatchNorm needs at least 2 images")
    if not settings["lr"] > 0:
        raise UserError(f"--lr {settings['lr']}: it must be above 0")
    for name in ("momentum", "weight_decay"):
        if not settings[name] >= 0:
            raise UserError(f"--{name.replace('_', '-')} {settings[name]}: it must be 0 or more")
    if settings["optimizer"] not in OPTIMISERS:
        raise UserError(f"--optimizer {settings['optimizer']}: there are {' '.join(OPTIMISERS)}")
