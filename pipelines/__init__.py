"""The Kubeflow pipelines and the commands that compile, run and submit them.

Run from a checkout: `python -m pipelines --help`. Not part of the installed package.
"""
