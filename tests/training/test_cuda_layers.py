"""What is put into Unsloth's model on a GPU: how a row is described to it. The model itself runs in test_gpu_rows.py."""

from __future__ import annotations

from fasttune.data.tokenize import Example
from fasttune.training import cuda_layers, engine, packing


def test_how_a_row_is_described_to_unsloth() -> None:
    """Its length on the host for every row, and the layout where it holds more than one sample."""
    examples = [Example(str(n), (*range(100), 200 + n, 7, 8), ((101, 103),)) for n in range(4)]
    for samples, shares, packed in ((range(4), True, True), (range(4), False, True), ([0], True, False)):
        (row,) = packing.plan_step(examples, list(samples), 4096, shared_prefix=shares).rows
        layout = engine.collate(row, examples).layout
        arguments = cuda_layers.layout_arguments(layout)
        assert arguments["packed_seq_lengths"].tolist() == [row.tokens]
        assert arguments["packed_seq_lengths"].device.type == "cpu"  # on a GPU Unsloth would wait for it
        again = cuda_layers.layout_arguments(engine.collate(row, examples).layout)
        assert again["packed_seq_lengths"] is arguments["packed_seq_lengths"]  # a new one is copied, in a graph too
        assert ("prefix_seg_info" in arguments) == packed and arguments.get("prefix_seg_info", layout) is layout
