"""Figures with units and machine, as ratios to a ceiling measured in the same run."""
