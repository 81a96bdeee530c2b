"""An example of a cnnviz plugin."""
