"""The flags of validate, and what must hold between them."""

import argparse
from argparse import BooleanOptionalAction as Switch
from collections.abc import Sequence
from pathlib import Path

from utils import recipes
from utils.cli import StageParser
from utils.errors import UserError
from utils.precision import add_speed_flags


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings of a validate run; UserError for flags that cannot be, or cannot be together."""
    parser = StageParser("validate.validate", "Train students on views and soft labels; test them on real images.")
    parser.add_argument("--dataset-name", required=True, help="one of the datasets of utils/datasets.py")
    parser.add_recipe_flag()
    parser.add_argument("--ipc", type=int, help="images per class: selects recipe and rates, and is checked")
    parser.add_argument("--model", required=True, help="the student; several: a run for each")
    files = parser.add_argument_group("files")
    files.add_argument("--original-data-path", type=Path, required=True, help="the distilled images: class folders")
    files.add_argument("--fkd-path", type=Path, required=True, help="the label store: the whole folder")
    files.add_argument("--val-dir", type=Path, required=True, help="the dataset's own folder of validation images")
    files.add_argument(
        "--output-dir", type=Path, required=True, help="results: <output-dir>/<dataset>/<exp-name>/seed<n>"
    )
    files.add_argument("--exp-name", required=True, help="folder of this run's results")
    files.add_argument("--method", help="what the results call the method (default: --recipe, else --exp-name)")
    files.add_argument("--workers", "-j", type=int, default=4, help="processes that decode the validation images, once")
    files.add_argument("--verify", action="store_true", help="read all labels against their checksums first")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=300, help="epochs; the store has at least as many")
    training.add_argument("--batch-size", type=int, default=16, help="images a batch: that of the store")
    training.add_argument("--gradient-accumulation-steps", type=int, default=1, help="micro-batches a batch is cut in")
    training.add_argument("--temperature", "-T", type=float, default=3.0, help="of teacher and student in the KL loss")
    training.add_argument("--mix-type", choices=("cutmix", "mixup"), help="that of the store (default: whatever it is)")
    training.add_argument("--min-scale", type=float, default=0.08, help="smallest crop of the store, share of the area")
    training.add_argument("--cos", action=Switch, default=False, help="cosine rate instead of a straight line to 0")
    training.add_argument("--adamw-lr", type=float, help="AdamW's rate (default: by dataset, student and IPC)")
    training.add_argument("--eta", type=float, help="2: the cosine ends at half the rate; 1: at 0 (default: likewise)")
    training.add_argument("--adamw-weight-decay", type=float, default=0.01, help="on weights of two dimensions or more")
    training.add_argument("--sgd", action="store_true", help="SGD instead of AdamW")
    training.add_argument("--sgd-lr", type=float, default=0.01, help="SGD's rate")
    training.add_argument("--momentum", type=float, default=0.5, help="SGD's momentum")
    training.add_argument("--weight-decay", type=float, default=1e-4, help="SGD's weight decay")
    training.add_argument("--test-every", type=int, default=10, help="epochs between two tests; the last is tested too")
    training.add_argument("--simple", action="store_true", help="test in the last fifth of the epochs only")
    add_speed_flags(parser, amp="float32")
    parser.add_common_flags(several_seeds=True)
    parser.add_dry_run_flag()
    parser.add_ignored_flags(
        {
            "--fkd-seed": "the order of the images is in the label store",
            "--fkd_seed": "the order of the images is in the label store",
            "--mode": "labels are always read from the store",
            "--keep-topk": "all logits are used",
            "--start-epoch": "a stopped run goes on from its last checkpoint",
            "--gpu": "choose GPUs with CUDA_VISIBLE_DEVICES",
        }
    )
    parser.add_refused_distributed_flags()
    settings = parser.parse_with_recipe("validate", argv)
    settings.method = settings.method or settings.recipe or settings.exp_name
    _check(settings)
    return settings


def parse_students(argv: Sequence[str] | None) -> list[argparse.Namespace]:
    """Settings of a validate run for each of the students that --model names; the recipe gives each its own rates.

    Several have a folder each: --exp-name with the student's name behind it, or in place of the name that it ends with,
    if that is the first one on the command line (a script's). Raises what `parse` raises, and UserError for a student
    named twice.
    """
    finder = StageParser("validate.validate", "", add_help=False)
    finder.add_argument("--model", nargs="+", action="append", default=[])
    found, others = finder.parse_known_args(argv)
    if not found.model:
        return [parse(argv)]
    names = found.model[-1]
    if len(set(names)) != len(names):
        raise UserError(f"--model {' '.join(names)}: each student once")
    students = [parse([*others, "--model", name]) for name in names]
    for student in students if len(names) > 1 else []:
        run = student.exp_name.removesuffix(f"_{found.model[0][0].replace(':', '_')}")
        student.exp_name = f"{run}_{student.model.replace(':', '_')}"
    return students


def fill_rates(settings: argparse.Namespace, ipc: int) -> None:
    """Give the learning rate and eta that were not given the published values for dataset, student and IPC."""
    if settings.sgd:
        settings.eta = 1.0 if settings.eta is None else settings.eta
        return
    rate, eta, is_default = recipes.student_rate(settings.dataset_name, settings.model, ipc)
    if is_default and settings.adamw_lr in (None, rate) and settings.eta in (None, eta):
        print(
            f"note: no rate is published for {settings.model} on {settings.dataset_name} at IPC {ipc}: "
            f"taking the default, lr {rate} and eta {eta}",
            flush=True,
        )
    settings.adamw_lr = rate if settings.adamw_lr is None else settings.adamw_lr
    settings.eta = eta if settings.eta is None else settings.eta


def _check(settings: argparse.Namespace) -> None:
    for name in ("epochs", "batch_size", "gradient_accumulation_steps", "test_every", "workers"):
        least = 0 if name == "workers" else 1
        if getattr(settings, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: it must be at least {least}")
    for name in ("temperature", "adamw_lr", "eta", "sgd_lr"):
        if getattr(settings, name) is not None and not getattr(settings, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: it must be above 0")
    for name in ("adamw_weight_decay", "momentum", "weight_decay"):
        if not getattr(settings, name) >= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: it must be 0 or more")
    if len(set(settings.seed)) != len(settings.seed):
        raise UserError(f"--seed {' '.join(map(str, settings.seed))}: each seed once")
