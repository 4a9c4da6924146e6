"""A base of one layer: what a training does besides its arithmetic is the same with one layer as with four, and takes a
third of the time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fasttune.training import hub

FOLDER = Path()  # where the base lies, set by conftest.py


def write(folder: Path) -> None:
    """The built-in base with its first layer alone, as a base's folder."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(hub.TINY, folder, dirs_exist_ok=True)
    with safe_open(hub.TINY / "model.safetensors", "pt") as weights:
        kept = {name: weights.get_tensor(name) for name in weights.keys() if not is_of_another_layer(name)}  # noqa: SIM118
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "layer_types": config["layer_types"][:1], "max_window_layers": 1}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def is_of_another_layer(name: str) -> bool:
    return name.startswith("model.layers.") and not name.startswith("model.layers.0.")
