"""Recipes: one file a method. What a dataset, method and IPC mean for every stage, and the command lines made of it.

    python -m utils.recipes                          # the methods there are
    python -m utils.recipes cifar100 fadrm+ 10       # the three commands, every flag spelled out

A method is a file in this folder with a name (`METHOD`) and a function `recipe(dataset, ipc)`; its docstring names
paper, command and expected results. Nothing here imports PyTorch, so that a recipe is there at once.
"""

import importlib
import itertools
import os
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from utils.data.table import Dataset, get_dataset
from utils.recipes.base import IPCS, Recipe, base
from utils.recipes.protocols import under
from utils.recipes.rates import default_rate, rates_of
from utils.recipes.settings import (
    OF_WHOLE_IMAGES,
    ImageSettings,
    PatchSettings,
    PretrainSettings,
    RecoverSettings,
    RelabelSettings,
    ValidateSettings,
    WeighSettings,
)
from utils.recipes.teachers import teacher_training
from utils.recipes.variants import changes_of, file_name, name_in, varied, with_own_patches
from utils.run import settings as settings_module
from utils.run.errors import UserError
from utils.run.settings import Parser, StageSettings, check, parser_of


class Stage(NamedTuple):
    """A stage's entry, its settings, what it does, and the flags of the published scripts that it ignores, with why."""

    module: str
    settings: type[StageSettings]
    purpose: str
    ignored: Mapping[str, str] = {}


SCRIPTS_GPU = "choose GPUs with CUDA_VISIBLE_DEVICES"
STAGES = {
    "pretrain": Stage("models.pretrain", PretrainSettings, "Train the teachers of a dataset on its real images."),
    "patches": Stage("recover.make_patches", PatchSettings, "Make real patches: crops of images, ranked by a teacher."),
    "choose": Stage("recover.choose_images", ImageSettings, "Choose real images and lay them out like distilled ones."),
    "recover": Stage(
        "recover.recover",
        RecoverSettings,
        "Distil images: optimise real patches against frozen teachers.",
        {
            "--store-best-images": "the images of the last iteration are always stored",
            "--iteration": "the iterations are those of --optimization-budgets",
            "--initialisation-dir": "patches are read from --patch-dir",
            "--gpu": SCRIPTS_GPU,
        },
    ),
    "weigh": Stage(
        "recover.weigh_images", WeighSettings, "Weigh distilled images by how many real ones each stands for."
    ),
    "relabel": Stage(
        "relabel.relabel",
        RelabelSettings,
        "Store views of the distilled images and the teachers' logits for them.",
        {
            "--multi-model": "one or several, the teachers are those named",
            "--workers": "distilled images are decoded once",
            "-j": "distilled images are decoded once",
            "--mode": "views and labels are always stored",
            "--weight-temperature": "the temperature of --model-weight is 10",
            "--keep-topk": "logits are stored as --codec and --top-k say",
            "--start-epoch": "epochs that are there are skipped",
            "--gpu": SCRIPTS_GPU,
        },
    ),
    "validate": Stage(
        "validate.validate",
        ValidateSettings,
        "Train students on views and soft labels; test them on real images.",
        {
            "--fkd-seed": "the order of the images is in the label store",
            "--fkd_seed": "the order of the images is in the label store",
            "--mode": "labels are always read from the store",
            "--keep-topk": "logits are used as they are stored",
            "--start-epoch": "a stopped run goes on from its last checkpoint",
            "--gpu": SCRIPTS_GPU,
        },
    ),
}


def find_methods(function: str) -> dict[str, Callable[..., Recipe]]:
    """That function of every method whose file lies in this folder and has it, by the method's name."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
               if not found.name.startswith("_")]  # fmt: skip
    return {
        module.METHOD: getattr(module, function)
        for module in modules
        if hasattr(module, "METHOD") and hasattr(module, function)
    }


METHODS, OWN_PROTOCOLS = find_methods("recipe"), find_methods("own_protocol")


def recipe_of(dataset: Dataset, method: str, ipc: int) -> Recipe:
    """The recipe of a dataset, method (or variant of one) and IPC (images per class, from 1 up); UserError if there is
    none."""
    name, changes = changes_of(method)
    if name not in METHODS:
        raise UserError(f"no recipe for the method {method!r}; there are: {' '.join(METHODS)}")
    if ipc < 1:
        raise UserError(f"IPC {ipc}: a recipe makes at least 1 image per class")
    return with_own_patches(varied(METHODS[name](dataset, ipc), changes), changes)


def teachers_of(dataset: Dataset, method: str, ipcs: Sequence[int] = IPCS) -> list[str]:
    """Every teacher and observer that a method asks for at these IPCs, each once."""
    recipes = [recipe_of(dataset, method, ipc) for ipc in ipcs]
    return list(
        dict.fromkeys(name for r in recipes for name in (*r.recover.teachers, *r.relabel.teachers, r.patches.observer))
    )


def student_rate(dataset: Dataset, method: str | None, student: str, ipc: int) -> tuple[float, float, bool]:
    """Learning rate and eta of a student, and whether they are a default because none is published for it."""
    known = rates_of(dataset, ipc) if method is None else recipe_of(dataset, method, ipc).rates
    return (*known[student], False) if student in known else (*default_rate(ipc), True)


def draw_suffix(draw: int) -> str:
    """What names of folders of a draw end in: nothing for draw 0."""
    return f"_draw{draw}" if draw else ""


def protocol_suffix(labels: str) -> str:
    """What names of results of a protocol end in: nothing for FADRM's."""
    return "" if labels == "views" else f"_{labels}"


def parse(stage: str, argv: Sequence[str] | None) -> Any:
    """The settings of a run, defaults filled in: flags win over the recipe that they name, a recipe over defaults.

    UserError for flags that cannot be, or cannot be together.
    """
    owner = STAGES[stage].settings
    parser = parser_of(owner, STAGES[stage].module, STAGES[stage].purpose, STAGES[stage].ignored)
    parser.set_defaults(**recipe_settings(stage, argv))
    values = vars(parser.parse_args(argv))
    given = owner(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    if given.dataset_name is not None:
        get_dataset(given.dataset_name)
    given = fill_places(given, os.environ)
    check(given)
    return given.resolved()


def parse_each(stage: str, argv: Sequence[str] | None, *flags: str) -> list[Any]:
    """`parse` for each value, and each combination of them, where flags that take one are given several.

    flags: each with its other names behind it, if it has some. UserError for a value that is given twice.
    """
    finder = Parser(STAGES[stage].module, add_help=False)
    for flag in flags:
        finder.add_argument(*flag.split(), nargs="+")
    found, others = finder.parse_known_args(argv)
    names = [flag.split()[0] for flag in flags]
    given = {flag: values for flag, values in zip(names, vars(found).values(), strict=True) if values is not None}
    for flag, values in given.items():
        if len(set(values)) != len(values):
            raise UserError(f"{flag} {' '.join(values)}: each once")
    combinations = itertools.product(*([(flag, value) for value in values] for flag, values in given.items()))
    return [parse(stage, [*others, *itertools.chain(*words)]) for words in combinations]


def recipe_settings(stage: str, argv: Sequence[str] | None) -> dict[str, object]:
    """What the recipe that a command line names sets in a stage; nothing where it names none."""
    probe = Parser(STAGES[stage].module, add_help=False)
    for flag, kind in (("--recipe", str), ("--dataset-name", str), ("--ipc", int), ("--model", str)):
        probe.add_argument(flag, type=kind)
    probe.add_argument("--labels", "--protocol", default="views")
    chosen, _ = probe.parse_known_args(argv)
    dataset = None if chosen.dataset_name is None else get_dataset(chosen.dataset_name)
    if stage == "pretrain":
        return settings_of(teacher_training(dataset)) if dataset else {}
    if stage == "choose":
        return {name: getattr(base(dataset, 1).patches, name) for name in ("observer", "source")} if dataset else {}
    if chosen.recipe is None:
        return {}
    if dataset is None or chosen.ipc is None:
        raise UserError("--recipe needs --dataset-name and --ipc beside it")
    if stage == "weigh":
        patches = recipe_of(dataset, chosen.recipe, chosen.ipc).patches
        return {name: getattr(patches, name) for name in ("observer", "source")}
    return settings_of(stage_of(stage, dataset, chosen.recipe, chosen.ipc, chosen.model, chosen.labels))


def stage_of(
    stage: str, dataset: Dataset, method: str, ipc: int, student: str | None = None, labels: str = "views"
) -> StageSettings:
    """The settings of a stage as a recipe has them. student: in validate, if it is another than the recipe's; labels:
    the protocol (see utils/recipes/protocols.py). UserError where a method has no protocol of its own."""
    recipe = recipe_of(dataset, method, ipc)
    student = student or recipe.validate.model
    rate, eta, _ = student_rate(dataset, method, student, ipc)
    recipe = recipe.set_in("validate", model=student, adamw_lr=rate, eta=eta)
    name, changes = changes_of(method)
    recipe = under(recipe, labels, name, dataset, ipc, own_protocol_of(method))
    return getattr(varied(recipe, changes), stage)


def own_protocol_of(method: str) -> Callable[..., Recipe] | None:
    """A method's own way to label and train, if its file has one."""
    return OWN_PROTOCOLS.get(changes_of(method)[0])


def in_places(
    stage: str, dataset: Dataset, method: str, ipc: int, environment: Mapping[str, str], **others: Any
) -> Any:
    """The settings of a stage as a recipe has them, with their folders in those that `environment` names.

    others: settings that the recipe does not give, and `student` as for `stage_of`.
    """
    settings = stage_of(stage, dataset, method, ipc, others.pop("student", None), others.get("labels", "views"))
    return fill_places(replace(settings, dataset_name=dataset.name, recipe=method, ipc=ipc, **others), environment)


def settings_of(settings: StageSettings) -> dict[str, object]:
    """The settings of a stage that are not at their default."""
    return {f.name: value for f in fields(settings) if (value := getattr(settings, f.name)) != f.default}


def fill_places(settings: Any, environment: Mapping[str, str]) -> Any:
    """Give the folders that were not named their places in the folders of config.sh, if the run has a recipe.

    In any name of a folder {dataset}, {ipc}, {batch_size}, {model} and the like stand for what the run has. UserError
    where config.sh was not sourced.
    """
    recipe, model = getattr(settings, "recipe", None), getattr(settings, "model", None)
    real = getattr(settings, "images", None)
    protocol = getattr(settings, "labels", "views")

    def named(*stages: str) -> str | None:
        if real or recipe is None:
            return recipe and f"{real}_by_{name_in(recipe, stages)}"
        return name_in(recipe, ("patches", "recover", *stages))

    known = {
        "root": environment.get("Main_Data_Path") or None,
        **{name: environment.get(name) or None for name in ("train_dir", "val_dir", "patch_dir")},
        "dataset": settings.dataset_name,
        "ipc": getattr(settings, "ipc", None),
        "batch_size": getattr(settings, "batch_size", None),
        "selector": getattr(settings, "selector", None),
        "model": file_name(model) if isinstance(model, str) else None,
        "draw": draw_suffix(getattr(settings, "draw", 0)),
        "protocol": protocol_suffix(protocol),
        "store": protocol_suffix("fixed" if protocol in OF_WHOLE_IMAGES else protocol),
        "images": real or (recipe and name_in(recipe, ("patches", "recover"))),
        "labels": named("relabel"),
        "results": named("relabel", "validate"),
    }
    has_places = recipe is not None or isinstance(settings, ImageSettings)
    filled = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        template = field.metadata["place"] if value is None and has_places else value
        if field.metadata["place"] is None or "{" not in str(template):
            continue
        names = re.findall(r"\{(\w*)\}", str(template))
        if value is None and not field.metadata["required"] and any(known.get(name) is None for name in names):
            continue
        flag, kind = settings_module.flags_of(field)[0], settings_module.shape_of(type(settings), field)[0]
        filled[field.name] = kind(_fill(str(template), names, known, flag))
    return replace(settings, **filled)


def _fill(template: str, names: Sequence[str], known: Mapping[str, object], flag: str) -> str:
    """`template` with {name} replaced by what a run has of that name."""
    for name in names:
        if name not in known:
            raise UserError(f"{flag} {template}: {{{name}}} stands for nothing; there are {' '.join(known)}")
        if known[name] is None:
            variable = {"root": "Main_Data_Path"}.get(name, name)
            if variable in ("Main_Data_Path", "train_dir", "val_dir", "patch_dir"):
                raise UserError(f"{variable} is not set: give it in config.sh, or in the environment; or name {flag}")
            raise UserError(f"{flag} {template}: this run has no {name} to put there; give --{name.replace('_', '-')}")
        template = template.replace(f"{{{name}}}", str(known[name]))
    return template
