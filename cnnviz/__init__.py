"""See inside convolutional networks, and trust what you see."""

import lazy_loader

# Names are listed in __init__.pyi, and imported when they are asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
