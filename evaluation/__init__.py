"""Metrics, dataset readers in their official layouts, and one script per benchmark."""
