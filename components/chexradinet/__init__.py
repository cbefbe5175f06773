"""ChexRadiNet: radiomics-guided chest X-ray classification and localisation as a batch workflow."""

__version__ = "0.1.0"
