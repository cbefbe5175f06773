"""ChexRadiNet: radiomics-guided chest X-ray classification and localisation as a batch workflow.

Public and stable: `load`, `Model`, `Prediction`, `FindingPrediction` (docs/api.md). They are loaded
when first used, so that `import chexradinet` takes milliseconds.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chexradinet.prediction import FindingPrediction as FindingPrediction
    from chexradinet.prediction import Model as Model
    from chexradinet.prediction import Prediction as Prediction
    from chexradinet.prediction import load as load

from chexradinet.version import __version__ as __version__

__all__ = ["FindingPrediction", "Model", "Prediction", "__version__", "load"]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'chexradinet' has no attribute {name!r}")
    from chexradinet import prediction

    return getattr(prediction, name)
