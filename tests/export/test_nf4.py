"""NF4 in numpy against bitsandbytes, and the reference on it against the model that QLoRA trains."""

from __future__ import annotations

import numpy as np
import one_layer
import pytest
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_4bit, get_4bit_type, quantize_4bit

from fasttune.export import kept, nf4
from fasttune.export.base_reader import read_base
from fasttune.export.kept import Passage
from fasttune.recipe.schema import ModelRecipe
from fasttune.training import model as models


def test_the_tables_are_those_of_bitsandbytes() -> None:
    assert get_4bit_type("nf4", "cpu").tolist() == nf4.NF4.tolist()
    assert np.allclose(create_dynamic_map().numpy(), nf4.DYNAMIC, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(64, 64), (40, 256), (768, 128)])
@pytest.mark.parametrize(("dtype", "rounding", "ties"), [(torch.float32, 1e-4, 0.02), (torch.bfloat16, 1e-2, 4e-3)])
def test_a_matrix_comes_back_as_from_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, rounding: float, ties: float
) -> None:
    """Within the rounding of the type that bitsandbytes returns; but for a share of weights, or of scales with their 64
    weights, that lie halfway between two values and may become either."""
    torch.manual_seed(0)
    weights = (torch.randn(shape) * 0.02).to(dtype)
    weights[0, :64] = 0  # a block without a scale
    packed, state = quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    expected = dequantize_4bit(packed, state).float().numpy()
    found = nf4.rounded(weights.float().numpy())
    assert (np.abs(found - expected) > rounding * np.abs(expected) + 1e-7).mean() < ties
    assert 0.05 < np.abs(found - weights.float().numpy()).mean() / weights.float().abs().mean().item() < 0.12


def test_the_reference_in_4_bits_is_the_model_that_is_trained() -> None:
    """Log-probabilities of the base in NF4 by Unsloth and bitsandbytes on a CPU, and by numpy."""
    base = read_base(one_layer.FOLDER, [])
    assert base is not None
    ids = tuple(range(40, 72))
    passage = Passage(ids, ((1, len(ids)),))
    reference = kept.compute_reference(base, {}, [passage], is_qlora=True)
    assert reference.in_4_bits is not None
    model = models.load_base(one_layer.FOLDER, ModelRecipe(base="x", load_in_4bit=True))
    with torch.no_grad():
        exact = model.model(input_ids=torch.tensor([ids]), use_cache=False)[0][0, :-1].float().numpy()
    off = np.linalg.norm(reference.in_4_bits - exact) / np.linalg.norm(exact)
    rounding = np.linalg.norm(reference.trained - exact) / np.linalg.norm(exact)
    assert off < 0.02 * rounding  # what NF4 does to the hidden states, but for weights between two values
    found = kept.measure_4_bits(reference)
    assert found is not None and found.kl.mean() > 1e-4 and len(found.kl) == len(ids) - 1
    assert kept.measure_4_bits(kept.compute_reference(base, {}, [passage])) is None
