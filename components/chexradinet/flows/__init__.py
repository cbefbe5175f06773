"""One module a stage. A flow joins the parts below it and knows nothing of Kubernetes."""
