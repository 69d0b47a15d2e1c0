"""Metrics for evaluation, as torchmetrics."""
