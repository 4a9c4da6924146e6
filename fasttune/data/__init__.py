"""From data files to token ids: reading, formats, checks, chat template, tokenizing, the samples of each step."""
