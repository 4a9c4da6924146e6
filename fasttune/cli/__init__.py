"""The command line: one function a verb, one file a group of the help."""

from fasttune.cli.entry import commands, main

__all__ = ["commands", "main"]
