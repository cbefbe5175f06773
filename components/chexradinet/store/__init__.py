"""Object storage by URI: a local directory or MinIO and other S3 stores, behind one protocol."""
