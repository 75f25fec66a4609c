"""Predictors: from the text of a prompt to each expert's quality and output length."""

from qos_jax.predictors.config import PredictorConfig
from qos_jax.predictors.predictions import Predictions, mean_predictions
from qos_jax.predictors.predictor import OnProgress, Predictor, fit_predictor, out_of_fold
from qos_jax.predictors.predictor_file import load_predictor, save_predictor

__all__ = [
    "fit_predictor",
    "Predictor",
    "Predictions",
    "PredictorConfig",
    "out_of_fold",
    "mean_predictions",
    "save_predictor",
    "load_predictor",
    "OnProgress",
]
