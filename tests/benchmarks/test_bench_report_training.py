"""Report sections on guide steps, training by the command line, and tiles."""

from benchmarks.report import gpu
from benchmarks.report.guides import guide_steps_sentence, guide_steps_table
from benchmarks.report.tiles import tiles_table
from benchmarks.report.training import training_sentence, training_table
from tests.helpers_results import STEP, a_gpu_run


def test_chosen_tiles_are_listed_beside_the_fastest():
    text = tiles_table(a_gpu_run())
    assert "| 0, a_kernel | 4 x 64 x 32 | 2.5 x 64 x 32 | 4.00 | 2.50 | 1.60 | 2 |" in text
    assert "| 1, products | 9 x 64 x 32 | 9 x 64 x 32 | 9.00 | 9.00 | 1.00 | 1 |" in text
    results = a_gpu_run()
    results["cases"] = [row for row in results["cases"] if not row["extra"].get("chosen")]
    assert tiles_table(results) == ""


def test_steps_of_guides_have_a_row_each_and_a_sentence_in_the_readme():
    results = a_gpu_run()
    assert f"| {STEP}, st-r, 2 flows | dmm_fast, graphed | 3.50 | 3.15 |" in guide_steps_table(results)
    sentence = "Milliseconds of a step with each guide, dmm_fast, graphed: st-r 1.25; st-r, 2 flows 3.50."
    assert sentence in gpu.overview_parts(results)


def test_training_has_times_and_likelihoods():
    results = a_gpu_run()
    nats = "7.062 | 6.812 | 7.188 | 6.938 | 6.87"
    assert f"| JSB | dmm-fast train | 5000 | 71.2 | 14.2 | {nats} |" in training_table(results)
    assert "importance sampling with 500 draws" in training_table(results)
    sentence = "`dmm-fast train` on JSB: 5000 epochs in 71.2 s, test NLL 6.812 nats a time step; "
    assert f"{sentence}the tutorial reports 6.87." in gpu.overview_parts(results)


def test_sections_without_rows_are_empty():
    results = a_gpu_run() | {"cases": []}
    parts = (guide_steps_table, guide_steps_sentence, training_table, training_sentence, tiles_table)
    assert [part(results) for part in parts] == [""] * 5
