"""File formats of latent diffusion models, one module each; `checkpoint` is the door to all of them.

`safetensors_file` and `torch_file` open tensors, mapped and checked; `ldm` and `diffusers_folder` know how whole models
are laid out, `inference` what architecture their keys and shapes mean.
"""
