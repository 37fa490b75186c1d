"""Where the stages leave their files, seen from the project's root. dvc.yaml declares the same places."""

from pathlib import Path

PARAMS = Path("params.yaml")
RAW = Path("data/raw")
"""download: the images in CelebA's own layout."""
SHARDS = Path("data/shards")
"""preprocess: tensor shards and their index."""
CONTACT_SHEET = Path("plots/preprocess/contact-sheet.png")
MODELS = Path("models")
"""train: the model, and in ``averages`` what others are made of."""
TRAIN_PLOTS = Path("plots/train")
CHECKPOINTS = Path(".unveil/checkpoints")
"""train: scratch of an unfinished training, in the main checkout."""
RUNNING = Path(".unveil/running")
"""A locked file for each run whose process lives, in the main checkout."""
OUTBOX = Path(".unveil/outbox")
"""What MLflow's store did not take yet, by run, in the main checkout."""
PACKAGES = Path(".unveil/packages")
"""train: the model as MLflow loads it, while that takes it."""
SAMPLES = Path("samples/samples.safetensors")
BY_GUIDANCE = Path("samples/by_guidance.safetensors")
"""sample: some samples at each scale of guidance that is asked for."""
GRID = Path("samples/grid.png")
TRAJECTORY = Path("samples/trajectory.png")
ORACLE = Path("oracle/oracle.json")
"""oracle: what is known of the classifier of attributes, and beside it its weights."""
ORACLE_WEIGHTS = Path("oracle/oracle.safetensors")
METRICS = Path("metrics/evaluate.json")
CARD = Path("reports/card.json")
PAGE = Path("reports/card.md")
"""card: the card for people, made of the one that evaluate writes."""
EVALUATE_PLOTS = Path("plots/evaluate")

DOWNLOAD_RECORD = Path("data/download.run.json")
PREPROCESS_RECORD = Path("data/preprocess.run.json")
TRAIN_RECORD = Path("models/run.json")
SAMPLE_RECORD = Path("samples/run.json")
ORACLE_RECORD = Path("oracle/run.json")
EVALUATE_RECORD = Path("metrics/run.json")
"""The record of a stage's run: an output of it and nobody's dependency, since it differs at every run."""
