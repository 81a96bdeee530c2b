"""How fast the operators are beside the obvious PyTorch, and beside what the machine can do: ``make bench``."""
