"""What a network does over many images."""
