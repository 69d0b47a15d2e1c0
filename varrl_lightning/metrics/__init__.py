"""Metrics of evaluation, as torchmetrics."""
