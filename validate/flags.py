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
    parser.add_argument(
        "--ipc",
        type=int,
        help="images per class: selects recipe and rates, and is checked; several: a run for each",
    )
    parser.add_argument("--model", required=True, help="the student; several: a run for each")
    files = parser.add_argument_group("files")
    files.add_argument("--original-data-path", type=Path, required=True, help="the distilled images: class folders")
    files.add_argument("--fkd-path", type=Path, required=True, help="the label store: the whole folder")
    files.add_argument("--val-dir", type=Path, required=True, help="the dataset's own folder of validation images")
    files.add_argument(
        "--output-dir", type=Path, required=True, help="results: <output-dir>/<dataset>/<exp-name>/seed<n>"
    )
    files.add_argument("--exp-name", required=True, help="folder of this run's results")
    files.description = "In these, {ipc}, {batch_size} and {model} stand for what a run has; several IPCs need {ipc}."
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


def parse_cells(argv: Sequence[str] | None) -> list[argparse.Namespace]:
    """Settings of a validate run for each IPC and student that --ipc and --model name; a recipe gives each its own.

    In the names of its folders {ipc}, {batch_size} and {model} are filled in. Several have a folder of results each:
    where --exp-name tells neither IPC nor student, they are put behind it. Raises what `parse` raises, and UserError
    for one that is named twice, and for several IPCs whose images or labels would be the same.
    """
    finder = StageParser("validate.validate", "", add_help=False)
    finder.add_argument("--ipc", nargs="+", type=int, default=[None])
    finder.add_argument("--model", nargs="+")
    found, others = finder.parse_known_args(argv)
    if found.model is None:
        return [parse(argv)]  # which tells that it is missing
    for flag, values, kind in (("--ipc", found.ipc, "IPC"), ("--model", found.model, "student")):
        if len(set(values)) != len(values):
            raise UserError(f"{flag} {' '.join(map(str, values))}: each {kind} once")
    cells = []
    for ipc in found.ipc:
        words = others if ipc is None else [*others, "--ipc", str(ipc)]
        for model in found.model:
            cell = parse([*words, "--model", model])
            if len(found.ipc) > 1 and "{ipc}" not in cell.exp_name:
                cell.exp_name += "_ipc{ipc}"
            if len(found.model) > 1 and "{model}" not in cell.exp_name:
                cell.exp_name += "_{model}"
            cells.append(cell)
            _fill_names(cell, several=len(found.ipc) > 1)
    return cells


def _fill_names(settings: argparse.Namespace, several: bool) -> None:
    """Put IPC, batch size and student into the names of the folders. several: whether there are other IPCs too."""
    known = {"{ipc}": settings.ipc, "{batch_size}": settings.batch_size, "{model}": recipes.file_name(settings.model)}
    for name in ("original_data_path", "fkd_path", "output_dir", "exp_name", "method"):
        given = getattr(settings, name)
        filled = str(given)
        if several and name in ("original_data_path", "fkd_path") and "{ipc}" not in filled:
            raise UserError(f"--{name.replace('_', '-')} {given}: with several IPCs it needs {{ipc}} in its place")
        if settings.ipc is None and "{ipc}" in filled:
            raise UserError(f"--{name.replace('_', '-')} {given}: --ipc tells what to put for {{ipc}}")
        for word, value in known.items():
            filled = filled.replace(word, str(value))
        setattr(settings, name, type(given)(filled))


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
