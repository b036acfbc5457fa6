"""The one error that is meant for the person at the keyboard."""


class SpectralError(ValueError):
    """One sentence that names the thing at fault, what was expected, and what to do about it.

    The command line prints it and exits with code 2; a ComfyUI node shows it as the node's error. Nothing that
    raises it leaves a half-written file or a half-loaded model behind.
    """
