"""The chat template at the head of a GGUF file: read as gguf's own writer writes it, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from fasttune.export.gguf_header import chat_template


def write(path: Path, template: str | None) -> Path:
    """A GGUF file with keys of all kinds before its template."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("定影")
    writer.add_context_length(4096)
    writer.add_rope_freq_base(1e6)
    writer.add_add_bos_token(False)
    writer.add_token_list(["你", "好", "<|im_end|>"])
    writer.add_token_types([1, 1, 3])
    if template is not None:
        writer.add_chat_template(template)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_the_template_of_a_file(tmp_path: Path) -> None:
    assert chat_template(write(tmp_path / "a.gguf", "{{ messages }}，你好")) == "{{ messages }}，你好"
    assert chat_template(write(tmp_path / "b.gguf", None)) == ""


@pytest.mark.parametrize("length", [0, 3, 20, 60, 200])
def test_a_file_that_ends_too_early_has_none(tmp_path: Path, length: int) -> None:
    whole = write(tmp_path / "a.gguf", "{{ messages }}").read_bytes()
    (tmp_path / "b.gguf").write_bytes(whole[:length])
    assert chat_template(tmp_path / "b.gguf") is None


def test_what_is_no_gguf_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK" * 40)
    assert chat_template(tmp_path / "a.gguf") is None
    assert chat_template(tmp_path / "nothing.gguf") is None
