"""The command runs, and all of its timed calls are replays."""

from benchmarks import replay_overhead
from benchmarks.cases import QUICK_SIZES


def test_prints_a_line_for_each_number_of_steps(capsys):
    given = ["--quick", "--steps", "1", "3", "--time-steps", "2", "--calls", "3", "--rounds", "2"]
    assert replay_overhead.main(given) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1 in a graph: ")
    assert second.startswith("3 in a graph: ")
    assert first.endswith(" without copies")


def test_copies_are_part_of_the_time_before_the_launch():
    for each in replay_overhead.measure(2, sizes=dict(QUICK_SIZES), T=2, calls=3, rounds=2):
        assert 0 < each.copies < each.total
