"""Signatures of steps: the number of graphs, and warnings if they change too often."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO

from dmm_fast import DMM
from dmm_fast.infer import GraphedSVI
from dmm_fast.infer._signatures import changes, signature
from dmm_fast.nn import Emitter
from tests.helpers_graph import RecordedGraphs, adam
from tests.helpers_model import SIZES, small_dmm


class TestSignatures:
    def steps(self, svi: GraphedSVI, lengths: Iterable[int], *factors: Any) -> None:
        for T in lengths:
            svi.step(torch.ones(2, T, 5), None, None, torch.full((2,), T), *factors)

    def make(self, dmm: DMM | None = None, **options: Any) -> tuple[GraphedSVI, RecordedGraphs]:
        dmm, graphs = dmm or small_dmm(), RecordedGraphs()
        return GraphedSVI(dmm.model, dmm.guide, adam(), Trace_ELBO(), capturer=graphs, **options), graphs

    def test_few_are_kept_and_graphs_are_not_displaced_by_those_without(self) -> None:
        svi, graphs = self.make(max_graphs=2)
        self.steps(svi, (2, 2, 3, 3))
        for T in range(4, 12):
            self.steps(svi, [T])
            assert len(svi._kept) == min(T - 1, 4)
        assert (graphs.runs, graphs.captures) == (10, 2)
        self.steps(svi, range(2, 4))
        assert (graphs.runs, graphs.captures) == (10, 2)

    def test_one_that_starts_over_is_the_newest(self) -> None:
        dmm = small_dmm()
        svi, graphs = self.make(dmm, max_graphs=1)
        self.steps(svi, (2, 2, 3))
        dmm.emitter = Emitter(SIZES["input_dim"], SIZES["z_dim"], 8)
        self.steps(svi, (2, 2, 2))
        assert (graphs.runs, graphs.captures, graphs.replays) == (3, 2, 3)

    def test_shapes_that_displace_each_other_are_reported_once(self) -> None:
        svi, graphs = self.make(max_graphs=2)
        self.steps(svi, range(1, 18))
        with pytest.warns(RuntimeWarning) as caught:
            self.steps(svi, [*range(1, 7)] * 3)
        assert [w.filename for w in caught] == [__file__]
        message = str(caught[0].message)
        assert message.startswith(
            "signatures: expected few of them, got 16 in 18 steps that displaced another"
        )
        assert "Changes: the shape of argument 0. Remedies: pad sequences" in message
        for remedy in ("padded_steps", "max_graphs is 2", "raise max_graphs"):
            assert remedy in message
        assert graphs.captures == 0

    def test_graphs_that_displace_each_other_are_reported(self) -> None:
        svi, _ = self.make(max_graphs=1)
        with pytest.warns(RuntimeWarning, match=r"Changes: the shape of argument 0\."):
            self.steps(svi, [2, 2, 3, 3] * 9)

    def test_an_int_that_changes_is_reported_of(self) -> None:
        svi, _ = self.make(max_graphs=4)

        def annealed() -> None:
            for factor in range(1, 25):
                self.steps(svi, [3], factor)

        with pytest.warns(RuntimeWarning, match=r"value of the int argument 4\. .*as a float or a tensor"):
            annealed()
        assert len(svi._kept) == 4

    def test_the_cause_of_repeated_captures_is_reported(self) -> None:
        svi, _ = self.make()

        def scheduled() -> None:
            for i in range(20):
                for optimizer in svi.optim.optim_objs.values():
                    optimizer.param_groups[0]["lr"] = 0.1 / (i + 1)
                self.steps(svi, [3])

        with pytest.warns(RuntimeWarning, match=r"Changes: a number or a tensor of the optimizer\."):
            scheduled()

    @pytest.mark.filterwarnings("error")
    def test_a_turnover_now_and_then_is_not_reported(self) -> None:
        svi = self.make(max_graphs=1)[0]
        for T in range(1, 40):
            self.steps(svi, [T])
            # Enough replays to make the captures worthwhile.
            svi._turnover.steps += 100

    def test_names_of_what_changes(self) -> None:
        def told(one: tuple[Any, ...], other: tuple[Any, ...], **kwargs: Any) -> list[str]:
            now = signature([(other, kwargs)], (True,))
            return [change.what for change in changes(signature([(one, {"a": 1})], (True,)), now)]

        x = torch.zeros(2, 3)
        assert told((x, 0.5), (x, 0.7), a=1) == []
        assert told((x, 1), (x.double(), True), a=1) == [
            "the dtype or the device of argument 0",
            "the type of argument 1",
        ]
        assert told((x, "b", x), (x[:1], "c", None), a=2) == [
            "the shape of argument 0",
            "the value of the str argument 1",
            "the type of argument 2",
            "the value of the int argument 'a'",
        ]
        assert told((x,), (x, x), a=1) == told((x,), (x,)) == ["the number or the names of the arguments"]
        modes = changes(signature([((), {})], (True,)), signature([((), {})], (False,)))
        assert [change.what for change in modes] == ["the training modes of the modules"]
        numbers = changes(signature([((x,), {})], ()), signature([((x,), {})] * 2, ()))
        assert [change.what for change in numbers] == ["the number of steps"]
