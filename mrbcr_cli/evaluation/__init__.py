"""`mrbcr evaluate`: networks and explicit methods against the truth, on pairs and on files."""
