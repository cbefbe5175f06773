"""Reading radiographs: DICOM files, and archives over DICOMweb."""
