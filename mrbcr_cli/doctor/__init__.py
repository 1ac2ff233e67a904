"""`mrbcr doctor`: what this installation and machine are, what is missing, and how to mend it."""
