"""From images to submissions: views, ensembles, prediction."""
