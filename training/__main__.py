"""`python -m spectral_diffusion.training COMMAND …` is the same as `spectral-diffusion COMMAND …`."""

import sys

from .cli import main

sys.exit(main())
