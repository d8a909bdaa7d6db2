"""Every number of the published runs, once: the settings of each stage by dataset, method and IPC.

    python -m utils.recipes cifar100 fadrm+ 10             # the three commands, every flag spelled out
    python -m utils.recipes imagenet1k fadrm 50 ResNet50

`LINES` is read from top to bottom: each line that fits a dataset, method and IPC applies, and a later one wins over an
earlier one. What no line says is what all of them share, the defaults of `Recipe`. A new method is one more line.
Nothing here imports PyTorch, so that a recipe is there at once.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from utils.errors import UserError, run_entry

IPCS = (1, 10, 50)  # what is published; every other IPC resolves too


@dataclass(frozen=True)
class Recipe:
    """How images of one dataset, method and IPC are distilled, labelled and trained on."""

    # both
    teachers: tuple[str, ...]  # recover takes them in turn, relabel averages them
    source: str = "offline"  # offline: the dataset's pool of checkpoints; online: torchvision's IMAGENET1K_V1
    # recover
    sizes: tuple[int, ...] = ()  # side of each stage, in pixels
    budgets: tuple[int, ...] = (500,) * 4  # iterations of each stage
    lr: float = 0.25
    alpha: float = 0.5  # share of the optimised image where the patch is merged back
    r_bn: float = 0.01
    first_bn_multiplier: float = 10.0
    augment: bool = True
    classes_a_batch: int = 100
    start: str = "Patches"
    difficulty: str = "medium"
    first_patch: int = 0
    # patches
    observer: str = "ResNet18"
    images_a_class: int = 300
    crops_an_image: int = 5
    crop_area: tuple[float, float] = (0.08, 1.0)
    tiles: int = 1  # a patch is tiles x tiles crops
    patches_a_class: int = 50
    # relabel and validate
    epochs: int = 300
    batch: int = 16
    view_area: tuple[float, float] = (0.08, 1.0)
    seeds: tuple[int, ...] = (0,)  # of the students that run.sh trains
    mix: str = "cutmix"
    mix_alpha: float = 1.0
    # relabel
    bssl: bool = True  # batch-specific soft labels
    float16_labels: bool = True
    fkd_seed: int = 42
    # validate
    student: str = "ResNet18"
    temperature: float = 20.0
    accumulation: int = 2
    cosine: bool = True
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Line:
    """Some settings of `Recipe`, and where they hold: an empty `datasets`, `method` or `ipc` means everywhere."""

    datasets: tuple[str, ...]
    method: str
    ipc: int | None
    settings: Mapping[str, object]


@dataclass(frozen=True)
class TeacherTraining:
    """How a dataset's teachers are trained, with a cosine over all epochs."""

    optimizer: str
    lr: float
    batch_size: int
    epochs: int
    momentum: float = 0.9  # of SGD; Adam keeps its own betas
    weight_decay: float = 1e-4


def line(datasets: str = "", method: str = "", ipc: int | None = None, **settings: object) -> Line:
    """A line of the table; `datasets` are names with spaces between them."""
    return Line(tuple(datasets.split()), method, ipc, settings)


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# ---- fashion_mnist: this project's own recipe, small enough for two cores ------------------------------------------
# Chosen on the training images alone, 500 a class to learn from and 100 to test on, by the student's mean of two seeds:
# random images 71 %, easy patches 73, distilled at a rate of 0.02, 0.05, 0.1: 75, 75, 76 (120 epochs, IPC 10).
FASHION_MNIST_LINES = (
    line("fashion_mnist", sizes=(32,) * 4, budgets=(50,) * 4, classes_a_batch=10, lr=0.1, difficulty="easy"),
    line("fashion_mnist", observer="ConvNetBN_W64", crop_area=(1.0, 1.0), crops_an_image=1, images_a_class=600),
    line("fashion_mnist", epochs=150, batch=10, view_area=(0.5, 1.0), student="ConvNetBN_W32", seeds=(0, 1, 2)),
    line("fashion_mnist", ipc=1, epochs=600),
    line("fashion_mnist", "fadrm", teachers=names("ConvNetBN_W64")),
    line("fashion_mnist", "fadrm+", teachers=names("ConvNetBN_W64 ConvNetBN_W32")),
)
FASHION_MNIST_TEACHERS = TeacherTraining("adam", lr=0.01, batch_size=32, epochs=10, weight_decay=0.0)
FASHION_MNIST_RATES = {("fashion_mnist", "ConvNetBN_W32"): dict.fromkeys(IPCS, (0.02, 1))}  # as STUDENT_RATES

# ---- the published runs --------------------------------------------------------------------------------------------
LINES = (
    line(method="fadrm", teachers=names("ResNet18")),
    line(method="fadrm+", teachers=names("ResNet18 Densenet121 ShuffleNetV2 MobileNetV2")),
    # cifar10 has no published scripts: it follows cifar100
    line("cifar100 cifar10", sizes=(32,) * 4, epochs=1000),
    line("cifar10", classes_a_batch=10),
    line("cifar10", ipc=1, batch=10),
    # the published relabel script of tiny_imagenet stores 300 epochs at IPC 1, where its validate script reads 1000
    line("tiny_imagenet", sizes=(64,) * 4),
    line("tiny_imagenet", ipc=1, epochs=1000),
    line("tiny_imagenet", "fadrm", sizes=(64,) * 2, budgets=(500,) * 2, lr=0.01, bssl=False),
    line("tiny_imagenet", "fadrm+", teachers=names("ResNet18 ShuffleNetV2 Densenet121 MobileNetV2")),
    line("tiny_imagenet", "fadrm+", ipc=1, teachers=names("ResNet18 ShuffleNetV2 MobileNetV2")),
    line("imagenet-nette imagewoof imagenet1k", sizes=(200, 224, 200, 224)),
    # two published relabel scripts of imagewoof label batches of 16, but its validate scripts read batches of 10
    line("imagenet-nette imagewoof", classes_a_batch=10, batch=10),
    line("imagenet-nette", "fadrm", lr=0.05),
    line("imagewoof", "fadrm+", ipc=1, teachers=names("ResNet18 ShuffleNetV2 MobileNetV2 Densenet121")),
    line("imagenet1k", source="online"),
    line("imagenet1k", "fadrm+", ipc=1, teachers=names("ResNet18 MobileNetV2 ShuffleNetV2 AlexNet"), first_patch=1),
    *FASHION_MNIST_LINES,
)

# Learning rate and eta of the student, (dataset, student): {IPC: (lr, eta)}.
STUDENT_RATES = {
    ("cifar100", "ResNet18"): {1: (0.0005, 2), 10: (0.001, 2), 50: (0.001, 1)},
    ("cifar100", "ResNet50"): {1: (0.001, 1), 10: (0.001, 2), 50: (0.001, 1)},
    ("cifar100", "ResNet101"): {1: (0.0005, 1), 10: (0.0005, 1), 50: (0.0005, 1)},
    ("tiny_imagenet", "ResNet18"): {1: (0.001, 2), 10: (0.001, 2), 50: (0.001, 1)},
    ("tiny_imagenet", "ResNet50"): {1: (0.0005, 2), 10: (0.0005, 2), 50: (0.0005, 1)},
    ("tiny_imagenet", "ResNet101"): {1: (0.0005, 2), 10: (0.0005, 2), 50: (0.0005, 1)},
    ("imagewoof", "ResNet18"): {1: (0.0005, 2), 10: (0.0005, 1), 50: (0.001, 2)},
    ("imagewoof", "ResNet50"): {1: (0.0005, 2), 10: (0.005, 1), 50: (0.0005, 1)},
    ("imagewoof", "ResNet101"): {1: (0.001, 1), 10: (0.0005, 2), 50: (0.0005, 1)},
    ("imagenet-nette", "ResNet18"): {1: (0.0005, 2), 10: (0.0005, 1), 50: (0.0005, 2)},
    ("imagenet-nette", "ResNet50"): {1: (0.0005, 2), 10: (0.0005, 1), 50: (0.0005, 1)},
    ("imagenet-nette", "ResNet101"): {1: (0.0005, 2), 10: (0.0005, 2), 50: (0.001, 2)},
    ("imagenet1k", "ResNet18"): {1: (0.001, 2), 10: (0.001, 2), 50: (0.001, 1)},
    ("imagenet1k", "ResNet50"): {1: (0.0005, 2), 10: (0.001, 2), 50: (0.001, 1)},
    ("imagenet1k", "ResNet101"): {1: (0.0035, 2), 10: (0.001, 2), 50: (0.0005, 1)},
    **FASHION_MNIST_RATES,
}
DEFAULT_RATE_UP_TO_IPC_10, DEFAULT_RATE_ABOVE = (0.0005, 2), (0.001, 1)

# After CV-DD's published settings; the teachers of imagenet1k are torchvision's, trained already.
TEACHER_TRAINING = {
    **dict.fromkeys(("cifar100", "cifar10"), TeacherTraining("adam", lr=0.001, batch_size=512, epochs=200)),
    "tiny_imagenet": TeacherTraining("sgd", lr=0.01, batch_size=128, epochs=50),
    **dict.fromkeys(("imagenet-nette", "imagewoof"), TeacherTraining("sgd", lr=0.01, batch_size=64, epochs=300)),
    "fashion_mnist": FASHION_MNIST_TEACHERS,
}

# Top-1 of a ResNet18 trained on the whole of a dataset, in percent, as the paper gives it.
WHOLE_DATA_TOP1 = {
    "cifar100": 78.9,
    "tiny_imagenet": 68.9,
    "imagenet-nette": 93.8,
    "imagewoof": 88.2,
    "imagenet1k": 72.3,
}

METHODS = tuple(dict.fromkeys(entry.method for entry in LINES if entry.method))
DATASETS = tuple(dict.fromkeys(name for entry in LINES for name in entry.datasets))
ENTRIES = {  # the module that runs each stage
    "recover": "recover.recover",
    "relabel": "relabel.relabel",
    "validate": "validate.validate",
    "pretrain": "models.pretrain",
    "patches": "recover.make_patches",
}


def check_name(kind: str, name: str | None, table: Sequence[str]) -> None:
    """UserError, with the names there are, unless `name` is in the table."""
    if name not in table:
        raise UserError(f"no recipe for the {kind} {name!r}; there are: {' '.join(table)}")


def recipe_of(dataset_name: str, method: str, ipc: int) -> Recipe:
    """The recipe of a dataset, method and IPC (images per class, from 1 up); UserError if there is none."""
    check_name("dataset", dataset_name, DATASETS)
    check_name("method", method, METHODS)
    if ipc < 1:
        raise UserError(f"IPC {ipc}: a recipe makes at least 1 image per class")
    chosen = {}
    for entry in LINES:
        if (
            (not entry.datasets or dataset_name in entry.datasets)
            and entry.method in ("", method)
            and entry.ipc in (None, ipc)
        ):
            chosen |= entry.settings
    return Recipe(**chosen)


def teachers(dataset_name: str, method: str, ipc: int) -> list[str]:
    """The teachers of a recipe, in their order."""
    return list(recipe_of(dataset_name, method, ipc).teachers)


def all_teachers(dataset_name: str) -> list[str]:
    """Every teacher and observer that some recipe of the dataset asks for, each once."""
    recipes = [recipe_of(dataset_name, method, ipc) for method in METHODS for ipc in IPCS]
    return list(dict.fromkeys(name for recipe in recipes for name in (*recipe.teachers, recipe.observer)))


def student_rate(dataset_name: str, model: str, ipc: int) -> tuple[float, int, bool]:
    """Learning rate and eta of a student, and whether they are a default because none is published for it."""
    published = STUDENT_RATES.get((dataset_name, model), {})
    if ipc in published:
        return *published[ipc], False
    return *(DEFAULT_RATE_UP_TO_IPC_10 if ipc <= 10 else DEFAULT_RATE_ABOVE), True


def settings(
    stage: str, dataset_name: str, method: str | None, ipc: int | None, model: str | None = None
) -> dict[str, object]:
    """What a recipe sets in a stage, as {name of the flag with _ for -: value}.

    stage: recover, relabel, validate, patches or pretrain, which depends on the dataset alone. model: in validate the
    student (None: the recipe's), in pretrain the teacher. Raises UserError for a dataset, method or IPC without a
    recipe, and in pretrain for a dataset whose teachers are not trained here.
    """
    if stage == "pretrain":
        return {"model": model, **asdict(teacher_training(dataset_name))}
    return _SETTINGS[stage](recipe_of(dataset_name, method, ipc), dataset_name, ipc, model)


def teacher_training(dataset_name: str) -> TeacherTraining:
    """How the teachers of a dataset are trained; UserError where they are not, or for an unknown dataset."""
    check_name("dataset", dataset_name, DATASETS)
    if dataset_name not in TEACHER_TRAINING:
        raise UserError(f"the teachers of {dataset_name} are torchvision's, used online: there is nothing to train")
    return TEACHER_TRAINING[dataset_name]


def file_name(model: str) -> str:
    """A network's name as names of files and folders have it: timm:<name> without the colon."""
    return model.replace(":", "_")


def locations(
    stage: str,
    dataset_name: str,
    method: str | None,
    ipc: int | None,
    model: str | None = None,
    root: str = "$Main_Data_Path",
    train_dir: str = "$train_dir",
    val_dir: str = "$val_dir",
    patch_dir: str = "$patch_dir",
) -> dict[str, str]:
    """The folders that a stage reads and writes, as {name of the flag with _ for -: value}.

    root, train_dir, val_dir, patch_dir: the folders of config.sh (by default its variables, for a shell to fill in).
    Stage, dataset, method, IPC and model are those of `settings`, and so are the errors; in validate without an IPC the
    names have {ipc}, {batch_size} and {model}, which its entry fills in.
    """
    if stage == "validate" and ipc is None:
        ipc, batch, student = "{ipc}", "{batch_size}", "{model}"
    elif stage != "pretrain":
        recipe = recipe_of(dataset_name, method, ipc)
        batch, student = recipe.batch, file_name(model or recipe.student)
    generated, run = f"{root}/generated_data", f"{method}_ipc{ipc}"
    images = f"{generated}/syn_data/{dataset_name}"
    labels = f"{generated}/new_labels/{dataset_name}/{method}"
    pool = {"model_pool_dir": f"{root}/pretrained_models/{dataset_name}_pretrained_models"}
    train = {"train_dir": f"{train_dir}/{dataset_name}"}
    val = {"val_dir": f"{val_dir}/{dataset_name}"}
    patches = {"patch_dir": f"{patch_dir}/{dataset_name}"}
    if stage == "pretrain":
        return train | val | pool
    return {
        "patches": train | patches | pool,
        "recover": {"syn_data_path": images, "exp_name": run, **patches, **pool},
        "relabel": {"syn_data_path": f"{images}/{run}", "fkd_path": labels, **pool},
        "validate": {
            "original_data_path": f"{images}/{run}",
            "fkd_path": f"{labels}_bs{batch}_ipc{ipc}",
            **val,
            "output_dir": f"{generated}/validate_output",
            "exp_name": f"{run}_{student}",
        },
    }[stage]


def flags(values: Mapping[str, object]) -> list[list[str]]:
    """Settings as words of a command line, a list for each flag; False and None leave it out, True stands alone."""
    spelled = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        several = value if isinstance(value, (list, tuple)) else [value]
        spelled.append([f"--{name.replace('_', '-')}", *(str(item) for item in several if item is not True)])
    return spelled


def commands(dataset_name: str, method: str, ipc: int, model: str | None = None) -> str:
    """The three stages of a recipe as shell commands with every flag spelled out, to copy and change."""
    student = model or recipe_of(dataset_name, method, ipc).student
    blocks = [f"# {dataset_name}, {method}, {ipc} images per class, student {student}"]
    if dataset_name in WHOLE_DATA_TOP1:
        blocks[0] += f"\n# (in the paper a ResNet18 has {WHOLE_DATA_TOP1[dataset_name]} % on the whole dataset)"
    if student_rate(dataset_name, student, ipc)[2]:
        blocks[0] += f"\n# No rate is published for {student} here: --adamw-lr and --eta are this project's default."
    blocks.append("source config.sh")
    for stage in ("recover", "relabel", "validate"):
        values = {"dataset_name": dataset_name, "ipc": ipc}
        values |= settings(stage, dataset_name, method, ipc, student)
        values |= locations(stage, dataset_name, method, ipc, student)
        if stage == "validate":
            values["method"] = method  # what --recipe would have told the results
        words = [" ".join(map(_quoted, words)) for words in flags(values)]
        blocks.append(" \\\n    ".join([f"python -m {ENTRIES[stage]}", *words]))
    return "\n\n".join(blocks)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) not in (3, 4) or not arguments[2].isdecimal():
        raise UserError(
            "usage: python -m utils.recipes DATASET METHOD IPC [STUDENT]; "
            f"datasets: {' '.join(DATASETS)}; methods: {' '.join(METHODS)}; IPC: 1 or more"
        )
    dataset_name, method, ipc, *student = arguments
    print(commands(dataset_name, method, int(ipc), *student))


def _recover(recipe: Recipe, dataset_name: str, ipc: int, model: str | None) -> dict[str, object]:
    return {
        "teacher_model_list": list(recipe.teachers),
        "pretrained_model_type": recipe.source,
        "initialisation_method": recipe.start,
        "patch_diff": recipe.difficulty,
        "ipc_start": recipe.first_patch,
        "ipc_end": recipe.first_patch + ipc,
        "batch_size": recipe.classes_a_batch,
        "input_size_lis": list(recipe.sizes),
        "optimization_budgets": list(recipe.budgets),
        "alpha": recipe.alpha,
        "lr": recipe.lr,
        "r_bn": recipe.r_bn,
        "first_bn_multiplier": recipe.first_bn_multiplier,
        "apply_data_augmentation": recipe.augment,
    }


def _relabel(recipe: Recipe, dataset_name: str, ipc: int, model: str | None) -> dict[str, object]:
    several = len(recipe.teachers) > 1
    return {
        "teacher_model_name": None if several else recipe.teachers[0],
        "multi_model": several,
        "model_choice": list(recipe.teachers) if several else None,
        "model_weight": None,
        "online": recipe.source == "online",
        "eval_mode": "F" if recipe.bssl else "T",
        "epochs": recipe.epochs,
        "batch_size": recipe.batch,
        "fkd_seed": recipe.fkd_seed,
        "min_scale_crops": recipe.view_area[0],
        "max_scale_crops": recipe.view_area[1],
        "mix_type": recipe.mix,
        recipe.mix: recipe.mix_alpha,
        "use_fp16": recipe.float16_labels,
    }


def _validate(recipe: Recipe, dataset_name: str, ipc: int, model: str | None) -> dict[str, object]:
    student = model or recipe.student
    lr, eta, _ = student_rate(dataset_name, student, ipc)
    return {
        "model": student,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "temperature": recipe.temperature,
        "mix_type": recipe.mix,
        "min_scale": recipe.view_area[0],
        "cos": recipe.cosine,
        "adamw_lr": lr,
        "eta": eta,
        "adamw_weight_decay": recipe.weight_decay,
    }


def _patches(recipe: Recipe, dataset_name: str, ipc: int, model: str | None) -> dict[str, object]:
    return {
        "observer": recipe.observer,
        "pretrained_model_type": recipe.source,
        "patch_diff": recipe.difficulty,
        "patches_per_class": max(recipe.patches_a_class, recipe.first_patch + ipc),
        "max_images": recipe.images_a_class,
        "num_crops": recipe.crops_an_image,
        "area_min": recipe.crop_area[0],
        "area_max": recipe.crop_area[1],
        "factor": recipe.tiles,
    }


def _quoted(word: str) -> str:
    return f'"{word}"' if "$" in word else shlex.quote(word)  # the variables of config.sh, for the shell to fill in


_SETTINGS = {"recover": _recover, "relabel": _relabel, "validate": _validate, "patches": _patches}


if __name__ == "__main__":
    run_entry(main)
