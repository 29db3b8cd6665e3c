"""The maps of a `learned` growth, fitted by a stage's workers on the first batches of its own training data."""

from __future__ import annotations

from deepspeed import comm

from raystage.data.tokens import TokenWindows
from raystage.growth.learned import Fitted, Fitting, LearnedMaps, stacked
from raystage.storage.checkpoint import Checkpoint
from raystage.train.engine import DTYPES, StageEngine


def fit(engine: StageEngine, source: Checkpoint, reader: TokenWindows) -> Fitted:
    """The target's weights, the same on every worker. Collective.

    Each step takes a global batch, shared out as in training, at the stage's own optimizer.lr. Every worker reads
    all of the source and holds, until this returns, one model of the target's size in fp32 and its gradients,
    whatever the ZeRO stage; activations are not recomputed.
    """
    stage = engine.stage
    batch, context = stage.training.global_batch_tokens, stage.shape.context_length
    fitting = Fitting(
        LearnedMaps(stage.parent_shape, stage.shape),
        stacked(stage.parent_shape, source.read, engine.device),
        stage.training.optimizer.lr,
        comm.all_reduce,
        DTYPES[stage.training.precision],
    )
    for step in range(stage.growth.options.fit_steps):
        first = (stage.start_tokens + step * batch) // context
        fitting.step(engine.shares(reader.sequences(first, batch // context, context)), batch)
    return fitting.fitted()
