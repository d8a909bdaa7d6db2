"""recover: real patches become distilled images.

    bash recover/scripts/cifar100/recover_fadrm+_ipc10.sh
    torchrun --standalone --nproc-per-node 4 -m recover.recover --dataset-name cifar100 --recipe fadrm+ --ipc 10 \\
        --syn-data-path syn --exp-name mine --patch-dir patches/cifar100 --model-pool-dir pretrained_models

One batch at a time: patches, optimisation against frozen teachers, PNG files. A batch whose files are there and were
made with the same settings is skipped, so an interrupted run goes on where it was. Several processes share the batches
out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from models.checkpoints import Teacher, load_network, load_teacher
from models.teachers import recorded_accuracies
from recover import batches
from recover.batches import Batch
from recover.committee import Committee
from recover.measures import Measures, is_measured, measures_folder, measures_path
from recover.optimise import Plan, Stage, Step, recover_batch
from recover.real_images import Real, observe_real_images, real_images_digest
from recover.terms import build_terms
from utils import recipes
from utils.bn_matching.matching import MatchedTeacher, running_order
from utils.bn_matching.smoothing import SmoothedTeacher
from utils.data.distilled import images_output, is_made_with, record_path, write_distilled
from utils.data.embedded import ensure_embedded
from utils.data.images import to_pixels
from utils.data.table import Dataset
from utils.recipes.settings import NO_REFERENCE, RecoverSettings
from utils.run.background import BackgroundWriter
from utils.run.device import choose_device, memory_format
from utils.run.errors import UserError, run_entry
from utils.run.files import remove
from utils.run.precision import Work, amp_type, compiled, is_compiled
from utils.run.randomness import generator_for
from utils.run.records import check_record
from utils.run.report import report_run, start_run
from utils.run.settings import show
from utils.run.space import print_dry_run, require_space
from utils.run.team import Team, teamwork
from utils.seams import COMMITTEES, PROBES, RESIDUALS

VERIFY_EVERY = 100  # iterations


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        for settings in recipes.parse_each("recover", argv, "--draw"):
            recover(settings, team)


def recover(settings: RecoverSettings, team: Team) -> None:
    show("recover", settings)
    dataset = settings.dataset
    device = choose_device(settings.device, team.local_rank)
    dtype = amp_type(settings.amp, device, auto_on_cuda="fp16")
    folder = settings.syn_data_path / settings.exp_name
    stages = [Stage(size, budget) for size, budget in zip(settings.sizes, settings.budgets, strict=True)]
    area, adaptive = (settings.crop_area_min, 1.0), settings.resolution == "adaptive"
    plan = Plan(stages, settings.lr, build_terms(settings), settings.jitter, settings.augment, area, adaptive)
    work = batches.plan_batches(settings, dataset)
    pool, source = settings.model_pool_dir, settings.source
    loaded = {name: load_teacher(name, dataset, pool, source) for name in dict.fromkeys(settings.teachers)}
    settings = with_priors(settings)
    committee = COMMITTEES[settings.committee](settings)
    require_watched_layers(settings, plan, loaded, dataset)
    if not settings.dry_run and settings.needs_real_images:
        ensure_embedded(dataset, train=settings.train_dir)
    real_images = team.gather(real_images_digest(settings) if team.is_main else None)[0]
    made_with = batches.what_shapes_images(settings, [loaded[name] for name in settings.teachers], dtype, real_images)
    check_record(record_path(folder), made_with, "distilled images")
    missing = [batch for batch in work if not all(path.exists() for path in batch.paths(folder, dataset))]
    team.wait()  # until all have looked
    stages_kept = range(1, len(stages)) if settings.store_stages else range(0)
    copies = 1 + settings.store_initialised_images + len(stages_kept)
    output = images_output(copies * sum(len(batch.members) for batch in missing), dataset)
    require_space(folder, output)
    if settings.dry_run:
        amounts = {"images": output.files // copies, "batches": len(missing)}
        print_dry_run("recover", {**amounts, "iterations": len(missing) * plan.iterations}, folder, output)
        return

    real = observe_in_turns(settings, loaded, dataset, device, real_images, team)
    teachers = match_teachers(settings, loaded, plan, dataset, device, real)
    verifier, reference = load_verifier(settings, dataset, device), load_reference(settings, dataset, device)
    valid_range = batches.valid_range_of(dataset, device)
    started, made, unmeasured, unstaged = start_run(device), 0, 0, 0
    mine = [*team.share(missing), *team.share([batch for batch in work if batch not in missing])]
    progress = tqdm(total=len(mine) * plan.iterations, desc="recover", unit="it", disable=not team.is_main)
    with progress, BackgroundWriter() as writer:
        for batch in mine:
            patches = batches.read_patches(settings, batch, dataset)
            digest = batches.batch_digest(made_with, patches)
            paths, place = batch.paths(folder, dataset), measures_path(folder, batch)
            about = about_measures(settings, batch, reference, digest) if settings.measure_every else None
            of_stages = {k: batch.paths(batches.stage_folder(folder, k), dataset) for k in stages_kept}
            has_stages = all(is_made_with(path, digest) for its in of_stages.values() for path in its)
            if all(is_made_with(path, digest, dataset.size) for path in paths):
                unmeasured += about is not None and not is_measured(place, about)
                unstaged += not has_stages
                progress.update(plan.iterations)
                continue
            generator = generator_for(settings.seed + settings.draw, "recover", dataset.name, *batch.key)
            start, patches = batches.starting_images(settings, patches, len(paths), dataset, generator, device)
            labels = torch.tensor(batch.labels, device=device)
            for teacher in dict.fromkeys(teachers):
                if isinstance(teacher, SmoothedTeacher):
                    teacher.begin(labels, generator)
            ask = partial(asked, committee, teachers, batch)
            residual = RESIDUALS[settings.residual](settings, patches)
            kept: dict[int, torch.Tensor] = {}
            if stages_kept:
                residual = batches.keep_stages(residual, kept, dataset)
            measures = None
            if about is not None:
                network = reference and reference.module
                measures = Measures(about, network, start, labels, plan.iterations, dataset)
                residual = measures.around(residual)
            watch = partial(
                look_on, batch=batch, labels=labels, verifier=verifier, measures=measures, progress=progress
            )
            try:
                images = recover_batch(start, labels, plan, ask, residual, valid_range, generator, dtype, watch)
            except UserError as error:
                raise UserError(f"{batch}: {error}") from None
            check_record(record_path(folder), made_with, "distilled images", write=True)
            if measures is not None:
                writer.submit(measures.write, place)  # before the images, which say that the batch is done
            else:
                remove(place)  # measures of images that were here before
            if settings.store_initialised_images:
                initial = batch.paths(folder.with_name(f"{folder.name}_initialised"), dataset)
                writer.submit(write_distilled, initial, to_pixels(start, dataset).cpu(), digest)
            for stage, pixels in kept.items():
                writer.submit(write_distilled, of_stages[stage], pixels, digest)
            writer.submit(write_distilled, paths, to_pixels(images, dataset).cpu(), digest)
            made += len(paths)
    made, unmeasured, unstaged = map(team.total, (made, unmeasured, unstaged))
    if team.is_main:
        sheet = folder / "contact_sheet.png"
        if made or not sheet.exists():
            batches.draw_contact_sheet(sheet, settings, folder, dataset, work, range(0) if unstaged else stages_kept)
        files = {"contact sheet": str(sheet)}
        if settings.measure_every:
            files["measures"] = str(measures_folder(folder))
        if stages_kept:
            files["stages"] = str(batches.stage_folder(folder, 1))
        if unmeasured:
            by = f" by {reference.name}" if reference else ", of the loss alone"
            say_unmade(folder, unmeasured, f"measures every {settings.measure_every} iterations{by}")
        if unstaged:
            say_unmade(folder, unstaged, "the images of their stages")
        note = is_compiled(teachers)
        report_run("recover", folder / "report.json", device, started, made, "images", files, team.count, compiled=note)


def say_unmade(folder: Path, count: int, what: str) -> None:
    """Say that some batches lack what only comes with their images."""
    print(
        f"note: {count} of the batches were there already, without {what}: move {folder} away, and the same command "
        f"makes the same images and {what}",
        flush=True,
    )


def with_priors(settings: RecoverSettings) -> RecoverSettings:
    """The settings with the teachers' recorded accuracies as priors, where these weigh and none are given."""
    if settings.weighting == "equal" or settings.priors:
        return settings
    return replace(settings, priors=recorded_accuracies(settings.model_pool_dir, settings.teachers))


def require_watched_layers(
    settings: RecoverSettings, plan: Plan, loaded: Mapping[str, Teacher], dataset: Dataset
) -> None:
    """UserError where statistics are to be matched and no teacher has a layer that the probe watches, or, where it
    needs real images, one has none; says which are asked for the rest of the loss alone, as AlexNet is in FADRM+."""
    share, _ = plan.terms.get("r_bn", (0, None))
    if not settings.needs_real_images and not (share and plan.iterations):
        return
    probe = PROBES[settings.probe]
    probe = probe(dataset.size) if settings.needs_real_images else probe()
    without = [name for name, its in loaded.items() if not running_order(its.module, probe, dataset.size)]
    if without and (settings.needs_real_images or len(without) == len(loaded)):
        raise UserError(
            f"{', '.join(without)}: no layer that --probe {settings.probe} watches, so there are no statistics to "
            "match; take another teacher"
        )
    for name in without:
        print(
            f"note: {name} has no layer that --probe {settings.probe} watches: it counts for nothing in r_bn",
            flush=True,
        )


def observe_in_turns(
    settings: RecoverSettings,
    loaded: Mapping[str, Teacher],
    dataset: Dataset,
    device: torch.device,
    real_images: str | None,
    team: Team,
) -> Mapping[str, Real]:
    """What each teacher sees of real images, where the probe asks: the processes share the passes, then all read."""
    if real_images is None:
        return {}
    for teacher in loaded.values():
        teacher.module.to(device)
    for teacher in team.share(list(loaded.values())):
        observe_real_images(teacher, settings, dataset, real_images)
    team.wait()
    return {name: observe_real_images(teacher, settings, dataset, real_images) for name, teacher in loaded.items()}


def match_teachers(
    settings: RecoverSettings,
    loaded: Mapping[str, Teacher],
    plan: Plan,
    dataset: Dataset,
    device: torch.device,
    real: Mapping[str, Real],
) -> list[nn.Module]:
    """The teachers of --teacher-model-list on the device, each answering with its logits and its statistics' distance.

    real: what they see of real images, where the probe asks.
    """
    calls = -(-dataset.num_classes // settings.classes_a_batch) * settings.ipc_end * plan.iterations
    work = Work(plan.pixels(dataset.num_classes * settings.ipc_end) // len(loaded), calls // len(loaded))
    matched = {}
    for name, teacher in loaded.items():
        network = teacher.module.to(device, memory_format=memory_format(device))
        probe = PROBES[settings.probe]
        if name in real:
            probe = partial(probe, dataset.size, real[name].whole)
        matching = MatchedTeacher(network, probe, settings.first_bn_multiplier, dataset.size)
        if settings.is_smoothed:
            by_class = real[name].by_class if name in real else None
            shares = (settings.smoothing, settings.drop_layers, settings.class_share)
            matched[name] = SmoothedTeacher(matching, *shares, by_class)
        else:
            matched[name] = compiled(matching, settings.compile, device, work)
    return [matched[name] for name in settings.teachers]


def asked(
    committee: Committee, teachers: Sequence[nn.Module], batch: Batch, iteration: int
) -> list[tuple[nn.Module, float]]:
    """The teachers that an iteration of a batch asks, with their weights."""
    return [(teachers[place], weight) for place, weight in committee(batch, iteration)]


def look_on(
    step: Step,
    batch: Batch,
    labels: torch.Tensor,
    verifier: nn.Module | None,
    measures: Measures | None,
    progress: tqdm,
) -> None:
    """Move the bar; now and then measure the images, or print what the verifier thinks of them."""
    progress.update()
    if measures is not None:
        measures.after(step)
    if verifier is not None and step.iteration % VERIFY_EVERY == VERIFY_EVERY - 1:
        right = (verifier(step.images).argmax(dim=1) == labels).float().mean().item()
        progress.write(f"{batch}, iteration {step.iteration + 1}: verifier accuracy {right:.1%}")


def load_verifier(settings: RecoverSettings, dataset: Dataset, device: torch.device) -> nn.Module | None:
    """The network that looks on, if one is asked for."""
    if not settings.verifier:
        return None
    path: Path | None = settings.verifier_weight_path
    if path is not None:
        return load_network(settings.verifier_arch, dataset, path).to(device)
    return load_teacher(settings.verifier_arch, dataset, settings.model_pool_dir, settings.source).module.to(device)


def load_reference(settings: RecoverSettings, dataset: Dataset, device: torch.device) -> Teacher | None:
    """The network that measures, if one is asked for: a copy of its own, since teachers note what they see."""
    if not settings.measure_every or settings.reference == NO_REFERENCE:
        return None
    name = settings.reference or settings.teachers[0]
    teacher = load_teacher(name, dataset, settings.model_pool_dir, settings.source)
    teacher.module.to(device)
    return teacher


def about_measures(
    settings: RecoverSettings, batch: Batch, reference: Teacher | None, digest: str
) -> dict[str, object]:
    """What the measures of a batch are of: the first line of its file."""
    return {
        "batch": str(batch),
        "images": len(batch.members),
        "reference": reference.name if reference else NO_REFERENCE,
        **({"reference_sha256": reference.sha256} if reference else {}),
        "every": settings.measure_every,
        "made_with": digest,
    }


if __name__ == "__main__":
    run_entry(main)
