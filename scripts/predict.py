"""Segment images with a run: `python scripts/predict.py run=DIR input=PATH output=DIR`."""

from attnseg.cli import predict

if __name__ == "__main__":
    predict()
