"""What is inside the network."""
