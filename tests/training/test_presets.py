"""Presets: their settings, the settings and options that replace them, checkpoints and documentation."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from dmm_fast import training
from dmm_fast._commands import other_defaults, train_config
from dmm_fast.cli import build_parser, main
from dmm_fast.training import TrainConfig
from dmm_fast.training._folder import LAST, settings_of
from dmm_fast.training._presets import PRESETS, preset_settings
from tests.helpers_train import small_data, tiny

DOCS = Path(__file__).parents[2] / "docs"
TINY = "--num-sequences 6 --mini-batch-size 4 --rnn-dim 6 --z-dim 3 --emission-dim 4 --transition-dim 5"
RUN = ["train", *TINY.split(), "--no-tensorboard", "--no-progress", "-l", ""]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_defaults_but_for_its_settings(name: str) -> None:
    config = TrainConfig.from_preset(name)
    assert dataclasses.replace(config, preset=None) == TrainConfig(**PRESETS[name])
    assert config.preset == name
    assert (config.kept() == TrainConfig().kept()) == (name == "tutorial")
    # Every setting is one that an option of its own sets.
    flags = build_parser().parse_args(["train"])
    assert all(hasattr(flags, setting) for setting in PRESETS[name])


def test_the_models_of_the_paper() -> None:
    config = TrainConfig.from_preset("aug-nade")
    assert (config.augment, config.emission, config.inference) == ("both", "nade", "st-r")
    assert config.annealing_factor(0, 0, 12) == 0.01 + 0.99 / 5000
    assert config.annealing_factor(416, 8, 12) == 1.0  # step 5001
    assert config.annealing_factor(416, 6, 12) < 1.0
    assert (config.scheduled_lr(10**6, 12), config.guide_weight_decay) == (8e-4, 0.0)


def test_settings_replace_those_of_a_preset() -> None:
    config = TrainConfig.from_preset("aug", z_dim=7, augment="emission", seed=3)
    assert (config.z_dim, config.augment, config.seed) == (7, "emission", 3)
    assert (config.rnn_dim, config.preset) == (600, "aug")
    # Both set the same thing.
    assert TrainConfig.from_preset("aug", annealing_epochs=5).annealing_steps is None
    assert TrainConfig.from_preset("aug", annealing_steps=5).annealed_steps(3) == 5
    assert TrainConfig.from_preset("aug", num_steps=7).in_epochs(3) == TrainConfig.from_preset(
        "aug", num_epochs=3
    )


def test_settings_replace_what_would_contradict_them() -> None:
    assert TrainConfig.from_preset("tuned", elbo="importance", num_particles=5).gradient == "total"
    assert TrainConfig.from_preset("tuned", elbo="mean_field").gradient == "total"
    assert TrainConfig.from_preset("tuned", elbo="importance", gradient="dreg").gradient == "dreg"
    assert TrainConfig.from_preset("tuned", elbo="trace").gradient == "path"
    assert TrainConfig.from_preset("tuned-aug", augment=None).past_dropout_rate == 0
    assert TrainConfig.from_preset("tuned-aug", augment="emission").past_dropout_rate == 0.2
    assert TrainConfig.from_preset("krishnan", eval_frequency=0).patience == 0
    for asked in ({"augment": None, "past_dropout_rate": 0.3}, {"patience": 2, "eval_frequency": 0}):
        with pytest.raises(ValueError, match=r"(past_dropout_rate|patience): expected 0 with"):
            TrainConfig.from_preset("tuned-aug", **asked)


def test_the_constructor_refuses_the_name_of_a_preset() -> None:
    for name in ("krishnan", "none"):
        with pytest.raises(
            ValueError, match=rf"preset: expected None; .*from_preset\('{name}'\).*, got {name}"
        ):
            TrainConfig(preset=name)
    config = TrainConfig.from_preset("aug", num_steps=4)
    assert dataclasses.replace(config, seed=3).in_epochs(2).preset == "aug"


def test_the_preset_of_a_checkpoint_may_be_unknown(tmp_path: Path) -> None:
    training.train(tiny(tmp_path, num_epochs=1), small_data())
    saved = training.load_checkpoint(tmp_path / LAST)
    later = dataclasses.replace(saved, config={**saved.config, "preset": "later"})
    training.save_checkpoint(tmp_path / LAST, later)
    settings = settings_of(tmp_path / LAST, training.load_checkpoint(tmp_path / LAST))
    assert (settings.preset, type(settings.saved()["preset"])) == ("later", str)


@pytest.mark.parametrize(
    ("preset", "settings", "error", "message"),
    [
        ("best", {}, ValueError, "preset: expected one of tutorial, krishnan, .*, got best"),
        (3, {}, TypeError, "preset: expected one of tutorial, krishnan, .*, got int 3"),
        ("aug", {"z_dim": 0}, ValueError, "z_dim: expected at least 1, got 0"),
        ("aug", {"z_dims": 1}, TypeError, "z_dims"),
        ("aug", {"annealing_steps": 3, "annealing_epochs": 4}, ValueError, "annealing_steps: expected None"),
        # A default that is given counts as given.
        (
            "aug",
            {"annealing_steps": 3, "annealing_epochs": 1000},
            ValueError,
            "annealing_steps: expected None",
        ),
        (
            "tuned",
            {"num_steps": 3, "num_epochs": 5000},
            ValueError,
            "num_steps: expected None beside num_epochs 5",
        ),
    ],
)
def test_invalid_presets_and_settings_are_named(
    preset: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TrainConfig.from_preset(preset, **settings)


def test_options_replace_those_of_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "quick", {"num_epochs": 2, "annealing_steps": 9, "recover": True, "seed": 4})
    monkeypatch.setattr("dmm_fast.cli.PRESETS", PRESETS)
    out = ["--out", str(tmp_path / "run")]
    # A default that is given counts as given.
    assert main([*RUN, *out, "--preset", "quick", "-ae", "1000", "--seed", "0"]) == 0
    saved = training.load_checkpoint(tmp_path / "run" / LAST)
    settings = ("preset", "num_epochs", "annealing_epochs", "annealing_steps", "recover", "seed", "z_dim")
    assert [saved.config[name] for name in settings] == ["quick", 2, 1000, None, True, 0, 3]
    # The preset may have changed since: a resumed run has its own settings.
    monkeypatch.setitem(PRESETS, "quick", {"z_dim": 50})
    resume = ["train", "--resume", *out, "-n", "3", "-l", "", "--no-tensorboard"]
    assert main([*resume, "--preset", "quick"]) == 0
    assert main(resume) == 0
    saved = training.load_checkpoint(tmp_path / "run" / LAST)
    assert (saved.epoch, saved.config["preset"], saved.config["z_dim"]) == (3, "quick", 3)


def test_a_run_is_not_resumed_with_another_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(tiny(tmp_path, num_epochs=1), preset=TrainConfig.from_preset("aug").preset)
    training.train(config, small_data())
    assert main(["train", "--resume", "--out", str(tmp_path), "--preset", "krishnan"]) == 2
    assert f"--preset: expected aug, as in {tmp_path / LAST}, got krishnan" in capsys.readouterr().err


def test_a_run_without_a_preset_is_not_resumed_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(tiny(tmp_path, num_epochs=1), small_data())
    assert main(["train", "--resume", "--out", str(tmp_path), "--preset", "krishnan"]) == 2
    told = f"--preset: expected to be absent, as {tmp_path / LAST} is of a run without a preset, got krishnan"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("preset", [[], ["--preset", "tuned"]], ids=["defaults", "tuned"])
def test_the_same_options_resume_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: list[str]
) -> None:
    run = [*RUN, "--out", str(tmp_path), *preset, "--eval-frequency", "0", "--annealing-steps", "3"]
    # Two mini-batches: two epochs.
    assert main([*run, "--num-steps", "3"]) == 0
    assert main([*run, "--num-steps", "3", "--resume"]) == 0
    saved = training.load_checkpoint(tmp_path / LAST)
    assert (saved.epoch, saved.config["num_epochs"], saved.config["annealing_steps"]) == (2, 2, 3)
    # A cosine schedule depends on the length of the run.
    longer = [*run, "--num-steps", "6", "--resume"]
    assert main(longer) == (2 if preset else 0)
    epochs = training.load_checkpoint(tmp_path / LAST).epoch
    assert epochs == (2 if preset else 3)
    assert main([*run, "-n", str(epochs), "--resume"]) == 0
    capsys.readouterr()
    for flags, told in (
        (["-ae", "4"], "annealing_epochs: expected 1000, as in"),
        (["-ae", "1000"], "annealing_steps: expected 3, as in"),
        (["--tmc"], "elbo: expected 'trace', as in"),
    ):
        without = ["train", "--resume", "--out", str(tmp_path), *preset, "-l", "", *flags]
        assert main(without) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-n", "5000", "--num-steps", "3"], "num_steps: expected None beside num_epochs 5000, got 3"),
        (
            ["-ae", "1000", "--annealing-steps", "3"],
            "annealing_steps: expected None beside annealing_epochs 1000",
        ),
    ],
)
@pytest.mark.parametrize("preset", [[], ["--preset", "aug"]], ids=["defaults", "aug"])
def test_options_that_exclude_each_other_are_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str, preset: list[str]
) -> None:
    assert main([*RUN, *preset, *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("objective", [["--tmc"], ["--elbo", "mean_field"]])
def test_another_objective_replaces_the_gradient_of_a_preset(objective: list[str]) -> None:
    arguments = ["train", "--preset", "tuned", *objective]
    args = build_parser().parse_args(arguments)
    given = {"preset", objective[0][2:]}
    config = train_config(build_parser(other_defaults(args, given)).parse_args(arguments))
    assert (config.gradient, config.elbo) == ("total", objective[-1].removeprefix("--"))


@pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here")
def test_help_and_documentation_list_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    listed = capsys.readouterr().out.partition("\npresets:\n")[2]
    page = (DOCS / "api" / "command_line.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(--[\w-]+ [\w.-]+)` \| (.*) \|$", page, re.M))
    shown = " ".join(listed.split())
    settings = {name: preset_settings(name).items() - {("preset", name)} for name in PRESETS}
    options = {name: {f"--{k.replace('_', '-')} {v}" for k, v in settings[name]} for name in PRESETS}
    for name, own in options.items():
        assert name in listed
        assert all(option in shown for option in own)
    assert rows.keys() == set().union(*options.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_takes_its_first_steps_at_its_own_sizes(name: str) -> None:
    quiet = {"progress": False, "tensorboard": False, "eval_frequency": 0, "patience": 0}
    # Two epochs of three steps. A loss that is not finite raises.
    config = TrainConfig.from_preset(name, num_sequences=60, num_epochs=2, **quiet)
    trainer = training.Trainer(config)
    trainer.run()
    assert trainer.steps_done == 6
