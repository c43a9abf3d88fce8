"""Every op and its gradient compile into one graph by inductor."""

from typing import Any

import pytest
import torch

from tests.gpu.calls import OP_BACKENDS, assert_near, prepare

KERNELS = [(op, backend) for op, backend in OP_BACKENDS if backend != "reference"]


@pytest.mark.parametrize(("op_name", "backend"), KERNELS)
def test_one_graph_holds_the_op_and_its_gradient(op_name: str, backend: str) -> None:
    call = prepare(op_name, backend)
    expected = call.run()
    torch._dynamo.reset()  # one code object for all ops would run into the limit of recompilations
    eager = call.function

    def function(**given: Any) -> Any:
        return eager(**given)

    # Compiled in this process: inductor would start many more beside each worker of the tests. An option, as
    # the thread in which autograd compiles the backward pass would not see a patch of the configuration.
    call.function = torch.compile(function, fullgraph=True, options={"compile_threads": 1})
    assert_near(call.run(), expected)
