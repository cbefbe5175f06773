"""The Kubeflow pipelines and the commands that compile, run and submit them.

Run as `chexradinet --help` shows, or as `python -m pipelines`.
"""
