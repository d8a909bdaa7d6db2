"""The settings of every stage, each in one place: its flag, default, help, range, and whether it shapes the result.

Defaults are those of the published parsers; what a method sets instead is in its own file beside this one. Names of
fields are this project's; where the published name of a flag is another, it stands behind the help. Nothing here
imports PyTorch.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from utils.data.table import Dataset
from utils.run.errors import UserError
from utils.run.settings import StageSettings, folder, setting, shaping, younger
from utils.seams import (
    CODECS,
    COMMITTEES,
    GROUPINGS,
    LAYOUTS,
    LOSSES,
    PROBES,
    REPLAYS,
    RESIDUALS,
    SCHEDULES,
    SELECTORS,
    TERMS,
)

MANY = (1, 10**6)  # images, classes, iterations, pixels: from 1 up to what nobody needs
INDEX = (0, 10**6)
SEED = (0, 2**63 - 1)
SHARE = (0.0, 1.0)
POSITIVE = (1e-12, 1e6)
WEIGHT = (0.0, 1e9)
PERCENT = (0.0, 100.0)
BETA = (0.05, 5.0)  # alpha of a Beta distribution: outside of it the sampler hardly ever ends
AREA = (1e-4, 1.0)
WORKERS = (0, 1024)
EPOCHS = (1, 99_999)

NO_REFERENCE = "none"  # nothing looks at images while they form: losses alone are measured
SOURCES = ("offline", "online")
RESOLUTIONS = ("manual", "adaptive")
SCALES = ("sum", "mean")
LEAST_SIZE = 128  # pixels a side, of an adaptive stage
WEIGHTINGS = ("equal", "prior")
PROTOCOLS = ("views", "fixed", "hard", "plain", "own")
# protocols with a label for each image, in each of its views the same; one store for each batch size
OF_WHOLE_IMAGES = ("fixed", "hard", "plain")
PROTOCOL_HELP = (
    "views: a soft label for each view; fixed: one for each image; hard: its class; plain: as views, but of images as "
    "they are; own: as the method's paper labels and trains"
)
AUGMENTATIONS = ("views", "dsa", "none")
AMP, COMPILE = ("auto", "off", "fp16", "bf16"), ("auto", "off", "on")
COMPILE_HELP = "torch.compile, with CUDA graphs on CUDA; auto: on CUDA, and on a CPU where it wins its time back"
SOURCE_HELP = "offline: teachers from --model-pool-dir; online: torchvision's IMAGENET1K_V1 weights"
DRAW_HELP = "an independent repetition: seeds are so much larger, folders end in _draw<K>; several: a run for each"
OWN_TRAIN, OWN_VAL = "the dataset's own folder of training images", "the dataset's own folder of validation images"
ONLINE = {"--online": "online", "--no-online": "offline"}

# Where things lie in the folders of config.sh; {images} and {labels} are explained in utils/recipes/__init__.py.
TRAIN, VAL, PATCHES = "{train_dir}/{dataset}", "{val_dir}/{dataset}", "{patch_dir}/{dataset}"
POOL = "{root}/pretrained_models/{dataset}_pretrained_models"
IMAGES, RUN = "{root}/generated_data/syn_data/{dataset}", "{images}_ipc{ipc}{draw}"
LABELS = "{root}/generated_data/new_labels/{dataset}/{labels}{store}{draw}"
RESULTS = "{root}/generated_data/validate_output"


@dataclass(frozen=True)
class PretrainSettings(StageSettings):
    """models.pretrain"""

    recipe: str = setting("fadrm+", "train the teachers of this method, where none are named")
    like_ipc: int | None = setting(
        None,
        "train its student instead, for as many images as it sees at this IPC, as NAME@N",
        within=MANY,
    )
    model: tuple[str, ...] = setting(
        (),
        "the teachers to train, one after another; NAME@N: for N epochs; NAME@KofN: as it is after K of N, left by the "
        "same training (default: those of --recipe)",
    )
    train_dir: Path | None = folder(TRAIN, OWN_TRAIN, group="files")
    val_dir: Path | None = folder(VAL, OWN_VAL)
    model_pool_dir: Path | None = folder(POOL, "where teachers and their records go")
    workers: int = setting(4, "processes that decode (0: this one)", within=WORKERS)
    test_every: int = setting(0, "epochs between tests (0: only at the end)", within=(0, 99_999))
    keep_scores: bool = setting(False, "also keep a score of each training image and epoch, for cad-prune and r-cad")
    epochs: int = shaping(200, "passes over the training images", within=EPOCHS, group="training")
    batch_size: int = shaping(512, "images in one step", within=(2, 10**6))
    optimizer: str = shaping("adam", "what trains", choices=("adam", "sgd"))
    lr: float = shaping(0.001, "learning rate of epoch 0; a cosine takes it to 0", within=POSITIVE)
    momentum: float = shaping(0.9, "of sgd", within=SHARE)
    weight_decay: float = shaping(1e-4, "L2 on every parameter", within=WEIGHT)


@dataclass(frozen=True)
class RecipeSettings(StageSettings):
    """What the stages have that a recipe gives settings for."""

    recipe: str | None = setting(None, "take the settings of this method for --dataset-name and --ipc; flags win")
    ipc: int | None = setting(None, "images per class: selects the recipe, and is checked", within=MANY)


@dataclass(frozen=True)
class PatchSettings(RecipeSettings):
    """recover.make_patches"""

    train_dir: Path | None = folder(TRAIN, OWN_TRAIN, group="files")
    patch_dir: Path | None = folder(PATCHES, "the dataset's own folder; patches go to a subfolder")
    model_pool_dir: Path | None = folder(POOL, "the teachers' checkpoints; not needed online", required=False)
    selector: str = shaping(
        "medium", "which crops to take, and the subfolder", "--patch-diff --selector", choices=SELECTORS, group="choice"
    )
    factor: int = shaping(1, "tile factor x factor crops into one patch", within=(1, 64))
    tile_stride: int = younger(1, "tile crops that lie so far apart in the ranking (RDED: its IPC)", within=MANY)
    num_crops: int = shaping(5, "random square crops from each image", within=(1, 10_000))
    max_images: int = shaping(300, "images of a class to look at", within=MANY)
    patches_per_class: int = setting(50, "patches to make", within=MANY)
    crop_area: tuple[float, ...] = shaping(
        (0.08, 1.0),
        "least and largest share of the image that a crop covers (1 1: whole images)",
        within=AREA,
        recorded_as=("area_min", "area_max"),
    )
    observer: str = shaping("ResNet18", "the teacher that scores")
    source: str = setting("offline", SOURCE_HELP, "--pretrained-model-type", choices=SOURCES)
    start_index: int = setting(0, "first class", within=INDEX, group="work")
    end_index: int | None = setting(None, "class after the last (default: all classes)", within=MANY)
    crops_at_once: int = setting(250, "crops in one forward pass", "--batch-size", within=MANY)
    workers: int = setting(4, "threads that decode and crop", within=WORKERS)

    def resolved(self) -> Self:
        end = self.dataset.num_classes if self.end_index is None else self.end_index
        require_class_range(self.start_index, end, self.dataset)
        if self.dataset.size % self.factor:
            raise UserError(
                f"--factor {self.factor} does not divide the {self.dataset.size} pixels of {self.dataset_name}"
            )
        if len(self.crop_area) != 2 or self.crop_area[0] > self.crop_area[1]:
            raise UserError(f"--crop-area {' '.join(map(str, self.crop_area))}: two shares, the smaller one first")
        if self.patches_per_class % self.tile_stride:
            raise UserError(f"--patches-per-class {self.patches_per_class}: no multiple of --tile-stride")
        require_pool(self.source, self.model_pool_dir)
        return replace(self, end_index=end)


@dataclass(frozen=True)
class ImageSettings(StageSettings):
    """recover.choose_images"""

    draw: int = setting(0, DRAW_HELP, within=INDEX)
    ipc: int | None = setting(None, "images per class", within=MANY, required=True)
    selector: str = setting("random", "how they are chosen", choices=SELECTORS)
    observer: str = setting("ResNet18", "the teacher that a selector asks, if it asks one")
    source: str = setting("offline", SOURCE_HELP, "--pretrained-model-type", choices=SOURCES)
    train_dir: Path | None = folder(TRAIN, OWN_TRAIN, group="files")
    syn_data_path: Path | None = folder(IMAGES, "folder that holds --exp-name")
    exp_name: str | None = folder("{selector}_ipc{ipc}{draw}", "folder of this run's images")
    model_pool_dir: Path | None = folder(POOL, "folder of teacher checkpoints", required=False)
    workers: int = setting(0, "processes that decode (0: this one)", within=WORKERS)


@dataclass(frozen=True)
class WeighSettings(RecipeSettings):
    """recover.weigh_images"""

    draw: int = setting(0, DRAW_HELP, within=INDEX)
    images: str | None = setting(None, "the images' name where they are not the recipe's (random, ...)", group="files")
    syn_data_path: Path | None = folder(f"{IMAGES}/{RUN}", "the distilled images: class folders")
    train_dir: Path | None = folder(TRAIN, OWN_TRAIN)
    model_pool_dir: Path | None = folder(POOL, "folder of teacher checkpoints", required=False)
    observer: str = setting("ResNet18", "the teacher whose features tell which images are alike", group="weights")
    source: str = setting("offline", SOURCE_HELP, "--pretrained-model-type", choices=SOURCES)
    workers: int = setting(0, "processes that decode (0: this one)", within=WORKERS)

    def resolved(self) -> Self:
        require_pool(self.source, self.model_pool_dir)
        return self


@dataclass(frozen=True)
class RecoverSettings(RecipeSettings):
    """recover.recover"""

    draw: int = younger(0, DRAW_HELP, within=INDEX)
    syn_data_path: Path | None = folder(IMAGES, "folder that holds --exp-name", group="files")
    exp_name: str | None = folder(RUN, "folder of this run's images")
    train_dir: Path | None = folder(TRAIN, "real images, for --probe, --group-by and --residual", required=False)
    patch_dir: Path | None = folder(PATCHES, "the dataset's own patch folder", required=False)
    selector: str = shaping("medium", "its subfolder", "--patch-diff --selector")
    model_pool_dir: Path | None = folder(POOL, "folder of the teachers' checkpoints", required=False)
    store_initialised_images: bool = setting(False, "also store what each image started as")
    store_stages: bool = setting(False, "also store what each stage but the last ends with, in <exp-name>_stage<k>")
    teachers: tuple[str, ...] = setting(
        ("ResNet18",), "the teachers", "--teacher-model-list", required=True, group="method"
    )
    source: str = setting("offline", SOURCE_HELP, "--pretrained-model-type", choices=SOURCES)
    start: str = shaping(
        "Gaussian",
        "what images start from",
        "--initialisation-method",
        choices=("Patches", "Gaussian"),
        spellings={"Guassian": "Gaussian"},  # the published parser's
    )
    resolution: str = younger(
        "manual",
        "adaptive: the total variation of the images decides on the size of smaller stages",
        choices=RESOLUTIONS,
    )
    sizes: tuple[int, ...] | None = shaping(
        None, "side of each stage in pixels (default: one stage)", "--input-size-lis --sizes", within=(1, 4096)
    )
    budgets: tuple[int, ...] | None = shaping(
        None,
        "iterations of each stage (default: 1000); none: images stay what they start as",
        "--optimization-budgets --budgets",
        within=MANY,
    )
    layout: str = younger("one_per_class", "which images make a batch", choices=LAYOUTS)
    committee: str = younger("in_turn", "which teachers an iteration asks", choices=COMMITTEES)
    weighting: str = younger(
        "equal", "of teachers asked together; prior: by --priors, else their recorded accuracies", choices=WEIGHTINGS
    )
    priors: tuple[float, ...] = younger((), "a score for each teacher; means --weighting prior", within=PERCENT)
    probe: str = younger("bn_input", "which statistics are matched", choices=PROBES)
    terms: tuple[str, ...] = younger(
        ("cross_entropy", "r_bn"), "terms of the loss; NAME=WEIGHT weighs one", required=True
    )
    residual: str = younger("mix", "what is merged between two stages", choices=RESIDUALS)
    alpha: float = shaping(1.0, "share of the optimised image kept at each merge", within=SHARE)
    lr: float = shaping(0.1, "learning rate of the pixels", within=POSITIVE)
    r_bn: float = shaping(0.05, "weight of the BN-statistic loss", within=WEIGHT)
    first_bn_multiplier: float = shaping(10.0, "weight of the first layer in it", within=WEIGHT)
    smoothing: float = younger(0.0, "share of the statistics so far in those that are matched", within=SHARE)
    drop_layers: float = younger(0.0, "how probably an iteration leaves a convolution out of it", within=SHARE)
    class_share: float = younger(0.0, "share in it of statistics of the batch's classes", within=SHARE)
    scale: str = younger(
        "sum", "of that loss; mean: by layer and channel, so that teachers of all sizes count alike", choices=SCALES
    )
    group_by: str = younger("all", "which real images' statistics an image index is matched to", choices=GROUPINGS)
    group_prior: float = younger(100.0, "images' worth of all images' statistics in each group's", within=POSITIVE)
    late_starts: int = younger(
        1, "groups of image indices, each of which begins a stage later than the one before (DELT)", within=MANY
    )
    narrowing: bool = younger(False, "crops begin as whole images and narrow to --crop-area-min (DELT)")
    augment: bool = shaping(False, "random resized crop and flip", "--apply-data-augmentation")
    crop_area_min: float = younger(0.08, "least share of the image that this crop covers", within=AREA)
    jitter: int | None = shaping(None, "largest roll in pixels (default: the dataset's)", within=(0, 4096))
    amp: str = setting("auto", "number type of the networks; auto: float16 on CUDA, else float32", choices=AMP)
    classes_a_batch: int = shaping(100, "images optimised together", "--batch-size", within=MANY, group="work")
    ipc_start: int = setting(0, "first image index", within=INDEX)
    ipc_end: int | None = setting(None, "index to stop before (default: --ipc more, or 50)", within=(1, 2 * 10**6))
    start_index: int = setting(0, "first class; whole batches are made", within=INDEX)
    end_index: int | None = setting(None, "class to stop before (default: all)", within=MANY)
    compile: str = setting("auto", COMPILE_HELP, choices=COMPILE)
    verifier: bool = setting(False, "print a network's accuracy on the images as they form", group="verifier")
    verifier_arch: str = setting("ResNet18", "that network")
    verifier_weight_path: Path | None = setting(None, "its weights (default: <model-pool-dir>/<arch>)")
    measure_every: int = setting(
        0,
        "iterations between two looks at the loss and the images, kept in <exp-name>_measures (0: never)",
        within=INDEX,
        group="measures",
    )
    reference: str | None = setting(
        None, "the network that looks at the images (default: the first teacher); none: at the loss alone"
    )

    def resolved(self) -> Self:
        sizes, budgets, end = self.sizes, self.budgets, self.ipc_end
        if sizes is None:
            sizes = (self.dataset.size,) * (1 if budgets is None else len(budgets))
        if budgets is None:
            budgets = (1000,) * len(sizes)
        if end is None:
            end = 50 if self.ipc is None else self.ipc_start + self.ipc
        settings = replace(
            self,
            sizes=sizes,
            budgets=budgets,
            train_dir=self.train_dir if self.needs_real_images else None,
            patch_dir=self.patch_dir if self.uses_patches else None,
            weighting="prior" if self.priors else self.weighting,
            jitter=self.dataset.jitter if self.jitter is None else self.jitter,
            ipc_end=end,
            end_index=self.dataset.num_classes if self.end_index is None else self.end_index,
        )
        settings._check_together()
        return settings

    @property
    def uses_patches(self) -> bool:
        return self.start == "Patches" or self.residual != "none"

    @property
    def images_per_class(self) -> int:
        """Of the whole set, of which a run may make a part."""
        return self.ipc or self.ipc_end - self.ipc_start

    @property
    def probes_real_images(self) -> bool:
        """Whether the probe's targets are what teachers see of real images."""
        return getattr(PROBES[self.probe], "of_real_images", False)

    @property
    def retrieves(self) -> bool:
        return getattr(RESIDUALS[self.residual], "of_real_images", False)

    @property
    def probes_single_images(self) -> bool:
        return getattr(PROBES[self.probe], "of_single_images", False)

    @property
    def is_grouped(self) -> bool:
        """Whether what is matched is of groups of real images, and not of the teachers' own layers."""
        return self.group_by != "all" or self.probes_single_images

    @property
    def needs_real_images(self) -> bool:
        return self.probes_real_images or self.retrieves or self.is_grouped

    @property
    def takes_map(self) -> bool:
        """Whether a term of the loss is of what enters a teacher's middle layer."""
        return any(getattr(TERMS[word.partition("=")[0]], "of_map", False) for word in self.terms)

    @property
    def is_smoothed(self) -> bool:
        return bool(self.smoothing or self.drop_layers or self.class_share)

    def _check_together(self) -> None:
        sizes, budgets, dataset = self.sizes, self.budgets, self.dataset
        if len(sizes) != len(budgets):
            raise UserError(
                f"--input-size-lis has {len(sizes)} stages, --optimization-budgets {len(budgets)}: give as many"
            )
        if sizes and sizes[-1] != dataset.size:
            raise UserError(
                f"--input-size-lis ends at {sizes[-1]}: {dataset.name} images have {dataset.size} pixels a side"
            )
        if self.patch_dir is None and self.start == "Patches":
            raise UserError("--initialisation-method Patches reads patches: name --patch-dir, or take Gaussian")
        if self.patch_dir is None and self.residual == "mix" and self.alpha < 1 and len(sizes) > 1:
            raise UserError(f"--alpha {self.alpha} merges patches: name --patch-dir, or take --alpha 1")
        if self.resolution == "adaptive" and dataset.size <= LEAST_SIZE:
            raise UserError(
                f"--resolution adaptive goes down to {LEAST_SIZE} pixels: {dataset.name} has {dataset.size}"
            )
        if self.class_share and not self.probes_real_images:
            raise UserError(f"--class-share {self.class_share} is of classes of real images: take --probe conv_input")
        if self.probes_real_images and set(sizes) - {dataset.size}:
            raise UserError(f"--probe {self.probe} compares patches at {dataset.size} pixels: leave --sizes at that")
        if self.is_grouped and (self.is_smoothed or self.probes_real_images):
            raise UserError(
                "--group-by and --probe image_input are of BatchNorms' inputs, not smoothed: leave one of them out"
            )
        if self.probes_single_images and dataset.num_classes % min(self.classes_a_batch, dataset.num_classes):
            raise UserError(
                f"--probe {self.probe} takes batches of one size: --batch-size {self.classes_a_batch} does not divide "
                f"the {dataset.num_classes} classes of {dataset.name}"
            )
        if (self.is_grouped or self.late_starts > 1) and self.layout != "one_per_class":
            raise UserError("--group-by and --late-starts go by image index: take --layout one_per_class")
        if self.group_by == "likeness" and self.patch_dir is None:
            raise UserError("--group-by likeness is likeness to patches: name --patch-dir, and start from Patches")
        if self.group_by == "likeness" and 1 < self.images_per_class < self.ipc_end:
            raise UserError(
                f"--group-by likeness: image indices from 0 on have a patch each, and --ipc-end {self.ipc_end} goes "
                f"beyond {self.images_per_class} images a class: name --ipc, how many there are in all"
            )
        if self.narrowing and not self.augment:
            raise UserError("--narrowing is of the crops of --apply-data-augmentation: name that, too")
        if sizes and self.late_starts > len(sizes):
            raise UserError(f"--late-starts {self.late_starts}: there are {len(sizes)} stages to begin with")
        if self.late_starts > 1 and (self.store_stages or self.measure_every):
            raise UserError(
                f"--late-starts {self.late_starts} leaves some images fewer stages than others: --store-stages and "
                f"--measure-every are for all alike, leave them out"
            )
        if self.takes_map and self.is_smoothed:
            raise UserError("--terms paired is for teachers whose statistics are not smoothed: leave one of them out")
        if self.is_smoothed and self.compile == "on":
            raise UserError("--compile on: teachers whose statistics are smoothed are not compiled; leave it out")
        if self.measure_every and self.reference == NO_REFERENCE and not sizes:
            raise UserError("--reference none measures losses alone, and --optimization-budgets has no stage with one")
        if self.start == "Gaussian" and not sizes:
            raise UserError("--optimization-budgets has no stage: images would stay noise; start from Patches")
        if self.ipc_start >= self.ipc_end:
            raise UserError(
                f"--ipc-start {self.ipc_start} --ipc-end {self.ipc_end}: an empty range; the end is exclusive"
            )
        require_class_range(self.start_index, self.end_index, dataset)
        if self.priors and len(self.priors) != len(self.teachers):
            raise UserError(f"--priors has {len(self.priors)} scores for {len(self.teachers)} teachers: give as many")
        require_pool(self.source, self.model_pool_dir)


@dataclass(frozen=True)
class RelabelSettings(RecipeSettings):
    """relabel.relabel"""

    seed: int | None = setting(None, "views and mixes follow from it (default: --fkd-seed)", within=SEED)
    draw: int = setting(0, DRAW_HELP, within=INDEX)
    images: str | None = setting(None, "the images' name where they are not the recipe's (random, ...)", group="files")
    syn_data_path: Path | None = folder(f"{IMAGES}/{RUN}", "the distilled images: class folders")
    fkd_path: Path | None = folder(LABELS, "labels go to <fkd-path>_bs<bs>_ipc<N>")
    model_pool_dir: Path | None = folder(POOL, "folder of the teachers' checkpoints", required=False)
    teachers: tuple[str, ...] = setting(
        (), "their logits are averaged", "--model-choice --teacher-model-name", required=True, group="teachers"
    )
    weighting: str = setting(
        "equal",
        "prior: weights are softmax(scores / 10) of --model-weight, else of the teachers' recorded accuracies; norm: "
        "all at one norm",
        choices=(*WEIGHTINGS, "norm"),
    )
    labels: str = setting("views", PROTOCOL_HELP, "--labels --protocol", choices=PROTOCOLS)
    model_weight: tuple[float, ...] = setting(
        (), "a score for each teacher; means --weighting prior", within=(-1e6, 1e6)
    )
    source: str = setting("offline", SOURCE_HELP, "--pretrained-model-type", switches=ONLINE, choices=SOURCES)
    eval_mode: str = setting("F", "F: batch statistics (BSSL); T: running ones", choices=("T", "F"))
    epochs: int = setting(300, "epochs of the training, all of which are stored", within=EPOCHS, group="views")
    stored_epochs: int | None = setting(None, "store only so many, for another --replay of validate", within=EPOCHS)
    batch_size: int = setting(4, "images a batch", "--batch-size -b", within=(1, 2**15))
    min_scale: float = setting(0.08, "smallest share of the area a crop takes", "--min-scale-crops", within=AREA)
    max_scale: float = setting(1.0, "largest share", "--max-scale-crops", within=AREA)
    mix: str | None = setting(
        None, "how images of a batch are mixed (default: not)", "--mix-type", choices=("cutmix", "mixup")
    )
    mixup: float = setting(0.8, "alpha of MixUp's Beta distribution", within=BETA)
    cutmix: float = setting(1.0, "alpha of CutMix's Beta distribution", within=BETA)
    tiles: int = setting(1, "rows and columns of tiles that change places in each view (RDED)", within=(1, 64))
    fkd_seed: int = setting(42, "the order of the images follows from it", "--fkd-seed --fkd_seed", within=SEED)
    use_fp16: bool = setting(False, "store labels in float16 instead of float32")
    codec: str = setting(
        "dense", "how labels are stored; top_k: the largest logits; four_bits: all, roughly", choices=CODECS
    )
    top_k: int | None = setting(None, "logits of a view that --codec top_k keeps", within=MANY)
    store_draws: bool = setting(True, "store order, crops, flips and mixes too; off: they are drawn again when read")
    verify: bool = setting(False, "read the epochs of a finished store too, and make again what is not right")
    amp: str = setting("auto", "number type of the networks; auto: float32", choices=AMP)
    compile: str = setting("auto", COMPILE_HELP, choices=COMPILE)

    @property
    def is_fixed(self) -> bool:
        return self.labels in OF_WHOLE_IMAGES

    @property
    def epochs_kept(self) -> int:
        """The epochs that the store has."""
        return self.stored_epochs or self.epochs

    def resolved(self) -> Self:
        scores, teachers = len(self.model_weight), len(self.teachers)
        if scores and scores != teachers:
            raise UserError(f"--model-weight has {scores} scores for {teachers} teachers: give as many")
        if not self.fkd_path.name:
            raise UserError(f"--fkd-path {self.fkd_path}: it ends in the name that the label folder's begins with")
        if self.weighting == "norm" and self.eval_mode == "F":
            raise UserError("--weighting norm is of teachers with running statistics: take --eval-mode T")
        if self.labels == "own" and self.recipe is None:
            raise UserError("--protocol own is a method's: name --recipe")
        if self.is_fixed and (self.mix or self.eval_mode == "F"):
            raise UserError(
                f"--labels {self.labels}: images are labelled whole, one by one: no --mix-type, and --eval-mode T"
            )
        if self.min_scale > self.max_scale:
            raise UserError(
                f"--min-scale-crops {self.min_scale} --max-scale-crops {self.max_scale}: the first is the smaller one"
            )
        if self.dataset.size % self.tiles:
            raise UserError(
                f"--tiles {self.tiles} does not divide the {self.dataset.size} pixels of {self.dataset_name}"
            )
        if self.epochs_kept > self.epochs:
            raise UserError(f"--stored-epochs {self.stored_epochs}: the training has {self.epochs}, name no more")
        if self.codec == "top_k" and self.top_k is None:
            raise UserError("--codec top_k: name --top-k, how many logits of a view it keeps")
        if self.codec != "top_k" and self.top_k is not None:
            raise UserError(f"--top-k {self.top_k} is of --codec top_k: name it, too")
        if (self.top_k or 0) > self.dataset.num_classes:
            raise UserError(f"--top-k {self.top_k}: {self.dataset_name} has {self.dataset.num_classes} classes")
        require_pool(self.source, self.model_pool_dir)
        seed = self.fkd_seed if self.seed is None else self.seed
        return replace(self, seed=seed, weighting="prior" if scores else self.weighting)


@dataclass(frozen=True)
class ValidateSettings(RecipeSettings):
    """validate.validate"""

    seed: tuple[int, ...] = setting((0,), "one student for each seed", within=SEED, required=True)
    draw: int = setting(0, "of images and labels: their folders, and the results', end in _draw<K>", within=INDEX)
    model: str | None = setting(None, "the student; several: a run for each", required=True)
    method: str | None = setting(None, "what the results call the method (default: --recipe, else --exp-name)")
    images: str | None = setting(None, "the images' name where they are not the recipe's (random, ...)", group="files")
    original_data_path: Path | None = folder(f"{IMAGES}/{RUN}", "the distilled images: class folders")
    fkd_path: Path | None = folder(LABELS + "_bs{batch_size}_ipc{ipc}", "the label store: the whole folder")
    val_dir: Path | None = folder(VAL, OWN_VAL)
    output_dir: Path | None = folder(RESULTS, "results: <output-dir>/<dataset>/<exp-name>/seed<n>")
    exp_name: str | None = folder("{results}_ipc{ipc}_{model}{protocol}{draw}", "folder of this run's results")
    workers: int = setting(4, "processes that decode the validation images, once", "--workers -j", within=WORKERS)
    verify: bool = setting(False, "read all labels against their checksums first")
    epochs: int = shaping(
        300, "epochs; the store has at least as many, but for another --replay", within=EPOCHS, group="training"
    )
    replay: str = younger("in_order", "what the epochs show of a store with fewer", choices=REPLAYS)
    fresh_share: float = younger(0.5, "epochs of fresh views in soft_hard_soft and mixed, share of all", within=SHARE)
    batch_size: int = shaping(16, "images a batch: that of the store", within=(1, 2**15))
    accumulation: int = shaping(
        1, "micro-batches a batch is cut in", "--gradient-accumulation-steps", within=(1, 2**15)
    )
    labels: str = younger("views", PROTOCOL_HELP, "--labels --protocol", choices=PROTOCOLS)
    augmentation: str = younger(
        "views",
        "views: those of the store; where a label is of the whole image, dsa: drawn as the student trains; none",
        "--augment",
        choices=AUGMENTATIONS,
    )
    loss: str = shaping("kl", "what the student minimises", choices=LOSSES)
    gamma: float = younger(0.1, "weight of the image's class in mse_ce and cosine", within=WEIGHT)
    image_weights: bool = younger(False, "weigh images in the loss by the weights.json that recover.weigh_images made")
    ema: float = younger(0.0, "test a running mean of the weights, of which each step keeps this share", within=SHARE)
    temperature: float = shaping(3.0, "of teacher and student in the KL loss", "--temperature -T", within=POSITIVE)
    mix: str | None = shaping(
        None, "that of the store (default: whatever it is)", "--mix-type", choices=("cutmix", "mixup")
    )
    min_scale: float = shaping(0.08, "smallest crop of the store, share of the area", within=AREA)
    schedule: str = shaping(
        "linear",
        "learning rate over the epochs",
        switches={"--cos": "cosine", "--no-cos": "linear"},
        choices=SCHEDULES,
    )
    optimizer: str = shaping(
        "adamw", "what trains", switches={"--sgd": "sgd", "--no-sgd": "adamw"}, choices=("adamw", "sgd")
    )
    adamw_lr: float | None = shaping(
        None, "AdamW's rate (default: by dataset, method, student and IPC)", within=POSITIVE
    )
    eta: float | None = shaping(
        None, "2: the cosine ends at half the rate; 1: at 0 (default: likewise)", within=POSITIVE
    )
    adamw_weight_decay: float = shaping(0.01, "on weights of two dimensions or more", within=WEIGHT)
    sgd_lr: float = shaping(0.01, "SGD's rate", within=POSITIVE)
    momentum: float = shaping(0.5, "SGD's momentum", within=SHARE)
    weight_decay: float = shaping(1e-4, "SGD's weight decay", within=WEIGHT)
    test_every: int = shaping(10, "epochs between two tests; the last is tested too", within=EPOCHS)
    simple: bool = shaping(False, "test in the last fifth of the epochs only")
    amp: str = shaping("auto", "number type of the networks; auto: float32", choices=AMP)
    compile: str = shaping("auto", COMPILE_HELP, choices=COMPILE)

    @property
    def epochs_needed(self) -> int:
        """The epochs that the label store has at least."""
        return self.epochs if self.replay == "in_order" else 1

    @property
    def lr(self) -> float:
        """The learning rate of the first epoch."""
        return self.sgd_lr if self.optimizer == "sgd" else self.adamw_lr

    def resolved(self) -> Self:
        if self.labels != "views" and self.recipe is None:
            raise UserError(
                f"--labels {self.labels} stands for settings of a recipe: name --recipe, or give these one by one"
            )
        if self.augmentation != "views" and self.labels not in OF_WHOLE_IMAGES:
            raise UserError(
                f"--augment {self.augmentation}: labels of views are for the stored views alone; take one of --labels "
                f"{' '.join(OF_WHOLE_IMAGES)}"
            )
        reads = loss_reads(self.loss)
        if getattr(REPLAYS[self.replay], "has_fresh_views", False) and reads != "probabilities":
            others = " ".join(name for name in LOSSES if loss_reads(name) == "probabilities")
            raise UserError(
                f"--replay {self.replay} labels fresh views by probabilities, and --loss {self.loss} reads {reads}: "
                f"take one of {others}, or another --replay"
            )
        if len(set(self.seed)) != len(self.seed):
            raise UserError(f"--seed {' '.join(map(str, self.seed))}: each seed once")
        if "@" in self.model:
            raise UserError(f"--model {self.model}: a student learns for --epochs; @ is of teachers")
        return replace(self, method=self.method or self.images or self.recipe or self.exp_name)


def loss_reads(loss: str) -> str:
    """What a loss reads of a label: probabilities, logits or classes."""
    return getattr(LOSSES[loss], "reads", "probabilities")


def require_class_range(start: int, end: int, dataset: Dataset) -> None:
    """UserError unless start .. end - 1 are classes of the dataset."""
    if not 0 <= start < end <= dataset.num_classes:
        raise UserError(
            f"--start-index {start} --end-index {end}: an empty range, or beyond the {dataset.num_classes} classes of "
            f"{dataset.name}; the end is exclusive"
        )


def require_pool(source: str, pool: Path | None) -> None:
    """UserError where teachers are to be read from a folder and none is named."""
    if source == "offline" and pool is None:
        raise UserError("teachers are read from a folder: name --model-pool-dir, or take them online")
