"""`mrbcr simulate`: PSFs, stacks and training pairs, from the numbers of a microscope to files."""
