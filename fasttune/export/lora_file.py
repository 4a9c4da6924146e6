"""The adapter alone as a GGUF file, for llama.cpp's --lora beside a GGUF file of the base.

    lora/linzhi-LoRA.gguf    general.type = adapter, adapter.type = lora, adapter.lora.alpha;
                             blk.0.attn_q.weight.lora_a (r, in) and .lora_b (out, r), float32

As llama.cpp's convert_lora_to_gguf.py writes it, with one difference. llama.cpp multiplies B @ A by alpha / r with one
alpha for the whole file, and that converter writes lora_alpha whatever the scale is: wrong for rsLoRA and for a pattern
of ranks or alphas. Here alpha is the scale times r; where modules differ, the rest of a scale is multiplied into B.

The file is loaded by llama.cpp on the base, and the logits compared with those of base and adapter in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from fasttune.console import _, error
from fasttune.export import verify
from fasttune.export.artifact import Artifact, publish
from fasttune.export.kept import kl_rows
from fasttune.export.llama import open_gguf
from fasttune.export.preflight import ExportPlan
from fasttune.export.reference import forward
from fasttune.export.source_files import FloatArray
from fasttune.export.weights import Base, Lora, Loras
from fasttune.export.write import ARCHITECTURE, check_finite, gguf_name, write_gguf
from fasttune.files import file_sha256
from fasttune.runs.epochs import weights_digest

Report = Callable[[str], None]
TYPE = "lora"  # of the artifact; no quantization type has this name
POSITIONS = 128
LARGEST_KL = 1e-3  # nats; measured 2e-5 (Qwen2.5-0.5B, r = 16), as far as an F16 file of the merged model


def make_lora_file(plan: ExportPlan, report: Report) -> Artifact:
    """Write the adapter of a plan as a GGUF file, compare and publish it.

    Raises FasttuneError for weights that are not finite, and for a file that is not the trained adapter.
    """
    request, source = plan.request, plan.source
    path = request.lora_file
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, base_file = path.with_suffix(".gguf.part"), path.with_name("base.gguf.part")
    try:
        report(_("writing the adapter as a GGUF file"))
        write_lora(partial, request.name, source.base, source.loras)
        checks: dict[str, object] = {"unchecked": _("llama-cpp-python can't be used")}
        if plan.can_check:
            report(_("writing the base for a moment, to load the adapter on it"))
            write_gguf(base_file, source.base, {}, source.vocabulary, plan.metadata, "F16")
            kl = distance(partial, base_file, plan)
            report(_("adapter: checked in llama.cpp, KL {kl:.2g}", kl=kl))
            checks = {"kl_mean": kl, "kl_limit": LARGEST_KL}
        size = partial.stat().st_size
        artifact = Artifact(path, TYPE, file_sha256(partial), size, request.run_id, request.system, checks)
        publish(partial, artifact, request.base, plan.inputs, weights_digest(request.adapter))
    finally:
        partial.unlink(missing_ok=True)
        base_file.unlink(missing_ok=True)
    return artifact


def write_lora(path: Path, name: str, base: Base, loras: Loras) -> None:
    """Write LoRA matrices into a GGUF file. Raises FasttuneError where a value is not finite."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    names = gguf.get_tensor_name_map(ARCHITECTURE, base.shape.layers)
    alpha = shared_alpha(loras)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for weight, lora in loras.items():
            stored = gguf_name(weight, names)
            for tensor, values in ((f"{stored}.lora_a", lora.a.whole()), (f"{stored}.lora_b", scaled_b(lora, alpha))):
                check_finite(weight, values, float(np.finfo(np.float32).max))
                writer.add_tensor(tensor, np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def shared_alpha(loras: Loras) -> float:
    """The alpha that most modules' scale is, as llama.cpp takes it: scale * r."""
    found = [float(np.float32(lora.scale * lora.a.shape[0])) for lora in loras.values()]
    return max(sorted(set(found)), key=found.count)


def scaled_b(lora: Lora, alpha: float) -> FloatArray:
    """B (out, r), times what alpha / r lacks of the module's scale; its very bytes where it lacks nothing."""
    rest = lora.scale * lora.a.shape[0] / alpha
    values = lora.b.whole()
    return values if abs(rest - 1) < 1e-6 else values * np.float32(rest)


def distance(adapter: Path, base_file: Path, plan: ExportPlan) -> float:
    """The mean KL(trained ‖ base file with this adapter) in nats over fixed texts.

    Raises FasttuneError above LARGEST_KL, and where llama.cpp does not take the adapter.
    """
    source = plan.source
    ids = verify.encode(source.tokenizer, "\n".join(verify.TEXTS))[: 2 * POSITIONS]
    ids = ids[: source.base.shape.context_length]
    count = min(POSITIONS, len(ids) - 1)
    trained = forward(source.base, source.loras, ids, count)
    with open_gguf(base_file, len(ids) + 1, lora=adapter) as model:
        kl = float(kl_rows(trained, model.logits(ids, last=count)).mean())
    if kl <= LARGEST_KL:
        return kl
    what = _("with this adapter llama.cpp predicts something else than was trained: KL {kl:.2g} (at most {limit:.2g})",
             kl=kl, limit=LARGEST_KL)  # fmt: skip
    fix = _("please report this with the run's provenance.json")
    raise error("gguf-too-far", what, where=adapter.name, fix=fix)
