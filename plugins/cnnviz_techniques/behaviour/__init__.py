"""What the network does over many images."""
