"""`composer train`: a spec, an environment and a trainer in, a folder with a trained model out."""
