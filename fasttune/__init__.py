"""fasttune: exact, fast LoRA/QLoRA training of small Qwen2.5 models, from a TOML recipe to a GGUF file that answers.

Importing this package imports nothing else, so that `fasttune --help` is instant.
"""

__version__ = "0.1.0"
