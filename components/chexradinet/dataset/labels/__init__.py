"""Label tables of the public data sets and of plain folders."""
