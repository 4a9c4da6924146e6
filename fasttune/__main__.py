"""`python -m fasttune`, which is what torchrun and accelerate launch call."""

from fasttune.cli import main

main()
