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
from recover.anchors import Bank
from recover.batches import Batch
from recover.by_index import Aims, aims_of
from recover.committee import Committee
from recover.extras import Extras, Kept, copies_of, stage_folder
from recover.optimise import Plan, Stage, Step, recover_batch
from recover.passes import training_images
from recover.real_images import Real, observe_real_images, real_images_digest
from recover.terms import build_terms
from utils import recipes
from utils.bn_matching.matching import MatchedTeacher, running_order
from utils.bn_matching.smoothing import SmoothedTeacher
from utils.data.distilled import images_output, is_made_with, record_path, write_distilled
from utils.data.embedded import ensure_embedded
from utils.data.images import to_pixels
from utils.data.table import Dataset
from utils.recipes.settings import RecoverSettings
from utils.run.background import BackgroundWriter
from utils.run.device import choose_device, memory_format
from utils.run.errors import UserError, run_entry
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
    terms = build_terms(settings)
    plan = Plan(stages, settings.lr, terms, settings.jitter, settings.augment, area, adaptive, settings.narrowing)
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
    copies = copies_of(settings)
    output = images_output(copies * sum(len(batch.members) for batch in missing), dataset)
    require_space(folder, output)
    if settings.dry_run:
        amounts = {"images": output.files // copies, "batches": len(missing)}
        iterations = sum(plan_for(batch, plan, settings).iterations for batch in missing)
        print_dry_run("recover", {**amounts, "iterations": iterations}, folder, output)
        return

    for teacher in loaded.values():
        teacher.module.to(device)
    real = observe_in_turns(settings, loaded, dataset, real_images, team)
    aims, bank = look_at_training_images(settings, list(loaded.values()), real_images, team)
    matched = {name: match_teacher(settings, teacher, dataset, real.get(name)) for name, teacher in loaded.items()}
    teachers = teachers_asked(settings, matched, plan, device, real)
    verifier, extras = load_verifier(settings, dataset, device), Extras(settings, plan, folder, dataset, device)
    valid_range = batches.valid_range_of(dataset, device)
    started, made = start_run(device), 0
    mine = [*team.share(missing), *team.share([batch for batch in work if batch not in missing])]
    total = sum(plan_for(batch, plan, settings).iterations for batch in mine)
    progress = tqdm(total=total, desc="recover", unit="it", disable=not team.is_main)
    with progress, BackgroundWriter() as writer:
        for batch in mine:
            patches, its_plan = batches.read_patches(settings, batch, dataset), plan_for(batch, plan, settings)
            digest = batches.batch_digest(made_with, patches, aims and aims.sha256)
            paths = batch.paths(folder, dataset)
            if all(is_made_with(path, digest, dataset.size) for path in paths):
                extras.look_for(batch, digest)
                progress.update(its_plan.iterations)
                continue
            generator = generator_for(settings.seed + settings.draw, "recover", dataset.name, *batch.key)
            start, patches = batches.starting_images(settings, patches, len(paths), dataset, generator, device)
            labels = torch.tensor(batch.labels, device=device)
            for teacher in dict.fromkeys(teachers):
                if isinstance(teacher, SmoothedTeacher):
                    teacher.begin(labels, generator)
            if aims is not None:
                for name, matching in matched.items():
                    matching.targets.copy_(aims.of(name, batch))
            ask = partial(asked, committee, teachers, batch)
            kept = extras.of(batch, digest, start, labels)
            retrieve = [partial(bank.retrieve, batch)] if bank else []
            residual = kept.around(RESIDUALS[settings.residual](settings, patches, *retrieve))
            watch = partial(look_on, batch=batch, labels=labels, verifier=verifier, kept=kept, progress=progress)
            try:
                images = recover_batch(
                    start, labels, its_plan, ask, residual, valid_range, generator, dtype, watch, patches
                )
            except UserError as error:
                raise UserError(f"{batch}: {error}") from None
            check_record(record_path(folder), made_with, "distilled images", write=True)
            kept.write(writer)
            writer.submit(write_distilled, paths, to_pixels(images, dataset).cpu(), digest)
            made += len(paths)
    made, stages_there = team.total(made), extras.complete_stages(team)
    if team.is_main:
        sheet = folder / "contact_sheet.png"
        if made or not sheet.exists():
            folders = {f"stage {stage}": stage_folder(folder, stage) for stage in stages_there}
            batches.draw_contact_sheet(sheet, settings, {**folders, "distilled": folder}, dataset, work)
        files = {"contact sheet": str(sheet), **extras.files}
        note = is_compiled(teachers)
        report_run("recover", folder / "report.json", device, started, made, "images", files, team.count, compiled=note)


def with_priors(settings: RecoverSettings) -> RecoverSettings:
    """The settings with the teachers' recorded accuracies as priors, where these weigh and none are given."""
    if settings.weighting == "equal" or settings.priors:
        return settings
    return replace(settings, priors=recorded_accuracies(settings.model_pool_dir, settings.teachers))


def require_watched_layers(
    settings: RecoverSettings, plan: Plan, loaded: Mapping[str, Teacher], dataset: Dataset
) -> None:
    """UserError where groups of real images are to be matched and nothing is; where statistics are to be matched and no
    teacher has a layer that the probe watches, or one has none where targets are of real images, a term is of such a
    layer, or the loss has nothing else. Says which are asked for the rest of the loss alone, as AlexNet is in FADRM+.
    """
    share, _ = plan.terms.get("r_bn", (0, None))
    is_matched = bool(share and plan.iterations)
    if settings.is_grouped and not is_matched:
        raise UserError(
            "--group-by and --probe image_input are of what r_bn matches, and it counts for nothing in this run: leave "
            "them out, or give it a weight and iterations"
        )
    needs_each = settings.probes_real_images or settings.takes_map
    if not (needs_each or is_matched):
        return
    probe = PROBES[settings.probe]
    probe = probe(dataset.size) if settings.probes_real_images else probe()
    without = [name for name, its in loaded.items() if not running_order(its.module, probe, dataset.size)]
    nothing_else = {name for name, (share, _) in plan.terms.items() if share} == {"r_bn"}
    if without and (needs_each or settings.is_grouped or nothing_else or len(without) == len(loaded)):
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
    real_images: str | None,
    team: Team,
) -> Mapping[str, Real]:
    """What each teacher sees of real images, where the probe asks: the processes share the passes, then all read."""
    if not settings.probes_real_images:
        return {}
    for teacher in team.share(list(loaded.values())):
        observe_real_images(teacher, settings, dataset, real_images)
    team.wait()
    return {name: observe_real_images(teacher, settings, dataset, real_images) for name, teacher in loaded.items()}


def look_at_training_images(
    settings: RecoverSettings, teachers: Sequence[Teacher], sha256: str | None, team: Team
) -> tuple[Aims | None, Bank | None]:
    """What image indices are matched to, where these differ, and where anchors are retrieved from, where they are: the
    first process passes over the training images, then all read."""
    if not (settings.is_grouped or settings.retrieves):
        return None, None
    images = training_images(settings, sha256)
    for is_turn in (team.is_main, not team.is_main):
        if is_turn:
            aims = aims_of(settings, teachers, images) if settings.is_grouped else None
            bank = Bank(settings, teachers[0], images) if settings.retrieves else None
        team.wait()
    return aims, bank


def plan_for(batch: Batch, plan: Plan, settings: RecoverSettings) -> Plan:
    """The plan of a batch: of `late_starts` groups of image indices each begins a stage after the one before."""
    place = batch.members[0][1] % settings.images_per_class
    return plan.from_stage(place * settings.late_starts // settings.images_per_class)


def match_teacher(settings: RecoverSettings, teacher: Teacher, dataset: Dataset, real: Real | None) -> MatchedTeacher:
    """A teacher that answers with its logits and its statistics' distance. real: what it sees of real images, where the
    probe asks."""
    device = next(teacher.module.parameters()).device
    network = teacher.module.to(memory_format=memory_format(device))
    probe = PROBES[settings.probe]
    if real is not None:
        probe = partial(probe, dataset.size, real.whole)
    elif settings.probes_single_images:
        probe = partial(probe, min(settings.classes_a_batch, dataset.num_classes))
    others = (settings.first_bn_multiplier, dataset.size, settings.scale, settings.takes_map)
    return MatchedTeacher(network, probe, *others)


def teachers_asked(
    settings: RecoverSettings,
    matched: Mapping[str, MatchedTeacher],
    plan: Plan,
    device: torch.device,
    real: Mapping[str, Real],
) -> list[nn.Module]:
    """The teachers of --teacher-model-list as iterations ask them: smoothed, or compiled where that is worth it."""
    dataset = settings.dataset
    calls = -(-dataset.num_classes // settings.classes_a_batch) * settings.ipc_end * plan.iterations
    work = Work(plan.pixels(dataset.num_classes * settings.ipc_end) // len(matched), calls // len(matched))
    asked: dict[str, nn.Module] = {}
    for name, matching in matched.items():
        if settings.is_smoothed:
            by_class = real[name].by_class if name in real else None
            shares = (settings.smoothing, settings.drop_layers, settings.class_share)
            asked[name] = SmoothedTeacher(matching, *shares, by_class)
        else:
            asked[name] = compiled(matching, settings.compile, device, work)
    return [asked[name] for name in settings.teachers]


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
    kept: Kept,
    progress: tqdm,
) -> None:
    """Move the bar, keep what is asked for; now and then print what the verifier thinks of the images."""
    progress.update()
    kept.after(step)
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


if __name__ == "__main__":
    run_entry(main)
