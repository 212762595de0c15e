"""Scaling studies of vision pre-training: plan, train, transfer, record, draw."""

__version__ = "0.1.0"
