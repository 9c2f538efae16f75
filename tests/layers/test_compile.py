"""torch.compile gives every system's eager numbers, in one graph.

Quick tests compile one of them.
"""

import pytest
import torch
from zoo import ZOO, batch_of, build

QUICK = "unet"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == QUICK else pytest.mark.slow) for n in ZOO]
)
def test_a_compiled_model_gives_the_eager_logits(name):
    torch.compiler.reset()
    model = build(name).eval()
    batch = batch_of(65, 49)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        expected = model(batch)
        found = compiled(batch)
    assert expected.keys() == found.keys()
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-3, atol=1e-4)
