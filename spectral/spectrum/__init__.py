"""The spectrum lab: what frequencies images, latents and feature maps hold, and what a network does to them.

Frequencies are in cycles per pixel: f = √(f_x² + f_y²), 0.5 the Nyquist frequency along an axis, 1/√2 that of the
corner. The spectrum (DC removed, Hann window, |DFT|²/(HW)) and its azimuthal mean, the reduced spectrum, are drawn as
in the literature on spectral bias of generative models; natural images follow A/f^α with α ≈ 2; band errors are those
of Table 1 of "Diffusion Probabilistic Model Made Slim". What is measured lies in the module of its name; all of it can
be imported from here.
"""

from __future__ import annotations

from .comparing import BandErrors, DFTDifference, band_errors, dft_difference, log_ratio, spectral_distance
from .orientation import OrientedSpectrum, by_direction, oriented_spectrum
from .planes import Progress, Window, luma, radial_frequency
from .power import mean_power_spectrum, power_spectrum
from .power_law import PowerLaw, fit_power_law
from .radial import RadialSpectrum, default_bins, radial_profiles, radial_spectrum
from .wavelet_energy import BandEnergies, band_energies

__all__ = [
    "BandEnergies",
    "BandErrors",
    "DFTDifference",
    "OrientedSpectrum",
    "PowerLaw",
    "Progress",
    "RadialSpectrum",
    "Window",
    "band_energies",
    "band_errors",
    "by_direction",
    "default_bins",
    "dft_difference",
    "fit_power_law",
    "log_ratio",
    "luma",
    "mean_power_spectrum",
    "oriented_spectrum",
    "power_spectrum",
    "radial_frequency",
    "radial_profiles",
    "radial_spectrum",
    "spectral_distance",
]
