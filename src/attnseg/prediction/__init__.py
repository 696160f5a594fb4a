"""Prediction of masks by a trained network, without torch."""
