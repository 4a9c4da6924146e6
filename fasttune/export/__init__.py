"""From an adapter to a GGUF file that answers as trained: the only home of gguf, llama_cpp and ollama.

    ExportRequest ─ preflight ─► ExportPlan ─ write ─► F16, Q8_0 ─ quantize ─► K-quants ─ verify ─► Artifact ─► Ollama
                    all findings              merged in the        llama.cpp's own        token ids and KL
                    at once                   stream, float32      quantizer              against float32

exporter.py holds these steps together.
"""

from fasttune.export.artifact import Artifact
from fasttune.export.exporter import export, export_run
from fasttune.export.ollama import import_into_ollama
from fasttune.export.request import ExportRequest

__all__ = ["Artifact", "ExportRequest", "export", "export_run", "import_into_ollama"]
