"""What in the input speaks for a score."""
