"""`fasttune sweep`: several runs of a recipe that differ in one setting or two, chosen from by held-out loss."""
