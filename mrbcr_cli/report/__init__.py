"""Pages and pictures on finished outputs: before and after, and what can be measured of both.

Invariant: an output is only read here, never written, and what was left out, sampled or could not be measured is said
on the page. Whatever the size of the image, what is read and held at a time is bounded (`pair`, `places`).
"""
