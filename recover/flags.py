"""The flags of recover, and what must hold between them."""

import argparse
from argparse import BooleanOptionalAction as Switch
from collections.abc import Sequence
from pathlib import Path

from recover.optimise import Plan
from utils.cli import StageParser
from utils.datasets import Dataset, get_dataset
from utils.errors import UserError
from utils.precision import add_speed_flags


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings of a recover run; UserError for flags that cannot be, or cannot be together."""
    parser = StageParser("recover.recover", "Distil images: optimise real patches against frozen teachers.")
    parser.add_argument("--dataset-name", required=True, help="one of the datasets of utils/datasets.py")
    parser.add_recipe_flag()
    parser.add_argument("--ipc", type=int, help="images per class: selects the recipe; without one, how many are made")
    files = parser.add_argument_group("files")
    files.add_argument("--syn-data-path", type=Path, required=True, help="folder that holds --exp-name")
    files.add_argument("--exp-name", required=True, help="folder of this run's images")
    files.add_argument("--patch-dir", type=Path, help="the dataset's own patch folder")
    files.add_argument("--patch-diff", choices=("easy", "medium", "hard"), default="medium", help="its subfolder")
    files.add_argument("--model-pool-dir", type=Path, help="folder of the teachers' checkpoints")
    files.add_argument("--store-initialised-images", action="store_true", help="also store what each image started as")
    method = parser.add_argument_group("method")
    method.add_argument("--teacher-model-list", nargs="+", default=["ResNet18"], help="teachers, taken in turn")
    method.add_argument(
        "--pretrained-model-type",
        choices=("offline", "online"),
        default="offline",
        help="offline: from --model-pool-dir; online: torchvision's IMAGENET1K_V1 weights",
    )
    method.add_argument(
        "--initialisation-method",
        type=lambda name: "Gaussian" if name == "Guassian" else name,  # the published parser's spelling
        choices=("Patches", "Gaussian"),
        default="Gaussian",
        help="what images start from",
    )
    method.add_argument(
        "--input-size-lis", type=int, nargs="+", help="side of each stage in pixels (default: one stage)"
    )
    method.add_argument("--optimization-budgets", type=int, nargs="+", help="iterations of each stage (default: 1000)")
    method.add_argument(
        "--alpha", type=float, default=1.0, help="share of the optimised image kept at each merge, 0..1"
    )
    method.add_argument("--lr", type=float, default=0.1, help="learning rate of the pixels")
    method.add_argument("--r-bn", type=float, default=0.05, help="weight of the BN-statistic loss")
    method.add_argument("--first-bn-multiplier", type=float, default=10.0, help="weight of the first BN layer in it")
    method.add_argument("--jitter", type=int, help="largest roll in pixels (default: the dataset's)")
    method.add_argument("--apply-data-augmentation", action=Switch, default=False, help="random resized crop and flip")
    work = parser.add_argument_group("work")
    work.add_argument("--batch-size", type=int, default=100, help="classes optimised together")
    work.add_argument("--ipc-start", type=int, default=0, help="first image index")
    work.add_argument("--ipc-end", type=int, help="image index to stop before (default: --ipc more, or 50)")
    work.add_argument("--start-index", type=int, default=0, help="first class; whole class batches are made")
    work.add_argument("--end-index", type=int, help="class to stop before (default: all)")
    look = parser.add_argument_group("looking on")
    look.add_argument("--verifier", action="store_true", help="print a network's accuracy on the images as they form")
    look.add_argument("--verifier-arch", default="ResNet18", help="that network")
    look.add_argument("--verifier-weight-path", type=Path, help="its weights (default: <model-pool-dir>/<arch>)")
    add_speed_flags(parser, amp="float16 on CUDA, else float32")
    parser.add_common_flags()
    parser.add_dry_run_flag()
    parser.add_ignored_flags(
        {
            "--store-best-images": "the images of the last iteration are always stored",
            "--iteration": "the iterations are those of --optimization-budgets",
            "--initialisation-dir": "patches are read from --patch-dir",
            "--gpu": "choose GPUs with CUDA_VISIBLE_DEVICES",
        }
    )
    parser.add_refused_distributed_flags()
    settings = parser.parse_with_recipe("recover", argv)
    dataset = get_dataset(settings.dataset_name)
    _fill_defaults(settings, dataset)
    _check(settings, dataset)
    return settings


def plan_of(settings: argparse.Namespace) -> Plan:
    """The part of the settings that the optimisation needs."""
    return Plan(
        sizes=tuple(settings.input_size_lis),
        budgets=tuple(settings.optimization_budgets),
        alpha=settings.alpha,
        lr=settings.lr,
        r_bn=settings.r_bn,
        jitter=settings.jitter,
        crop_and_flip=settings.apply_data_augmentation,
    )


def _fill_defaults(settings: argparse.Namespace, dataset: Dataset) -> None:
    if settings.jitter is None:
        settings.jitter = dataset.jitter
    if settings.input_size_lis is None:
        settings.input_size_lis = [dataset.size] * len(settings.optimization_budgets or [1000])
    if settings.optimization_budgets is None:
        settings.optimization_budgets = [1000] * len(settings.input_size_lis)
    if settings.ipc_end is None:
        settings.ipc_end = 50 if settings.ipc is None else settings.ipc_start + settings.ipc
    if settings.end_index is None:
        settings.end_index = dataset.num_classes


def _check(settings: argparse.Namespace, dataset: Dataset) -> None:
    sizes, budgets = settings.input_size_lis, settings.optimization_budgets
    if len(sizes) != len(budgets):
        raise UserError(
            f"--input-size-lis has {len(sizes)} stages, --optimization-budgets {len(budgets)}: give as many"
        )
    if min(sizes) < 1 or min(budgets) < 1:
        raise UserError("--input-size-lis and --optimization-budgets take numbers from 1 up")
    if sizes[-1] != dataset.size:
        raise UserError(
            f"--input-size-lis ends at {sizes[-1]}: {dataset.name} images have {dataset.size} pixels a side"
        )
    if not 0 <= settings.alpha <= 1:
        raise UserError(f"--alpha {settings.alpha}: it is a share, from 0 to 1")
    if settings.alpha < 1 and settings.patch_dir is None and len(sizes) > 1:
        raise UserError(f"--alpha {settings.alpha} merges patches: name --patch-dir, or take --alpha 1")
    if settings.initialisation_method == "Patches" and settings.patch_dir is None:
        raise UserError("--initialisation-method Patches reads patches: name --patch-dir, or take Gaussian")
    if settings.batch_size < 1:
        raise UserError(f"--batch-size {settings.batch_size}: it takes at least one class")
    if not settings.lr > 0:
        raise UserError(f"--lr {settings.lr}: it must be above 0")
    if settings.jitter < 0:
        raise UserError(f"--jitter {settings.jitter}: it must be 0 or more pixels")
    if not 0 <= settings.ipc_start < settings.ipc_end:
        raise UserError(
            f"--ipc-start {settings.ipc_start} --ipc-end {settings.ipc_end}: an empty range; the end is exclusive"
        )
    if not 0 <= settings.start_index < settings.end_index <= dataset.num_classes:
        raise UserError(
            f"--start-index {settings.start_index} --end-index {settings.end_index}: an empty range, "
            f"or beyond the {dataset.num_classes} classes of {dataset.name}; the end is exclusive"
        )
    if settings.pretrained_model_type == "offline" and settings.model_pool_dir is None:
        raise UserError("--pretrained-model-type offline reads teachers from a folder: name --model-pool-dir")
