"""Procedural text that a base model is made from: one file per family. See `training.corpus.base`."""
