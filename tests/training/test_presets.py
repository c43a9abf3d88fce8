"""Presets: their settings, the settings and options that replace them, checkpoints and documentation."""

import re
from pathlib import Path
from typing import Any

import pytest

from dmm_fast import training
from dmm_fast.cli import build_parser, main
from dmm_fast.training import TrainConfig
from dmm_fast.training._folder import LAST
from dmm_fast.training._presets import PRESETS, preset_settings
from tests.helpers_train import small_data, tiny

DOCS = Path(__file__).parents[2] / "docs"
TINY = "--num-sequences 6 --mini-batch-size 4 --rnn-dim 6 --z-dim 3 --emission-dim 4 --transition-dim 5"
RUN = ["train", *TINY.split(), "--no-tensorboard", "--no-progress", "-l", ""]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_defaults_but_for_its_settings(name: str) -> None:
    config = TrainConfig.from_preset(name)
    assert config == TrainConfig(preset=name, **PRESETS[name])
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


@pytest.mark.parametrize(
    ("preset", "settings", "error", "message"),
    [
        ("best", {}, ValueError, "preset: expected one of tutorial, krishnan, .*, got best"),
        (3, {}, TypeError, "preset: expected one of tutorial, krishnan, .*, got int 3"),
        ("aug", {"z_dim": 0}, ValueError, "z_dim: expected at least 1, got 0"),
        ("aug", {"z_dims": 1}, TypeError, "z_dims"),
        ("aug", {"annealing_steps": 3, "annealing_epochs": 4}, ValueError, "annealing_steps: expected None"),
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
    training.train(tiny(tmp_path, num_epochs=1, preset="aug"), small_data())
    assert main(["train", "--resume", "--out", str(tmp_path), "--preset", "krishnan"]) == 2
    assert f"--preset: expected aug, as in {tmp_path / LAST}, got krishnan" in capsys.readouterr().err


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
