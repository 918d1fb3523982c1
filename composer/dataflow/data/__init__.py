"""Batches of sequences without padding, and the data sets that they come from."""
