"""Thin ComfyUI adapters over `spectral`: loading, latents, conditioning and spectra. Ids are for ever."""

from __future__ import annotations

from . import files, inputs
from .compare import CompareSpectra, DFTDifferenceNode
from .conditioning import ClassLabel, Unconditional
from .evolution import SpectrumEvolution, SpectrumTrace
from .examples import ExampleImages
from .fdm_sampler import FDMSampler
from .filters import FilterCorrelationNode
from .gates import WaveletGate
from .guidance import WaveletBands, WaveletGuidance
from .latent import EmptyLatent
from .loading import LoadCheckpoint
from .lora import LoadLora
from .response import DenoiserResponse
from .reuse import ReuseDeepFeatures
from .save_spectrum import SaveSpectrum
from .spectrum import PowerSpectrum, RadialSpectrumNode
from .trace import GateTrace, GateTracePlot
from .wiener import WienerFilter

files.register()

NODE_CLASS_MAPPINGS = {
    "SpectralDiffusionLoadCheckpoint": LoadCheckpoint,
    "SpectralDiffusionLoadLora": LoadLora,
    "SpectralDiffusionEmptyLatent": EmptyLatent,
    "SpectralDiffusionClassLabel": ClassLabel,
    "SpectralDiffusionUnconditional": Unconditional,
    "SpectralDiffusionFDMSampler": FDMSampler,
    "SpectralDiffusionWaveletGate": WaveletGate,
    "SpectralDiffusionGateTrace": GateTrace,
    "SpectralDiffusionGateTracePlot": GateTracePlot,
    "SpectralDiffusionReuseDeepFeatures": ReuseDeepFeatures,
    "SpectralDiffusionWaveletGuidance": WaveletGuidance,
    "SpectralDiffusionWaveletBands": WaveletBands,
    "SpectralDiffusionExampleImages": ExampleImages,
    "SpectralDiffusionPowerSpectrum": PowerSpectrum,
    "SpectralDiffusionRadialSpectrum": RadialSpectrumNode,
    "SpectralDiffusionCompareSpectra": CompareSpectra,
    "SpectralDiffusionDFTDifference": DFTDifferenceNode,
    "SpectralDiffusionSpectrumTrace": SpectrumTrace,
    "SpectralDiffusionSpectrumEvolution": SpectrumEvolution,
    "SpectralDiffusionWienerFilter": WienerFilter,
    "SpectralDiffusionFilterCorrelation": FilterCorrelationNode,
    "SpectralDiffusionDenoiserResponse": DenoiserResponse,
    "SpectralDiffusionSaveSpectrum": SaveSpectrum,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "SpectralDiffusionLoadCheckpoint": "Load Checkpoint (Spectral Diffusion)",
    "SpectralDiffusionLoadLora": "Load LoRA (Spectral Diffusion)",
    "SpectralDiffusionEmptyLatent": "Empty Latent (Spectral Diffusion)",
    "SpectralDiffusionClassLabel": "Class Label (Spectral Diffusion)",
    "SpectralDiffusionUnconditional": "Unconditional (Spectral Diffusion)",
    "SpectralDiffusionFDMSampler": "f-DM Sampler",
    "SpectralDiffusionWaveletGate": "Wavelet Gate",
    "SpectralDiffusionGateTrace": "Gate Trace",
    "SpectralDiffusionGateTracePlot": "Gate Trace Plot",
    "SpectralDiffusionReuseDeepFeatures": "Reuse Deep Features",
    "SpectralDiffusionWaveletGuidance": "Wavelet Guidance",
    "SpectralDiffusionWaveletBands": "Wavelet Bands",
    "SpectralDiffusionExampleImages": "Example Images (Spectral Diffusion)",
    "SpectralDiffusionPowerSpectrum": "Power Spectrum",
    "SpectralDiffusionRadialSpectrum": "Radial Spectrum",
    "SpectralDiffusionCompareSpectra": "Compare Spectra",
    "SpectralDiffusionDFTDifference": "DFT Difference",
    "SpectralDiffusionSpectrumTrace": "Spectrum Trace",
    "SpectralDiffusionSpectrumEvolution": "Spectrum Evolution",
    "SpectralDiffusionWienerFilter": "Wiener Filter",
    "SpectralDiffusionFilterCorrelation": "Filter Correlation",
    "SpectralDiffusionDenoiserResponse": "Denoiser Response",
    "SpectralDiffusionSaveSpectrum": "Save Spectrum",
}

for _name, _kind in NODE_CLASS_MAPPINGS.items():
    inputs.guard(_kind, NODE_DISPLAY_NAME_MAPPINGS[_name])
