"""From sums to numbers to a verdict, for one step; nothing here needs torch."""
