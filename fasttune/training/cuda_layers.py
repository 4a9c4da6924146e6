"""What is put into Unsloth's model on a GPU: attention over packed rows.

Unsloth passes a row's layout, `prefix_seg_info`, through its layers to its function for shared prefixes. That function
is compiled (FlexAttention) and falls back on a T x T mask without a word where the compiler fails, so packed attention
takes its place. A row of one sample is left to Unsloth's own attention, which prefix_check.py compares ours with.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from fasttune.console import FasttuneError, _, error
from fasttune.machine import installed_version

if TYPE_CHECKING:
    import torch

    from fasttune.training.attention import Layout

# What is called or replaced in Unsloth, with the parameters that it must begin with.
USED = {
    "unsloth.utils.attention_dispatch._flex_shared_prefix_attention": (),
    "unsloth.utils.prefix_grouper_kernel.flex_shared_prefix_attention": ("Q", "K", "V", "prefix_seg_info", "scale"),
    "unsloth.utils.attention_dispatch.resolve_prefix_seg_info": ("kwargs", "past_key_value", "attention_mask"),
    "unsloth.utils.packing.get_packed_info_from_kwargs": ("kwargs", "device", "position_ids"),
}


def require_known_unsloth() -> None:
    """Raises FasttuneError where the installed Unsloth has no longer what is called here."""
    for path, parameters in USED.items():
        module, name = path.rsplit(".", 1)
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise unknown_unsloth(path, _("it is not there")) from None
        has = tuple(inspect.signature(found).parameters) if parameters else ()
        if has[: len(parameters)] != parameters:
            raise unknown_unsloth(path, _("its parameters are {names}", names=", ".join(has)))


def unknown_unsloth(path: str, why: str) -> FasttuneError:
    """The error for an Unsloth that was changed in a place that is called here."""
    version = installed_version("unsloth")
    return error(
        "unsloth-changed",
        _("fasttune can't train on a GPU with unsloth {version}: {name} has changed", version=version, name=path),
        why=why,
        fix=_("install the version that fasttune was tested with: `make quickstart`"),
    )


def use_packed_attention() -> None:
    """Let Unsloth's layers compute rows that come with a layout by packed attention. Raises FasttuneError where this
    version of Unsloth has another function there."""
    require_known_unsloth()
    from unsloth.utils import attention_dispatch

    attention_dispatch._flex_shared_prefix_attention = shared_prefix_attention


def shared_prefix_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float | None = None
) -> torch.Tensor:
    """In place of Unsloth's `flex_shared_prefix_attention`: query [1, T, H, D], key and value [1, T, H_kv, D]; returns
    [1, T, H, D]."""
    from fasttune.training.attention import packed_attention

    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    return packed_attention(query[0], key[0], value[0], layout, scaling)[None]


def layout_arguments(layout: Layout) -> dict[str, Any]:
    """The keyword arguments that describe a row to Unsloth's model.

    `packed_seq_lengths` lies on the host and is used by rows of one sample alone; for the others it keeps Unsloth from
    reading the boundaries out of position_ids, for which it would wait for the GPU seven times a row.
    """
    import torch

    lengths = {"packed_seq_lengths": torch.tensor([layout.own.queries], dtype=torch.int32)}
    return lengths if layout.is_single else lengths | {"prefix_seg_info": layout}
