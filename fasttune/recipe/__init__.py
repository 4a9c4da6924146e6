"""The recipe: one TOML file that holds every setting of a run."""
