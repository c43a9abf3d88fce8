"""The scaling suite: its cases, and the equivalence check of large ones by smaller ones."""

from dataclasses import replace

import pytest
import torch

from benchmarks import suites
from benchmarks.baseline import BaselineDMM
from benchmarks.cases import QUICK_SIZES, quick_case
from benchmarks.equivalence import check_equivalence
from benchmarks.implementations import BASELINE, IMPLEMENTATIONS
from benchmarks.run import chosen_by, threads
from benchmarks.suites import QUICK_SWEEP, Sweep, scaling, sweep_case, thread_counts


class ForgetsRowsPast(BaselineDMM):
    """Wrong for large batches: gradients of rows from the fifth on are lost."""

    def _posterior(self, z_prev, h, valid):
        h = torch.cat([h[:4], h[4:].detach()])
        return super()._posterior(z_prev, h, valid)


class ForgetsSteps(BaselineDMM):
    """Wrong for long sequences: annealed by one half from six steps on."""

    def guide(self, *args):
        super().guide(*args[:4], args[4] if args[0].shape[1] < 6 else 0.5)


class WrongAtBoth(BaselineDMM):
    """Wrong only for batches of many rows and many steps."""

    def guide(self, *args):
        rows, steps = args[0].shape[:2]
        super().guide(*args[:4], 0.5 if rows > 1 and steps > 2 else args[4])


def implementations(module):
    return [BASELINE, replace(BASELINE, name="it", module=lambda sizes: module(**sizes))]


def red(case, module):
    parameters = BASELINE.module(QUICK_SIZES).state_dict()
    check_results = check_equivalence(quick_case(case), parameters, implementations(module))
    return {(v.op.partition(",")[0], v.case.partition(" for")[0]) for v in check_results if not v.ok}


def test_axes_have_one_common_case_and_every_other_case_is_on_one_axis():
    cases = scaling(Sweep(), threads=2, cpus=2)
    assert [dict(case.along) for case in cases] == [
        {"B": 20, "T": 129, "threads": 2},
        *({"B": b} for b in (1, 4, 64, 229)),
        *({"T": t} for t in (64, 512, 2048)),
        {"threads": 1},
    ]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        ((B, T, _),) = [batch.mini_batch.shape for batch in case.batches]
        along = {"B": 20, "T": 129, "threads": 2, **case.along}
        assert (B, T, case.threads) == (along["B"], along["T"], along["threads"])
        assert case.rounds >= 3


def test_large_cases_are_checked_by_two_smaller_ones():
    shapes = {
        tuple(case.batches[0].mini_batch.shape[:2]): [
            tuple(half.batches[0].mini_batch.shape[:2]) for half in case.check_cases
        ]
        for case in scaling(Sweep(), threads=2, cpus=2)
    }
    assert shapes == {
        (20, 129): [],
        (1, 129): [],
        (4, 129): [],
        (20, 64): [],
        (64, 129): [(64, 8), (1, 129)],
        (229, 129): [(229, 8), (1, 129)],
        (20, 512): [(20, 8), (1, 512)],
        (20, 2048): [(20, 8), (1, 2048)],
    }


def test_the_unmodified_tutorial_skips_long_sequences():
    def names(T):
        return [c.name for c in chosen_by(sweep_case(Sweep(), 2, T, 1, {}), IMPLEMENTATIONS)]

    assert names(512) == ["tutorial", "tutorial mended", "PyTorch, hand-written backward", "dmm_fast"]
    assert names(2048) == ["tutorial mended", "PyTorch, hand-written backward", "dmm_fast"]


def test_an_unknown_implementation_is_an_error():
    case = replace(sweep_case(QUICK_SWEEP, 1, 3, 1, {}), implementations=("tutorial", "who"))
    with pytest.raises(ValueError, match=r"implementations: expected some of .*, got \['who'\]"):
        chosen_by(case, IMPLEMENTATIONS)


@pytest.mark.parametrize(
    ("cpus", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])], ids=str
)
def test_thread_counts(cpus, counts):
    assert thread_counts(cpus) == counts


def test_the_number_of_threads_is_restored():
    before = torch.get_num_threads()

    def fail_with_one_more():
        with threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_with_one_more()
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before


def test_a_correct_implementation_passes():
    assert red(sweep_case(QUICK_SWEEP, 5, 4, 1, {}), BaselineDMM) == set()


def test_wrong_rows_are_detected_by_the_case_with_all_rows():
    found = red(sweep_case(QUICK_SWEEP, 5, 4, 1, {}), ForgetsRowsPast)
    case = "SVI step, B=5, T=4, all full, threads=1 (quick), batch 0"
    assert found == {("SVI gradients", "B=5, T=2"), ("SVI gradients", case)}


def test_wrong_steps_are_detected_by_the_case_with_all_steps():
    found = red(sweep_case(QUICK_SWEEP, 2, 9, 1, {}), ForgetsSteps)
    assert {("SVI loss", "B=1, T=9"), ("SVI gradients", "B=1, T=9")} <= found
    assert not any(where == "B=2, T=2" for _, where in found)


def test_errors_of_large_cases_only_are_detected_in_float32():
    case = "SVI step, B=2, T=9, all full, threads=1 (quick), batch 0"
    found = red(sweep_case(QUICK_SWEEP, 2, 9, 1, {}), WrongAtBoth)
    assert found == {("SVI loss", case), ("SVI gradients", case)}


def test_quick_suite_has_every_kind_of_case():
    cases = suites.SUITES["cpu-scaling"].cases(None, True)
    assert any(case.check_cases for case in cases)
    assert any(case.not_run for case in cases)
    assert all("(quick)" in case.name and case.sizes == QUICK_SIZES for case in cases)
    assert all(half.sizes == QUICK_SIZES for case in cases for half in case.check_cases)
