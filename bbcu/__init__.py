"""Binary convolution units for image restoration, the networks around them and how one is trained.

The package is a library: it knows neither Hydra nor MLflow, and importing it imports no torch.
"""

__version__ = "0.1.0"
