"""Quality of trained models: presets on data sets with the literature's figures, and training to a target."""
