"""The stages: each module has `units(stage)`."""
