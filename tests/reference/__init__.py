"""Slow, obvious twins of the algorithms: the papers' formulas in plain loops, sharing no code with cnnviz."""
