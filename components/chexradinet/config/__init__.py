"""Settings of every stage: frozen, keyword-only, checked where they are made.

The defaults are those of the trials that the model card names; `docs/adr` says why where it
matters.
"""

from chexradinet.config.base import Settings as Settings
from chexradinet.config.base import canonical_json as canonical_json
from chexradinet.config.base import digest_of as digest_of
from chexradinet.config.base import require as require
from chexradinet.config.ingest import PREPROCESSING_VERSION as PREPROCESSING_VERSION
from chexradinet.config.ingest import DicomConfig as DicomConfig
from chexradinet.config.ingest import GeometryMode as GeometryMode
from chexradinet.config.ingest import IngestConfig as IngestConfig
from chexradinet.config.ingest import PreprocessingConfig as PreprocessingConfig
from chexradinet.config.ingest import QualityConfig as QualityConfig
from chexradinet.config.ingest import SourceFormat as SourceFormat
from chexradinet.config.ingest import StoreConfig as StoreConfig
from chexradinet.config.ingest import UncertainLabel as UncertainLabel
from chexradinet.config.ingest import parse_uncertain as parse_uncertain
from chexradinet.config.training import MAX_ROUNDS_LIMIT as MAX_ROUNDS_LIMIT
from chexradinet.config.training import Backbone as Backbone
from chexradinet.config.training import EvaluationConfig as EvaluationConfig
from chexradinet.config.training import Freeze as Freeze
from chexradinet.config.training import GuidanceConfig as GuidanceConfig
from chexradinet.config.training import GuidanceRecipe as GuidanceRecipe
from chexradinet.config.training import NetworkConfig as NetworkConfig
from chexradinet.config.training import Precision as Precision
from chexradinet.config.training import Pretext as Pretext
from chexradinet.config.training import PretrainConfig as PretrainConfig
from chexradinet.config.training import PublishConfig as PublishConfig
from chexradinet.config.training import RadiomicsConfig as RadiomicsConfig
from chexradinet.config.training import RegionConfig as RegionConfig
from chexradinet.config.training import RetrainConfig as RetrainConfig
from chexradinet.config.training import ThresholdRule as ThresholdRule
from chexradinet.config.training import TrainConfig as TrainConfig
