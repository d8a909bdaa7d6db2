"""The flags of relabel, and what must hold between them."""

import argparse
from argparse import BooleanOptionalAction as Switch
from collections.abc import Sequence
from pathlib import Path

from utils.cli import StageParser
from utils.datasets import Dataset
from utils.errors import UserError
from utils.fkd import ViewSettings
from utils.precision import add_speed_flags


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings of a relabel run; UserError for flags that cannot be, or cannot be together."""
    parser = StageParser("relabel.relabel", "Store views of the distilled images and the teachers' logits for them.")
    parser.add_argument("--dataset-name", required=True, help="one of the datasets of utils/datasets.py")
    parser.add_recipe_flag()
    parser.add_argument("--ipc", type=int, help="images per class: selects the recipe, and is checked")
    files = parser.add_argument_group("files")
    files.add_argument("--syn-data-path", type=Path, required=True, help="the distilled images: class folders")
    files.add_argument("--fkd-path", type=Path, required=True, help="labels go to <fkd-path>_bs<bs>_ipc<N>")
    files.add_argument("--model-pool-dir", type=Path, help="folder of the teachers' checkpoints")
    teachers = parser.add_argument_group("teachers")
    teachers.add_argument("--teacher-model-name", action=_OneTeacher, help="the one teacher")
    teachers.add_argument("--multi-model", action="store_true", help="several teachers: those of --model-choice")
    teachers.add_argument("--model-choice", action=_SeveralTeachers, nargs="+", help="their names; logits are averaged")
    teachers.add_argument(
        "--model-weight", type=float, nargs="+", help="a score for each: weights are softmax(scores / 10)"
    )
    teachers.add_argument("--online", action=Switch, default=False, help="torchvision's IMAGENET1K_V1 weights")
    teachers.add_argument("--eval-mode", choices=("T", "F"), default="F", help="F: batch statistics (BSSL); T: running")
    views = parser.add_argument_group("views")
    views.add_argument("--epochs", type=int, default=300, help="epochs to store")
    views.add_argument("--batch-size", "-b", type=int, default=4, help="images a batch")
    views.add_argument("--min-scale-crops", type=float, default=0.08, help="smallest share of the area a crop takes")
    views.add_argument("--max-scale-crops", type=float, default=1.0, help="largest share")
    views.add_argument("--mix-type", choices=("cutmix", "mixup"), help="how images of a batch are mixed (default: not)")
    views.add_argument("--mixup", type=float, default=0.8, help="alpha of MixUp's Beta distribution")
    views.add_argument("--cutmix", type=float, default=1.0, help="alpha of CutMix's Beta distribution")
    views.add_argument("--fkd-seed", "--fkd_seed", type=int, default=42, help="the order of the images follows from it")
    views.add_argument("--use-fp16", action=Switch, default=False, help="store labels in float16 instead of float32")
    add_speed_flags(parser, amp="float32")
    parser.add_common_flags()
    parser.add_dry_run_flag()
    parser.set_defaults(seed=None)  # --fkd-seed unless given
    parser.add_ignored_flags(
        {
            "--workers": "distilled images are decoded once",
            "-j": "distilled images are decoded once",
            "--mode": "views and labels are always stored",
            "--weight-temperature": "the temperature of --model-weight is 10",
            "--keep-topk": "all logits are stored",
            "--start-epoch": "epochs that are there are skipped",
            "--gpu": "choose GPUs with CUDA_VISIBLE_DEVICES",
        }
    )
    parser.add_refused_distributed_flags()
    settings = parser.parse_with_recipe("relabel", argv)
    if settings.seed is None:
        settings.seed = settings.fkd_seed
    _check(settings)
    return settings


def teacher_names(settings: argparse.Namespace) -> list[str]:
    """The teachers of a run, one or several."""
    return settings.model_choice if settings.multi_model else [settings.teacher_model_name]


def view_settings(settings: argparse.Namespace, images: int, dataset: Dataset) -> ViewSettings:
    """The part of the settings that the views depend on."""
    return ViewSettings(
        images=images,
        size=dataset.size,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        min_scale=settings.min_scale_crops,
        max_scale=settings.max_scale_crops,
        mix=settings.mix_type,
        mix_alpha={"cutmix": settings.cutmix, "mixup": settings.mixup, None: 1.0}[settings.mix_type],
        fkd_seed=settings.fkd_seed,
        seed=settings.seed,
    )


class _OneTeacher(argparse.Action):
    """One teacher, instead of whatever an earlier flag or the recipe says."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.teacher_model_name, namespace.multi_model, namespace.model_choice = values, False, None


class _SeveralTeachers(argparse.Action):
    """Several teachers, instead of whatever an earlier flag or the recipe says."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.teacher_model_name, namespace.multi_model, namespace.model_choice = None, True, values


def _check(settings: argparse.Namespace) -> None:
    if settings.multi_model and not settings.model_choice:
        raise UserError("--multi-model needs the teachers' names: --model-choice NAME NAME ...")
    if not settings.multi_model and settings.teacher_model_name is None:
        raise UserError("no teacher: give --teacher-model-name NAME, or --multi-model --model-choice NAME NAME ...")
    names = teacher_names(settings)
    if settings.model_weight is not None and len(settings.model_weight) != len(names):
        raise UserError(
            f"--model-weight has {len(settings.model_weight)} scores for {len(names)} teachers: give as many"
        )
    if not settings.fkd_path.name:
        raise UserError(f"--fkd-path {settings.fkd_path}: it ends in the name that the label folder's begins with")
    if not settings.online and settings.model_pool_dir is None:
        raise UserError("teachers are read from a folder: name --model-pool-dir, or take --online")
    if not 0 < settings.min_scale_crops <= settings.max_scale_crops <= 1:
        raise UserError(
            f"--min-scale-crops {settings.min_scale_crops} --max-scale-crops {settings.max_scale_crops}: "
            f"shares of the area, 0 < min <= max <= 1"
        )
    for name in ("epochs", "batch_size"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: it must be at least 1")
    for name in ("cutmix", "mixup"):
        if not getattr(settings, name) > 0:
            raise UserError(f"--{name} {getattr(settings, name)}: the alpha of a Beta distribution is above 0")
