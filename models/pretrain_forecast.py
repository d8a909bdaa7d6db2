"""What training teachers will make and take, from some batches of networks that are thrown away."""

from argparse import Namespace
from collections.abc import Sequence

import torch
from tqdm import tqdm

from models import teacher_records
from models.pretrain_flags import settings_of
from models.teacher_data import LARGEST_RESIDENT, PADDING, split_batches, training_images_of, worthwhile_team
from models.teacher_training import TEST_BATCH, fresh_network, make_optimiser, network_accuracy, shared, train_epoch
from utils.datasets import Dataset, list_images
from utils.distributed import Team
from utils.dry_run import MOST_CALLS, DryRun, decode_some, measure
from utils.forecast import Held, Output, checkpoint_bytes, pretrain_output
from utils.training_state import load_training

BATCHES = 8  # of a calibrating epoch


def output_of(absent: Sequence[str], given: Namespace, dataset: Dataset) -> Output:
    """What training these teachers will write."""
    finished = [checkpoint_bytes(name, dataset, moments=0) for name in absent]
    return pretrain_output(finished, [training_bytes(name, given, dataset) for name in absent])


def training_bytes(name: str, given: Namespace, dataset: Dataset) -> int:
    """The most bytes of the checkpoint that a teacher's training goes on from."""
    return checkpoint_bytes(name, dataset, moments=2 if settings_of(given, name)["optimizer"] == "adam" else 1)


def is_tested(epoch: int, epochs: int, test_every: int) -> bool:
    """Whether a teacher is tested after this epoch: after every so many (0: none), and the last."""
    return epoch + 1 == epochs or (test_every > 0 and (epoch + 1) % test_every == 0)


def forecast_pretrain(
    given: Namespace, absent: Sequence[str], output: Output, dataset: Dataset, device: torch.device, team: Team
) -> DryRun:
    """The dry run of pretrain. absent: the teachers that are to be trained; the rest as in pretrain. Writes nothing."""
    paths, labels = list_images(given.train_dir, dataset)
    test_paths, test_labels = list_images(given.val_dir, dataset)
    resident = dataset.size <= LARGEST_RESIDENT
    amounts, seconds, held = {"teachers": len(absent), "iterations": 0, "test images": 0}, 0.0, Held(0, 0)
    if absent:
        team.wait()  # processes on one machine slow each other down, here as later
        test_images, decoding = decode_some(test_paths, TEST_BATCH, dataset, given.workers)
        test_set = test_images, test_labels[:TEST_BATCH]
        seconds = decoding + (decode_some(paths, TEST_BATCH, dataset, given.workers)[1] if resident else 0.0)
        pixels = 3 * dataset.size**2
        held = Held(len(test_paths) * pixels + 2 * max(training_bytes(name, given, dataset) for name in absent), 0)
        if resident:
            held += Held(len(paths) * pixels, len(paths) * 3 * (dataset.size + 2 * PADDING) ** 2)
    for name in absent:
        settings = settings_of(given, name)
        batch_size, epochs, seed = settings["batch_size"], settings["epochs"], settings["seed"]
        state = load_training(teacher_records.training_path(given.model_pool_dir, name), settings) or {"epoch": 0}
        left = range(state["epoch"], epochs)
        tests = sum(is_tested(epoch, epochs, given.test_every) for epoch in left)
        its_team = worthwhile_team(team, batch_size, len(paths))
        iterations = len(left) * len(split_batches(labels, batch_size, its_team))
        amounts["iterations"] += iterations
        amounts["test images"] += tests * len(test_paths)
        if its_team.rank >= its_team.count:
            continue
        some = torch.linspace(0, len(paths) - 1, min(len(paths), BATCHES * batch_size)).long()
        images = training_images_of([paths[place] for place in some], labels[some], dataset, device, given.workers)
        network = fresh_network(name, dataset, seed, device)
        optimiser, learner = make_optimiser(network, settings), shared(network, its_team, device)

        def train(learner=learner, optimiser=optimiser, images=images, settings=settings, its_team=its_team) -> None:
            batches = images.batches(settings["seed"], 0, settings["batch_size"], its_team)
            train_epoch(learner, optimiser, batches, dataset, 0, tqdm(disable=True))

        def test(network=network) -> dict[str, float]:
            return network_accuracy(network, *test_set, dataset)

        # Processes that train together must do so equally often.
        _, training = measure(train, device, most=MOST_CALLS if its_team.count == 1 else 0)
        _, testing = measure(test, device)
        seconds += training.setup + iterations * training.each / len(split_batches(some, batch_size, its_team))
        seconds += testing.setup + tests * testing.each * len(test_paths) / len(test_images)
    return DryRun("pretrain", amounts, given.model_pool_dir, output, held, seconds)
