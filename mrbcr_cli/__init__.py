"""mrbcr: deconvolve light-microscopy stacks of any size with the m-rBCR network."""

__version__ = "0.1.0"
