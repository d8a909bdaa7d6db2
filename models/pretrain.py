"""Train the teachers of a dataset on its real images.

    bash models/scripts/cifar100/pretrain.sh
    torchrun --standalone --nproc-per-node 4 -m models.pretrain --dataset-name cifar100 --model ResNet18 Densenet121 \\
        --train-dir data/train/cifar100 --val-dir data/val/cifar100 --model-pool-dir pretrained_models

Each network in turn: train, test, write <Name>.safetensors and beside it the record <Name>.json with its accuracy. A
stopped training goes on after its last whole epoch and ends with the same file. A teacher that is there is not trained
again; a downloaded one is tested and gets its record. Several processes share every batch out and average their
gradients (DistributedDataParallel); as BatchNorm then sees parts of a batch, the teacher is not that of one process.
"""

import time
from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from models import teacher_records
from models.checkpoints import checkpoint_path, load_network, save_state
from models.pretrain_flags import parse, settings_of
from models.pretrain_forecast import forecast_pretrain, is_tested, output_of
from models.teacher_data import DecodedImages, ResidentImages, split_batches, training_images_of, worthwhile_team
from models.teacher_training import fresh_network, make_optimiser, network_accuracy, shared, train_epoch
from utils.cli import print_settings
from utils.datasets import Dataset, get_dataset, list_images, load_test_images
from utils.device import choose_device, describe_device
from utils.distillation import epoch_rate
from utils.distributed import Team, teamwork
from utils.dry_run import tell
from utils.errors import run_entry
from utils.forecast import require_space
from utils.randomness import seed_for
from utils.report import report_run
from utils.training_state import load_training, save_training


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        pretrain(parse(argv), team)


def pretrain(given: Namespace, team: Team) -> None:
    dataset = get_dataset(given.dataset_name)
    device = choose_device(given.device, team.local_rank)
    pool, started, trained = given.model_pool_dir, time.monotonic(), 0
    test_images = training_images = None
    absent = [name for name in given.model if teacher_records.is_to_be_trained(pool, name)]
    output = output_of(absent, given, dataset)
    require_space(pool, output)
    if given.dry_run:
        print_settings("pretrain", given)
        tell(forecast_pretrain(given, absent, output, dataset, device, team), device, team)
        return
    for name in given.model:
        settings = settings_of(given, name)
        print_settings("pretrain", Namespace(**vars(given) | settings))
        record = teacher_records.read_record(pool, name)
        if record is not None:
            teacher_records.check_trained_with(pool, record, settings)
        else:
            if team.leads:
                test_images = test_images or load_validation(given, dataset)
            if not teacher_records.is_downloaded(pool, name):
                if training_images is None:
                    found = list_images(given.train_dir, dataset)
                    training_images = training_images_of(*found, dataset, device, given.workers)
                record = train(name, settings, given, dataset, training_images, test_images, device, team)
                trained += 1
            elif team.leads:
                network = load_network(name, dataset, checkpoint_path(pool, name)).to(device)
                accuracy = network_accuracy(network, *test_images, dataset)
                record = teacher_records.write_record(pool, name, dataset.name, "downloaded", accuracy)
        if team.leads:
            source, top1, top5 = (record[key] for key in ("source", "top1", "top5"))
            print(f"{name} ({source}): top-1 {top1:.2f} %, top-5 {top5:.2f} %", flush=True)
        team.wait()  # until its files are as they stay
    if team.leads:
        files = {"teachers": str(pool)}
        report_run("pretrain", pool / "report.json", device, started, trained, "teachers", files, team.count)


def load_validation(given: Namespace, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The validation images (uint8, N x 3 x S x S) and their labels (N)."""
    paths, labels = list_images(given.val_dir, dataset)
    return load_test_images(paths, dataset, workers=given.workers, progress="validation images"), labels


def train(
    name: str,
    settings: dict,
    given: Namespace,
    dataset: Dataset,
    training_images: ResidentImages | DecodedImages,
    test_images: tuple[Tensor, Tensor] | None,
    device: torch.device,
    team: Team,
) -> dict | None:
    """Train one teacher from the start or from where it stopped; leaves its checkpoint, returns its record.

    Of the team only the leading process has test_images, writes, and returns something; where batches are too small for
    all, some have nothing to do.
    """
    pool, seed, epochs, batch_size = given.model_pool_dir, settings["seed"], settings["epochs"], settings["batch_size"]
    team = worthwhile_team(team, batch_size, len(training_images))
    if team.rank >= team.count:
        return None
    network = fresh_network(name, dataset, seed, device)
    optimiser = make_optimiser(network, settings)
    unfinished = teacher_records.training_path(pool, name)
    state = load_training(unfinished, settings) or {"epoch": 0, "seconds": 0.0, "tests": []}
    if state["epoch"] < epochs:
        teacher_records.refuse_two_sources(pool, name)
    if state["epoch"] > 0:
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
    learner = shared(network, team, device)
    tests, started = state["tests"], time.monotonic() - state["seconds"]
    iterations = len(split_batches(training_images.labels, batch_size, team))
    with tqdm(total=epochs * iterations, initial=state["epoch"] * iterations, desc=name, unit="it") as progress:
        for epoch in range(state["epoch"], epochs):
            torch.manual_seed(seed_for(seed, "pretrain-noise", epoch) + team.rank)  # what dropout draws
            for group in optimiser.param_groups:
                group["lr"] = epoch_rate(settings["lr"], epoch, epochs, eta=1)
            batches = training_images.batches(seed, epoch, batch_size, team)
            train_epoch(learner, optimiser, batches, dataset, epoch, progress)
            if not team.leads:
                continue
            if is_tested(epoch, epochs, given.test_every):
                tests.append({"epoch": epoch + 1, **network_accuracy(network, *test_images, dataset)})
                progress.write(f"{name}, epoch {epoch + 1}: top-1 {tests[-1]['top1']:.2f} %")
            state = {"epoch": epoch + 1, "seconds": time.monotonic() - started, "tests": tests}
            tensors = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            save_training(unfinished, settings, state | tensors)

    if not team.leads:
        return None
    save_state(teacher_records.weights_path(pool, name), network, {"teacher": f"{name}, {dataset.name}"})
    content = {"top1": tests[-1]["top1"], "top5": tests[-1]["top5"], "settings": settings, "epochs": epochs}
    content |= {"tests": tests, "seconds": state["seconds"], "device": describe_device(device), "processes": team.count}
    record = teacher_records.write_record(pool, name, dataset.name, "trained", content)
    unfinished.unlink()
    return record


if __name__ == "__main__":
    run_entry(main)
