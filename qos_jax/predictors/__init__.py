"""Predictors: from the text of a prompt to each expert's quality and output length."""

from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.predictions import Predictions
from qos_jax.predictors.predictor import Predictor, fit_predictor, out_of_fold
from qos_jax.predictors.predictor_file import load_predictor, save_predictor

__all__ = [
    "Predictions",
    "Predictor",
    "PredictorConfig",
    "fit_predictor",
    "load_predictor",
    "out_of_fold",
    "save_predictor",
]
