"""One module a stage: the Kubeflow component around its flow. The only importer of kfp."""
