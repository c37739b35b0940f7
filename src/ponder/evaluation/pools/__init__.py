"""Recorded pools of samples: writing them, judging them, and what strategies would have made of them."""
