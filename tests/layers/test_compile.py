"""torch.compile gives every system's eager numbers, in one graph.

The quick test traces one of them into a graph and runs that as it is; compiling its kernels takes
half a minute and stands in `make test-all`, for all of them.
"""

import pytest
import torch
from zoo import ZOO, batch_of, build


@pytest.mark.parametrize(
    ("name", "backend"),
    [("unet", "eager")] + [pytest.param(name, "inductor", marks=pytest.mark.slow) for name in ZOO],
)
def test_a_compiled_model_gives_the_eager_logits(name, backend):
    torch.compiler.reset()
    model = build(name).eval()
    batch = batch_of(65, 49)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        expected = model(batch)
        found = compiled(batch)
    assert expected.keys() == found.keys()
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-3, atol=1e-4)
