"""What a run will do, decided before anything is loaded: strategy, advice, a first recipe."""
