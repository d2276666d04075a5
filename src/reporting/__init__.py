"""From the records of runs to a page of statistics and pictures."""
