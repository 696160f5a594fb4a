"""Score a run or masks: `python scripts/evaluate.py run=DIR profile=strict,transunet`."""

from attnseg.cli import evaluate

if __name__ == "__main__":
    evaluate()
