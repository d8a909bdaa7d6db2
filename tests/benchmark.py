"""What each stage costs beside its bare networks, and beside a plain version of itself.

    python -m tests.benchmark --stage recover relabel validate --networks ShuffleNetV2 MobileNetV2 ResNet18

In one process and interleaved, for each stage and network: the stage as shipped; the plain version (tests/plain.py,
the tests' oracle); and the bare network, which is forward and backward to the input in recover, forward with batch
statistics at its best batch size in relabel, and an optimiser step at batch 16 in validate, all channels last where
that is the faster. Versions take turns; a turn begins with a run that does not count, so that memory and caches are as
the version's own runs leave them, which is how it finds them in a stage. Figures are medians; peak memory is what a
fresh process for each takes beyond what it had after a run of a few images, which loads the code.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from models.registry import build_network
from recover.augmentation import sample_batch_augmentations
from recover.batches import valid_range_of
from recover.optimise import ADAM_BETAS, Plan, Stage, recover_batch
from recover.terms import build_terms
from relabel.labelling import label_epoch, mean_logits
from tests.plain import PlainMatchedTeacher, plain_label_epoch, plain_recover_step, plain_train_epoch
from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import BatchNormInput
from utils.data.images import normalise
from utils.data.table import DATASETS, Dataset
from utils.fkd.groups import GroupedNetwork, forget_running_statistics
from utils.fkd.losses import distillation_loss
from utils.fkd.store import LabelStore, epoch_path, read_epoch, write_epoch
from utils.fkd.views import ViewSettings, draw_epoch, render_views
from utils.recipes import recipe_of
from utils.recipes.settings import RecoverSettings, ValidateSettings
from utils.residual.residuals import resize
from utils.run.background import BackgroundWriter, one_ahead
from utils.run.chunks import images_at_once
from utils.run.device import (
    choose_device,
    describe_device,
    memory_format,
    peak_memory_bytes,
    reset_peak_memory,
    versions,
)
from utils.run.errors import run_entry
from utils.run.files import sha256_of, write_json
from utils.run.precision import amp_type, autocast, compiled, is_compiled
from utils.run.randomness import generator_for, seed_for
from utils.run.settings import Parser
from validate.training import parameter_groups, prepare_student, train_epoch

DATASET_OF_SIZE = {32: "cifar100", 64: "tiny_imagenet", 224: "imagenet1k"}
CLASSES_A_BATCH, RECOVER_ITERATIONS = 100, 4
IMAGES, FEW_IMAGES, BATCH = {"relabel": 256, "validate": 64}, 2, 16
BARE_BATCHES, EPOCHS = (32, 128, 256), 3
PAPER_COST = {"fadrm": "0.47 s, 2.9 GB", "fadrm+": "1.09 s, 11.0 GB"}
R_BN, FIRST = 0.01, 10.0


class Setting(NamedTuple):
    """What a measurement depends on. images: of a batch of classes in recover, of an epoch in the other stages."""

    stage: str
    network: str
    dataset: Dataset
    device: torch.device
    compile: str
    images: int
    scratch: str  # a folder for label files


class Measurement(NamedTuple):
    """A version of a stage: what to run, and how many images (recover: iterations) one run counts for."""

    run: Callable[[], object]
    units: int


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    device = choose_device(arguments.device)
    dataset = DATASETS[DATASET_OF_SIZE[arguments.size]]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for stage in arguments.stage:
            for network in arguments.networks:
                images = IMAGES.get(stage, arguments.classes)
                setting = Setting(stage, network, dataset, device, arguments.compile, images, scratch)
                rows.append(measure(setting, arguments.repeats, arguments.memory))
                print_row(rows[-1], first=len(rows) == 1)
    for stage in arguments.stage:
        ratios = [row["plain_to_shipped"] for row in rows if row["stage"] == stage]
        print(f"{stage}: {statistics.geometric_mean(ratios):.2f} x as fast as plain (geometric mean)")
    content = {"device": describe_device(device), "versions": versions(), "size": arguments.size, "rows": rows}
    if device.type == "cuda":
        costs = {method: cost_of_an_image(method, device, arguments.compile) for method in PAPER_COST}
        content["distilled_image"] = costs
        for method, cost in costs.items():
            figures = (
                f"{cost['seconds']:.3f} s an image ({cost['bare']:.3f} s bare), peak {cost['peak_memory_gib']:.1f} GiB"
            )
            figures += f", compiled {cost['compiled']} in {cost['compiling']:.0f} s"
            print(f"{method}, 224 pixels: {figures}; the paper, on an RTX 4090: {PAPER_COST[method]}")
    write_json(arguments.output, content)
    print(f"written to {arguments.output}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("tests.benchmark", "Measure the stages beside their bare networks.")
    stages = tuple(VERSIONS)
    parser.add_argument("--stage", nargs="+", choices=stages, default=list(stages), help="stages to measure")
    names = ["ShuffleNetV2", "MobileNetV2", "ResNet18"]
    parser.add_argument("--networks", nargs="+", default=names, help="teachers, and students in validate")
    parser.add_argument("--size", type=int, choices=tuple(DATASET_OF_SIZE), default=32, help="pixels a side")
    parser.add_argument("--classes", type=int, default=CLASSES_A_BATCH, help="images of a recover batch")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each version, of which the median is taken")
    parser.add_argument("--compile", choices=("auto", "off", "on"), default="auto", help="as the stages' flag")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark.json"), help="the figures as JSON")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    return parser.parse_args(argv)


def measure(setting: Setting, repeats: int, memory: bool) -> dict[str, object]:
    """Time the versions of a stage in turn; the figures of one row of the table."""
    versions_of_stage = VERSIONS[setting.stage](setting)
    seconds: dict[str, list[float]] = {name: [] for name in versions_of_stage}
    for _ in range(repeats):
        for name, version in versions_of_stage.items():
            version.run()
            synchronise(setting.device)
            started = time.perf_counter()
            version.run()
            synchronise(setting.device)
            seconds[name].append((time.perf_counter() - started) / version.units)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    bare = min(value for name, value in median.items() if name.startswith("bare"))
    row = {
        "stage": setting.stage,
        "network": setting.network,
        "seconds": median,
        "shipped_to_bare": median["shipped"] / bare,
        "plain_to_shipped": median["plain"] / median["shipped"],
        "bare": bare,
    }
    if "views and store" in median:
        row["views_and_store_share"] = median["views and store"] / median["shipped"]
    if memory:
        row["peak_memory_gib"] = {name: peak_in_fresh_process(setting, name) for name in versions_of_stage}
    return row


def print_row(row: dict[str, object], first: bool) -> None:
    """One line of the table; recover counts iterations in milliseconds, the others images a second."""
    if first:
        print(f"{'stage':<10}{'network':<14}{'shipped':>10}{'plain':>10}{'bare':>10}", end="")
        print(f"{'/ bare':>10}{'x plain':>10}{'views, store':>14}{'peak GiB: shipped, bare':>26}")
    of = {**row["seconds"], "bare": row["bare"]}
    in_recover = row["stage"] == "recover"
    times = [of[name] for name in ("shipped", "plain", "bare")]
    shown = [f"{1e3 * seconds:.0f} ms" if in_recover else f"{1 / seconds:.0f}/s" for seconds in times]
    ratio = row["shipped_to_bare"] if in_recover else 1 / row["shipped_to_bare"]
    share = f"{row['views_and_store_share']:.1%}" if "views_and_store_share" in row else ""
    peaks = row.get("peak_memory_gib", {})
    memory = f"{peaks['shipped']:.2f} {peaks['bare']:.2f}" if peaks else ""
    print(f"{row['stage']:<10}{row['network']:<14}" + "".join(f"{text:>10}" for text in shown), end="")
    print(f"{ratio:>10.2f}{row['plain_to_shipped']:>10.2f}{share:>14}{memory:>26}", flush=True)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_in_fresh_process(setting: Setting, version: str) -> float:
    """Peak memory in GiB of two runs of one version, above what the process had after one of a few images."""
    context = multiprocessing.get_context("spawn")
    pool = context.Pool(1)
    peak = pool.apply(_peak_of, (setting, version, torch.get_num_threads()))
    pool.close()
    pool.join()
    return peak


def _peak_of(setting: Setting, version: str, threads: int) -> float:
    import torch._dynamo  # which optimisers import, and is no memory of a stage

    torch.set_num_threads(threads)
    choose_device(setting.device.type)
    VERSIONS[setting.stage](setting._replace(images=FEW_IMAGES))[version].run()
    made = VERSIONS[setting.stage](setting)[version]
    before = peak_memory_bytes(setting.device)
    for _ in range(2):
        made.run()
    synchronise(setting.device)
    return (peak_memory_bytes(setting.device) - before) / 2**30


def fresh(setting: Setting, layout: torch.memory_format | None = None) -> nn.Module:
    """The network of a setting with the same random weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("benchmark"))
        network = build_network(setting.network, setting.dataset)
    layout = memory_format(setting.device) if layout is None else layout
    return network.to(setting.device, memory_format=layout)


def teacher_of(setting: Setting, layout: torch.memory_format | None = None) -> nn.Module:
    return fresh(setting, layout).eval().requires_grad_(False)


def plan_of(stages: Sequence[Stage], dataset: Dataset) -> Plan:
    """The recipe's plan, of these stages."""
    return Plan(stages, 0.25, build_terms(RecoverSettings(r_bn=R_BN)), dataset.jitter, crop_and_flip=True)


def matched_teacher(network: nn.Module, dataset: Dataset, choice: str, device: torch.device) -> nn.Module:
    return compiled(MatchedTeacher(network, BatchNormInput, FIRST, dataset.size), choice, device)


def recover(
    teachers: Sequence[nn.Module],
    start: Tensor,
    labels: Tensor,
    plan: Plan,
    dataset: Dataset,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A batch by teachers in turn, with nothing merged."""
    limits, generator = valid_range_of(dataset, start.device), generator_for("benchmark")

    def ask(iteration: int) -> list[tuple[nn.Module, float]]:
        return [(teachers[iteration % len(teachers)], 1.0)]

    def residual(images: Tensor, stage: int, size: int) -> Tensor:
        return resize(images, size)

    return recover_batch(start, labels, plan, ask, residual, limits, generator, dtype)


def recover_versions(setting: Setting) -> dict[str, Measurement]:
    """An iteration on a batch of classes: milliseconds."""
    device, dataset, layout = setting.device, setting.dataset, memory_format(setting.device)
    generator = generator_for("benchmark", "recover")
    start = torch.randn(setting.images, 3, dataset.size, dataset.size, generator=generator).to(device)
    labels = torch.arange(setting.images, device=device) % dataset.num_classes
    plan = plan_of([Stage(dataset.size, RECOVER_ITERATIONS)], dataset)
    bare_teacher = teacher_of(setting)
    plain_teacher = PlainMatchedTeacher(teacher_of(setting, torch.contiguous_format), FIRST)
    matched = matched_teacher(teacher_of(setting), dataset, setting.compile, device)
    dtype = amp_type("auto", device, auto_on_cuda="fp16")

    def bare() -> None:
        for _ in range(RECOVER_ITERATIONS):
            images = start.clone(memory_format=layout).requires_grad_(True)
            with autocast(device, dtype):
                logits = bare_teacher(images)
            F.cross_entropy(logits.float(), labels).backward()

    def shipped() -> Tensor:
        return recover([matched], start, labels, plan, dataset, dtype)

    def plain() -> None:
        images = start.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([images], lr=plan.lr, betas=ADAM_BETAS)
        for draw in sample_batch_augmentations(RECOVER_ITERATIONS, dataset.size, True, plan.jitter, generator):
            with autocast(device, dtype):
                plain_recover_step(images, labels, plain_teacher, draw, R_BN, optimiser)

    runs = {"shipped": shipped, "plain": plain, "bare": bare}
    return {name: Measurement(run, RECOVER_ITERATIONS) for name, run in runs.items()}


def views_of(setting: Setting) -> tuple[ViewSettings, Tensor]:
    """Settings of an epoch, and its images (uint8, on the device)."""
    images, size = setting.images, setting.dataset.size
    settings = ViewSettings(images, size, BATCH, 1, 0.08, 1.0, "cutmix", 1.0, fkd_seed=0, seed=0)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator_for("pixels"))
    return settings, pixels.to(setting.device)


def relabel_versions(setting: Setting) -> dict[str, Measurement]:
    """Epochs of views through one teacher, drawn one ahead and written in the background as the stage does: images a
    second."""
    dataset, device = setting.dataset, setting.device
    settings, images = views_of(setting)
    epoch = draw_epoch(settings, 0)
    teacher = teacher_of(setting)
    at_once = images_at_once(teacher, dataset.size)
    committee = mean_logits([compiled(GroupedNetwork(teacher), setting.compile, device)], [1.0], True)
    plain_teacher = forget_running_statistics(teacher_of(setting, torch.contiguous_format))
    bare_teacher = forget_running_statistics(teacher_of(setting))
    inputs = normalise(images, dataset).contiguous(memory_format=memory_format(device))
    folder = Path(setting.scratch)
    hidden = tqdm(disable=True)

    @torch.no_grad()
    def shipped() -> None:
        with BackgroundWriter() as writer:
            for drawn in one_ahead(lambda number: draw_epoch(settings, number), range(EPOCHS)):
                logits = label_epoch(
                    images, drawn, committee, settings, at_once, dataset, device, torch.float16, hidden
                )
                writer.submit(write_epoch, folder, 0, drawn, logits)

    @torch.no_grad()
    def bare(batch: int) -> None:
        for part in inputs.split(batch):
            bare_teacher(part)

    def views_and_store() -> None:
        drawn = draw_epoch(settings, 0)
        render_views(images, drawn.to(images, device), 0, settings.batches, settings, dataset)
        write_epoch(folder, 0, drawn, torch.zeros(settings.images, dataset.num_classes, dtype=torch.float16))

    runs = {
        "shipped": shipped,
        "plain": lambda: plain_label_epoch(images.cpu(), epoch, plain_teacher, settings, dataset),
        **{("bare" if i == 0 else f"bare {n}"): partial(bare, n) for i, n in enumerate(BARE_BATCHES)},
        "views and store": views_and_store,
    }
    return {name: Measurement(run, setting.images * (EPOCHS if name == "shipped" else 1)) for name, run in runs.items()}


def validate_versions(setting: Setting) -> dict[str, Measurement]:
    """Training steps of a student: images a second."""
    dataset, device = setting.dataset, setting.device
    settings, images = views_of(setting)
    epoch = draw_epoch(settings, 0)
    soft_labels = torch.randn(setting.images, dataset.num_classes, generator=generator_for("labels")).half()
    inputs = normalise(images, dataset).contiguous(memory_format=memory_format(device))
    folder = Path(setting.scratch)
    write_epoch(folder, 1, epoch, soft_labels)
    training = ValidateSettings(
        model=setting.network,
        batch_size=BATCH,
        accumulation=2,
        temperature=20.0,
        adamw_lr=1e-3,
        compile=setting.compile,
        amp="off",
    )
    manifest = {"format_version": 1, "num_classes": dataset.num_classes, "logits_type": "float16"}
    store = LabelStore(folder, settings, manifest, ["", sha256_of(epoch_path(folder, 1))], "")
    classes = torch.zeros(setting.images, dtype=torch.int64)
    hidden = tqdm(disable=True)

    bare_student, plain_student = fresh(setting), fresh(setting, torch.contiguous_format)
    learner = prepare_student(training, 0, dataset, device)
    networks = (bare_student, plain_student)
    optimisers = [torch.optim.AdamW(parameter_groups(network, 0.01), lr=1e-3) for network in networks]

    def bare() -> None:
        labels = soft_labels.to(device)
        for batch, its_labels in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
            optimisers[0].zero_grad()
            distillation_loss(bare_student(batch), its_labels, 20.0, BATCH).backward()
            optimisers[0].step()

    def shipped() -> None:
        train_epoch(learner, training, 1, read_epoch(store, 1), settings, images, classes, dataset, hidden)

    def views_and_store() -> None:
        stored, _ = read_epoch(store, 1)
        render_views(images, stored.to(images, device), 0, settings.batches, settings, dataset)

    runs = {
        "shipped": shipped,
        "plain": lambda: plain_train_epoch(
            plain_student, optimisers[1], epoch, soft_labels, images.cpu(), settings, dataset, 20.0
        ),
        "bare": bare,
        "views and store": views_and_store,
    }
    return {name: Measurement(run, setting.images) for name, run in runs.items()}


def cost_of_an_image(
    method: str, device: torch.device, choice: str, classes: int = CLASSES_A_BATCH
) -> dict[str, float]:
    """Seconds and peak memory of one distilled image of the 224-pixel recipe, from some iterations at each size; beside
    the seconds of its bare networks, and those that compiling takes once.

    choice: of --compile; classes: images of a batch. The teachers have random weights, which cost the same as trained
    ones.
    """
    recipe, dataset = recipe_of(DATASETS["imagenet1k"], method, 50).recover, DATASETS["imagenet1k"]
    layout = memory_format(device)
    networks = [build_network(name, dataset).eval().requires_grad_(False) for name in recipe.teachers]
    networks = [network.to(device, memory_format=layout) for network in networks]
    labels, dtype = torch.arange(classes, device=device), amp_type("auto", device, auto_on_cuda="fp16")
    start = torch.randn(classes, 3, dataset.size, dataset.size, device=device)

    def bare(plan: Plan) -> None:
        for iteration in range(plan.iterations):
            images = resize(start, plan.stages[0].size).contiguous(memory_format=layout).requires_grad_(True)
            with autocast(device, dtype):
                logits = networks[iteration % len(networks)](images)
            F.cross_entropy(logits.float(), labels).backward()

    def seconds_of(run: Callable[[Plan], object]) -> tuple[float, float]:
        """Of an image, and of what the first run of a size takes more than the second."""
        total = first = 0.0
        for size in dict.fromkeys(recipe.sizes):
            plan, times = plan_of([Stage(size, len(networks) * RECOVER_ITERATIONS)], dataset), []
            for _ in range(2):  # the first warms up and compiles
                started = time.perf_counter()
                run(plan)
                synchronise(device)
                times.append(time.perf_counter() - started)
            budget = sum(b for s, b in zip(recipe.sizes, recipe.budgets, strict=True) if s == size)
            total += times[1] / plan.iterations * budget
            first += times[0] - times[1]
        return total / classes, first

    of_bare, _ = seconds_of(bare)
    teachers = [
        compiled(MatchedTeacher(network, BatchNormInput, FIRST, dataset.size), choice, device) for network in networks
    ]
    reset_peak_memory(device)
    seconds, first = seconds_of(lambda plan: recover(teachers, start, labels, plan, dataset, dtype))
    peak = peak_memory_bytes(device) / 2**30
    return {
        "seconds": seconds,
        "bare": of_bare,
        "peak_memory_gib": peak,
        "compiling": first,
        "compiled": is_compiled(teachers),
    }


VERSIONS: dict[str, Callable[[Setting], dict[str, Measurement]]] = {
    "recover": recover_versions,
    "relabel": relabel_versions,
    "validate": validate_versions,
}


if __name__ == "__main__":
    run_entry(main)
