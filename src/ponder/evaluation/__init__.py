"""Estimators, intervals, curves, and the evaluation of a strategy on problems."""
