"""The techniques that come with cnnviz: each a plugin like any other, using public cnnviz only."""
