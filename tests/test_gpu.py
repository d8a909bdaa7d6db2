"""What only a CUDA device can show: each stage there against a CPU, compiled against not, memory, the whole demo.

bash tests/run.sh --gpu
"""

import copy
import json
import os
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from models.checkpoints import load_network
from models.registry import build_network
from models.testing import LabelledImages
from recover import recover
from recover.batches import valid_range_of
from recover.optimise import Plan, Stage, recover_batch
from recover.terms import build_terms, classes_by_size, spectrum_loss
from relabel import relabel
from relabel.labelling import label_epoch, mean_logits
from tests.benchmark import cost_of_an_image
from tests.views import VIEWS
from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import BatchNormInput, ConvInput
from utils.bn_matching.real import RealObserver
from utils.bn_matching.smoothing import SmoothedTeacher
from utils.data.distilled import read_distilled
from utils.data.images import list_images, load_images, normalise
from utils.data.table import get_dataset
from utils.fkd.dsa import OPERATIONS
from utils.fkd.groups import GroupedNetwork, epoch_groups
from utils.fkd.losses import distillation_loss
from utils.fkd.store import open_store
from utils.fkd.views import draw_epoch
from utils.recipes import METHODS, recipe_of
from utils.recipes.settings import RecoverSettings
from utils.residual.residuals import mix
from utils.run.device import choose_device, memory_format
from utils.run.precision import Trusted, autocast, compiled
from utils.run.randomness import generator_for
from validate import training, validate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
ROOT, GOLDEN = Path(__file__).parents[1], Path(__file__).parent / "golden"
FASHION = get_dataset("fashion_mnist")
CPU = torch.device("cpu")
RECIPES = [recipe_of(get_dataset(name), method, 10) for name in ("cifar100", "fashion_mnist") for method in METHODS]
TEACHERS = sorted({name for recipe in RECIPES for name in recipe.relabel.teachers})
STUDENTS = sorted({recipe.validate.model for recipe in RECIPES})


@pytest.fixture
def cuda(monkeypatch) -> torch.device:
    """The device as the stages choose it, but that float32 is not rounded to TF32."""
    device = choose_device("cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return device


def golden_teacher(name, device):
    """A frozen teacher of the golden files, as a stage holds it."""
    network = load_network("ShuffleNetV2", FASHION, GOLDEN / f"{name}.safetensors")
    return network.to(device, memory_format=memory_format(device))


def angle(a, b):
    """The cosine between two changes of images: 1 where they go the same way."""
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


@pytest.mark.parametrize("terms", [("cross_entropy", "r_bn"), ("cross_entropy", "r_bn", "flatness")], ids=" ".join)
def test_a_batch_is_recovered_in_float16_as_on_a_cpu_in_float32(cuda, golden, relative, capsys, terms):
    """Two teachers in turn, two sizes with a merge between them, and a batch of 7: losses, and where the images go."""
    patches = normalise(golden("recover_single")["patches"], FASHION)[:7]
    settings = RecoverSettings(r_bn=0.01, alpha=0.5, terms=terms)
    results = []
    for device, dtype in ((CPU, None), (cuda, torch.float16)):
        plan = Plan([Stage(24, 8), Stage(32, 8)], 0.02, build_terms(settings), FASHION.jitter, crop_and_flip=True)
        start, losses = patches.to(device), []
        teachers = [
            MatchedTeacher(golden_teacher(name, device), BatchNormInput, 10.0, 32)
            for name in ("teacher_a", "teacher_b")
        ]
        images = recover_batch(
            start=start,
            labels=torch.arange(7, device=device),
            plan=plan,
            committee=lambda iteration, teachers=teachers: [(teachers[iteration % 2], 1.0)],
            residual=mix(settings, start),
            valid_range=valid_range_of(FASHION, device),
            generator=generator_for(0, "test"),
            dtype=dtype,
            watch=lambda step, losses=losses: losses.append(torch.stack(list(step.losses.values())).cpu()),
        )
        assert images.dtype == torch.float32 and images.shape == patches.shape
        results.append((images.cpu(), torch.stack(losses)))
    (expected, its_losses), (images, losses) = results
    assert relative(losses[:2], its_losses[:2]) < 1e-2
    assert relative(losses, its_losses) < 0.1
    assert angle(images - patches, expected - patches) > 0.9
    assert "note:" not in capsys.readouterr().out  # no kernel was found wanting


def test_smoothed_statistics_by_class_are_those_of_a_cpu(cuda, relative):
    """G-VBSM's and EDC's: a pass over images, then iterations with convolutions left out by chance."""
    images = torch.randn(12, 3, 32, 32, generator=generator_for("real"))
    labels = torch.arange(12) % 3
    answers = []
    for device in (CPU, cuda):
        teacher = golden_teacher("teacher_a", device)
        observer = RealObserver(teacher, ConvInput(32), 32, 3)
        observer.add([(images.to(device), labels.to(device))])
        probe = partial(ConvInput, 32, observer.whole())
        smoothed = SmoothedTeacher(MatchedTeacher(teacher, probe, 10.0, 32), 0.8, 0.3, 0.5, observer.by_class())
        smoothed.begin(labels.to(device), generator_for("batch"))
        for _ in range(3):
            leaf = images.to(device).requires_grad_(True)
            logits, distance = smoothed(leaf)
            distance.backward()
        spectrum = spectrum_loss(0.02 * leaf, list(classes_by_size(labels.to(device))))
        answers.append([part.detach().cpu() for part in (logits, distance, leaf.grad, spectrum)])
    for plain, fast in zip(*answers, strict=True):
        assert relative(fast, plain) < 1e-2


@pytest.mark.parametrize("operation", OPERATIONS)
def test_views_are_augmented_as_on_a_cpu(cuda, operation, relative):
    views, uniform = (torch.rand(shape, generator=generator_for("dsa")) for shape in ((9, 3, 32, 32), (9, 3)))
    assert relative(operation(views.to(cuda), uniform.to(cuda)).cpu(), operation(views, uniform)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_epoch_is_labelled_as_on_a_cpu(cuda, dtype, relative):
    settings = replace(VIEWS, images=21, epochs=1)
    images = torch.randint(0, 256, (21, 3, 32, 32), generator=generator_for("images"), dtype=torch.uint8)
    epoch, hidden = draw_epoch(settings, 0), tqdm(disable=True)
    labels = []
    for device, place in ((CPU, images), (cuda, images), (cuda, images.to(cuda))):
        committee = mean_logits([GroupedNetwork(golden_teacher("teacher_a", device))], [1.0], grouped=True)
        labels.append(label_epoch(place, epoch, committee, settings, 16, FASHION, device, dtype, hidden))
    assert {(found.device.type, found.dtype) for found in labels} == {("cpu", dtype)}
    assert relative(labels[1], labels[0]) < (1e-4 if dtype == torch.float32 else 1e-3)
    assert torch.equal(labels[2], labels[1])


@pytest.mark.parametrize("words", [(), ("--amp", "fp16"), ("--amp", "bf16")], ids=["float32", "float16", "bfloat16"])
def test_a_student_trains_as_on_a_cpu_and_goes_on_where_it_stopped(world, cuda, words, monkeypatch):
    """Losses of three epochs, whole and stopped after each, next to those of a CPU."""
    recover.main(world.recover())
    relabel.main(world.relabel())
    train_epoch, found = training.train_epoch, {}

    def stopping_after(epochs):
        def run(*arguments):
            if arguments[2] == epochs:
                raise KeyboardInterrupt
            return train_epoch(*arguments)

        return run

    for name, device, stops in (("cpu", CPU, ()), ("whole", cuda, ()), ("in parts", cuda, (1, 2))):
        flags = ["--exp-name", name, *(words if device == cuda else ())]
        (settings,) = validate.parse_cells(world.validate(*flags))
        data = read_distilled(settings.original_data_path, FASHION)
        (run,) = validate.runs_of(settings, data, open_store(settings.fkd_path), "0" * 64)
        run.place.mkdir(parents=True)
        paths, labels = list_images(world.val, FASHION)
        test_set = LabelledImages(load_images(paths, FASHION), labels)
        for epochs in stops:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(training, "train_epoch", stopping_after(epochs))
                training.train_student(run, test_set, FASHION, device, quiet=True)
        metrics, _ = training.train_student(run, test_set, FASHION, device, quiet=True)
        found[name] = [line["loss"] for line in metrics]
    assert found["in parts"] == pytest.approx(found["whole"], rel=1e-3)
    assert found["whole"] == pytest.approx(found["cpu"], rel=0.1 if words else 1e-3)


@pytest.mark.parametrize(
    "way", ["--group-by likeness", "--group-by difficulty --probe image_input", "--residual retrieved --terms paired=1"]
)
def test_what_recover_takes_from_real_images_is_that_of_a_cpu(world, cuda, way):
    """Passes over the training images, targets, anchors and maps, in float32."""
    flags = [*way.split(), "--train-dir", str(world.val), "--ipc", "2", "--amp", "off", "--compile", "off"]
    changes = []
    for device in ("cpu", "cuda"):
        recover.main(world.recover(*flags, "--device", device, name=device))
        for path in world.pool.glob("statistics/*"):
            path.unlink()  # the next one makes its own
        images, _, _ = read_distilled(world.root / "syn" / device, FASHION)
        patches = torch.cat([load_images(sorted(world.val.glob(f"{label}_class/*")), FASHION) for label in range(10)])
        changes.append(images.double() - patches.double())
    assert angle(*changes) > 0.9


def shared_teacher(name, cuda):
    dataset = get_dataset("cifar100")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(name, dataset)
    return network.to(cuda, memory_format=torch.channels_last), dataset


@pytest.mark.parametrize("name", TEACHERS)
def test_a_compiled_teacher_gives_the_same_numbers(cuda, name, relative):
    """In recover under float16, forward and backward, and in relabel; compared with it and then used."""
    network, dataset = shared_teacher(name, cuda)
    network.eval().requires_grad_(False)
    images = torch.randn(10, 3, 32, 32, device=cuda).contiguous(memory_format=torch.channels_last)
    answers = []
    for choice in ("off", "on"):
        matched = MatchedTeacher(copy.deepcopy(network), BatchNormInput, 10.0, dataset.size)
        teacher = compiled(matched, choice, cuda)
        for _ in range(2):
            leaf = images.clone(memory_format=torch.channels_last).requires_grad_(True)
            with autocast(cuda, torch.float16):
                logits, bn_loss = teacher(leaf)
            (1024 * (logits.square().mean() + bn_loss)).backward()
        grouped = compiled(GroupedNetwork(copy.deepcopy(network)), choice, cuda)
        with torch.no_grad():
            labels = [grouped(images, (5, 5)) for _ in range(2)][-1]
        answers.append([logits.detach(), bn_loss.detach(), leaf.grad, labels])
        for trusted in (teacher, grouped):
            if choice == "on":
                print(f"{name}: compiled and not differ by {trusted.differences}")
                assert isinstance(trusted, Trusted) and trusted.distrust is None, trusted.distrust
    differences = [relative(fast, plain) for plain, fast in zip(*answers, strict=True)]
    assert max(differences[:2]) < 2e-2 and differences[2] < 0.1 and differences[3] < 1e-2, differences


@pytest.mark.parametrize("name", STUDENTS)
def test_a_compiled_student_learns_the_same(cuda, name):
    """Whole and short batches in turn, their CUDA graphs recorded and replayed."""
    network, _ = shared_teacher(name, cuda)
    losses = []
    for choice in ("off", "on"):
        student = GroupedNetwork(copy.deepcopy(network)).train()
        learner = compiled(student, choice, cuda, small_batches=True)
        optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
        generator, losses_of_it = generator_for("student"), []
        for step in range(12):
            count = 10 if step % 4 == 3 else 16
            views = torch.randn(count, 3, 32, 32, generator=generator).to(cuda, memory_format=torch.channels_last)
            labels = torch.randn(count, 100, generator=generator).to(cuda)
            optimiser.zero_grad()
            (sizes,) = epoch_groups(count, count)
            loss = distillation_loss(learner(views, tuple(sizes)), labels, 1.0, count)
            loss.backward()
            optimiser.step()
            losses_of_it.append(loss.item())
        losses.append(losses_of_it)
        if choice == "on":
            print(f"{name}: compiled and not differ by {learner.differences}")
            assert learner.distrust is None, learner.distrust
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize(("method", "most"), [("fadrm", 12.0), ("fadrm+", 20.0)])
def test_a_batch_of_100_classes_at_224_pixels_fits_a_card(cuda, method, most):
    """Peak memory in GiB, in float16, the compiler aside."""
    cost = cost_of_an_image(method, cuda, "off")
    print(f"\n{method} at 224 pixels: {cost['seconds']:.3f} s an image, peak {cost['peak_memory_gib']:.1f} GiB")
    assert cost["peak_memory_gib"] < most


def test_the_whole_demo(tmp_path):
    """run.sh on the embedded data, IPC 1, one seed: its accuracy is far above chance."""
    known = os.environ | {"Main_Data_Path": str(tmp_path), "OMP_NUM_THREADS": "4"}
    known.pop("CUDA_VISIBLE_DEVICES", None)
    words = ["bash", "run.sh", "fashion_mnist", "fadrm+", "1", "ConvNetBN_W32", "--seed", "0"]
    ended = subprocess.run(words, env=known, cwd=ROOT, capture_output=True, text=True, timeout=420, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    print(ended.stdout[-600:])
    (result,) = (path for path in tmp_path.rglob("result.json") if "random" not in str(path))
    content = json.loads(result.read_text())
    assert content["metrics"][-1]["top1"] > 30 and content["device"].startswith("NVIDIA")
