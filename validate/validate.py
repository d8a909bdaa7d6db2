"""validate: a student trains from scratch on views and soft labels alone, and is tested on real images.

    bash validate/scripts/cifar100/validate_fadrm+.sh 10 ResNet18 --seed 0 1 2
    python -m validate.validate --dataset-name cifar100 --recipe fadrm+ --ipc 10 --model ResNet18 \\
        --original-data-path syn/mine --fkd-path labels/mine_bs16_ipc10 --val-dir val/cifar100 \\
        --output-dir results --exp-name mine

The result is the last epoch's top-1; the best seen is reported beside it, since choosing an epoch on the test set
flatters. A stopped run goes on from its last checkpoint; a seed that has its result is skipped.
"""

import statistics
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from utils.cli import print_settings
from utils.datasets import get_dataset, images_digest, list_images, load_test_images
from utils.device import choose_device, describe_device, peak_memory_bytes, versions
from utils.distilled import read_distilled
from utils.errors import UserError, run_entry
from utils.files import read_json, write_json
from utils.fkd import LabelStore, check_store, open_store
from utils.pictures import accuracy_curves
from utils.records import check_record
from validate import flags
from validate.student import train_student


def main(argv: Sequence[str] | None = None) -> None:
    settings = flags.parse(argv)
    dataset = get_dataset(settings.dataset_name)
    device = choose_device(settings.device)
    images, labels, ipc = read_distilled(settings.original_data_path, dataset)
    if settings.ipc not in (None, ipc):
        raise UserError(f"--ipc {settings.ipc}: {settings.original_data_path} has {ipc} images a class")
    flags.fill_rates(settings, ipc)
    print_settings("validate", settings)
    digest = images_digest(images, labels)
    store = open_store(settings.fkd_path, verify=settings.verify)
    check_store(store, what_labels_must_have(settings, digest))

    folder = settings.output_dir / dataset.name / settings.exp_name
    made_with = what_shapes_result(settings, ipc, digest, store)
    pending = []
    for seed in settings.seed:
        check_record(folder / f"seed{seed}" / "settings.json", {**made_with, "seed": seed}, "results")
        if not (folder / f"seed{seed}" / "result.json").exists():
            pending.append(seed)
    if pending:
        paths, test_labels = list_images(settings.val_dir, dataset)
        test_set = load_test_images(paths, dataset, workers=settings.workers, progress="test images"), test_labels
        images = images.to(device)
    for seed in pending:
        started = time.monotonic()
        metrics = train_student(settings, seed, folder / f"seed{seed}", store, images, test_set, dataset)
        result = {**made_with, "seed": seed, **accuracies(metrics)}
        used = {
            "seconds": round(sum(line["seconds"] for line in metrics), 2),
            "seconds_this_run": round(time.monotonic() - started, 2),
            "peak_memory_gib": peak_memory_bytes(device) / 2**30,
            "device": describe_device(device),
            "versions": versions(),
        }
        write_json(folder / f"seed{seed}" / "result.json", {**result, **used, "metrics": metrics})
        (folder / f"seed{seed}" / "checkpoint.pt").unlink(missing_ok=True)
    summarise(folder, settings.seed)


def what_labels_must_have(settings: Namespace, images_sha256: str) -> dict[str, object]:
    """What the label store has to agree with, by the names of its manifest."""
    expected = {
        "dataset": settings.dataset_name,
        "images_sha256": images_sha256,
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "min_scale": settings.min_scale,
    }
    return expected if settings.mix_type is None else {**expected, "mix": settings.mix_type}


def what_shapes_result(settings: Namespace, ipc: int, images_sha256: str, store: LabelStore) -> dict[str, object]:
    """What a result file says of how it came about: everything the student's accuracy depends on but the seed."""
    elsewhere = {
        *("dataset_name", "recipe", "ipc", "model", "method", "seed", "epochs"),
        *("device", "workers", "verify", "original_data_path", "fkd_path", "val_dir", "output_dir", "exp_name"),
    }
    return {
        "dataset": settings.dataset_name,
        "method": settings.method,
        "ipc": ipc,
        "student": settings.model,
        "epochs": settings.epochs,
        "settings": {name: value for name, value in sorted(vars(settings).items()) if name not in elsewhere},
        "images_sha256": images_sha256,
        "labels_sha256": store.sha256,
        "teachers": store.manifest["teachers"],
    }


def accuracies(metrics: list[dict]) -> dict[str, float | int]:
    """The last epoch's accuracy, and the best seen with its epoch."""
    tested = [line for line in metrics if "top1" in line]
    best = max(tested, key=lambda line: line["top1"])
    last = tested[-1]
    return {"top1": last["top1"], "top5": last["top5"], "best_top1": best["top1"], "best_epoch": best["epoch"]}


def summarise(folder: Path, seeds: Sequence[int]) -> None:
    """Print the table of the seeds with mean and spread; write it and the curves beside the results."""
    results = [read_json(folder / f"seed{seed}" / "result.json") for seed in seeds]
    print(f"\n{folder}\n{'seed':>8} {'top-1':>8} {'top-5':>8} {'best top-1':>11} {'at epoch':>9}")
    for result in results:
        print(
            f"{result['seed']:>8} {result['top1']:>8.2f} {result['top5']:>8.2f} {result['best_top1']:>11.2f} "
            f"{result['best_epoch']:>9}"
        )
    summary = {"seeds": list(seeds)}
    for name in ("top1", "top5", "best_top1"):
        values = [result[name] for result in results]
        summary[name] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
    if len(seeds) > 1:
        print(f"{'mean':>8}" + "".join(f" {summary[n]['mean']:>{w}.2f}" for n, w in COLUMNS))
        print(f"{'std':>8}" + "".join(f" {summary[n]['std']:>{w}.2f}" for n, w in COLUMNS))
    write_json(folder / "summary.json", summary)
    curves = {
        f"seed {result['seed']}": [(m["epoch"] + 1, m["top1"]) for m in result["metrics"] if "top1" in m]
        for result in results
    }
    title = f"{results[0]['student']} on {results[0]['dataset']}, {results[0]['method']}, IPC {results[0]['ipc']}"
    print(f"  curve: {accuracy_curves(folder / 'curve.png', curves, title)}", flush=True)


COLUMNS = (("top1", 8), ("top5", 8), ("best_top1", 11))


if __name__ == "__main__":
    run_entry(main)
