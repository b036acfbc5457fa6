"""The spectrum lab: what frequencies images, latents and feature maps hold, and what a network does to them.

Frequencies are in cycles per pixel: f = √(f_x² + f_y²), 0.5 the Nyquist frequency along an axis, 1/√2 that of the
corner. The spectrum (DC removed, Hann window, |DFT|²/(HW)) and its azimuthal mean, the reduced spectrum, are drawn as
in the literature on spectral bias of generative models; natural images follow A/f^α with α ≈ 2; band errors are those
of Table 1 of "Diffusion Probabilistic Model Made Slim". What is measured lies in the module of its name; all of it can
be imported from here.
"""

from __future__ import annotations

from .comparing import BandErrors, DFTDifference, band_errors, dft_difference, log_ratio, spectral_distance
from .evolution import Evolution
from .filters import (
    Convolution,
    FilterCorrelation,
    convolutions,
    filter_correlation,
    filter_correlations,
    independent_correlation,
    spectral_correlation,
)
from .orientation import OrientedSpectrum, by_direction, oriented_spectrum
from .planes import Progress, Window, centred_ends, luma, radial_frequency
from .power import mean_power_spectrum, power_spectrum
from .radial import RadialSpectrum, default_bins, radial_profiles, radial_spectrum
from .response import Denoiser, Response, denoiser_response, probe_count
from .slope import PowerLaw, fit_power_law
from .wavelet_energy import BandEnergies, band_energies
from .wiener import (
    WienerTable,
    kept_share,
    measured_power,
    noise_filter,
    power_law,
    predicted_power,
    reconstruction_filter,
    schedule_levels,
    wiener_table,
)

__all__ = [
    "BandEnergies",
    "BandErrors",
    "Convolution",
    "DFTDifference",
    "Denoiser",
    "Evolution",
    "FilterCorrelation",
    "OrientedSpectrum",
    "PowerLaw",
    "Progress",
    "RadialSpectrum",
    "Response",
    "WienerTable",
    "Window",
    "band_energies",
    "band_errors",
    "by_direction",
    "centred_ends",
    "convolutions",
    "default_bins",
    "denoiser_response",
    "dft_difference",
    "filter_correlation",
    "filter_correlations",
    "fit_power_law",
    "independent_correlation",
    "kept_share",
    "log_ratio",
    "luma",
    "mean_power_spectrum",
    "measured_power",
    "noise_filter",
    "oriented_spectrum",
    "power_law",
    "power_spectrum",
    "predicted_power",
    "probe_count",
    "radial_frequency",
    "radial_profiles",
    "radial_spectrum",
    "reconstruction_filter",
    "schedule_levels",
    "spectral_correlation",
    "spectral_distance",
    "wiener_table",
]
