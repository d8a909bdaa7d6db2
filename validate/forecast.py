"""What a validate run will make and take, from some batches of students that are thrown away and a test batch each."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from utils.datasets import Dataset, list_images
from utils.distillation import top_accuracy
from utils.distilled import at_hand
from utils.distributed import Team
from utils.dry_run import DryRun, Timing, decode_some, measure
from utils.fkd import draw_epoch
from utils.forecast import Output, checkpoint_bytes, epoch_bytes, slowest_share, validate_held, validate_output
from utils.training_state import load_training
from validate.student import (
    CHECKPOINT,
    TEST_BATCH,
    Run,
    is_tested,
    prepare_student,
    test_batches,
    train_epoch,
    what_is_trained,
)

BATCHES = 16  # of a calibrating epoch


def output_of(runs: Sequence[Run], dataset: Dataset, team: Team) -> Output:
    """What the runs without result will write."""
    pending = [run for run in runs if not run.is_done]
    checkpoints = [checkpoint_of(run, dataset) for run in pending]
    summaries = len({run.place.parent for run in pending})
    return validate_output(checkpoints, [run.settings.epochs for run in pending], summaries, team.count)


def checkpoint_of(run: Run, dataset: Dataset) -> int:
    """The most bytes of a checkpoint of the run's student."""
    return checkpoint_bytes(run.settings.model, dataset, moments=1 if run.settings.sgd else 2)


def forecast_validate(
    runs: Sequence[Run], output: Output, dataset: Dataset, device: torch.device, team: Team
) -> DryRun:
    """The dry run of validate. runs: all, with or without result. Writes nothing."""
    settings = runs[0].settings
    left = [range(0) if run.is_done else epochs_left(run) for run in runs]
    tests = [sum(is_tested(epoch, run.settings) for epoch in epochs) for run, epochs in zip(runs, left, strict=True)]
    paths, labels = list_images(settings.val_dir, dataset)
    amounts = {
        "students": sum(not run.is_done for run in runs),
        "views": sum(len(epochs) * len(run.images) for run, epochs in zip(runs, left, strict=True)),
        "steps": sum(len(epochs) * run.store.settings.batches for run, epochs in zip(runs, left, strict=True)),
        "test images": sum(tests) * len(paths),
    }
    stores = [run.store for run in runs]
    epoch = max(epoch_bytes(s.settings, dataset.num_classes, s.manifest["logits_type"]) for s in stores)
    held = validate_held(epoch, max(checkpoint_of(run, dataset) for run in runs), len(paths), dataset.size)
    together = runs[0].place.parent if len({run.place.parent for run in runs}) == 1 else runs[0].place.parents[1]
    if not amounts["students"]:
        return DryRun("validate", amounts, together, output, held, seconds=0.0)

    team.wait()  # processes on one machine slow each other down, here as later
    test_images, once = decode_some(paths, TEST_BATCH, dataset, settings.workers)
    test_set = test_images, labels[:TEST_BATCH]
    times: dict[tuple[str, int], tuple[float, float]] = {}  # seconds of a view and of a test, by network and images
    costs = []
    for run, epochs, its_tests in zip(runs, left, tests, strict=True):
        kind = run.settings.model, len(run.images)
        if epochs and kind not in times:
            training, testing, views = calibrate(run, test_set, dataset, device)
            once += training.setup + testing.setup
            times[kind] = training.each / views, testing.each * len(paths) / len(test_images)
        a_view, a_test = times[kind] if epochs else (0.0, 0.0)
        costs.append(len(epochs) * len(run.images) * a_view + its_tests * a_test)
    return DryRun("validate", amounts, together, output, held, once + slowest_share(costs, team.count))


def calibrate(
    run: Run, test_set: tuple[Tensor, Tensor], dataset: Dataset, device: torch.device
) -> tuple[Timing, Timing, int]:
    """Train a student that is thrown away on some batches with random labels, and test it; the times, and the views."""
    settings, images = run.settings, at_hand(run.images, device)
    learner = prepare_student(settings, run.seed, dataset, device, run.pixels)
    few = replace(run.store.settings, images=min(len(images), BATCHES * settings.batch_size))
    stored = draw_epoch(few, 0), torch.randn(few.images, dataset.num_classes)
    hidden = tqdm(disable=True)

    def train() -> Tensor:
        return train_epoch(learner, settings, stored, few, images, dataset, hidden)

    def test() -> tuple[float, float]:
        return top_accuracy(learner.student.network, test_batches(*test_set, dataset, device))

    learner.student.train()
    _, training = measure(train, device)
    learner.student.eval()
    _, testing = measure(test, device)
    return training, testing, few.images


def epochs_left(run: Run) -> range:
    """The epochs that a student has before it, from its last checkpoint on."""
    state = load_training(run.place / CHECKPOINT, what_is_trained(run))
    return range(len(state["metrics"]) if state else 0, run.settings.epochs)
