"""Prediction and scoring of cases under metric profiles."""
