"""Object storage by URI: a local directory or MinIO and other S3 stores, behind one protocol."""

from chexradinet.store.opening import open_object as open_object
from chexradinet.store.opening import open_store as open_store
from chexradinet.store.protocol import ObjectInfo as ObjectInfo
from chexradinet.store.protocol import ObjectStore as ObjectStore
from chexradinet.store.protocol import require_conditional_create as require_conditional_create
from chexradinet.store.transfer import add_directory as add_directory
from chexradinet.store.transfer import download_directory as download_directory
from chexradinet.store.transfer import exists as exists
from chexradinet.store.transfer import upload_directory as upload_directory
from chexradinet.store.uri import join_uri as join_uri
from chexradinet.store.uri import parse_uri as parse_uri
