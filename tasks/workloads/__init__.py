"""Worked examples of workloads."""
