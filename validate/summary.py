"""What came out: the accuracies of one seed, and all seeds of a run together: the table, its file, the curves."""

from collections.abc import Mapping
from pathlib import Path

from utils.files import read_json, write_json
from utils.pictures import accuracy_curves
from utils.results import shown, spread

COLUMNS = (("top1", 8), ("top5", 8), ("best_top1", 11))


def accuracies(metrics: list[dict]) -> dict[str, float | int]:
    """The last epoch's accuracy, and the best seen with its epoch."""
    tested = [line for line in metrics if "top1" in line]
    best = max(tested, key=lambda line: line["top1"])
    last = tested[-1]
    return {"top1": last["top1"], "top5": last["top5"], "best_top1": best["top1"], "best_epoch": best["epoch"]}


def summarise(folder: Path) -> dict:
    """Print the table of all seeds there are, with mean and spread; write it and the curves beside the results.

    Returns what it wrote: the seeds, and mean and standard deviation (None for one seed) of each accuracy.
    """
    results = sorted((read_json(path) for path in folder.glob("seed*/result.json")), key=lambda result: result["seed"])
    seeds = [result["seed"] for result in results]
    print(f"\n{folder}\n{'seed':>8} {'top-1':>8} {'top-5':>8} {'best top-1':>11} {'at epoch':>9}")
    for result in results:
        print(
            f"{result['seed']:>8} {result['top1']:>8.2f} {result['top5']:>8.2f} {result['best_top1']:>11.2f} "
            f"{result['best_epoch']:>9}"
        )
    summary = {"seeds": seeds, **{name: spread(results, name) for name, _ in COLUMNS}}
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
    return summary


def print_table(summaries: Mapping[tuple[str, int], dict]) -> None:
    """Print the top-1 of all students (rows) at all IPCs (columns), by (student, IPC)."""
    students, ipcs = (list(dict.fromkeys(names)) for names in zip(*summaries, strict=True))
    print(f"\n{'top-1 %':<28}" + "".join(f"{f'IPC {ipc}':>16}" for ipc in ipcs))
    for student in students:
        print(f"{student:<28}" + "".join(f"{shown(summaries[student, ipc]['top1']):>16}" for ipc in ipcs), flush=True)
