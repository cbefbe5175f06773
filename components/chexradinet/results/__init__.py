"""What is measured and shown: metrics, calibration, drift, reports, DICOM results, telemetry."""
