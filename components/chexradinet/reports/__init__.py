"""HTML reports, plots and overlays."""
