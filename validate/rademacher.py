"""The empirical Rademacher complexity of table 8: how well a fresh network fits random signs of a method's images.

    python -m validate.rademacher cifar100 fadrm 10 ResNet18

For h = B tanh(g(x)), g a network with one output, and signs s_i = +-1 drawn at random, the mean over i of s_i h(x_i) is
maximised; the best epoch counts, the mean over draws of signs and weights is the estimate. Richer images are easier to
tell apart: the value is higher, up to B. Measured on the original patches and on the images that recover made of them,
with the same draws. B, epochs and draws are not published; the defaults are our reading (the published values are just
below 5).
"""

import math
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.registry import check_network
from utils import recipes
from utils.data.distilled import read_distilled
from utils.data.images import normalise
from utils.data.table import Dataset, get_dataset
from utils.patches.patches import load_patches
from utils.run.device import choose_device, memory_format
from utils.run.errors import UserError, run_entry
from utils.run.randomness import generator_for
from utils.run.settings import Parser
from utils.run.spread import shown, spread_of
from validate.report import reports_folder
from validate.tables import markdown, write_table
from validate.training import build_student

PUBLISHED = {  # table 8: mean and standard error on original and on optimised patches
    "ResNet18": {"original": (4.89, 0.05), "optimised": (4.94, 0.04)},
    "MobileNetV2": {"original": (4.76, 0.01), "optimised": (4.78, 0.01)},
    "ShuffleNetV2": {"original": (4.72, 0.02), "optimised": (4.75, 0.01)},
}
POSITIVE = {"epochs": int, "draws": int, "batch_size": int, "bound": float, "lr": float}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("validate.rademacher", "Estimate the Rademacher complexity of original and of optimised patches.")
    add = parser.add_argument
    add("dataset", metavar="DATASET")
    add("method", metavar="METHOD")
    add("ipc", metavar="IPC", type=int)
    add("networks", metavar="NETWORK", nargs="*", default=list(PUBLISHED))
    add("--bound", type=float, default=5.0, help="B: h is between -B and B")
    add("--epochs", type=int, default=100, help="E: epochs of a draw, of which the best counts")
    add("--draws", type=int, default=5, help="M: draws of signs and of weights")
    add("--lr", type=float, default=0.001, help="Adam's learning rate")
    add("--batch-size", type=int, default=100, help="images in one step, at most")
    add("--device", default="auto", help="where to compute: auto, cpu, cuda or mps")
    given = parser.parse_args(argv)
    for name in POSITIVE:
        if not 0 < getattr(given, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {getattr(given, name)}: it must be above 0")
    report_complexity(given)


def report_complexity(given: Namespace) -> Path:
    """Print and write the complexity for each network, beside the paper's. Returns the file that it wrote."""
    dataset = get_dataset(given.dataset)
    if given.device not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"--device {given.device}: there are auto cpu cuda mps")
    device = choose_device(given.device)
    networks = list(dict.fromkeys(given.networks))
    for network in networks:
        check_network(network, dataset)
    kinds = both_kinds(dataset, given.method, given.ipc)
    rows = []
    total = len(networks) * len(kinds) * given.draws
    with tqdm(total=total, desc="rademacher", unit="draw") as progress:
        for network in networks:
            row: dict[str, object] = {"network": network}
            for kind, pixels in kinds.items():
                images, values = normalise(pixels, dataset).to(device), []
                for draw in range(given.draws):
                    values.append(complexity_of_draw(network, images, dataset, draw, given))
                    progress.update()
                row[kind] = {**mean_and_error(values), "values": values}
            rows.append({**row, "published": PUBLISHED.get(network)})
    about = {name: getattr(given, name) for name in ("dataset", "method", "ipc", *POSITIVE)}
    place = reports_folder(recipes.in_places("validate", dataset, given.method, given.ipc, os.environ))
    path = place / recipes.file_name(f"{dataset.name}_{given.method}_ipc{given.ipc}_rademacher.json")
    return write_table(path, table_of(rows, about), {**about, "rows": rows}, missing=[])


def both_kinds(dataset: Dataset, method: str, ipc: int) -> dict[str, Tensor]:
    """The original patches and the images made of them, in the same order: uint8, N x 3 x S x S each. UserError where
    one is missing, or the method starts from none."""
    recover = recipes.in_places("recover", dataset, method, ipc, os.environ).resolved()
    if not recover.uses_patches:
        raise UserError(f"{method} starts from noise: there are no original patches to compare with")
    members = [(label, i) for label in range(dataset.num_classes) for i in range(recover.ipc_start, recover.ipc_end)]
    optimised, _, found = read_distilled(recover.syn_data_path / recover.exp_name, dataset)
    if found != ipc:
        raise UserError(f"{recover.syn_data_path / recover.exp_name} has {found} images a class, not {ipc}")
    return {"original": load_patches(recover.patch_dir, recover.selector, members, dataset), "optimised": optimised}


def complexity_of_draw(network: str, images: Tensor, dataset: Dataset, draw: int, given: Namespace) -> float:
    """The best mean of sign times h over the images (normalised) that a network of this draw comes to."""
    student = build_student(network, replace(dataset, num_classes=1), draw)
    student.to(images.device, memory_format=memory_format(images.device))
    generator = generator_for(draw, "rademacher", dataset.name)
    signs = torch.randint(2, (len(images),), generator=generator).mul(2).sub(1).to(images.device)
    return fit_signs(student, images, signs, given.bound, given.epochs, given.lr, given.batch_size, generator)


def fit_signs(
    network: nn.Module,
    images: Tensor,
    signs: Tensor,
    bound: float,
    epochs: int,
    lr: float,
    batch_size: int,
    generator: torch.Generator,
) -> float:
    """The largest mean over the images of sign * bound * tanh(network(image)) of an epoch of Adam, each batch as it is
    trained on.

    network: with one output; images: N x 3 x S x S, normalised; signs: N, +-1; generator: gives the batches, all about
    as large.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr)
    best, batches = -math.inf, -(-len(images) // batch_size)
    network.train()
    for _ in range(epochs):
        total = torch.zeros((), device=images.device)
        for batch in torch.randperm(len(images), generator=generator).to(images.device).tensor_split(batches):
            correlation = (signs[batch] * bound * network(images[batch])[:, 0].tanh()).sum()
            optimiser.zero_grad(set_to_none=True)
            (-correlation / len(batch)).backward()
            optimiser.step()
            total += correlation.detach()
        best = max(best, total.item() / len(images))
    return best


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """The mean and its standard error; no error for one value."""
    mean, deviation = spread_of(values).values()
    return {"mean": mean, "error": None if deviation is None else deviation / len(values) ** 0.5}


def table_of(rows: Sequence[Mapping], about: Mapping[str, object]) -> list[str]:
    """The table in Markdown, the paper's values beside those of here; ± a standard error."""

    def told(mean: float, error: float | None) -> str:
        return shown({"mean": mean, "std": error})

    title = "{dataset}, {method}, IPC {ipc}: B = {bound:g}, {epochs} epochs, {draws} draws".format(**about)
    body = []
    for row in rows:
        published = row["published"] or {}
        cells = [told(row[kind]["mean"], row[kind]["error"]) for kind in ("original", "optimised")]
        cells += [told(*published[kind]) if kind in published else "" for kind in ("original", "optimised")]
        body.append([row["network"], *cells])
    return markdown([title, "original patches", "optimised", "paper: original", "optimised"], body)


if __name__ == "__main__":
    run_entry(main)
