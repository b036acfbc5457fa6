"""Toys that reproduce, in minutes on a CPU, what the sources say of spectra; each prints its numbers and draws them.

`toy_1d` is Example 1 of the paper, `toy_2d` the image spectrum with a trough that a small model misses, `aliasing` what
sampling below twice the highest frequency does. `process` is the tiny diffusion process of the first two, and `figures`
draws all three.
"""
