"""The flags that people's scripts use already: there, explained, and meaning what the recipes say."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from models import pretrain
from recover import choose_images, make_patches, recover, weigh_images
from relabel import relabel
from utils import recipes
from utils.data import prepare
from utils.run.errors import UserError
from utils.run.settings import show
from validate import validate

EVERYWHERE = "--seed --device"
VISIBLE = {  # those that --help explains
    "recover": (
        recover.main,
        "--dataset-name --exp-name --syn-data-path --recipe --ipc --teacher-model-list --pretrained-model-type "
        "--model-pool-dir --patch-dir --patch-diff --initialisation-method --input-size-lis --optimization-budgets "
        "--alpha --lr --r-bn --first-bn-multiplier --jitter --batch-size --ipc-start --ipc-end --start-index "
        "--end-index --apply-data-augmentation --store-initialised-images --store-stages --verifier "
        "--verifier-arch --verifier-weight-path --committee --layout --terms --residual --probe",
    ),
    "relabel": (
        relabel.main,
        "--dataset-name --recipe --ipc --syn-data-path --fkd-path --teacher-model-name --model-choice "
        "--model-weight --online --model-pool-dir --eval-mode --epochs --batch-size -b --fkd-seed --fkd_seed "
        "--min-scale-crops --max-scale-crops --use-fp16 --mix-type --mixup --cutmix",
    ),
    "validate": (
        validate.main,
        "--dataset-name --recipe --original-data-path --fkd-path --val-dir --output-dir --exp-name --model --ipc "
        "--epochs --batch-size --gradient-accumulation-steps --temperature -T --mix-type --cos --adamw-lr --eta "
        "--adamw-weight-decay --sgd --sgd-lr --momentum --weight-decay --min-scale --simple --workers -j --verify",
    ),
    "pretrain": (pretrain.main, "--dataset-name --model --train-dir --val-dir --model-pool-dir --epochs --lr"),
    "patches": (make_patches.main, "--dataset-name --train-dir --patch-dir --patch-diff --factor --observer"),
    "weigh": (
        weigh_images.main,
        "--dataset-name --recipe --ipc --syn-data-path --train-dir --model-pool-dir --observer",
    ),
    "choose": (choose_images.main, "--dataset-name --train-dir --ipc --syn-data-path --exp-name --selector"),
}
STAGES = ("recover", "relabel", "validate")
WITHOUT_EFFECT = {
    "recover": "--store-best-images --iteration --initialisation-dir --gpu",
    "relabel": "--multi-model --workers -j --mode --weight-temperature --keep-topk --start-epoch --gpu",
    "validate": "--fkd-seed --fkd_seed --mode --keep-topk --start-epoch --gpu",
}
REFUSED = "--world-size --rank --dist-url --dist-backend --multiprocessing-distributed"
NEEDED = {  # what there is no default for
    "recover": "--dataset-name cifar100 --syn-data-path a --exp-name b --model-pool-dir c",
    "relabel": "--dataset-name cifar100 --syn-data-path a --fkd-path b --model-pool-dir c "
    "--teacher-model-name ResNet18",
    "validate": "--dataset-name cifar100 --original-data-path a --fkd-path b --val-dir c --output-dir d --exp-name e "
    "--model ResNet18",
}


def parse(stage, *words):
    return recipes.parse(stage, [*NEEDED[stage].split(), *words])


def options_of(help_text):
    """The options that a help text explains, each with its explanation."""
    options = help_text[help_text.index("\noptions:") :]
    found = {}
    for entry in re.split(r"\n  (?=-)", options)[1:]:
        names, _, explanation = re.sub(r"\s*\n\s+", "  ", entry).partition("  ")
        for name in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", names):
            found[name] = explanation
    return found


@pytest.mark.parametrize("stage", VISIBLE)
def test_help_explains_every_flag(stage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main, flags = VISIBLE[stage]
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    options = options_of(capsys.readouterr().out)
    for flag in f"{flags} {EVERYWHERE}".split():
        assert len(options[flag].split("(default")[0]) > 3, flag
    assert all(len(explanation) > 3 for explanation in options.values())


@pytest.mark.parametrize(
    ("stage", "flag"), [(stage, flag) for stage in WITHOUT_EFFECT for flag in WITHOUT_EFFECT[stage].split()]
)
def test_old_flags_are_taken_without_effect(stage, flag, capsys):
    plain = parse(stage)
    capsys.readouterr()
    assert parse(stage, flag, "5") == plain
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"note: {flag} has no effect here: ")


@pytest.mark.parametrize(("stage", "flag"), [(stage, flag) for stage in STAGES for flag in REFUSED.split()])
def test_flags_of_the_old_launcher_are_refused(stage, flag):
    with pytest.raises(UserError, match=f"^{flag} .*torchrun"):
        parse(stage, flag, "1")


def test_the_last_mention_of_a_flag_wins():
    assert parse("recover", *["--alpha", "0.3", "--patch-dir", "p", "--alpha", "0.7"]).alpha == 0.7
    relabelled = parse("relabel", "--model-choice", "A", "B", "--teacher-model-name", "C", "--online", "--no-online")
    assert (relabelled.teachers, relabelled.source) == (("C",), "offline")
    validated = parse("validate", "--cos", "--sgd", "--no-cos")
    assert (validated.schedule, validated.optimizer) == ("linear", "sgd")


def test_two_spellings_of_gaussian():
    for spelling in ("Guassian", "Gaussian"):
        assert parse("recover", "--initialisation-method", spelling).start == "Gaussian"


# What is left out has the default of the published parser.
DEFAULTS = {
    "recover": {
        "teachers": ("ResNet18",),
        "source": "offline",
        "start": "Gaussian",
        "sizes": (32,),
        "budgets": (1000,),
        "alpha": 1.0,
        "lr": 0.1,
        "r_bn": 0.05,
        "first_bn_multiplier": 10.0,
        "classes_a_batch": 100,
        "ipc_start": 0,
        "ipc_end": 50,
        "jitter": 4,
    },
    "relabel": {
        "epochs": 300,
        "batch_size": 4,
        "fkd_seed": 42,
        "seed": 42,
        "min_scale": 0.08,
        "max_scale": 1.0,
        "mix": None,
        "mixup": 0.8,
        "cutmix": 1.0,
        "eval_mode": "F",
        "use_fp16": False,
    },
    "validate": {
        "epochs": 300,
        "batch_size": 16,
        "accumulation": 1,
        "temperature": 3.0,
        "adamw_weight_decay": 0.01,
        "optimizer": "adamw",
        "sgd_lr": 0.01,
        "momentum": 0.5,
        "weight_decay": 1e-4,
        "min_scale": 0.08,
        "schedule": "linear",
        "seed": (0,),
    },
}


@pytest.mark.parametrize("stage", DEFAULTS)
def test_defaults(stage):
    given = vars(parse(stage))
    assert {name: given[name] for name in DEFAULTS[stage]} == DEFAULTS[stage]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ["fadrm", "fadrm+", "cv-dd"])
def test_printed_settings_copied_are_the_same_run(stage, method, capsys, monkeypatch):
    for name in ("Main_Data_Path", "patch_dir", "val_dir"):
        monkeypatch.setenv(name, "/with space")
    given = recipes.parse(stage, ["--dataset-name", "cifar100", "--recipe", method, "--ipc", "10"])
    capsys.readouterr()
    show(stage, given)
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == f"{stage}: settings"
    copied = shlex.split(" ".join(row[12:] for row in rows))
    assert recipes.parse(stage, copied) == given
    at = copied.index("--recipe")
    without_recipe = recipes.parse(stage, [*copied[:at], *copied[at + 2 :]])
    assert without_recipe == replace(given, recipe=None)


def test_help_of_prepare(capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare.main(["--help"])
    assert stopped.value.code == 0
    assert "--check-images" in capsys.readouterr().out


def test_every_entry_is_named_as_it_is_called():
    for stage, (module, *_) in recipes.STAGES.items():
        path = Path(__file__).parents[1] / f"{module.replace('.', '/')}.py"
        assert "run_entry(main)" in path.read_text(), stage
