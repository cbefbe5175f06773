"""Nightly scores as DICOM: structured reports and secondary captures."""
